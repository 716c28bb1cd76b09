"""Matrices of small integers whose scale, and zero, is shared by a group of inputs: GPTQ, AWQ, compressed-tensors.

    w = scale · (code - zero)       one scale and one zero for every output and group of inputs

    GPTQ (Frantar and others, 2022, arXiv 2210.17323), as AutoGPTQ and GPTQModel write it. Without g_idx groups lie in
    order; with it, and with inputs quantized in another order than they lie ("desc_act"), a group is anywhere.
        qweight   int32 [K·bits/32, N]      the codes of one output's neighboring inputs
        qzeros    int32 [S, N·bits/32]      the zeros of neighboring outputs, in format v1 less one
        scales    [S, N]
        g_idx     int32 [K]                 the group of each input
    AWQ (Lin and others, 2023, arXiv 2306.00978), as AutoAWQ's "gemm" writes it: of eight outputs 0 2 4 6 1 3 5 7.
        qweight   int32 [K, N/8]            the codes of neighboring outputs, always of 4 bits
        qzeros    int32 [S, N/8]
        scales    [S, N]
    compressed-tensors, "pack-quantized". Codes are signed numbers, to which half of their range was added.
        weight_packed       int32 [N, K·bits/32], words not always full
        weight_scale        [N, S]
        weight_zero_point   int32 [N·bits/32, S] the same way, once int8 [N, S]; none: half of the range
        weight_shape        int64 [2]: N, K
        weight_g_idx        int [K]
    compressed-tensors, "int-quantized": weight int8 [N, K], weight_scale [N, S], weight_zero_point int8 [N, S].

A word holds the first code in its lowest bits. Legend: N outputs, K inputs, S groups, B blocks of 32 inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError

BLOCK = 32  # inputs of a block of GGUF
INTERLEAVED = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word AWQ puts each of eight outputs
HALF_ERROR = 2.0**-11  # the most that a float16 is off, as a fraction of the number, unless that is very small

Parts = Mapping[str, Tensor]
"""The tensors of a matrix by how their names end."""


class Grouped(NamedTuple):
    """A matrix. group_K: the group of each input; None: groups lie in order and are equally large."""

    codes_NK: Tensor  # uint8
    scale_NS: Tensor
    zero_NS: Tensor  # integers
    bits: int
    group_K: Tensor | None = None

    def weights(self) -> Tensor:
        """float32 [N, K]: exact unless the scales are float32."""
        group_K = self._in_order() if self.group_K is None else self.group_K
        w_NK = self.codes_NK.float().sub_(self.zero_NS.float()[:, group_K])
        return w_NK.mul_(self.scale_NS.float()[:, group_K])

    def blocks(self) -> tuple[Tensor, str] | None:
        """The same codes as rows of GGUF blocks, uint8 [N, bytes], and the name of their format.

        Q4_0 and Q8_0 if every zero is half of the range, else Q4_1 with offset -scale · zero, rounded to float16. None
        where that would not be the same matrix: blocks of 32 with two scales, inputs out of order (kernels do not
        permute what they multiply), numbers that float16 cannot hold, zeros of 8 bits, which no format has.
        """
        k, count = self.codes_NK.shape[1], self.scale_NS.shape[1]
        even = bool((self.zero_NS == 1 << (self.bits - 1)).all())
        if k % (BLOCK * count) or not self._is_in_order() or (self.bits == 8 and not even):
            return None
        scale_NS = self.scale_NS.float()
        numbers = [scale_NS] if even else [scale_NS, -scale_NS * self.zero_NS]
        if not all(map(_fits_float16, numbers)):
            return None
        halves = [_halves(number_NS, k // BLOCK // count) for number_NS in numbers]
        codes_NB32 = self.codes_NK.unflatten(1, (-1, BLOCK))
        made = torch.cat([*halves, codes_NB32 ^ 128 if self.bits == 8 else _nibbles(codes_NB32)], 2)
        return made.flatten(1), "Q8_0" if self.bits == 8 else "Q4_0" if even else "Q4_1"

    def _in_order(self) -> Tensor:
        k, count = self.codes_NK.shape[1], self.scale_NS.shape[1]
        return torch.arange(k) // (k // count)

    def _is_in_order(self) -> bool:
        return self.group_K is None or torch.equal(self.group_K.long(), self._in_order())


def gptq(parts: Parts, bits: int, less: int) -> Grouped:
    """less: what was taken from a zero before it was stored, one in format v1. Errors: groups that do not exist."""
    scale_SN, group_K = parts[".scales"], parts.get(".g_idx")
    zero_SN = _codes(parts[".qzeros"], bits).short() + less
    return Grouped(_codes(parts[".qweight"].T, bits), scale_SN.T, zero_SN.T, bits, _checked(group_K, len(scale_SN)))


def awq(parts: Parts) -> Grouped:
    """The outputs of a word are put back in order."""
    words = (parts[".qweight"], parts[".qzeros"])
    codes_KN, zero_SN = (_codes(t, 4).unflatten(1, (-1, 8))[..., INTERLEAVED].flatten(1) for t in words)
    return Grouped(codes_KN.T.contiguous(), parts[".scales"].T, zero_SN.T, 4)


def packed_integers(parts: Parts, bits: int) -> Grouped:
    """compressed-tensors, "pack-quantized". Errors: groups that do not exist."""
    scale_NS, k = parts[".weight_scale"], int(parts[".weight_shape"][1])
    zero_NS = _zeros(parts.get(".weight_zero_point"), scale_NS, bits)
    group_K = _checked(parts.get(".weight_g_idx"), scale_NS.shape[1])
    return Grouped(_codes(parts[".weight_packed"], bits)[:, :k].contiguous(), scale_NS, zero_NS, bits, group_K)


def integers(parts: Parts) -> Grouped:
    """compressed-tensors, "int-quantized", of 8 bits. Where a file says to round activations, that is not done."""
    scale_NS = parts[".weight_scale"]
    zero_NS = _zeros(parts.get(".weight_zero_point"), scale_NS, 8)
    return Grouped(parts[".weight"].view(torch.uint8) ^ 128, scale_NS, zero_NS, 8)


def _zeros(stored: Tensor | None, scale_NS: Tensor, bits: int) -> Tensor:
    """Zeros of compressed-tensors, with half of the range added as to the codes: none, packed, or signed numbers."""
    if stored is not None and stored.dtype == torch.int32:
        return _codes(stored.T, bits)[:, : len(scale_NS)].T
    middle = torch.full(scale_NS.shape, 1 << (bits - 1), dtype=torch.int16)
    return middle if stored is None else middle + stored


def _codes(words: Tensor, bits: int) -> Tensor:
    """uint8 [..., W · 32 / bits] out of int32 [..., W]."""
    octets = words.contiguous().view(torch.uint8)
    return octets if bits == 8 else torch.stack([octets & 15, octets >> 4], -1).flatten(-2)


def _checked(group_K: Tensor | None, count: int) -> Tensor | None:
    """Errors: groups that do not exist."""
    if group_K is None:
        return None
    if group_K.numel() and not 0 <= int(group_K.min()) <= int(group_K.max()) < count:
        raise CutawayError(f"g_idx names groups other than its {count}", "weights", "the file is damaged")
    return group_K.long()


def _fits_float16(numbers: Tensor) -> bool:
    """Whether float16 holds them as well as it holds anything."""
    half = numbers.half().float()
    return bool(((half - numbers).abs() <= HALF_ERROR * numbers.abs()).all())


def _halves(number_NS: Tensor, blocks: int) -> Tensor:
    """Of each block of every group the number as float16, uint8 [N, B, 2]."""
    half_NB = number_NS.half().repeat_interleave(blocks, 1).contiguous()
    return half_NB.view(torch.uint8).unflatten(1, (-1, 2))


def _nibbles(codes_NB32: Tensor) -> Tensor:
    """Two codes in a byte, 16 inputs apart."""
    return codes_NB32[..., :16] | codes_NB32[..., 16:] << 4
