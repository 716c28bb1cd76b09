"""The ways to pack integers with scales, see `grouped`, by the names and shapes of their tensors.

GPTQ-4, GPTQ-8    X.qweight, X.scales, X.qzeros, perhaps X.g_idx
AWQ-4             X.qweight, X.scales, X.qzeros
INT-4, INT-8      X.weight_packed, X.weight_scale, X.weight_shape, perhaps X.weight_zero_point, X.weight_g_idx
INT-8             X.weight, X.weight_scale, perhaps X.weight_zero_point
"""

from __future__ import annotations

from functools import partial

from cutaway.weights import grouped
from cutaway.weights.packed import Packing, Parts, Shape

FLOATS = ("F16", "BF16", "F32")
_WORDS = (".qweight", ".scales", ".qzeros")
_INTEGERS = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")


def gptq(bits: int, less: int) -> Packing:
    """See `grouped.gptq`."""
    split = partial(grouped.gptq, bits=bits, less=less)
    return Packing(f"GPTQ-{bits}", (*_WORDS, ".g_idx"), ".weight", partial(_gptq_shape, bits=bits), split=split)


def packed_integers(bits: int) -> Packing:
    """See `grouped.packed_integers`."""
    split = partial(grouped.packed_integers, bits=bits)
    return Packing(f"INT-{bits}", _INTEGERS, ".weight", partial(_packed_integers_shape, bits=bits), split=split)


def _gptq_shape(parts: Parts, bits: int) -> Shape | None:
    (words, n), (count, same) = _matrix(parts, ".qweight", "I32"), _matrix(parts, ".scales", *FLOATS)
    k, group_K = words * 32 // bits, parts.shape(".g_idx")
    fits = group_K in ((k,), None) and (group_K is not None or _even(k, count))
    zeros = _matrix(parts, ".qzeros", "I32") == (count, n * bits // 32)
    return (n, k) if fits and zeros and n == same and n * bits % 32 == 0 else None


def _awq_shape(parts: Parts) -> Shape | None:
    (k, words), (count, n) = _matrix(parts, ".qweight", "I32"), _matrix(parts, ".scales", *FLOATS)
    zeros = _matrix(parts, ".qzeros", "I32") == (count, words)
    return (n, k) if zeros and words * 8 == n and _even(k, count) else None


def _packed_integers_shape(parts: Parts, bits: int) -> Shape | None:
    (n, words), (same, count) = _matrix(parts, ".weight_packed", "I32"), _matrix(parts, ".weight_scale", *FLOATS)
    whole, group_K = _stated_shape(parts), parts.shape(".weight_g_idx")
    k = whole[1]
    fits = group_K == (k,) if group_K is not None else _even(k, count)
    packed = _matrix(parts, ".weight_zero_point", "I32") == (-(-n * bits // 32), count)
    zeros = packed or _signed_zeros(parts, (n, count))
    return whole if fits and zeros and whole[0] == n == same and words == -(-k * bits // 32) else None


def _stated_shape(parts: Parts) -> Shape:
    """What weight_shape says; -1 twice for what is no shape of a matrix."""
    stated = parts.load((".weight_shape",)).get(".weight_shape")
    sizes = () if stated is None else tuple(map(int, stated.flatten().tolist()))
    return sizes if len(sizes) == 2 else (-1, -1)


def _integers_shape(parts: Parts) -> Shape | None:
    (n, k), (same, count) = _matrix(parts, ".weight", "I8"), _matrix(parts, ".weight_scale", *FLOATS)
    return (n, k) if _signed_zeros(parts, (n, count)) and n == same and _even(k, count) else None


def _signed_zeros(parts: Parts, shape: Shape) -> bool:
    """No zeros, or int8 ones of that shape."""
    return parts.shape(".weight_zero_point") is None or _matrix(parts, ".weight_zero_point", "I8") == shape


def _matrix(parts: Parts, end: str, *types: str) -> Shape:
    """Its two sizes; -1 twice for what is no matrix of those types."""
    shape = parts.shape(end)
    return shape if shape is not None and len(shape) == 2 and parts.type(end) in types else (-1, -1)


def _even(k: int, count: int) -> bool:
    return k > 0 and count > 0 and k % count == 0


AWQ = Packing("AWQ-4", _WORDS, ".weight", _awq_shape, split=grouped.awq)
INTEGERS = Packing(
    "INT-8", (".weight", ".weight_scale", ".weight_zero_point"), ".weight", _integers_shape, split=grouped.integers
)
