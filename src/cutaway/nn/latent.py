"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv:2405.04434): keys and values unfolded from one small vector.

    latent_TC = norm(W_down x)                       what a cache keeps, beside k_rope
    k = [W_uk latent, k_rope]   v = W_uv latent      a key per head: a part without position, a rotated part for all

Two forms that give the same:
  naive     unfold keys and values, attend with H heads of width N + R: fewer FLOPs when all tokens are new
  absorbed  q . (W_uk latent) = (W_uk^T q) . latent, so the query is folded instead; the latents serve as the keys
            and values of one shared head: what decoding reads is C + R numbers a token instead of H * (N + R + V)

Rotation does not commute with W_uk, which is why the rotated part is kept apart.

Axes beside the common ones: C latent   N part without position   R rotated part   V value of a head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cutaway.nn.attention import Context, Place, Question
from cutaway.nn.norms import NormSpec, make_norm
from cutaway.nn.positions import RopeSpec, rotate


@dataclass(frozen=True)
class LatentSpec:
    """kv_rank: C. plain_dim, rope_dim, value_dim: N, R, V. query_rank: of the folded queries, None for plain ones.

    norm: of both latents. bias: of the down and output projections.
    """

    heads: int
    kv_rank: int
    plain_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    norm: NormSpec
    rope: RopeSpec | None = None
    query_rank: int | None = None
    bias: bool = False
    causal: bool = True

    window = None  # a token sees everything before it
    position_bias = None
    per_token = 0
    state = ()

    @property
    def head_dim(self) -> int:
        """Width of a query and of an unfolded key."""
        return self.plain_dim + self.rope_dim

    @property
    def kv_heads(self) -> int:
        """Keys are unfolded for every head."""
        return self.heads

    @property
    def rotated(self) -> int:
        return self.rope_dim

    @property
    def per_pair(self) -> int:
        """Multiply-adds for each query and key, in the naive form."""
        return self.heads * (self.head_dim + self.value_dim)

    @property
    def cached(self) -> tuple[tuple[int, int], ...]:
        """One vector a token, for all heads: the latent and the rotated part of the key."""
        return ((1, self.kv_rank + self.rope_dim),)


class Projected(NamedTuple):
    """A query's two parts, the latent, and the part of the key that all heads share; those of width R are rotated."""

    q_THN: Tensor
    q_THR: Tensor
    latent_TC: Tensor
    k_T1R: Tensor


class LatentAttention(nn.Module):
    """x_TD -> x_TD, see above. Absorbed where the context remembers, else naive."""

    def __init__(self, width: int, spec: LatentSpec) -> None:
        super().__init__()
        self.spec = spec
        queries = spec.heads * spec.head_dim
        self.q_down = nn.Linear(width, spec.query_rank, spec.bias) if spec.query_rank else None
        self.q_norm = make_norm(spec.norm, spec.query_rank) if spec.query_rank else None
        self.q = nn.Linear(spec.query_rank or width, queries, bias=False)
        self.kv_down = nn.Linear(width, spec.kv_rank + spec.rope_dim, spec.bias)
        self.kv_norm = make_norm(spec.norm, spec.kv_rank)
        self.k_up = nn.Linear(spec.kv_rank, spec.heads * spec.plain_dim, bias=False)
        self.v_up = nn.Linear(spec.kv_rank, spec.heads * spec.value_dim, bias=False)
        self.out = nn.Linear(spec.heads * spec.value_dim, width, spec.bias)

    def forward(self, x_TD: Tensor, layer: int, place: Place, context: Context) -> Tensor:
        form = self.absorbed if context.remembers else self.naive
        return self.out(form(self.project(x_TD, place), layer, place, context).flatten(1))

    def project(self, x_TD: Tensor, place: Place) -> Projected:
        """Queries, latents and the keys' common part."""
        s = self.spec
        q_TD = x_TD if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x_TD))
        q_THN, q_THR = self.q(q_TD).unflatten(-1, (s.heads, -1)).split([s.plain_dim, s.rope_dim], -1)
        latent_TC, k_TR = self.kv_down(x_TD).split([s.kv_rank, s.rope_dim], -1)
        k_T1R = k_TR[:, None]
        if place.turn is not None:
            q_THR, k_T1R = rotate(q_THR, place.turn), rotate(k_T1R, place.turn)
        return Projected(q_THN, q_THR, self.kv_norm(latent_TC), k_T1R)

    def naive(self, p: Projected, layer: int, place: Place, context: Context) -> Tensor:
        """Out_THV by keys and values unfolded for every head."""
        s = self.spec
        k_THN, v_THV = (up(p.latent_TC).unflatten(-1, (s.heads, -1)) for up in (self.k_up, self.v_up))
        k_THK = torch.cat([k_THN, p.k_T1R.expand(-1, s.heads, -1)], -1)
        q_THK = torch.cat([p.q_THN, p.q_THR], -1)
        return context.attend(layer, q_THK, k_THK, v_THV, Question(s.scale, s.causal, bias=place.bias))

    def absorbed(self, p: Projected, layer: int, place: Place, context: Context) -> Tensor:
        """Out_THV by folded queries over the latents themselves."""
        s = self.spec
        up_HNC, up_HVC = (up.weight.unflatten(0, (s.heads, -1)) for up in (self.k_up, self.v_up))
        q_THK = torch.cat([torch.einsum("thn,hnc->thc", p.q_THN, up_HNC), p.q_THR], -1)
        k_T1K = torch.cat([p.latent_TC[:, None], p.k_T1R], -1)
        question = Question(s.scale, s.causal, bias=place.bias, values=s.kv_rank)
        return torch.einsum("thc,hvc->thv", context.attend(layer, q_THK, k_T1K, None, question), up_HVC)
