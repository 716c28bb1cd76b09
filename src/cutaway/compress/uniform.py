"""Uniform quantization: numbers as small integers, with a scale for all that share one.

    symmetric    scale = max |x| / (2^(b-1) - 1)        code = round(x / scale)            one code is left unused
    zero-point   scale = (max - min) / (2^b - 1)        code = round(x / scale + zero)     zero = round(-min / scale)

and back: x ~ scale * (code - zero). x is multiplied by 1 / scale, as kernels do. The range of a zero-point quantizer
includes 0, so that 0 stays exactly 0 (Jacob et al. 2017, arXiv:1712.05877). Halves are rounded to the even code.
Numbers share a scale by tensor, by row, or by group of neighbors in a row; other formats of this room share them the
same way.

Legend: S scales, E numbers that share one.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError

Sharing = Literal["tensor", "row"] | int
"""What shares a scale; a number is the size of a group."""


class Quantized(NamedTuple):
    """codes: integers. shape: of what was quantized."""

    codes_SE: Tensor
    scale_S1: Tensor
    zero_S1: Tensor
    shape: torch.Size

    @property
    def numbers(self) -> Tensor:
        """What the codes stand for."""
        return ((self.codes_SE - self.zero_S1) * self.scale_S1).view(self.shape)


def quantize(x: Tensor, bits: int, per: Sharing = "tensor", *, symmetric: bool = True) -> Quantized:
    """x in codes of 2 to 16 bits: -(2^(b-1) - 1) ... 2^(b-1) - 1 if symmetric, 0 ... 2^b - 1 if not.

    Errors: other numbers of bits; groups that do not fill a row.
    """
    if not 2 <= bits <= 16:
        raise CutawayError(f"must be between 2 and 16, got {bits}", "bits")
    x_SE = shared(x, per)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale_S1 = _steps(x_SE.abs().amax(1, keepdim=True), top)
        codes_SE, zero_S1 = (x_SE * (1 / scale_S1)).round().clamp(-top, top), torch.zeros_like(scale_S1)
    else:
        top = 2**bits - 1
        least_S1 = x_SE.amin(1, keepdim=True).clamp(max=0)
        scale_S1 = _steps(x_SE.amax(1, keepdim=True).clamp(min=0) - least_S1, top)
        zero_S1 = (-least_S1 / scale_S1).round()
        codes_SE = (x_SE * (1 / scale_S1) + zero_S1).round().clamp(0, top)
    return Quantized(codes_SE, scale_S1, zero_S1, x.shape)


def shared(x: Tensor, per: Sharing) -> Tensor:
    """x_SE: a row for each scale. Errors: groups that do not fill a row."""
    if per == "tensor":
        return x.reshape(1, -1)
    width = x.shape[-1] if per == "row" else per
    if width < 1 or x.shape[-1] % width:
        raise CutawayError(f"rows of {x.shape[-1]} numbers cannot be cut into groups of {per}", "per")
    return x.reshape(-1, width)


def stored_bits(bits: float, group: int, scale: float = 16) -> float:
    """Bits a number where `group` of them share a scale of so many bits."""
    return bits + scale / group


def decibels(x: Tensor, found: Tensor) -> float:
    """Signal to noise: 10 log10 of the power of x over that of the error."""
    x, error = x.double(), x.double() - found.double()
    return 10 * math.log10(float(x.square().sum() / error.square().sum()))


def _steps(range_S1: Tensor, top: int) -> Tensor:
    """The range in `top` steps; any step will do where the range is nothing."""
    return torch.where(range_S1 > 0, range_S1 / top, 1.0)
