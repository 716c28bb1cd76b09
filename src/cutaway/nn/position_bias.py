"""Order as something added to the scores: a fixed penalty on distance, or a learned number per bucket of distances.

ALiBi (Press et al. 2021, arXiv:2108.12409): head h subtracts slope_h per token of distance. No parameters, nothing
is added to the embedding, and since the penalty only grows, distances beyond those trained on bring nothing new.

Relative buckets (Raffel et al. 2019, T5, arXiv:1910.10683): a number per head and bucket, learned. Near distances have
a bucket each, far ones share buckets that grow geometrically, all beyond `max_distance` share the last.

    distance   0 1 2 3 4 5 6 7 8-11 12-15 16-22 23-31 32-45 46-63 64-90 91-      16 buckets, 128 the largest distance

Both give bias_HQS for distance_QS = key position - query position: it is added to scores_HQS before the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AlibiSpec:
    """The slopes follow from the number of heads."""


@dataclass(frozen=True)
class BucketSpec:
    """buckets: rows of the learned table. bidirectional: half of them are for keys that come after the query."""

    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True


def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """A slope per head, float64 [H]: 2^(-8/H), 2^(-16/H), ... 2^-8 where H is a power of two.

    For other numbers those of the power of two below, then every other one of twice as many.
    """
    below = 2 ** math.floor(math.log2(heads))
    power_H = torch.cat([torch.arange(1, below + 1), torch.arange(heads - below) + 0.5])
    return torch.exp2(-8 * power_H.double() / below).to(device)


class Alibi(nn.Module):
    """-slope_h * |distance|, the same for every query and key."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q_HQK: Tensor, k_GSK: Tensor, distance_QS: Tensor) -> Tensor:
        """bias_HQS in the dtype of q."""
        slope_H11 = alibi_slopes(self.heads, q_HQK.device).to(torch.promote_types(q_HQK.dtype, torch.float32))[
            :, None, None
        ]
        return (-slope_H11 * distance_QS.abs()).to(q_HQK.dtype)


def buckets_of(distance_QS: Tensor, spec: BucketSpec) -> Tensor:
    """The bucket of each distance, whole numbers below `spec.buckets`.

    Without `bidirectional` keys after the query share the bucket of the query's own position.
    """
    count = spec.buckets // 2 if spec.bidirectional else spec.buckets
    away_QS = distance_QS.abs() if spec.bidirectional else (-distance_QS).clamp(min=0)
    later_QS = count * (distance_QS > 0) if spec.bidirectional else 0
    return torch.bucketize(away_QS, _starts(count, spec.max_distance).to(away_QS.device), right=True) - 1 + later_QS


def _starts(count: int, max_distance: int) -> Tensor:
    """The first distance of each bucket: 0, 1, ... half - 1, then half, ... in equal steps of the logarithm."""
    half = count // 2
    step = torch.arange(count - half, dtype=torch.float64) / (count - half)
    far = half * (max_distance / half) ** step
    return torch.cat([torch.arange(half), (far - 1e-9).ceil().long()])  # a rounding error must not skip a distance


class RelativeBias(nn.Module):
    """The learned table, weight [buckets, H], looked up by the bucket of each distance."""

    def __init__(self, heads: int, spec: BucketSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(spec.buckets, heads))

    def forward(self, q_HQK: Tensor, k_GSK: Tensor, distance_QS: Tensor) -> Tensor:
        """bias_HQS."""
        return self.weight[buckets_of(distance_QS, self.spec)].permute(2, 0, 1)


def make_bias(spec: AlibiSpec | BucketSpec, heads: int) -> nn.Module:
    """The module that computes bias_HQS from (q_HQK, k_GSK, distance_QS); leading axes of q and k do not matter."""
    return Alibi(heads) if isinstance(spec, AlibiSpec) else RelativeBias(heads, spec)


def faults(spec: AlibiSpec | BucketSpec) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of a bias; nothing if it makes sense."""
    if isinstance(spec, BucketSpec):
        count = spec.buckets // 2 if spec.bidirectional else spec.buckets
        if spec.buckets < 2 or count < 2 or (spec.bidirectional and spec.buckets % 2):
            yield "buckets", f"must be at least 2 (and even) for each direction, got {spec.buckets}"
        if spec.max_distance <= count // 2:
            yield "max_distance", f"must be above {count // 2}, got {spec.max_distance}"
