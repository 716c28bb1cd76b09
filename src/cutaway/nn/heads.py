"""What is made of hidden states at the end: scores over the vocabulary, or over a few labels.

language model   logits = scale * f(hidden) . W^T + b        W the token embedding (tied) or a matrix of its own
task             labels = W g(hidden_at) + b                 at the first, the last, or each token
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.embedding import drawn
from cutaway.nn.feed_forward import ACTIVATIONS
from cutaway.nn.norms import NormSpec, make_norm


@dataclass(frozen=True)
class TransformSpec:
    """A layer before the scores, norm(activation(W x)): to the width of the embedding rows before a language-model
    head (BERT, ALBERT, OPT-350m), of the same width before labels (BERT's pooler, ModernBERT)."""

    activation: str | None = None
    norm: NormSpec | None = None
    bias: bool = True


class Transformed(nn.Module):
    """What both kinds of head begin with: the layer of a `TransformSpec`, or nothing."""

    def __init__(self, width: int, rows: int, spec: TransformSpec | None) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation] if spec and spec.activation else None
        self.dense = nn.Linear(width, rows, spec.bias) if spec else None
        self.norm = make_norm(spec.norm, rows) if spec and spec.norm else None

    def transform(self, hidden_RD: Tensor) -> Tensor:
        """hidden_RD, or what the layer makes of it."""
        if self.dense is None:
            return hidden_RD
        made_RD = self.dense(hidden_RD)
        made_RD = made_RD if self.activation is None else self.activation(made_RD)
        return made_RD if self.norm is None else self.norm(made_RD)


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


class Head(Transformed):
    """hidden_RD, and the embedding's rows_VD if tied -> logits_RV."""

    def __init__(self, vocab: int, width: int, rows: int, spec: HeadSpec) -> None:
        super().__init__(width, rows, spec.transform)
        self.spec = spec
        self.weight = None if spec.tied else nn.Parameter(drawn(vocab, rows, std=0.02))
        self.bias = nn.Parameter(torch.zeros(vocab)) if spec.bias else None

    def forward(self, hidden_RD: Tensor, rows_VD: Tensor) -> Tensor:
        hidden_RD = self.transform(hidden_RD)
        hidden_RD = hidden_RD if self.spec.scale == 1.0 else hidden_RD * self.spec.scale
        logits_RV = F.linear(hidden_RD, rows_VD if self.weight is None else self.weight, self.bias)
        cap = self.spec.softcap
        return logits_RV if cap is None else cap * torch.tanh(logits_RV / cap)


@dataclass(frozen=True)
class TaskSpec:
    """labels: how many numbers come out. at: of which token, or of the mean of all; "each" tags tokens, "span" gives
    each token two numbers, how well a span begins and how well it ends there (Devlin et al. 2018, section 4.2).

    transform: a D x D layer before the labels. names: of the labels, or none. One label at the last or at each token
    is a value head, or a discriminator (ELECTRA).
    """

    labels: int
    at: Literal["first", "last", "mean", "each", "span"]
    transform: TransformSpec | None = None
    bias: bool = True
    names: tuple[str, ...] = ()

    @property
    def each(self) -> bool:
        """Is there a row of labels for every token, and not one for the sequence?"""
        return self.at in ("each", "span")


class TaskHead(Transformed):
    """hidden_TD of sequences of `lengths` -> labels_NL, one row per sequence, or per token if at "each" or "span"."""

    def __init__(self, width: int, spec: TaskSpec) -> None:
        super().__init__(width, width, spec.transform)
        self.spec = spec
        self.out = nn.Linear(width, spec.labels, spec.bias)

    def forward(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        return self.out(self.transform(self.rows(hidden_TD, lengths)))

    def rows(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        """The hidden states that are read."""
        if self.spec.each:
            return hidden_TD
        if self.spec.at == "mean":
            return torch.stack([row_TD.mean(0) for row_TD in hidden_TD.split(lengths)])
        ends = torch.tensor(lengths, device=hidden_TD.device).cumsum(0)
        return hidden_TD[ends - 1 if self.spec.at == "last" else F.pad(ends[:-1], (1, 0))]


def faults(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of a task; nothing if it makes sense."""
    if spec.labels < 1:
        yield "labels", f"must be at least 1, got {spec.labels}"
    if spec.at == "span" and spec.labels != 2:
        yield "labels", f"a span takes 2, its begin and its end, got {spec.labels}"
    if spec.names and len(spec.names) != spec.labels:
        yield "names", f"{len(spec.names)} names for {spec.labels} labels"
