"""Normalization: LayerNorm (Ba et al. 2016, arXiv:1607.06450), RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467)
and batch normalization (Ioffe & Szegedy 2015, arXiv:1502.03167).

    LayerNorm(x) = (x - mean(x)) / sqrt(var(x) + eps) * w + b       mean and variance of one token, over its width
    RMSNorm(x)   =  x            / sqrt(mean(x^2) + eps) * w
    BatchNorm(x) = (x - mean(x)) / sqrt(var(x) + eps) * w + b       mean and variance of one feature, over all tokens

RMSNorm drops the mean and the bias: one reduction fewer, and the same scale invariance. BatchNorm makes a token's
result depend on the other tokens of the batch, and so has to do something else at inference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import CutawayError


@dataclass(frozen=True)
class NormSpec:
    """kind: which formula. unit_offset: an RMSNorm's weight is stored as its distance from one (Gemma).

    bias: whether the kinds that add one (layer, batch) do.
    """

    kind: Literal["rms", "layer", "batch"]
    eps: float
    unit_offset: bool = False
    bias: bool = True


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
    """x_TD -> x_TD with zero mean and unit variance per row, times a learned weight, plus a learned bias if any."""

    def __init__(self, width: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x_TD: Tensor) -> Tensor:
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)


class BatchNorm(nn.Module):
    """x_TD -> x_TD with zero mean and unit variance per column, times a learned weight, plus a learned bias if any.

    Training takes mean and variance of the batch's own tokens, whatever sequences they belong to, and moves running
    ones a step of `momentum` towards them; evaluation takes the running ones. Errors: a single token in training,
    which has no variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float, bias: bool = True, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x_TD: Tensor) -> Tensor:
        wide_TD = at_least_float32(x_TD)
        mean_D, var_D = self._statistics(wide_TD.flatten(0, -2))
        scaled_TD = (wide_TD - mean_D) * torch.rsqrt(var_D + self.eps) * self.weight
        return (scaled_TD if self.bias is None else scaled_TD + self.bias).to(x_TD.dtype)

    def _statistics(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalize by. What is kept of a batch for evaluation is its unbiased variance."""
        if not self.training:
            return self.running_mean, self.running_var
        if len(x_TD) < 2:
            raise CutawayError("one token has no variance", "BatchNorm", "train on more, or call eval() first")
        var_D, mean_D = torch.var_mean(x_TD, 0, correction=0)
        unbiased_D = var_D * len(x_TD) / (len(x_TD) - 1)
        for running_D, seen_D in ((self.running_mean, mean_D), (self.running_var, unbiased_D)):
            running_D.lerp_(seen_D.detach().to(running_D.dtype), self.momentum)
        return mean_D, var_D


NORMS: dict[str, Callable[[NormSpec, int], nn.Module]] = {
    "rms": lambda spec, width: RMSNorm(width, spec.eps, spec.unit_offset),
    "layer": lambda spec, width: LayerNorm(width, spec.eps, spec.bias),
    "batch": lambda spec, width: BatchNorm(width, spec.eps, spec.bias),
}


def make_norm(spec: NormSpec | None, width: int) -> nn.Module:
    """The module that `spec` describes, over vectors of `width`; without a spec, one that changes nothing."""
    return nn.Identity() if spec is None else NORMS[spec.kind](spec, width)
