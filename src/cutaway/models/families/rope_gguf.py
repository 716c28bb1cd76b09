"""Rope scaling as llama.cpp keeps it: in GGUF metadata (linear, YaRN), or in tensors (Llama 3's, LongRoPE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.families.rope import rope_entries
from cutaway.models.spec import Spec
from cutaway.nn.positions import RopeScaling, RopeSpec, rope_frequencies
from cutaway.nn.rope_scaling import attention_factor

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FREQS, LONG, SHORT)
TRAINED = "rope.scaling.original_context_length"
ATTENTION = "rope.scaling.attn_factor"
MSCALE = "rope.scaling.yarn_log_multiplier"
BETAS = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}
PUBLISHED = (8.0, 32.0)  # factors of Llama 3.1 and 3.2


class Kept(NamedTuple):
    """What goes into the file: metadata below the architecture's name, and tensors."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def kept(spec: Spec) -> Kept:
    """How a file says the scaling of this model's rotation. Errors: one that llama.cpp does not know."""
    ropes = {(a.rope, a.rotated) for a in (layer.attention for layer in spec.layers)}
    scaled = [(rope, width) for rope, width in ropes if rope and rope.scaling]
    if not scaled:
        return Kept({}, {})
    rope, width = scaled[0]
    assert rope.scaling is not None
    found = (
        WAYS[rope.scaling.kind](rope, rope.scaling, width) if len(ropes) == 1 and rope.scaling.kind in WAYS else None
    )
    if found is None:
        raise CutawayError("this kind of rope scaling cannot be written", "GGUF", "write safetensors")
    return found


def _linear(rope: RopeSpec, s: RopeScaling, width: int) -> Kept:
    return Kept({"rope.scaling.type": "linear", "rope.scaling.factor": s.factor}, {})


def _yarn(rope: RopeSpec, s: RopeScaling, width: int) -> Kept | None:
    """llama.cpp rounds the ramp to whole pairs and derives the attention factor from the other one, or from what
    DeepSeek calls mscale_all_dim, taking mscale for the same."""
    same = s.attention_factor is None and s.mscale and s.mscale == s.mscale_all_dim
    if not s.truncate or not (same or attention_factor(s) == attention_factor(RopeScaling("yarn", s.factor))):
        return None
    further = {MSCALE: 0.1 * s.mscale} if same and s.mscale else {}
    stated = {"rope.scaling.type": "yarn", "rope.scaling.factor": s.factor, TRAINED: s.original_context}
    return Kept({**stated, **dict(zip(BETAS, (s.high, s.low), strict=True)), **further}, {})


def _llama3(rope: RopeSpec, s: RopeScaling, width: int) -> Kept:
    return Kept({}, {FREQS: slowdown(rope, width)})


def _longrope(rope: RopeSpec, s: RopeScaling, width: int) -> Kept:
    stated = {TRAINED: s.original_context, ATTENTION: attention_factor(s)}
    return Kept(stated, {LONG: torch.tensor(s.long), SHORT: torch.tensor(s.short)})


WAYS: dict[str, Callable[[RopeSpec, RopeScaling, int], Kept | None]] = {
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def slowdown(rope: RopeSpec, width: int) -> Tensor:
    """By how much a scaling slows each pair, float32 [K/2]."""
    return (rope_frequencies(RopeSpec(rope.base), width) / rope_frequencies(rope, width)).float()


def read(
    architecture: str, metadata: Mapping[str, Any], shapes: Mapping[str, Any], load: Callable[[str], Tensor]
) -> dict[str, Any]:
    """The entries of config.json that a file's metadata and tensors amount to. Errors: a scaling that is not known."""
    said = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    if said.get("rope.scale_linear", 1.0) != 1.0:  # an early spelling
        what = f"{architecture}.rope.scale_linear = {said['rope.scale_linear']!r} is not implemented"
        raise CutawayError(what, hint="use its safetensors")
    if FREQS in shapes:
        return _published(load(FREQS), float(said["rope.freq_base"]), int(said["rope.dimension_count"]))
    if LONG in shapes:
        factors = {"long_factor": load(LONG).tolist(), "short_factor": load(SHORT).tolist()}
        return _entries("longrope", factors, said, {} if _is_derived(said) else {ATTENTION: "attention_factor"})
    kind = said.get("rope.scaling.type", "none")
    return {} if kind == "none" else _entries(kind, {"factor": said.get("rope.scaling.factor", 1.0)}, said, BETAS)


def scaled(config: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the scaling that `read` found, to which the family may have added what no file says."""
    known, found = config.pop("rope_scaling", {}), said.get("rope_scaling")
    return config | said | ({"rope_scaling": {**found, **known}} if found else {})


def _entries(kind: str, entries: dict[str, Any], said: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    stated = {
        ours: said[key] for key, ours in {TRAINED: "original_max_position_embeddings", **keys}.items() if key in said
    }
    return {"rope_scaling": _plain({"rope_type": kind, **entries, **stated})}


def _is_derived(said: Mapping[str, Any]) -> bool:
    """Is a LongRoPE file's attention factor the one that follows from the two lengths?"""
    trained = said[TRAINED]
    derived = attention_factor(RopeScaling("longrope", said["context_length"] / trained, original_context=trained))
    return math.isclose(said.get(ATTENTION, derived), derived, rel_tol=1e-6)


def _plain(value: Any) -> Any:
    """Numbers as they were meant: GGUF keeps float32, in which 1.1 has become 1.10000002."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _published(slowdown_k: Tensor, base: float, width: int) -> dict[str, Any]:
    """The scaling of Llama 3 that slows pairs so. Errors: factors that no published one has."""
    for factor in PUBLISHED:
        scaling = RopeScaling("llama3", factor)
        if torch.allclose(slowdown(RopeSpec(base, scaling), width), slowdown_k, rtol=1e-3):
            return rope_entries({"base": base, "scaling": vars(scaling)})
    raise CutawayError("its factors match no published Llama 3 scaling", FREQS, "convert from the safetensors instead")
