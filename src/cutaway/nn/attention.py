"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) with grouped key/value heads.

    scores_QS = q_QK . k_SK * scale        every query asks every key it may see
    weights   = softmax over S             how much it takes from each
    out_QK    = weights_QS . v_SK

Heads: H query heads share G key/value heads, H/G each. G = H is multi-head, G = 1 multi-query (Shazeer 2019,
arXiv:1911.02150), between them grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).

A layer computes q, k and v and puts a question to a context. Which keys exist and where they are kept (the same
ragged batch, a cache, pages) is the context's business, never the layer's; how scores become weights is the
question's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.norms import NormSpec, make_norm
from cutaway.nn.position_bias import AlibiSpec, BucketSpec
from cutaway.nn.positions import RopeSpec, Rotation, rotate

ScoreBias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [..., H, Q, K], k [..., G, S, K], distance_QS) -> what is added to the scores [..., H, Q, S].

distance: the key's position minus the query's."""

Project = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Hidden states of a source, memory_SD -> its keys and values, k_SGK and v_SGK."""


@dataclass(frozen=True)
class Question:
    """How scores become weights: everything that attention needs beside q, k and v.

    window: how many last positions a token sees, itself included (both sides if not causal). anchors: how many first
    tokens are seen whatever the window (Xiao et al. 2023, arXiv:2309.17453), and, if not causal, see everything
    (Longformer's global tokens, Beltagy et al. 2020, arXiv:2004.05150).
    softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv:2408.00118).
    sinks_H: a further score per head that takes weight and gives nothing (gpt-oss, arXiv:2508.10925).
    values: the values are the first so many numbers of the keys (latent attention).
    """

    scale: float
    causal: bool = True
    window: int | None = None
    anchors: int = 0
    softcap: float | None = None
    sinks_H: Tensor | None = None
    bias: ScoreBias | None = None
    values: int | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """heads, kv_heads: H and G. head_dim: K. bias: of q, k and v. For the others see `Question`.

    position_bias: what is added to scores by distance. Buckets have one table per stack, as in T5.
    """

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
    anchors: int = 0
    softcap: float | None = None
    sinks: bool = False
    position_bias: AlibiSpec | BucketSpec | None = None

    per_token = 0  # multiply-adds for a token, whatever it sees
    state = ()

    @property
    def rotated(self) -> int:
        """Width of what is rotated."""
        return self.head_dim if self.rope is None else self.rope.dim or self.head_dim

    @property
    def per_pair(self) -> int:
        """Multiply-adds for each query and key that it sees: a score and a weighted value per head."""
        return 2 * self.heads * self.head_dim

    @property
    def cached(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of each thing that a cache keeps of a token: keys and values."""
        return ((self.kv_heads, self.head_dim),) * 2


class Place(NamedTuple):
    """What a layer is told about where its tokens are. relative_ND: rows for distances (DeBERTa)."""

    turn: Rotation | None = None
    bias: ScoreBias | None = None
    relative_ND: Tensor | None = None


class Context(Protocol):
    """Knows, for every token of a ragged batch, what it may look at. remembers: earlier tokens are kept."""

    remembers: bool

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """Answer q_THK from k_TGK, v_TGK and whatever earlier tokens are remembered: out_THK."""
        ...

    def recall(self, layer: int, q_THK: Tensor, project: Project, question: Question) -> Tensor:
        """Answer q_THK from another sequence, the source that each sequence has: out_THK."""
        ...

    def scan(self, layer: int, step: Callable[..., tuple[Tensor, Any]], *parts: Tensor) -> Tensor:
        """Run `step(state or None, *parts of one sequence) -> (out, state)` over each sequence."""
        ...

    def reach(self, positions_T: Tensor) -> Tensor:
        """How long each token's text is, or will be as far as that is known: reach_T, see `rope_frequencies`."""
        ...


def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """distance_QS: each key's position minus each query's, the last query standing beside the last key."""
    return torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]


def ends(positions_T: Tensor, lengths: list[int]) -> Tensor:
    """To where the sequence of each token reaches in this batch: its last position plus one, [T]."""
    count_N = torch.tensor(lengths, device=positions_T.device)
    return (positions_T[count_N.cumsum(0) - 1] + 1).repeat_interleave(count_N)


def visible(queries: int, keys: int, question: Question, device: torch.device, prefix: int = 0) -> Tensor | None:
    """Mask_QS of one sequence whose last key is its last query's own; None if everything is visible.

         keys  0 1 2 3 4          causal, 3 queries, 5 keys, window 3
    query 2    x x x . .
    query 3    . x x x .          prefix: how many first tokens see each other although causal
    query 4    . . x x x
    """
    limit = question.window if question.window is not None and question.window < keys else None
    if limit is None and (not question.causal or queries == 1):
        return None
    ahead_QS, key_S = distances(queries, keys, device), torch.arange(keys, device=device)
    mask_QS = (ahead_QS <= 0) | (key_S < prefix) if question.causal else torch.ones_like(ahead_QS, dtype=torch.bool)
    if limit is not None:
        near_QS = (ahead_QS.abs() < limit) | (key_S < question.anchors)
        if not question.causal:
            near_QS |= key_S[keys - queries :, None] < question.anchors
        mask_QS &= near_QS
    return mask_QS


def attention_weights(q_HQK: Tensor, k_GSK: Tensor, question: Question, prefix: int = 0) -> Tensor:
    """The softmax written out, weights_HQS; any leading axes. With sinks a row sums to less than one."""
    k_HSK = k_GSK.repeat_interleave(q_HQK.shape[-3] // k_GSK.shape[-3], -3)
    scores_HQS = q_HQK @ k_HSK.transpose(-1, -2) * question.scale
    if question.softcap is not None:
        scores_HQS = question.softcap * torch.tanh(scores_HQS / question.softcap)
    mask = _mask(q_HQK, k_GSK, question, prefix)
    if mask is not None:
        blind = mask.dtype == torch.bool
        scores_HQS = scores_HQS.masked_fill(~mask, -torch.inf) if blind else scores_HQS + mask
    if question.sinks_H is None:
        return scores_HQS.softmax(-1)
    sinks_HQ1 = question.sinks_H[:, None, None].expand(*scores_HQS.shape[:-1], 1)
    return torch.cat([scores_HQS, sinks_HQ1], -1).softmax(-1)[..., :-1]


def attend(q_BHQK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, question: Question, prefix: int = 0) -> Tensor:
    """Out_BHQK of B sequences of equal lengths, by PyTorch's fused kernel where it can do what is asked."""
    queries, keys, heads, kv_heads = q_BHQK.shape[-2], k_BGSK.shape[-2], q_BHQK.shape[1], k_BGSK.shape[1]
    if question.softcap is not None:
        weights_BHQS = attention_weights(q_BHQK, k_BGSK, question, prefix)
        return weights_BHQS @ v_BGSK.repeat_interleave(heads // kv_heads, 1)
    special = question.bias is not None or question.sinks_H is not None or prefix > 0
    whole = question.causal and queries == keys and (question.window is None or question.window >= keys)
    fast = whole and not special  # the kernel makes this mask itself
    mask = None if fast else _mask(q_BHQK, k_BGSK, question, prefix)
    if question.sinks_H is not None:  # a key of zeros scores nothing by itself, a value of zeros gives nothing
        mask = _with_sinks(mask, question.sinks_H, q_BHQK, keys)
        k_BGSK, v_BGSK = (F.pad(t, (0, 0, 0, 1)) for t in (k_BGSK, v_BGSK))
    if mask is not None and mask.ndim == 3:  # the CPU's kernel knows masks of two or four axes, and steps aside else
        mask = mask[None]
    return F.scaled_dot_product_attention(
        q_BHQK, k_BGSK, v_BGSK, mask, is_causal=fast, scale=question.scale, enable_gqa=heads != kv_heads
    )


def _mask(q_BHQK: Tensor, k_BGSK: Tensor, question: Question, prefix: int) -> Tensor | None:
    """What `scaled_dot_product_attention` takes: None, who is visible, or what is added to scores."""
    queries, keys = q_BHQK.shape[-2], k_BGSK.shape[-2]
    mask_QS = visible(queries, keys, question, q_BHQK.device, prefix)
    if question.bias is None:
        return mask_QS
    bias = question.bias(q_BHQK, k_BGSK, distances(queries, keys, q_BHQK.device)).to(q_BHQK.dtype)
    return bias if mask_QS is None else bias.masked_fill(~mask_QS, -torch.inf)


def _with_sinks(mask: Tensor | None, sinks_H: Tensor, q_BHQK: Tensor, keys: int) -> Tensor:
    """The mask as an addition to scores, with a further column: the sinks."""
    added = q_BHQK.new_zeros(q_BHQK.shape[-2], keys) if mask is None else mask
    if added.dtype == torch.bool:
        added = q_BHQK.new_zeros(added.shape).masked_fill(~added, -torch.inf)
    shape = (*q_BHQK.shape[:-1], keys)
    sinks_BHQ1 = sinks_H[:, None, None].to(q_BHQK.dtype).expand(*shape[:-1], 1)
    return torch.cat([added.expand(shape), sinks_BHQ1], -1)


class BlockDiagonal:
    """The context of a ragged batch without memory: sequences of `lengths` laid end to end, blind to each other.

    Equal lengths take the batched kernel; unequal ones cost the sum of squares, not the square of the sum.

    prefixes: per sequence, how many first tokens see each other although attention is causal (prefix-LM).
    memory_MD: hidden states of the sources, laid end to end, and `sources` their lengths (encoder-decoder).
    """

    remembers = False

    def __init__(
        self,
        lengths: list[int],
        *,
        prefixes: list[int] | None = None,
        memory_MD: Tensor | None = None,
        sources: list[int] | None = None,
    ) -> None:
        self.lengths, self.prefixes = lengths, prefixes or [0] * len(lengths)
        self.memory_MD, self.sources = memory_MD, sources or []

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`; `layer` does not matter here."""
        v_TGK = k_TGK[..., : question.values] if v_TGK is None else v_TGK
        if len(set(self.lengths)) == 1 and not any(self.prefixes):
            count = len(self.lengths)
            q, k, v = (t.unflatten(0, (count, -1)).transpose(1, 2) for t in (q_THK, k_TGK, v_TGK))
            return attend(q, k, v, question).transpose(1, 2).flatten(0, 1)
        parts = zip(*(t.transpose(0, 1).split(self.lengths, 1) for t in (q_THK, k_TGK, v_TGK)), strict=True)
        rows = zip(parts, self.prefixes, strict=True)
        outs = [attend(q[None], k[None], v[None], question, prefix)[0] for (q, k, v), prefix in rows]
        return torch.cat(outs, 1).transpose(0, 1)

    def recall(self, layer: int, q_THK: Tensor, project: Project, question: Question) -> Tensor:
        """See `Context.recall`."""
        assert self.memory_MD is not None, "cross-attention needs the source's hidden states"
        k_MGK, v_MGK = project(self.memory_MD)
        spans = (t.transpose(0, 1).split(self.sources, 1) for t in (k_MGK, v_MGK))
        parts = zip(q_THK.transpose(0, 1).split(self.lengths, 1), *spans, strict=True)
        return torch.cat([attend(q[None], k[None], v[None], question)[0] for q, k, v in parts], 1).transpose(0, 1)

    def scan(self, layer: int, step: Callable[..., tuple[Tensor, Any]], *parts: Tensor) -> Tensor:
        """See `Context.scan`: every sequence begins without a state."""
        rows = zip(*(part.split(self.lengths) for part in parts), strict=True)
        return torch.cat([step(None, *row)[0] for row in rows])

    def reach(self, positions_T: Tensor) -> Tensor:
        """See `Context.reach`: texts are whole."""
        return ends(positions_T, self.lengths)


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
        self.sinks = nn.Parameter(torch.zeros(spec.heads)) if spec.sinks else None

    def forward(self, x_TD: Tensor, layer: int, place: Place, context: Context) -> Tensor:
        q_THK, k_TGK, v_TGK = (p(x_TD).unflatten(-1, (-1, self.spec.head_dim)) for p in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q_THK, k_TGK = self.q_norm(q_THK), self.k_norm(k_TGK)
        if place.turn is not None:
            q_THK, k_TGK = rotate(q_THK, place.turn), rotate(k_TGK, place.turn)
        out_THK = context.attend(layer, q_THK, k_TGK, v_TGK, self.question(place))
        return self.out(out_THK.flatten(1))

    def question(self, place: Place) -> Question:
        """What this layer asks of its context."""
        s = self.spec
        return Question(s.scale, s.causal, s.window, s.anchors, s.softcap, self.sinks, place.bias)


class CrossAttention(nn.Module):
    """x_TD -> x_TD: queries from the sequence, keys and values from its source (Vaswani et al. 2017, section 3.2.3)."""

    def __init__(self, width: int, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.q = nn.Linear(width, spec.heads * spec.head_dim, spec.bias)
        self.k = nn.Linear(width, spec.kv_heads * spec.head_dim, spec.bias)
        self.v = nn.Linear(width, spec.kv_heads * spec.head_dim, spec.bias)
        self.out = nn.Linear(spec.heads * spec.head_dim, width, spec.out_bias)

    def forward(self, x_TD: Tensor, layer: int, context: Context) -> Tensor:
        q_THK = self.q(x_TD).unflatten(-1, (-1, self.spec.head_dim))
        out_THK = context.recall(layer, q_THK, self.project, Question(self.spec.scale, causal=False))
        return self.out(out_THK.flatten(1))

    def project(self, memory_SD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a source, k_SGK and v_SGK."""
        k_SGK, v_SGK = (p(memory_SD).unflatten(-1, (-1, self.spec.head_dim)) for p in (self.k, self.v))
        return k_SGK, v_SGK
