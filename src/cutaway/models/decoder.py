"""A decoder-only language model (Radford et al. 2018 and all that followed), and one with a source to read."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from cutaway.models.block import Block, Stack, positions_of
from cutaway.models.encoder import Encoder
from cutaway.models.spec import LayerSpec, Spec
from cutaway.nn.attention import BlockDiagonal, Context, Place
from cutaway.nn.norms import make_norm


class Ahead(nn.Module):
    """Predicts one token further than the module before it (DeepSeek-V3, 2024, arXiv:2412.19437, section 2.2).

    hidden'_t = block(project [norm(embedding of token t+1), norm(hidden_t)])        then the model's own head
    """

    def __init__(self, spec: Spec, layer: LayerSpec) -> None:
        super().__init__()
        self.token_norm = make_norm(spec.final_norm, spec.width)
        self.hidden_norm = make_norm(spec.final_norm, spec.width)
        self.project = nn.Linear(2 * spec.width, spec.width, bias=False)
        self.block = Block(spec.width, layer)
        self.final_norm = make_norm(spec.final_norm, spec.width)

    def forward(self, next_TD: Tensor, hidden_TD: Tensor, layer: int, place: Place, context: Context) -> Tensor:
        """hidden'_TD, from the embedding of each position's next token and its hidden state so far."""
        x_TD = self.project(torch.cat([self.token_norm(next_TD), self.hidden_norm(hidden_TD)], -1))
        return self.block(x_TD, layer, place, context)


class Decoder(Stack):
    """`forward` gives hidden states of every token; `logits` is asked only for the rows somebody will read."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.ahead = nn.ModuleList(Ahead(spec, layer) for layer in spec.ahead)

    def look_ahead(
        self, hidden_TD: Tensor, next_T: Tensor, positions_T: Tensor, context: Context, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        """One token further than `hidden_TD` predicts: hidden states whose `logits` are of the token after the next.

        hidden_TD: of `forward`, or the second tensor that an earlier step gave. next_T: the token after each position.
        Gives hidden states for `logits`, and those for the following step.
        """
        ahead = cast(Ahead, self.ahead[step])
        next_TD, layer = self.embedding(next_T, positions_T), len(self.spec.layers) + step
        (place,) = self.places([self.spec.ahead[step]], positions_T, next_TD, context.reach(positions_T))
        made_TD = ahead(next_TD, hidden_TD, layer, place, context)
        return ahead.final_norm(made_TD), made_TD


class EncoderDecoder(Decoder):
    """A decoder whose layers also attend to a source, read by an encoder (Vaswani et al. 2017; T5, BART).

    Both share the token embedding. `forward` needs a context that holds what `encode` gave.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        assert spec.encoder is not None, "a spec without encoder describes a decoder"
        self.encoder = Encoder(spec.encoder)
        self.encoder.embedding.tokens = self.embedding.tokens

    def encode(self, tokens_M: Tensor, lengths: list[int]) -> Tensor:
        """Hidden states of the sources laid end to end, memory_MD."""
        return self.encoder(tokens_M, positions_of(lengths, tokens_M.device), BlockDiagonal(lengths))
