"""What `quantization_config` of a config.json says of how matrices are packed.

Each method has its own vocabulary; what is not known to be read exactly is refused here, by name, before any tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from cutaway.errors import CutawayError
from cutaway.weights.integers import AWQ, INTEGERS, gptq, packed_integers
from cutaway.weights.packed import TILE, Packing

Config = Mapping[str, Any]
KEYS = ("quantization_config", "compression_config")
BITS = (4, 8)
ZERO_LESS = {"gptq": 1, "gptq_v2": 0}  # what the two formats of GPTQ take from a zero before they store it
ELSEWHERE = "take the original model, or one packed by GPTQ, AWQ or compressed-tensors in 4 or 8 bits, or a GGUF file"


def packings_of(config: Config, where: str) -> tuple[Packing, ...]:
    """How a checkpoint's matrices may be packed, beside the ways that their names tell.

    Errors: methods, and variants of them, that are not implemented.
    """
    stated = next((config[key] for key in KEYS if config.get(key)), None)
    if stated is None:
        return ()
    if not isinstance(stated, dict):
        raise CutawayError("quantization_config should be an object", where, "the file is damaged")
    method = str(stated.get("quant_method"))
    if method not in METHODS:
        _refuse(method, where)
    try:
        return METHODS[method](stated, where)
    except (AttributeError, TypeError) as error:
        raise CutawayError(f"has a bad quantization_config: {error!r}", where, "the file is damaged") from None


def _gptq(stated: Config, where: str) -> tuple[Packing, ...]:
    """Every matrix may have another number of bits ("dynamic" of GPTQModel); shapes tell."""
    version = str(stated.get("checkpoint_format") or stated.get("format") or "gptq").lower()
    if version not in ZERO_LESS or stated.get("is_marlin_format"):
        _refuse(f"GPTQ in the format {'marlin' if stated.get('is_marlin_format') else version}", where)
    _check_bits(stated.get("bits"), "GPTQ", where)
    return tuple(gptq(bits, ZERO_LESS[version]) for bits in BITS)


def _awq(stated: Config, where: str) -> tuple[Packing, ...]:
    version = str(stated.get("version") or stated.get("checkpoint_format") or stated.get("format") or "gemm").lower()
    if version != "gemm":
        _refuse(f"AWQ in the version {version}", where)
    if not stated.get("zero_point", True):
        _refuse("AWQ without zeros", where)
    bits = stated.get("bits", stated.get("w_bit", 4))
    if bits != 4:
        _refuse(f"AWQ of {bits} bits", where)
    return (AWQ,)


def _compressed_tensors(stated: Config, where: str) -> tuple[Packing, ...]:
    """Every group of matrices may have a format of its own."""
    groups = list(stated.get("config_groups", {}).values())
    for what in ("kv_cache_scheme", "transform_config"):
        if stated.get(what):
            _refuse(f"compressed-tensors with {what}", where)
    sparse = (stated.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense":
        _refuse(f"compressed-tensors with {sparse}", where)
    return tuple(dict.fromkeys(packing for group in groups for packing in _of_group(group, stated, where)))


def _of_group(group: Config, stated: Config, where: str) -> tuple[Packing, ...]:
    form, weights = str(group.get("format") or stated.get("format")), group.get("weights") or {}
    if form not in COMPRESSED:
        _refuse(f"compressed-tensors in the format {form}", where)
    if weights.get("type", "int") != "int":
        _refuse(f"compressed-tensors in the format {form} of {weights['type']}s", where)
    if (strategy := weights.get("strategy")) not in ("channel", "group"):
        _refuse(f"compressed-tensors with scales for each {strategy}", where)
    for what in ("input_activations", "output_activations"):
        if (rounded := group.get(what)) and rounded.get("dynamic") is not True:
            _refuse(f"compressed-tensors with fixed scales of {what}", where)
    _check_bits(weights.get("num_bits"), "compressed-tensors", where)
    return (COMPRESSED[form](weights["num_bits"]),)


def _fp8(stated: Config, where: str) -> tuple[Packing, ...]:
    """Known by its names, if there is a scale for each tile; other FP8 has one for each row, or for all."""
    if list(stated.get("weight_block_size") or ()) != [TILE, TILE]:
        _refuse(f"FP8 with weight_block_size {stated.get('weight_block_size')}", where)
    return ()


def _check_bits(bits: Any, method: str, where: str) -> None:
    if bits not in BITS:
        _refuse(f"{method} of {bits} bits", where)


def _refuse(what: str, where: str) -> NoReturn:
    raise CutawayError(f"is quantized by {what}, which is not implemented", where, ELSEWHERE)


COMPRESSED: dict[str, Callable[[int], Packing]] = {
    "pack-quantized": packed_integers,
    "int-quantized": lambda bits: INTEGERS,
}
METHODS: dict[str, Callable[[Config, str], tuple[Packing, ...]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "mxfp4": lambda stated, where: (),
}
