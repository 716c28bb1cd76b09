"""Normalization: LayerNorm (Ba et al. 2016, arXiv:1607.06450) and RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467).

    LayerNorm(x) = (x - mean(x)) / sqrt(var(x) + eps) * w + b
    RMSNorm(x)   =  x            / sqrt(mean(x^2) + eps) * w

RMSNorm drops the mean and the bias: one reduction fewer, and the same scale invariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NormSpec:
    """kind: which formula. unit_offset: the weight is stored as its distance from one (Gemma)."""

    kind: Literal["rms", "layer"]
    eps: float
    unit_offset: bool = False


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is: statistics over a row of bfloat16 would lose the result."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """x_TD -> x_TD with unit root mean square per row, times a learned weight."""

    def __init__(self, width: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps, self.unit_offset = eps, unit_offset
        self.weight = nn.Parameter(torch.zeros(width) if unit_offset else torch.ones(width))

    def forward(self, x_TD: Tensor) -> Tensor:
        wide_TD = at_least_float32(x_TD)
        unit_TD = wide_TD * torch.rsqrt(wide_TD.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.unit_offset:  # Gemma multiplies before it rounds to the model's dtype, Llama after
            return (unit_TD * (1 + at_least_float32(self.weight))).to(x_TD.dtype)
        return self.weight * unit_TD.to(x_TD.dtype)


class LayerNorm(nn.Module):
    """x_TD -> x_TD with zero mean and unit variance per row, times a learned weight, plus a learned bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_TD: Tensor) -> Tensor:
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)


def make_norm(spec: NormSpec, width: int) -> nn.Module:
    """The module that `spec` describes, over vectors of `width`."""
    if spec.kind == "rms":
        return RMSNorm(width, spec.eps, spec.unit_offset)
    return LayerNorm(width, spec.eps)
