"""The block formats of GGUF tensors: how llama.cpp stores a weight in 4 to 32 bits.

A quantized tensor is cut along its last dimension into blocks of 32 or 256 weights. A block keeps one
small integer `q` (the code) per weight and one or two float16 numbers for all of them:

    symmetric ("_0")    w = d · (q - center)     a step d                  for weights around zero
    affine    ("_1")    w = d · q + m            a step d, a minimum m     one more float16, no wasted range
    super-blocks ("_K") the same for 8 or 16 sub-blocks, whose own steps are 6- or 8-bit codes of one d

The formats are those of ggml (Gerganov and contributors, 2023; `ggml-common.h`, `ggml-quants.c`), decoded and
encoded here bit for bit as ggml does. `FORMATS` is the table; every `_decode_*` and `_split_*` says its layout.

All of them but MXFP4 are one form, `Affine`: w = scale · (code - zero) + offset, which kernels compute with as it is.

Legend: B blocks, N bytes of a block (or of a field of it), E weights of a block. Bits count from the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError

CHUNK = (
    1 << 15
)  # weights converted at a time: few enough that PyTorch starts no threads, which would spin on a busy machine
E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # the sixteen numbers of MXFP4, times two


class Affine(NamedTuple):
    """Weights as w = scale · (code - zero) + offset. S scales, one for every E/S codes in a row; offset: none or S too.

    bits: how many a code needs.
    """

    codes_BE: Tensor  # uint8
    scale_BS: Tensor
    offset_BS: Tensor | None
    zero: int
    bits: int

    def weights(self) -> Tensor:
        """float32 [B, E]."""
        codes_BSe = self.codes_BE.unflatten(1, (self.scale_BS.shape[1], -1)).float()
        w_BSe = (codes_BSe - self.zero).mul_(self.scale_BS[..., None])
        return (w_BSe if self.offset_BS is None else w_BSe.add_(self.offset_BS[..., None])).flatten(1)


@dataclass(frozen=True)
class Format:
    """One way to store weights. `encode` is missing where Cutaway reads a format but does not write it.

    Of `plain` and `split` it has one; `split` gives the integers and scales of which the weights are made.
    """

    name: str
    id: int  # ggml's number for it, as stored in the file
    elements: int  # weights per block
    bytes: int  # bytes per block
    plain: Callable[[Tensor], Tensor] | None  # uint8 [B, bytes] -> float32 [B, elements]
    encode: Callable[[Tensor], Tensor] | None = None  # float32 [B, elements] -> uint8 [B, bytes]
    split: Callable[[Tensor], Affine] | None = None  # uint8 [B, bytes] -> [B, elements]

    def decode(self, blocks: Tensor) -> Tensor:
        """uint8 [B, bytes] -> float32 [B, elements]."""
        if self.split is not None:
            return self.split(blocks).weights()
        assert self.plain is not None
        return self.plain(blocks)

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.bytes / self.elements

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of `shape` (outermost dimension first).

        Raises CutawayError if its rows are not whole blocks.
        """
        width = shape[-1] if shape else 1
        if width % self.elements:
            raise CutawayError(
                f"rows of {width} weights cannot be cut into {self.name} blocks of {self.elements}",
                hint="choose a format whose block divides the last dimension, or F16",
            )
        return math.prod(shape) // self.elements * self.bytes


def dequantize(raw: Tensor, type: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights of `shape` stored in `raw`: uint8, any shape, in the format named `type` ("Q4_1").

    Raises CutawayError for an unknown format and for a number of bytes that `shape` does not explain.
    """
    form = named(type)
    if raw.numel() != form.nbytes(shape):
        expected = form.nbytes(shape)
        raise CutawayError(f"a {type} tensor of {list(shape)} takes {expected} bytes, not {raw.numel()}")
    out = torch.empty(tuple(shape), dtype=dtype, device=raw.device)
    _by_chunks(form.decode, raw.reshape(-1, form.bytes), out.view(-1, form.elements))
    return out


def quantize(weights: Tensor, type: str) -> Tensor:
    """`weights` in the format named `type`: uint8, the last dimension now counting bytes.

    Raises CutawayError for a format that is unknown or only read, for rows that are not whole blocks, and for
    numbers it cannot hold (NaN and infinity in blocks, or a finite number that would become infinite).
    """
    form = named(type)
    encode = form.encode
    if encode is None:
        writable = ", ".join(f.name for f in FORMATS.values() if f.encode)
        raise CutawayError(f"{type} can be read but not written", hint=f"write one of {writable}")
    row = form.nbytes(weights.shape[-1:])
    out = torch.empty((*weights.shape[:-1], row), dtype=torch.uint8, device=weights.device)
    _by_chunks(lambda part: encode(part.float()), weights.reshape(-1, form.elements), out.view(-1, form.bytes))
    return out


def named(type: str) -> Format:
    """The format called `type`; CutawayError if there is none."""
    if type not in FORMATS:
        raise CutawayError(f"unknown weight format {type!r}", hint=f"known: {', '.join(FORMATS)}")
    return FORMATS[type]


def _by_chunks(convert: Callable[[Tensor], Tensor], blocks: Tensor, out: Tensor) -> None:
    """Fill the rows of `out` with `convert` of those of `blocks`, a few at a time: temporaries stay small."""
    step = CHUNK // max(blocks.shape[1], out.shape[1])
    for start in range(0, len(blocks), step):
        out[start : start + step] = convert(blocks[start : start + step])


# ---- bytes, bits and halves --------------------------------------------------------------------------------


def _as(dtype: torch.dtype, field_BN: Tensor) -> Tensor:
    """The bytes of a field read as little-endian numbers. The copy aligns them, as the file need not."""
    return field_BN.clone(memory_format=torch.contiguous_format).view(dtype)


def _half(blocks_BN: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of every block, as float32 [B, 1]."""
    return _as(torch.float16, blocks_BN[:, at : at + 2]).float()


def _unfold(field_BN: Tensor, bits: int, run: int) -> Tensor:
    """Codes of `bits` bits out of bytes: uint8 [B, N] -> uint8 [B, N·8/bits].

    Every `run` bytes hold 8/bits runs of codes, one above the other; one shift and one mask free a run:

        bits 4, run 16      byte   0  1 … 15        codes  0  1 … 15   in the low halves
                                                          16 17 … 31   in the high halves
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=field_BN.device).view(-1, 1)
    return ((field_BN.reshape(len(field_BN), -1, 1, run) >> shifts) & (2**bits - 1)).view(len(field_BN), -1)


def _fold(codes_BE: Tensor, bits: int, run: int) -> Tensor:
    """The inverse of `_unfold`: uint8 [B, E] -> uint8 [B, E·bits/8]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes_BE.device).view(-1, 1)
    stacked = codes_BE.reshape(len(codes_BE), -1, 8 // bits, run) << shifts
    return stacked.sum(2, dtype=torch.uint8).view(len(codes_BE), -1)


def _bytes(numbers_BE: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers rounded to `dtype`, as bytes. Raises CutawayError where a finite number becomes infinite."""
    rounded = numbers_BE.to(dtype)
    if not torch.equal(rounded.isinf(), numbers_BE.isinf()):
        raise CutawayError(f"a weight is too large for {dtype}", hint="write F32 or BF16")
    return rounded.contiguous().view(torch.uint8)


def _scale_bytes(scale_B1: Tensor) -> Tensor:
    """A block's step or minimum as float16 bytes. Raises CutawayError if the block held NaN or infinity."""
    if not scale_B1.isfinite().all():
        raise CutawayError("a weight is NaN or infinite", hint="mend the tensor, or write it as F32")
    return _bytes(scale_B1, torch.float16)


def _inverse(step_B1: Tensor) -> Tensor:
    """1/step, and 0 for a block so small that its step, or the inverse of it, cannot be told from nothing."""
    inverse = 1 / step_B1
    return torch.where(inverse.isfinite(), inverse, 0)


# ---- plain numbers -----------------------------------------------------------------------------------------


def _decode_f32(blocks: Tensor) -> Tensor:
    """F32, 32 bits per weight: the number itself."""
    return _as(torch.float32, blocks)


def _decode_f16(blocks: Tensor) -> Tensor:
    """F16, 16 bits per weight: 1 sign, 5 exponent, 10 mantissa bits; up to 65504."""
    return _as(torch.float16, blocks).float()


def _decode_bf16(blocks: Tensor) -> Tensor:
    """BF16, 16 bits per weight: the upper half of a float32, hence its range with 7 mantissa bits."""
    return _as(torch.bfloat16, blocks).float()


# ---- blocks of 32 ------------------------------------------------------------------------------------------


def _split_q4_0(blocks: Tensor) -> Affine:
    """Q4_0, 18 bytes for 32 weights, 4.5 bits each: w = d · (q - 8).

    0-1   d    float16
    2-17  q    4 bits: byte i holds weight i in its low half, weight i + 16 in its high half
    """
    return Affine(_unfold(blocks[:, 2:], 4, 16), _half(blocks, 0), None, 8, 4)


def _split_q4_1(blocks: Tensor) -> Affine:
    """Q4_1, 20 bytes for 32 weights, 5 bits each: w = d · q + m.

    0-1   d    float16
    2-3   m    float16, the smallest weight of the block
    4-19  q    4 bits, as in Q4_0
    """
    return Affine(_unfold(blocks[:, 4:], 4, 16), _half(blocks, 0), _half(blocks, 2), 0, 4)


def _split_q5_0(blocks: Tensor) -> Affine:
    """Q5_0, 22 bytes for 32 weights, 5.5 bits each: w = d · (q - 16).

    0-1   d    float16
    2-5   qh   the fifth bits: bit i (byte i/8) belongs to weight i
    6-21  ql   the low four bits, as in Q4_0
    """
    return Affine(_five_bits(blocks[:, 2:]), _half(blocks, 0), None, 16, 5)


def _split_q5_1(blocks: Tensor) -> Affine:
    """Q5_1, 24 bytes for 32 weights, 6 bits each: w = d · q + m.

    0-1   d    float16
    2-3   m    float16, the smallest weight of the block
    4-7   qh   the fifth bits, as in Q5_0
    8-23  ql   the low four bits, as in Q4_0
    """
    return Affine(_five_bits(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2), 0, 5)


def _split_q8_0(blocks: Tensor) -> Affine:
    """Q8_0, 34 bytes for 32 weights, 8.5 bits each: w = d · q.

    0-1   d    float16
    2-33  q    int8; the code is q + 128
    """
    return Affine(blocks[:, 2:] ^ 128, _half(blocks, 0), None, 128, 8)


def _decode_mxfp4(blocks: Tensor) -> Tensor:
    """MXFP4, 17 bytes for 32 weights, 4.25 bits each: w = 2^(e - 127) · v, as in OCP's Microscaling Formats (2023).

    0     e   8 bits, an exponent
    1-16  v   4 bits, as in Q4_0: a sign, two bits of exponent, one of mantissa, see `E2M1_DOUBLED`
    """
    return microscaled(_unfold(blocks[:, 1:], 4, 16), blocks[:, :1])


def microscaled(codes: Tensor, exponents: Tensor) -> Tensor:
    """Numbers of MXFP4, float32: the codes' values times 2^(exponent - 127). uint8 both, broadcast to each other."""
    values = torch.tensor(E2M1_DOUBLED, dtype=torch.float32, device=codes.device)[codes.int()]
    return values * torch.exp2(exponents.float() - 128)


def _five_bits(field: Tensor) -> Tensor:
    """The codes of Q5_0 and Q5_1: four bytes of fifth bits, then sixteen of low. uint8 [B, 20] -> [B, 32]."""
    return _unfold(field[:, 4:], 4, 16) | (_unfold(field[:, :4], 1, 1) << 4)


def _encode_q4_0(weights: Tensor) -> Tensor:
    step, codes = _symmetric(weights, 8)
    return torch.cat([_scale_bytes(step), _fold(codes, 4, 16)], 1)


def _encode_q4_1(weights: Tensor) -> Tensor:
    step, least, codes = _affine(weights, 15)
    return torch.cat([_scale_bytes(step), _scale_bytes(least), _fold(codes, 4, 16)], 1)


def _encode_q5_0(weights: Tensor) -> Tensor:
    step, codes = _symmetric(weights, 16)
    return torch.cat([_scale_bytes(step), _fold(codes >> 4, 1, 1), _fold(codes & 15, 4, 16)], 1)


def _encode_q5_1(weights: Tensor) -> Tensor:
    step, least, codes = _affine(weights, 31)
    halves = [_scale_bytes(step), _scale_bytes(least)]
    return torch.cat([*halves, _fold(codes >> 4, 1, 1), _fold(codes & 15, 4, 16)], 1)


def _encode_q8_0(weights: Tensor) -> Tensor:
    step = weights.abs().amax(1, keepdim=True) / 127
    ratio = weights * _inverse(step)
    size = ratio.abs()
    codes = (size.floor() + (size.frac() >= 0.5)).copysign_(ratio)  # halves away from zero, as C's roundf
    return torch.cat([_scale_bytes(step), codes.to(torch.int8).view(torch.uint8)], 1)


def _symmetric(weights: Tensor, center: int) -> tuple[Tensor, Tensor]:
    """Step and codes of w = d · (q - center), 0 <= q < 2 · center.

    Codes reach from -center to center - 1, one further down than up; the weight largest in size is given
    the far end -center whatever its sign, so d is negative where that weight is positive.
    """
    extreme = weights.gather(1, weights.abs().argmax(1, keepdim=True))
    step = extreme / -center
    codes = (weights * _inverse(step)).add_(center + 0.5).clamp_(0, 2 * center - 1)  # + 0.5, cut: rounding
    return step, codes.to(torch.uint8)


def _affine(weights: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step, minimum and codes of w = d · q + m, 0 <= q <= top."""
    least = weights.amin(1, keepdim=True)
    step = (weights.amax(1, keepdim=True) - least) / top
    codes = (weights - least).mul_(_inverse(step)).add_(0.5).clamp_(0, top)
    return step, least, codes.to(torch.uint8)


# ---- super-blocks of 256 -----------------------------------------------------------------------------------


def _split_q4_k(blocks: Tensor) -> Affine:
    """Q4_K, 144 bytes for 256 weights, 4.5 bits each: w = (d · s) · q - (dmin · m), with s, m per 32 weights.

    0-1     d     float16, step of the steps
    2-3     dmin  float16, step of the minima
    4-15    s, m  6 bits each for 8 sub-blocks, see `_six_bits`
    16-143  q     4 bits: every 32 bytes hold one sub-block in their low, the next in their high halves
    """
    return _sub_blocks(_unfold(blocks[:, 16:], 4, 32), blocks, 4)


def _split_q5_k(blocks: Tensor) -> Affine:
    """Q5_K, 176 bytes for 256 weights, 5.5 bits each: w = (d · s) · q - (dmin · m), with s, m per 32 weights.

    0-15    d, dmin, s, m   as in Q4_K
    16-47   qh    the fifth bits: bit j of byte i belongs to weight i of sub-block j
    48-175  ql    the low four bits, as in Q4_K
    """
    return _sub_blocks(_unfold(blocks[:, 48:], 4, 32) | (_unfold(blocks[:, 16:48], 1, 32) << 4), blocks, 5)


def _split_q6_k(blocks: Tensor) -> Affine:
    """Q6_K, 210 bytes for 256 weights, 6.5625 bits each: w = (d · s) · (q - 32), with s per 16 weights.

    0-127    ql   the low four bits: every 64 bytes hold 64 weights in their low, 64 in their high halves
    128-191  qh   the high two bits: every 32 bytes hold four runs of 32 weights, lowest bits first
    192-207  s    int8, 16 of them
    208-209  d    float16
    """
    codes = _unfold(blocks[:, :128], 4, 64) | (_unfold(blocks[:, 128:192], 2, 32) << 4)
    steps = _half(blocks, 208) * _as(torch.int8, blocks[:, 192:208]).float()
    return Affine(codes, steps, None, 32, 6)


def _sub_blocks(codes: Tensor, blocks: Tensor, bits: int) -> Affine:
    """Q4_K and Q5_K from codes [B, 256] and the 16 bytes that open both blocks."""
    scales, minima = _six_bits(blocks[:, 4:16])
    return Affine(codes, _half(blocks, 0) * scales, -_half(blocks, 2) * minima, 0, bits)


def _six_bits(field: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales s and minima m out of 12 bytes: uint8 [B, 12] -> two float32 [B, 8].

    bytes     bits 0-3        bits 4-5        bits 6-7
    0-3       s0 … s3, whole                  s4 … s7, high two bits
    4-7       m0 … m3, whole                  m4 … m7, high two bits
    8-11      low four bits of s4 … s7, and above them those of m4 … m7
    """
    first, second, rest = field[:, :4], field[:, 4:8], field[:, 8:]
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 6) << 4)], 1)
    minima = torch.cat([second & 63, (rest >> 4) | ((second >> 6) << 4)], 1)
    return scales.float(), minima.float()


# name, ggml's number, weights and bytes per block, plain, encode, split
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("F32", 0, 1, 4, _decode_f32, lambda weights: _bytes(weights, torch.float32)),
        Format("F16", 1, 1, 2, _decode_f16, lambda weights: _bytes(weights, torch.float16)),
        Format("BF16", 30, 1, 2, _decode_bf16, lambda weights: _bytes(weights, torch.bfloat16)),
        Format("Q4_0", 2, 32, 18, None, _encode_q4_0, _split_q4_0),
        Format("Q4_1", 3, 32, 20, None, _encode_q4_1, _split_q4_1),
        Format("Q5_0", 6, 32, 22, None, _encode_q5_0, _split_q5_0),
        Format("Q5_1", 7, 32, 24, None, _encode_q5_1, _split_q5_1),
        Format("Q8_0", 8, 32, 34, None, _encode_q8_0, _split_q8_0),
        Format("Q4_K", 12, 256, 144, None, None, _split_q4_k),
        Format("Q5_K", 13, 256, 176, None, None, _split_q5_k),
        Format("Q6_K", 14, 256, 210, None, None, _split_q6_k),
        Format("MXFP4", 39, 32, 17, _decode_mxfp4),
    )
}
