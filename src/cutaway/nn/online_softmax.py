"""A softmax taken piece by piece (Milakov & Gimelshein 2018, arXiv:1805.02867).

The weights of a row need its largest score and the sum of exp(score - largest), which are known only at its end. But
whoever keeps, of the scores so far, the largest, the sum and the mix of values in these shares, can correct the latter
two when a larger score turns up:

    largest' = max(largest, scores)
    sum'     = exp(largest - largest') * sum + sum over new keys of exp(score - largest')
    mix'     = exp(largest - largest') * mix + sum over new keys of exp(score - largest') * value

The result over some keys, with its logsumexp, is enough to `merge` it with the result over others, in any order: the
reason why attention over a long context can be shared out among workers (Flash-Decoding, Dao et al. 2023).

Axes: G key/value heads, R rows (queries), S keys, V width of a value, Q and H queries and query heads, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Running(NamedTuple):
    """Of every row: its largest score so far, the sum of exp(score - largest), the values mixed in these shares."""

    largest_GR: Tensor
    sum_GR: Tensor
    mix_GRV: Tensor

    @staticmethod
    def none(like_GRV: Tensor) -> Running:
        """Before the first key; an accumulator of the shape, type and device of `like_GRV`."""
        zeros_GR = like_GRV.new_zeros(like_GRV.shape[:-1])
        return Running(zeros_GR - torch.inf, zeros_GR, torch.zeros_like(like_GRV))

    def absorb(self, scores_GRS: Tensor, v_GSV: Tensor) -> Running:
        """The same after more keys; a score of -inf hides its key."""
        largest_GR = torch.maximum(self.largest_GR, scores_GRS.amax(-1))
        base_GR = finite(largest_GR, 0)
        keep_GR, powers_GRS = (self.largest_GR - base_GR).exp(), (scores_GRS - base_GR[..., None]).exp()
        sum_GR = keep_GR * self.sum_GR + powers_GRS.sum(-1)
        return Running(largest_GR, sum_GR, keep_GR[..., None] * self.mix_GRV + powers_GRS @ v_GSV)

    def finished(self) -> tuple[Tensor, Tensor]:
        """out_GRV and logsumexp_GR; zeros and -inf for a row that saw no key."""
        shown_GR = self.sum_GR.masked_fill(self.sum_GR == 0, 1)
        return self.mix_GRV / shown_GR[..., None], self.largest_GR + self.sum_GR.log()


class Partial(NamedTuple):
    """Attention over some keys: out_QHV, and the logarithm of the sum of exp(score), logsumexp_QH."""

    out_QHV: Tensor
    logsumexp_QH: Tensor


def merge(parts: Sequence[Partial]) -> Partial:
    """Attention over the keys of all parts, which must not share any."""
    logsumexp_PQH = torch.stack([part.logsumexp_QH for part in parts])
    base_QH = finite(logsumexp_PQH.detach().amax(0), 0)
    powers_PQH = (logsumexp_PQH - base_QH).exp()
    sum_QH = powers_PQH.sum(0)
    shown_QH = sum_QH.masked_fill(sum_QH == 0, 1)
    out_QHV = (torch.stack([part.out_QHV for part in parts]) * (powers_PQH / shown_QH)[..., None]).sum(0)
    return Partial(out_QHV, (base_QH + shown_QH.log()).masked_fill(sum_QH == 0, -torch.inf))


def finite(x: Tensor, instead: float) -> Tensor:
    """x with `instead` for -inf: -inf - (-inf) would be no number."""
    return x.masked_fill(x == -torch.inf, instead)
