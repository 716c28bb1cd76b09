"""What is made of hidden states at the end: scores over the vocabulary, or over a few labels.

language model   logits = scale * f(hidden) . W^T + b        W the token embedding (tied) or a matrix of its own
task             labels = W g(hidden_at) + b                 at the first, the last, or each token
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.feed_forward import ACTIVATIONS
from cutaway.nn.norms import NormSpec, make_norm


@dataclass(frozen=True)
class TransformSpec:
    """A layer before the head: hidden states to the width of the embedding rows (BERT, ALBERT, OPT-350m)."""

    activation: str | None = None
    norm: NormSpec | None = None
    bias: bool = True


@dataclass(frozen=True)
class HeadSpec:
    """The language-model head. tied: its matrix is the token embedding, used the other way round.

    scale: factor on the hidden states (T5: D^-1/2). softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).
    """

    tied: bool
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    transform: TransformSpec | None = None


class Head(nn.Module):
    """hidden_RD, and the embedding's rows_VD if tied -> logits_RV."""

    def __init__(self, vocab: int, width: int, rows: int, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dense = nn.Linear(width, rows, spec.transform.bias) if spec.transform else None
        self.norm = make_norm(spec.transform.norm, rows) if spec.transform and spec.transform.norm else None
        self.weight = None if spec.tied else nn.Parameter(torch.empty(vocab, rows).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(vocab)) if spec.bias else None

    def forward(self, hidden_RD: Tensor, rows_VD: Tensor) -> Tensor:
        transform = self.spec.transform
        if self.dense is not None and transform is not None:
            hidden_RD = self.dense(hidden_RD)
            hidden_RD = ACTIVATIONS[transform.activation](hidden_RD) if transform.activation else hidden_RD
            hidden_RD = hidden_RD if self.norm is None else self.norm(hidden_RD)
        hidden_RD = hidden_RD if self.spec.scale == 1.0 else hidden_RD * self.spec.scale
        logits_RV = F.linear(hidden_RD, rows_VD if self.weight is None else self.weight, self.bias)
        cap = self.spec.softcap
        return logits_RV if cap is None else cap * torch.tanh(logits_RV / cap)


@dataclass(frozen=True)
class TaskSpec:
    """labels: how many numbers come out. at: of which token; "each" tags tokens, two labels at each mark a span.

    dense: the activation of a D x D layer before the labels, None for no such layer. One label at the last or at
    each token is a value head.
    """

    labels: int
    at: Literal["first", "last", "each"]
    dense: str | None = None
    bias: bool = True


class TaskHead(nn.Module):
    """hidden_TD of sequences of `lengths` -> labels_NL, one row per sequence, or per token if at "each"."""

    def __init__(self, width: int, spec: TaskSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dense = nn.Linear(width, width) if spec.dense else None
        self.out = nn.Linear(width, spec.labels, spec.bias)

    def forward(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        rows_ND = self.rows(hidden_TD, lengths)
        if self.dense is not None and self.spec.dense is not None:
            rows_ND = ACTIVATIONS[self.spec.dense](self.dense(rows_ND))
        return self.out(rows_ND)

    def rows(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        """The hidden states that are read."""
        if self.spec.at == "each":
            return hidden_TD
        ends = torch.tensor(lengths, device=hidden_TD.device).cumsum(0)
        return hidden_TD[ends - 1 if self.spec.at == "last" else F.pad(ends[:-1], (1, 0))]
