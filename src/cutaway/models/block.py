"""The block that every transformer here is a stack of, and the stack itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cutaway.models.cost import Cost
from cutaway.models.spec import FeedSpec, LayerSpec, MixerSpec, Spec
from cutaway.nn.attention import Attention, AttentionSpec, Context, CrossAttention, Place
from cutaway.nn.disentangled import DisentangledAttention, DisentangledSpec, Relative
from cutaway.nn.dropout import dropout
from cutaway.nn.embedding import Embedding
from cutaway.nn.experts import Experts, ExpertsSpec
from cutaway.nn.feed_forward import FeedForward, FeedForwardSpec
from cutaway.nn.heads import Head, TaskHead
from cutaway.nn.latent import LatentAttention, LatentSpec
from cutaway.nn.linear_attention import LinearAttention, LinearSpec
from cutaway.nn.norms import make_norm
from cutaway.nn.position_bias import make_bias
from cutaway.nn.positions import Rotation, rotation

MIXERS: dict[type, Callable[[int, Any], nn.Module]] = {
    AttentionSpec: Attention,
    LatentSpec: LatentAttention,
    LinearSpec: LinearAttention,
    DisentangledSpec: DisentangledAttention,
}
FEEDS: dict[type, Callable[[int, Any], nn.Module]] = {FeedForwardSpec: FeedForward, ExpertsSpec: Experts}


def make_attention(width: int, spec: MixerSpec) -> nn.Module:
    """The module that `spec` describes: forward(x_TD, layer, place, context) -> x_TD."""
    return MIXERS[type(spec)](width, spec)


def make_ffn(width: int, spec: FeedSpec) -> nn.Module:
    """The module that `spec` describes: forward(x_TD) -> x_TD."""
    return FEEDS[type(spec)](width, spec)


class Block(nn.Module):
    """Attention moves information between tokens, feed-forward works on each; both add to the residual stream.

    x ──┬─ norm ─ attention ─ (norm) ─(+)─┬─ norm ─ ffn ─ (norm) ─(+)── x      pre, (sandwich)
        └──────────────────────────────┘  └─────────────────────┘

    In a decoder with a source, cross-attention stands between the two.
    """

    def __init__(self, width: int, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.attention_norm = make_norm(None if spec.bare else spec.norm, width)
        self.attention = make_attention(width, spec.attention)
        self.cross_norm = make_norm(spec.norm, width) if spec.cross else None
        self.cross = CrossAttention(width, spec.cross) if spec.cross else None
        self.ffn_norm = make_norm(spec.norm, width)
        self.ffn = make_ffn(width, spec.ffn)
        sandwich = spec.placement == "sandwich"
        self.attention_post_norm = make_norm(spec.norm, width) if sandwich else None
        self.ffn_post_norm = make_norm(spec.norm, width) if sandwich else None

    def forward(self, x_TD: Tensor, layer: int, place: Place, context: Context) -> Tensor:
        x_TD = self._around(
            x_TD, lambda x: self.attention(x, layer, place, context), self.attention_norm, self.attention_post_norm
        )
        if self.cross is not None and self.cross_norm is not None:
            cross = self.cross
            x_TD = self._around(x_TD, lambda x: cross(x, layer, context), self.cross_norm)
        return self._around(x_TD, self.ffn, self.ffn_norm, self.ffn_post_norm)

    def _around(
        self, x_TD: Tensor, f: Callable[[Tensor], Tensor], norm: nn.Module, post_norm: nn.Module | None = None
    ) -> Tensor:
        """One sublayer f and its place beside the residual stream; see `LayerSpec.placement`."""
        placement, keep = self.spec.placement, self.spec.residual
        kept_TD = x_TD if keep == 1.0 else keep * x_TD
        if placement in ("post", "after"):
            made_TD = self._dropped(f(x_TD))
            return norm(kept_TD + made_TD) if placement == "post" else kept_TD + norm(made_TD)
        made_TD = f(norm(x_TD))
        return kept_TD + self._dropped(made_TD if post_norm is None else post_norm(made_TD))

    def _dropped(self, x_TD: Tensor) -> Tensor:
        return dropout(x_TD, self.spec.dropout) if self.training and self.spec.dropout else x_TD


class Stack(nn.Module):
    """Embedding, blocks and final norm: tokens_T -> hidden_TD; what `Decoder` and `Encoder` have in common."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec.vocab, spec.width, spec.embedding)
        self.relative = Relative(spec.width, spec.relative) if spec.relative else None
        self.layers = nn.ModuleList(Block(spec.width, layer) for layer in spec.blocks)
        self.final_norm = make_norm(spec.final_norm, spec.width) if spec.final_norm else None
        bias, heads = spec.position_bias, spec.layers[0].attention.heads
        self.position_bias = make_bias(bias, heads) if bias else None
        rows = spec.embedding.width or spec.width
        self.head = Head(spec.vocab, spec.width, rows, spec.head) if spec.head else None
        self.task = TaskHead(spec.width, spec.task) if spec.task else None

    @property
    def cost(self) -> Cost:
        """What this architecture costs in parameters, FLOPs and bytes."""
        return Cost(self.spec)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.tokens.weight.device

    def forward(self, tokens_T: Tensor, positions_T: Tensor, context: Context, types_T: Tensor | None = None) -> Tensor:
        """Hidden states of a ragged batch, hidden_TD.

        tokens_T: ids of all sequences laid end to end. positions_T: each token's place in its own sequence.
        context: answers each layer's attention; it knows where sequences begin and what came before.
        types_T: the segment of each token, for models with token types.
        """
        return self.transform(self.embedding(tokens_T, positions_T, types_T), positions_T, context)

    def transform(self, x_TD: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """From what entered the first block to the hidden states."""
        for i, place in enumerate(self.places(self.spec.layers, positions_T, x_TD, context.reach(positions_T))):
            x_TD = self.block(i)(x_TD, i, place, context)
        return x_TD if self.final_norm is None else self.final_norm(x_TD)

    def block(self, i: int) -> Block:
        """The block that layer i runs: its own, unless several share one."""
        return cast(Block, self.layers[self.spec.block_of(i)])

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Unnormalized log-probabilities over the vocabulary, logits_RV, of the rows that somebody will read."""
        assert self.head is not None, "this model has no language-model head"
        return self.head(hidden_RD, self.embedding.tokens.weight)

    def places(
        self, layers: Sequence[LayerSpec], positions_T: Tensor, like: Tensor, reach_T: Tensor | None = None
    ) -> list[Place]:
        """What each of the layers is told about positions; those that turn alike share one table.

        reach_T: see `Context.reach`, None if all are one text.
        """
        mixers = [layer.attention for layer in layers]
        widths = {a.rope: a.rotated for a in mixers if a.rope}
        turns: dict[object, Rotation] = {
            rope: rotation(rope, width, positions_T, like.dtype, reach_T) for rope, width in widths.items()
        }
        rows_ND = self.relative() if self.relative is not None else None
        return [Place(turns.get(a.rope), self.position_bias if a.position_bias else None, rows_ND) for a in mixers]


def positions_of(lengths: list[int], device: torch.device | None = None) -> Tensor:
    """positions_T of whole sequences laid end to end: 0, 1, ... for each."""
    return torch.cat([torch.arange(n, device=device) for n in lengths])
