"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv:2404.14219, arXiv:2412.08905): Llama, its matrices fused.

Query, key and value are one matrix, gate and up another. The long-context versions slow each rotary pair by its own
factor (LongRoPE); Phi-4-mini rotates three quarters of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cutaway.models.families import llama
from cutaway.models.families.rope import head_dim, read_rope, write_rope
from cutaway.models.families.table import Config, Family, Field, Row, Via, one, same, split

QKV = tuple(f"layers.{{i}}.attention.{name}.weight" for name in ("q", "k", "v"))
GATE_UP = ("layers.{i}.ffn.gate.weight", "layers.{i}.ffn.up.weight")
HALVES = Via(lambda t, s: t.chunk(2), lambda ts, s: torch.cat(ts))


def write_ropes(attentions: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The trained length stands beside the scaling as well, where Phi's configuration looks for it first."""
    entries = write_rope(attentions)
    trained = entries.get("rope_scaling", {}).get("original_max_position_embeddings")
    return entries if trained is None else {**entries, "original_max_position_embeddings": trained}


def gguf_config(metadata: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What share of a head turns, and a window of 0, which means none."""
    width = metadata["phi3.embedding_length"] // metadata["phi3.attention.head_count"]
    part = metadata.get("phi3.rope.dimension_count", width) / width
    return {
        **llama.gguf_sizes(metadata, shapes),
        "sliding_window": metadata.get("phi3.attention.sliding_window") or None,
        **({"partial_rotary_factor": part} if part != 1.0 else {}),
    }


FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM", "Phi3Model"),
    gguf="phi3",
    fields=(
        *llama.sizes(kv_heads=lambda c: c["num_attention_heads"], dim=head_dim),
        Field("vocab", lambda c: c["vocab_size"], lambda vocab: {"vocab_size": vocab, "pad_token_id": None}),
        same("rms_norm_eps", "layer.norm.eps", 1e-5),
        Field("final_norm.eps", lambda c: c.get("rms_norm_eps", 1e-5)),
        Field("layer.attention.rope", read_rope, write_ropes, given="layer.attention"),
        llama.SCALE,
        llama.ACTIVATION,
        Field(
            "layer.attention.window",
            lambda c: c.get("sliding_window"),
            lambda windows: {"sliding_window": one(windows, "layer.attention.window")},
        ),
    ),
    constants=llama.GATED_RMS_DECODER,
    rows=(
        *(
            row
            for row in llama.ROWS
            if not any(n in row.theirs for n in ("q_proj", "k_proj", "v_proj", "gate_", "up_"))
        ),
        Row("model.layers.{i}.self_attn.qkv_proj.weight", QKV, split(0)),
        Row("model.layers.{i}.mlp.gate_up_proj.weight", GATE_UP, HALVES),
    ),
    gguf_rows=(
        *(row for row in llama.GGUF_ROWS if not any(n in row.theirs for n in ("_q.", "_k.", "_v.", "_gate.", "_up."))),
        Row("blk.{i}.attn_qkv.weight", QKV, split(0)),
        Row("blk.{i}.ffn_up.weight", GATE_UP, HALVES),
    ),
    gguf_keys={key: entry for key, entry in llama.GGUF_KEYS.items() if key != "attention.key_length"}
    | {"attention.sliding_window": "sliding_window"},
    gguf_config=gguf_config,
    gguf_extra=lambda spec: {"rope.dimension_count": spec.layers[0].attention.rotated},
    ignored=llama.FAMILY.ignored,
)
