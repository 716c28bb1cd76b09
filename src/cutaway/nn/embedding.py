"""What enters the first block: a row per token and, in older models, a row per position and per token type."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutaway.nn.norms import NormSpec, make_norm


@dataclass(frozen=True)
class EmbeddingSpec:
    """positions: rows of a learned position table (GPT-2, BERT), 0 for none. types: rows of BERT's segment table.

    scale: factor on the token rows (Gemma: sqrt(D)). norm: applied to the sum (BERT).
    """

    positions: int = 0
    types: int = 0
    scale: float = 1.0
    norm: NormSpec | None = None


class Embedding(nn.Module):
    """tokens_T, positions_T -> x_TD. Every token is taken to be of type 0, as in single-segment input."""

    def __init__(self, vocab: int, width: int, spec: EmbeddingSpec) -> None:
        super().__init__()
        self.scale = spec.scale
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(spec.positions, width) if spec.positions else None
        self.types = nn.Embedding(spec.types, width) if spec.types else None
        self.norm = make_norm(spec.norm, width) if spec.norm else None

    def forward(self, tokens_T: Tensor, positions_T: Tensor) -> Tensor:
        x_TD = self.tokens(tokens_T)
        if self.scale != 1.0:  # rounded to the model's dtype first, as Gemma was trained
            x_TD = x_TD * torch.tensor(self.scale, dtype=x_TD.dtype, device=x_TD.device)
        if self.positions is not None:
            x_TD = x_TD + self.positions(positions_T)
        if self.types is not None:
            x_TD = x_TD + self.types.weight[0]
        return x_TD if self.norm is None else self.norm(x_TD)
