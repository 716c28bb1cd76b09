"""NF4: sixteen numbers as far apart as weights are rare, a scale for every 64, and scales that are quantized in turn.

Dettmers et al. 2023, "QLoRA", arXiv:2305.14314. Weights are close to normal, so equal steps waste codes on the tails.
NF4's codes are quantiles: eight of the upper half of a normal distribution, seven of the lower, and 0, divided by the
largest. A block stores its largest |x|, and x / that is rounded to the nearest of the sixteen:

    block of 64    4 bits each + one float32                            4 + 32/64              = 4.5    bits a weight
    double         the float32 less their mean, in 8 bits each,
                   with a float32 for every 256 of them                 4 + 8/64 + 32/(64*256) = 4.127  bits a weight

The 8-bit numbers are "dynamic": a sign, an exponent of base ten in unary, and the bits that it leaves for a fraction
(Dettmers 2015, arXiv:1511.04561). Codes, scales and numbers are those of bitsandbytes bit for bit.

Legend: B blocks, E numbers of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.compress.uniform import shared
from cutaway.errors import CutawayError

BLOCK, SCALES = 64, 256  # numbers that share a scale, and scales that share theirs
EDGE = 0.9677083  # the outermost quantile as published: half a step from the end, the mean of 15 and of 16 steps
DECADES = 7  # of dynamic numbers


class Doubled(NamedTuple):
    """Scales in 8 bits: offset + dynamic number * scale of each 256."""

    codes_B: Tensor
    scale_S: Tensor
    offset: Tensor

    @property
    def numbers(self) -> Tensor:
        """What the codes stand for, float32 [B]."""
        values_SE = _padded(dynamic()[self.codes_B.int()], SCALES) * self.scale_S[:, None]
        return values_SE.flatten()[: len(self.codes_B)] + self.offset


class NormalFloat(NamedTuple):
    """codes: indices of `nf4`. scale_B: of each block, float32 or doubled."""

    codes_BE: Tensor
    scale_B: Tensor | Doubled
    shape: torch.Size

    @property
    def numbers(self) -> Tensor:
        """What the codes stand for, float32."""
        scale_B = self.scale_B.numbers if isinstance(self.scale_B, Doubled) else self.scale_B
        return (nf4()[self.codes_BE.int()] * scale_B[:, None]).view(self.shape)

    @property
    def packed(self) -> Tensor:
        """Two codes a byte, the first above the second."""
        return (self.codes_BE[:, 0::2] << 4 | self.codes_BE[:, 1::2]).flatten()


def quantize(x: Tensor, *, double: bool = True, block: int = BLOCK) -> NormalFloat:
    """x in NF4. Errors: rows that are not whole blocks, numbers that are not finite."""
    x_BE = shared(x.float(), block)
    scale_B, codes_BE = _nearest(x_BE, nf4())
    if not scale_B.isfinite().all():
        raise CutawayError("a weight is NaN or infinite", hint="mend the tensor")
    return NormalFloat(codes_BE, quantize_scales(scale_B) if double else scale_B, x.shape)


def quantize_scales(scale_B: Tensor) -> Doubled:
    """Scales in 8 bits each and a scale for every 256 of them."""
    offset = scale_B.mean()
    scale_S, codes_SE = _nearest(_padded(scale_B - offset, SCALES), dynamic())
    return Doubled(codes_SE.flatten()[: len(scale_B)], scale_S, offset)


def bits(double: bool, block: int = BLOCK) -> float:
    """Bits a weight, scales included."""
    return 4 + (8 / block + 32 / (block * SCALES) if double else 32 / block)


def nf4() -> Tensor:
    """The sixteen numbers, float32, ascending from -1 to 1."""
    upper, lower = (torch.special.ndtri(torch.linspace(EDGE, 0.5, n + 1)[:-1].double()).float() for n in (8, 7))
    return (torch.cat([upper, torch.zeros(1), -lower]) / upper.max()).sort().values


def dynamic() -> Tensor:
    """The 256 dynamic numbers, float32, ascending: a decade has twice as many as the one below it; 0; and 1."""
    found = [torch.tensor([0.0, 1.0])]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        size = 10.0 ** (decade - DECADES + 1) * ((edges[:-1] + edges[1:]) / 2)
        found += [size, -size]
    return torch.cat(found).sort().values


def _nearest(x_BE: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest |x| of each block, and the indices of the values nearest to x / that; 0 stays 0."""
    scale_B1 = x_BE.abs().amax(1, keepdim=True)
    ratio_BE = (x_BE * torch.where(scale_B1 > 0, 1 / scale_B1, 0)).clamp(-1, 1)
    return scale_B1[:, 0], torch.bucketize(ratio_BE, (values[:-1] + values[1:]) / 2).to(torch.uint8)


def _padded(x_B: Tensor, width: int) -> Tensor:
    """x_SE, zeros added to the last row."""
    return torch.nn.functional.pad(x_B, (0, -len(x_B) % width)).view(-1, width)
