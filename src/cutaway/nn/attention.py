"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) with grouped key/value heads.

    scores_QS = q_QK . k_SK * scale        every query asks every key it may see
    weights   = softmax over S             how much it takes from each
    out_QK    = weights_QS . v_SK

Heads: H query heads share G key/value heads, H/G each. G = H is multi-head, G = 1 multi-query (Shazeer 2019,
arXiv:1911.02150), between them grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).

A layer computes q, k and v and puts a question to a context: `context.attend(layer, q, k, v, spec)`. Which keys
exist and where they are kept (the same ragged batch, a cache, pages) is the context's business, never the layer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.norms import NormSpec, make_norm
from cutaway.nn.positions import RopeSpec, Rotation, rotate


@dataclass(frozen=True)
class AttentionSpec:
    """heads, kv_heads: H and G. head_dim: K. window: how many last positions a token sees, itself included."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    window: int | None = None
    rope: RopeSpec | None = None
    qk_norm: NormSpec | None = None
    bias: bool = False
    out_bias: bool = False


class Context(Protocol):
    """Knows, for every token of a ragged batch, which keys and values it may look at."""

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, spec: AttentionSpec) -> Tensor:
        """Answer q_THK from k_TGK, v_TGK and whatever earlier tokens are remembered: out_THK."""
        ...


def visible(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Mask_QS of one sequence whose last key is its last query's own; None if everything is visible.

         keys  0 1 2 3 4          causal, 3 queries, 5 keys, window 3
    query 2    x x x . .
    query 3    . x x x .
    query 4    . . x x x
    """
    limit = window if window is not None and window < keys else None
    if limit is None and (not causal or queries == 1):
        return None
    age_QS = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    mask_QS = age_QS >= 0 if causal else torch.ones_like(age_QS, dtype=torch.bool)
    if limit is not None:
        mask_QS &= age_QS.abs() < limit
    return mask_QS


def attention_weights(q_QHK: Tensor, k_SGK: Tensor, scale: float, mask_QS: Tensor | None) -> Tensor:
    """The softmax written out, weights_HQS, for those who want to look at it."""
    k_SHK = k_SGK.repeat_interleave(q_QHK.shape[1] // k_SGK.shape[1], dim=1)
    scores_HQS = torch.einsum("qhk,shk->hqs", q_QHK, k_SHK) * scale
    if mask_QS is not None:
        scores_HQS = scores_HQS.masked_fill(~mask_QS, -torch.inf)
    return scores_HQS.softmax(-1)


def attend(q_BHQK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, spec: AttentionSpec) -> Tensor:
    """PyTorch's fused kernel over B sequences of equal lengths, the last query beside the last key: out_BHQK."""
    queries, keys = q_BHQK.shape[2], k_BGSK.shape[2]
    whole = spec.causal and queries == keys and (spec.window is None or spec.window >= keys)
    mask_QS = None if whole else visible(queries, keys, spec.causal, spec.window, q_BHQK.device)
    return F.scaled_dot_product_attention(
        q_BHQK, k_BGSK, v_BGSK, mask_QS, is_causal=whole, scale=spec.scale, enable_gqa=spec.heads != spec.kv_heads
    )


class BlockDiagonal:
    """The context of a ragged batch without memory: sequences of `lengths` laid end to end, blind to each other.

    Equal lengths take the batched kernel; unequal ones cost the sum of squares, not the square of the sum.
    """

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, spec: AttentionSpec) -> Tensor:
        """See `Context.attend`; `layer` does not matter here."""
        if len(set(self.lengths)) == 1:
            rows = len(self.lengths)
            q, k, v = (t.unflatten(0, (rows, -1)).transpose(1, 2) for t in (q_THK, k_TGK, v_TGK))
            return attend(q, k, v, spec).transpose(1, 2).flatten(0, 1)
        parts = zip(*(t.transpose(0, 1).split(self.lengths, 1) for t in (q_THK, k_TGK, v_TGK)), strict=True)
        return torch.cat([attend(q[None], k[None], v[None], spec)[0] for q, k, v in parts], 1).transpose(0, 1)


class Attention(nn.Module):
    """x_TD -> x_TD: project to heads, normalize, rotate, ask the context, project back."""

    def __init__(self, width: int, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.q = nn.Linear(width, spec.heads * spec.head_dim, spec.bias)
        self.k = nn.Linear(width, spec.kv_heads * spec.head_dim, spec.bias)
        self.v = nn.Linear(width, spec.kv_heads * spec.head_dim, spec.bias)
        self.out = nn.Linear(spec.heads * spec.head_dim, width, spec.out_bias)
        self.q_norm = make_norm(spec.qk_norm, spec.head_dim) if spec.qk_norm else None
        self.k_norm = make_norm(spec.qk_norm, spec.head_dim) if spec.qk_norm else None

    def forward(self, x_TD: Tensor, layer: int, turn: Rotation | None, context: Context) -> Tensor:
        q_THK, k_TGK, v_TGK = (p(x_TD).unflatten(-1, (-1, self.spec.head_dim)) for p in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q_THK, k_TGK = self.q_norm(q_THK), self.k_norm(k_TGK)
        if turn is not None:
            q_THK, k_TGK = rotate(q_THK, turn), rotate(k_TGK, turn)
        out_THK = context.attend(layer, q_THK, k_TGK, v_TGK, self.spec)
        return self.out(out_THK.flatten(1))
