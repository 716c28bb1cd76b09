"""Disentangled attention (He et al. 2020, DeBERTa, arXiv:2006.03654): content and distance each speak for themselves.

    score_ij = scale (q_i . k_j  +  q_i . P_k[d]  +  k_j . P_q[d])         d the bucket of i - j

    content to content: as everywhere   content to position: what is said so far from me interests this query
    position to content: at this distance this key counts

P_k and P_q are projections of one table of rows for distances, which all layers share; DeBERTa-v3 projects it by the
very matrices that give keys and queries (arXiv:2111.09543). With all three terms scores have three times the variance,
so scale is 1 / sqrt(3 K). Nothing is added to the embedding. The paper's third term has the bucket of j - i; the
published code, whose weights exist, has that of i - j in both.

Axes beside the common ones: N rows of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutaway.nn.attention import Context, Place, Question, ScoreBias
from cutaway.nn.embedding import drawn
from cutaway.nn.norms import NormSpec, make_norm


@dataclass(frozen=True)
class DisentangledSpec:
    """reach: the largest distance that is told from the next. buckets: on each side, None for one per distance.

    to_position, to_content: the two further terms. norm: of the table's rows, before they are projected.
    """

    heads: int
    head_dim: int
    scale: float
    reach: int
    buckets: int | None = None
    to_position: bool = True
    to_content: bool = True
    norm: NormSpec | None = None

    rope = None
    causal = False
    window = None
    position_bias = None

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def span(self) -> int:
        """Rows of the table for distances on one side."""
        return self.buckets or self.reach

    @property
    def rotated(self) -> int:
        return 0

    @property
    def per_pair(self) -> int:
        """Multiply-adds for each query and key: a score and a weighted value."""
        return 2 * self.heads * self.head_dim

    @property
    def per_token(self) -> int:
        """Multiply-adds for each token: its query, and its key, against all rows of the table."""
        return (self.to_position + self.to_content) * 2 * self.span * self.heads * self.head_dim

    @property
    def cached(self) -> tuple[tuple[int, int], ...]:
        return ((self.heads, self.head_dim),) * 2


def log_buckets(distance_QS: Tensor, buckets: int, reach: int) -> Tensor:
    """Distances up to buckets / 2 as they are, the others on a logarithmic scale that gets to buckets - 1 at reach - 1.

    Signed whole numbers; beyond `reach` they go on growing.
    """
    half = buckets // 2
    far = (distance_QS.abs().clamp(min=half).double() / half).log() / math.log((reach - 1) / half) * (half - 1)
    far_QS = distance_QS.sign() * ((far - 1e-9).ceil().long() + half)  # a rounding error must not skip a bucket
    return torch.where(distance_QS.abs() <= half, distance_QS, far_QS)


def rows_of(distance_QS: Tensor, spec: DisentangledSpec) -> Tensor:
    """The row of the table for each key, whole numbers from 0 to 2 span - 1. distance: key's position - query's."""
    back_QS = -distance_QS
    d_QS = back_QS if spec.buckets is None else log_buckets(back_QS, spec.buckets, spec.reach)
    return (d_QS + spec.span).clamp(0, 2 * spec.span - 1)


class Relative(nn.Module):
    """The table of all layers: relative_ND."""

    def __init__(self, width: int, spec: DisentangledSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(2 * spec.span, width, std=0.02))
        self.norm = make_norm(spec.norm, width) if spec.norm else None

    def forward(self) -> Tensor:
        return self.weight if self.norm is None else self.norm(self.weight)


class DisentangledAttention(nn.Module):
    """x_TD -> x_TD, see above. place.relative_ND: what `Relative` gives."""

    def __init__(self, width: int, spec: DisentangledSpec) -> None:
        super().__init__()
        self.spec = spec
        inner = spec.heads * spec.head_dim
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(self, x_TD: Tensor, layer: int, place: Place, context: Context) -> Tensor:
        assert place.relative_ND is not None, "disentangled attention needs the stack's table"
        q_THK, k_THK, v_THK = (self._heads(p, x_TD) for p in (self.q, self.k, self.v))
        question = Question(self.spec.scale, causal=False, bias=self.bias(place.relative_ND))
        return self.out(context.attend(layer, q_THK, k_THK, v_THK, question).flatten(1))

    def bias(self, relative_ND: Tensor) -> ScoreBias:
        """The two terms of distance, as something added to the scores."""
        spec = self.spec
        keys_HNK, queries_HNK = (self._heads(p, relative_ND).transpose(0, 1) for p in (self.k, self.q))

        def added(q_HQK: Tensor, k_HSK: Tensor, distance_QS: Tensor) -> Tensor:
            row_QS = rows_of(distance_QS, spec).expand(*q_HQK.shape[:-1], -1)
            bias_HQS = torch.zeros_like(row_QS, dtype=q_HQK.dtype)
            if spec.to_position:
                bias_HQS = bias_HQS + (q_HQK @ keys_HNK.mT).gather(-1, row_QS)
            if spec.to_content:
                bias_HQS = bias_HQS + (k_HSK @ queries_HNK.mT).gather(-1, row_QS.mT).mT
            return spec.scale * bias_HQS

        return added

    def _heads(self, project: nn.Module, x_TD: Tensor) -> Tensor:
        return project(x_TD).unflatten(-1, (self.spec.heads, -1))


def faults(spec: DisentangledSpec) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of the table; nothing if it makes sense."""
    if spec.reach < 1:
        yield "reach", f"must be at least 1, got {spec.reach}"
    if spec.buckets is not None and not 2 <= spec.buckets < 2 * (spec.reach - 1):
        yield "buckets", f"must be at least 2 and below {2 * (spec.reach - 1)} for a reach of {spec.reach}"
