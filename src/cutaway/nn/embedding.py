"""What enters the first block: a row per token and, in older models, a row per position and per token type."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutaway.nn.norms import NormSpec, make_norm
from cutaway.nn.positions import sinusoids


@dataclass(frozen=True)
class EmbeddingSpec:
    """positions: rows of a learned position table (GPT-2, BERT), 0 for none. types: rows of BERT's segment table.

    scale: factor on the token rows (Gemma: sqrt(D)). norm: applied to the sum (BERT).
    first: the row of position 0 (RoBERTa, OPT and BART begin at 2). sinusoidal: waves added instead of a table.
    width: of the rows, where it is not D: they are then projected to it (ALBERT, arXiv:1909.11942), with a bias or not.
    """

    positions: int = 0
    types: int = 0
    scale: float = 1.0
    norm: NormSpec | None = None
    first: int = 0
    sinusoidal: bool = False
    width: int | None = None
    project_bias: bool = True


def drawn(*shape: int, std: float = 1.0) -> Tensor:
    """Normal numbers to begin with; on device "meta" nothing is drawn, for which PyTorch would import for a second."""
    empty = torch.empty(*shape)
    return empty if empty.is_meta else empty.normal_(std=std)


def table(count: int, width: int) -> nn.Embedding:
    """Rows to look up."""
    return nn.Embedding(count, width, _weight=drawn(count, width))


class Embedding(nn.Module):
    """tokens_T, positions_T, types_T -> x_TD. Without types_T every token is of type 0, as in single-segment input."""

    def __init__(self, vocab: int, width: int, spec: EmbeddingSpec) -> None:
        super().__init__()
        self.spec = spec
        rows = spec.width or width
        self.tokens = table(vocab, rows)
        self.positions = table(spec.positions, rows) if spec.positions else None
        self.types = table(spec.types, rows) if spec.types else None
        self.norm = make_norm(spec.norm, rows) if spec.norm else None
        self.project = nn.Linear(rows, width, spec.project_bias) if spec.width else None

    def forward(self, tokens_T: Tensor, positions_T: Tensor, types_T: Tensor | None = None) -> Tensor:
        x_TD = self.tokens(tokens_T)
        if self.spec.scale != 1.0:  # rounded to the model's dtype first, as Gemma was trained
            x_TD = x_TD * torch.full((), self.spec.scale, dtype=x_TD.dtype, device=x_TD.device)
        if self.positions is not None:
            x_TD = x_TD + self.positions(positions_T + self.spec.first)
        if self.spec.sinusoidal:
            x_TD = x_TD + sinusoids(positions_T, x_TD.shape[-1]).to(x_TD.dtype)
        if self.types is not None:
            x_TD = x_TD + (self.types.weight[0] if types_T is None else self.types(types_T))
        x_TD = x_TD if self.norm is None else self.norm(x_TD)
        return x_TD if self.project is None else self.project(x_TD)
