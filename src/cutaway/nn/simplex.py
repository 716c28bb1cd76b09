"""From scores to weights: softmax and what else has been tried.

    softmax   exp(s) / sum exp(s)                   sums to one, nothing is ever zero
    sparsemax the nearest point of the simplex      sums to one, low scores get exactly zero
                                                    (Martins & Astudillo 2016, arXiv:1602.02068)
    sigmoid   1 / (1 + exp(log n - s))              each key by itself, about 1/n each at first
                                                    (Ramapuram et al. 2024, arXiv:2409.04431)
    relu      max(s, 0) / n                         each key by itself (Wortsman et al. 2023, arXiv:2309.08586)

n counts the keys that a query sees. Each function takes scores_QS, any leading axes, and seen_QS; a key that is not
seen gets zero, a row that sees nothing is all zeros, and its gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.errors import CutawayError

Weighting = Callable[[Tensor, Tensor], Tensor]
"""(scores_QS, seen_QS) -> weights_QS."""


def softmax(scores_QS: Tensor, seen_QS: Tensor) -> Tensor:
    """Vaswani et al. 2017 (arXiv:1706.03762)."""
    lowest = torch.finfo(scores_QS.dtype).min  # -inf would make no number of a row that sees nothing
    return scores_QS.masked_fill(~seen_QS, lowest).softmax(-1) * seen_QS


def sigmoid(scores_QS: Tensor, seen_QS: Tensor) -> Tensor:
    """See above."""
    return (scores_QS - _count(seen_QS, scores_QS).log()).sigmoid() * seen_QS


def relu(scores_QS: Tensor, seen_QS: Tensor) -> Tensor:
    """See above."""
    return scores_QS.relu() / _count(seen_QS, scores_QS) * seen_QS


def sparsemax(scores_QS: Tensor, seen_QS: Tensor) -> Tensor:
    """See above."""
    weights_QS: Tensor = _Sparsemax.apply(scores_QS, seen_QS)
    return weights_QS


def _count(seen_QS: Tensor, like: Tensor) -> Tensor:
    """n of each row, 1 where it is 0."""
    return seen_QS.sum(-1, keepdim=True).clamp_min(1).to(like.dtype)


class _Sparsemax(torch.autograd.Function):
    """max(s - threshold, 0), with the one threshold at which a row sums to one.

    The k highest scores are above it if the k-th still is above the threshold that these k alone would have; the
    support is the largest such k. Inside it the threshold moves with the mean: a gradient loses its mean.
    """

    @staticmethod
    def forward(ctx: Any, scores_QS: Tensor, seen_QS: Tensor) -> Tensor:
        seen_QS = seen_QS.expand_as(scores_QS)
        best_QS, order_QS = scores_QS.masked_fill(~seen_QS, -torch.inf).sort(-1, descending=True)
        exists_QS = seen_QS.gather(-1, order_QS)
        k_S = torch.arange(1, scores_QS.shape[-1] + 1, device=scores_QS.device)
        threshold_QS = (best_QS.masked_fill(~exists_QS, 0).cumsum(-1) - 1) / k_S
        inside_QS = (best_QS > threshold_QS) & exists_QS
        last_Q1 = inside_QS.sum(-1, keepdim=True).clamp_min(1) - 1
        weights_QS = (scores_QS - threshold_QS.gather(-1, last_Q1)).relu().masked_fill(~seen_QS, 0)
        ctx.save_for_backward(weights_QS > 0)
        return weights_QS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up_QS: Tensor) -> tuple[Tensor, None]:
        (support_QS,) = ctx.saved_tensors
        up_QS = up_QS.masked_fill(~support_QS, 0)
        mean_Q1 = up_QS.sum(-1, keepdim=True) / _count(support_QS, up_QS)
        return (up_QS - mean_Q1).masked_fill(~support_QS, 0), None


WEIGHTINGS: dict[str, Weighting] = {"softmax": softmax, "sigmoid": sigmoid, "relu": relu, "sparsemax": sparsemax}


def weighted(name: str, scores_QS: Tensor, seen_QS: Tensor, temperature: float = 1.0) -> Tensor:
    """The weights that `name` makes of scores / temperature. Errors: an unknown name, a temperature of 0 or less."""
    if name not in WEIGHTINGS:
        raise CutawayError(f"no weighting {name!r}", hint=f"there are {', '.join(WEIGHTINGS)}")
    if temperature <= 0:
        raise CutawayError(f"must be above 0, got {temperature}", "temperature")
    return WEIGHTINGS[name](scores_QS / temperature, seen_QS)
