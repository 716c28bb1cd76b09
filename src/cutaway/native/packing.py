"""Weights as the kernels read them: panels of 16 outputs, and in a panel a block for every 32 inputs.

    codes of 4 bits      4 x 64 bytes    byte 4 i + j of the p-th: output i, input 8 p + j low, 8 p + 4 + j high
    codes of 8 bits      8 x 64 bytes    byte 4 i + j of the p-th: output i, input 4 p + j
    a fifth, sixth bit   8 x  8 bytes    bit 4 i + j of the p-th 8 bytes: output i, input 4 p + j
    scale                16 float16      of each output; for codes in groups of 16, of its first and then second half
    offset               16 float16      if there is one
    floats               32 x 16         input after input

64 bytes are what one instruction multiplies: of 16 outputs the codes of 4 inputs. A matrix is read once, front to back.

`pack_floats` and `pack_codes` say it in PyTorch, for numbers from anywhere. `pack_rows` (packing.h) makes the same
bytes of rows as a file stores them, wherever each lies.
"""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.native.build import NATIVE, library

LANES = 16  # outputs of a panel
GROUP = 32  # inputs of a block
STEP = 4  # inputs of an instruction
CHUNK = 256  # panels packed at a time: temporaries stay small
TOO_LARGE = "a scale is too large for float16"


class Layout(NamedTuple):
    """How numbers become weights, see `Matrix` in kernels.cpp. bits: of a code, or 16 and 32 for floats."""

    bits: int
    zero: int = 0
    offset: bool = False
    halves: bool = False

    @property
    def bytes(self) -> int:
        """Of a block."""
        numbers = 0 if self.bits >= 16 else 1 + (self.offset or self.halves)
        return LANES * GROUP * self.bits // 8 + 2 * LANES * numbers


class Packed(NamedTuple):
    """An [N, K] matrix. blocks: uint8 [panels, K / 32, bytes]. For the others see `Matrix` in kernels.cpp."""

    blocks: Tensor
    n: int
    k: int
    bits: int
    zero: int = 0
    offset: bool = False
    halves: bool = False


def pack_floats(w_NK: Tensor) -> Packed:
    """bfloat16 stays, anything else becomes float32."""
    bits = 16 if w_NK.dtype == torch.bfloat16 else 32
    n, k = _checked(w_NK)
    w_PKL = _panels(w_NK if bits == 16 else w_NK.float()).transpose(1, 2).contiguous()
    return Packed(w_PKL.view(torch.uint8).view(len(w_PKL), k // GROUP, -1), n, k, bits)


def pack_codes(codes_NK: Tensor, scale_NS: Tensor, offset_NS: Tensor | None, zero: int, bits: int) -> Packed:
    """w = scale * (code - zero) + offset; codes uint8 of 4, 5, 6 or 8 bits, a scale for every 32 or 16 of them.

    Errors: numbers of inputs that are no multiple of 32; scales in other groups; offsets in groups of 16.
    """
    n, k = _checked(codes_NK)
    halves = scale_NS.shape[1] == k // LANES
    if scale_NS.shape[1] * (LANES if halves else GROUP) != k or (halves and offset_NS is not None):
        raise CutawayError(f"{scale_NS.shape[1]} scales for {k} inputs cannot be packed", "weights")
    numbers = [scale_NS] if offset_NS is None else [scale_NS, offset_NS]
    parts = [_codes(_panels(codes_NK), bits), *(_halves(_panels(number), k // GROUP) for number in numbers)]
    return Packed(torch.cat(parts, -1), n, k, bits, zero, offset_NS is not None, halves)


def pack_rows(
    places_N: Tensor, k: int, format: int, layout: Layout, *, threads: int = 1, march: str = NATIVE
) -> Packed:
    """Rows of k weights that lie at the addresses `places_N`, int64, in the format that has ggml's number `format`.

    Errors: as of `pack_codes`.
    """
    n = len(places_N)
    _check(k)
    kernels = library(march)
    assert kernels is not None
    blocks = torch.empty(-(-n // LANES), k // GROUP, layout.bytes, dtype=torch.uint8)
    where, into = c_void_p(places_N.contiguous().data_ptr()), c_void_p(blocks.data_ptr())
    size = (c_int64(n), c_int64(k // GROUP), c_int64(layout.bytes))
    if kernels.cutaway_pack(format, where, *size, into, threads):
        raise CutawayError(TOO_LARGE, "weights")
    return Packed(blocks, n, k, *layout)


def _checked(w_NK: Tensor) -> tuple[int, int]:
    n, k = w_NK.shape
    _check(k)
    return n, k


def _check(k: int) -> None:
    if k % GROUP:
        raise CutawayError(f"{k} inputs are no multiple of {GROUP}", "weights")


def _panels(rows_NX: Tensor) -> Tensor:
    """[P, 16, X], rows of zeros added to the last panel."""
    missing = -len(rows_NX) % LANES
    padded = torch.nn.functional.pad(rows_NX, (0, 0, 0, missing)) if missing else rows_NX
    return padded.unflatten(0, (-1, LANES))


def _codes(codes_PLK: Tensor, bits: int) -> Tensor:
    """The codes of each block, uint8 [P, K / 32, bytes]."""
    return torch.cat([_some_codes(part, bits) for part in codes_PLK.split(CHUNK)])


def _some_codes(codes_PLK: Tensor, bits: int) -> Tensor:
    steps = codes_PLK.unflatten(2, (-1, GROUP // STEP, STEP)).permute(0, 2, 3, 1, 4).flatten(3)  # [P, blocks, 8, 64]
    if bits == 8:
        return steps.flatten(2)
    low = steps & 15
    planes = [_plane((steps >> bit) & 1) for bit in range(4, bits)]
    return torch.cat([(low[:, :, 0::2] | low[:, :, 1::2] << 4).flatten(2), *planes], -1)


def _plane(bits_PBSC: Tensor) -> Tensor:
    """Eight bytes out of 64 bits, the lowest first."""
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    return (bits_PBSC.unflatten(-1, (8, 8)) * weights).sum(-1, dtype=torch.uint8).flatten(2)


def _halves(numbers_PLS: Tensor, blocks: int) -> Tensor:
    """The numbers of each block as float16, uint8 [P, blocks, bytes].

    Errors: a number that float16 cannot hold.
    """
    rounded = numbers_PLS.transpose(1, 2).to(torch.float16)
    if not rounded.isfinite().all():
        raise CutawayError(TOO_LARGE, "weights")
    return rounded.contiguous().view(torch.uint8).view(len(rounded), blocks, -1)
