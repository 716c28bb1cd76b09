"""LoRA adapters as PEFT keeps them (Hu et al. 2021, arXiv:2106.09685): what is added to some of a model's matrices.

    y_N = W_NK x_K + scale * B_NR (A_RK x_K)      scale = alpha / R, or alpha / sqrt(R) (Kalajdzievski 2023, 2312.03732)

A folder holds adapter_config.json and adapter_model.safetensors, with the names of transformers; the table of the
model's family makes ours of them. What cannot be honored is refused, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError, NotFound
from cutaway.models.build import build
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import Binding, rows_of
from cutaway.models.spec import Spec
from cutaway.nn.latent import LatentAttention
from cutaway.weights import safetensors
from cutaway.weights.checkpoint import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
FOREIGN = "it was made for another model"
TORN = "configuration and matrices do not belong together"

# Entries of the configuration that allow some values only. The other ways to begin change the model itself.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
# Entries that we obey, and those that say nothing about a trained adapter. Any other must be off.
OBEYED = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
SILENT = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern",
    "megatron_core", "loftq_config", "eva_config", "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip


class Update(NamedTuple):
    """What is added to a matrix [N, K]: scale * b_NR @ a_RK."""

    a_RK: Tensor
    b_NR: Tensor
    scale: float


Adapter = Mapping[str, Update]  # by the names of our parameters, all of them weights of linear layers


def read_adapter(path: Path, spec: Spec) -> Adapter:
    """The adapter in a folder, for a model of this architecture.

    Errors: files that are missing or damaged; what is not implemented; matrices that the model lacks or that do not
    fit it.
    """
    if not (path / CONFIG).is_file():
        raise NotFound(f"holds no {CONFIG}", str(path), "name the folder that PEFT's save_pretrained wrote")
    if not (path / TENSORS).is_file():
        raise NotFound(f"holds no {TENSORS}", str(path), "save it with safe_serialization=True")
    if spec.encoder is not None:
        raise CutawayError(f"cannot adapt {spec.family}", str(path), "only decoders without a source take adapters")
    config = read_json(path / CONFIG)
    _check(config, str(path / CONFIG))
    bindings, sizes = _modules(spec), _sizes(spec)
    updates: dict[str, Update] = {}
    for module, (a_RK, b_NR) in _pairs(path / TENSORS).items():
        scale = _scale(config, module, len(a_RK), str(path / CONFIG))
        theirs = f"{FAMILIES[spec.family].prefix}{module}"
        binding = bindings.get(module) or bindings.get(theirs)
        if binding is None or not sizes.keys() >= {*binding.ours}:
            raise CutawayError(f"adapts {module!r}, no linear layer of {spec.family} that can be adapted", str(path))
        parts = _parts(binding, b_NR, spec)
        for ours, part_NR in zip(binding.ours, parts, strict=True):
            if (len(part_NR), a_RK.shape[1]) != sizes[ours] or part_NR.shape[1] != len(a_RK):
                what = f"A {list(a_RK.shape)} and B {list(b_NR.shape)} of {module!r} do not fit {ours}"
                raise CutawayError(f"{what}, which is {list(sizes[ours])}", str(path), FOREIGN)
            updates[ours] = Update(a_RK, part_NR, scale)
    return updates


def _check(config: Mapping[str, Any], where: str) -> None:
    for key, value in config.items():
        refused = value not in ALLOWED[key] if key in ALLOWED else value and key not in (*OBEYED, *SILENT)
        if refused:
            hint = "merge it into the model with PEFT's merge_and_unload, and serve that"
            raise CutawayError(f"{key} = {value!r:.80} is not implemented", where, hint)


def _pairs(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the name of the module that they change. Errors: other tensors; one without the other."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in safetensors.read(file).items():
        match = PART.fullmatch(name)
        if match is None or tensor.dim() != 2 or not tensor.is_floating_point():
            what = f"tensor {name!r} of shape {list(tensor.shape)} is no A or B of a linear layer"
            raise CutawayError(what, str(file), "embeddings, biases and whole modules cannot be adapted")
        found.setdefault(match[1], {})[match[2]] = tensor
    if not found or (lone := next((module for module, parts in found.items() if len(parts) < 2), None)):
        what = f"has only one of A and B for {lone!r}" if found else "holds no tensors"
        raise CutawayError(what, str(file), safetensors.DAMAGED)
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _scale(config: Mapping[str, Any], module: str, rank: int, where: str) -> float:
    """Errors: numbers that make no sense; a rank other than that of the matrices."""
    stated = _of(config, "r", "rank_pattern", module, where)
    alpha = _of(config, "lora_alpha", "alpha_pattern", module, where)
    if stated != rank:
        raise CutawayError(f"says rank {stated} for {module!r}, its matrices have {rank}", where, TORN)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of(config: Mapping[str, Any], key: str, patterns: str, module: str, where: str) -> float:
    """The entry for one module: that of the first pattern which its name ends in, else the common one."""
    try:
        special = (v for p, v in (config.get(patterns) or {}).items() if re.match(rf"(.*\.)?({p})$", module))
        value = next(special, config.get(key))
    except (re.error, AttributeError, TypeError) as error:
        raise CutawayError(f"has bad {patterns}: {error}", where, safetensors.DAMAGED) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CutawayError(f"{key} is {value!r:.80} for {module!r}, not a number above 0", where, safetensors.DAMAGED)
    return value


def _modules(spec: Spec) -> dict[str, Binding]:
    """The table's rows by the names that transformers has for the modules."""
    rows = rows_of(FAMILIES[spec.family].rows, spec)
    return {theirs.removesuffix(".weight"): row for row in rows for theirs in row.theirs if theirs.endswith(".weight")}


def _sizes(spec: Spec) -> dict[str, tuple[int, int]]:
    """[N, K] of what can be adapted: linear layers of the blocks, but for those that latent attention folds away."""
    model = build(spec, "meta")
    folded = {id(up) for m in model.modules() if isinstance(m, LatentAttention) for up in (m.k_up, m.v_up)}
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in folded}
    return {f"{n}.weight": (m.out_features, m.in_features) for n, m in linear.items() if n.startswith("layers.")}


def _parts(binding: Binding, b_NR: Tensor, spec: Spec) -> tuple[Tensor, ...]:
    """B of each of our matrices: the table moves rows of theirs, or columns where theirs are stored transposed.

    Where each row goes is found by letting it move their numbers.
    """
    if binding.via is None:
        return (b_NR,)
    numbers_N1 = torch.arange(len(b_NR))[:, None]
    for numbers in (numbers_N1, numbers_N1.T):
        try:
            moved = binding.via.load(numbers, spec)
        except RuntimeError:  # parts of these sizes cannot be cut from it
            continue
        if all(part.shape[1:] == (1,) for part in moved):
            return tuple(b_NR[part[:, 0]] for part in moved)
    return (b_NR[:0],) * len(binding.ours)
