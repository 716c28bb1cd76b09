"""The block that every transformer here is a stack of, and the stack itself."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from cutaway.models.cost import Cost
from cutaway.models.spec import LayerSpec, Spec
from cutaway.nn.attention import Attention, AttentionSpec, Context
from cutaway.nn.embedding import Embedding
from cutaway.nn.feed_forward import FeedForward
from cutaway.nn.norms import make_norm
from cutaway.nn.positions import Rotation, rotation


class Block(nn.Module):
    """Attention moves information between tokens, feed-forward works on each; both add to the residual stream.

    x ──┬─ norm ─ attention ─ (norm) ─(+)─┬─ norm ─ ffn ─ (norm) ─(+)── x      pre, (sandwich)
        └──────────────────────────────┘  └─────────────────────┘
    """

    def __init__(self, width: int, spec: LayerSpec) -> None:
        super().__init__()
        self.placement = spec.placement
        self.attention_norm = make_norm(spec.norm, width)
        self.attention = Attention(width, spec.attention)
        self.ffn_norm = make_norm(spec.norm, width)
        self.ffn = FeedForward(width, spec.ffn)
        sandwich = spec.placement == "sandwich"
        self.attention_post_norm = make_norm(spec.norm, width) if sandwich else None
        self.ffn_post_norm = make_norm(spec.norm, width) if sandwich else None

    def forward(self, x_TD: Tensor, layer: int, turn: Rotation | None, context: Context) -> Tensor:
        if self.placement == "post":
            x_TD = self.attention_norm(x_TD + self.attention(x_TD, layer, turn, context))
            return self.ffn_norm(x_TD + self.ffn(x_TD))
        moved_TD = self.attention(self.attention_norm(x_TD), layer, turn, context)
        x_TD = x_TD + (moved_TD if self.attention_post_norm is None else self.attention_post_norm(moved_TD))
        made_TD = self.ffn(self.ffn_norm(x_TD))
        return x_TD + (made_TD if self.ffn_post_norm is None else self.ffn_post_norm(made_TD))


class Stack(nn.Module):
    """Embedding, blocks and final norm: tokens_T -> hidden_TD. What `Decoder` and `Encoder` have in common."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec.vocab, spec.width, spec.embedding)
        self.layers = nn.ModuleList(Block(spec.width, layer) for layer in spec.layers)
        self.final_norm = make_norm(spec.final_norm, spec.width) if spec.final_norm else None

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

    def forward(self, tokens_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """Hidden states of a ragged batch, hidden_TD.

        tokens_T: ids of all sequences laid end to end. positions_T: each token's place in its own sequence.
        context: answers each layer's attention; it knows where sequences begin and what came before.
        """
        x_TD = self.embedding(tokens_T, positions_T)
        turns = self._rotations(positions_T, x_TD.dtype)
        for i, block in enumerate(self.layers):
            x_TD = block(x_TD, i, turns.get(cast(Block, block).attention.spec.rope), context)
        return x_TD if self.final_norm is None else self.final_norm(x_TD)

    def _rotations(self, positions_T: Tensor, dtype: torch.dtype) -> dict[object, Rotation]:
        """One table per distinct rope: layers that turn alike share it."""
        kinds: dict[object, AttentionSpec] = {a.rope: a for a in (layer.attention for layer in self.spec.layers)}
        return {
            rope: rotation(a.rope, a.head_dim, positions_T, dtype) for rope, a in kinds.items() if a.rope is not None
        }


def positions_of(lengths: list[int], device: torch.device | None = None) -> Tensor:
    """positions_T of whole sequences laid end to end: 0, 1, ... for each."""
    return torch.cat([torch.arange(n, device=device) for n in lengths])
