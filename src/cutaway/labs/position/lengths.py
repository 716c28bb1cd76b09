"""What the labs on longer texts share: small models of bytes, and what they lose at which place of a text."""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.lab import Run
from cutaway.labs.training import Batch, fit, loss_of, next_bytes, prose
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal, Context

TIMES = 4  # texts are this many times as long as the trained length
TRAINED_BYTES = 1024  # of each step
ROWS = 8  # texts read at once
BINS = 4  # places that losses are averaged over, per trained length


def halves() -> tuple[Tensor, Tensor]:
    """Nine tenths of the text, to train on, and the last tenth."""
    text = prose()
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def taught(
    model: Decoder,
    length: int,
    steps: int,
    run: Run,
    note: str = "training",
    *,
    lr: float = 3e-3,
    step_bytes: int = TRAINED_BYTES,
) -> Decoder:
    """The same model after training on stretches of `length` bytes."""
    task = next_bytes(halves()[0], length, max(1, step_bytes // length))
    fit(model.parameters(), lambda generator: loss_of(model, task(generator)), steps, run, note, seed=run.seed, lr=lr)
    return model


def held_out_texts(length: int, texts: int, generator: torch.Generator) -> list[Batch]:
    """Stretches of the last tenth, `ROWS` at a time."""
    task = next_bytes(halves()[1], length, ROWS)
    return [task(generator) for _ in range(texts // ROWS)]


def losses(model: Decoder, batch: Batch, context: Context | None = None, positions_T: Tensor | None = None) -> Tensor:
    """Of each target, nats: losses_NT, a row for each of N sequences of equal length."""
    positions_T = positions_of(batch.lengths) if positions_T is None else positions_T
    logits_TV = model.logits(model(batch.inputs_T, positions_T, context or BlockDiagonal(batch.lengths)))
    return F.cross_entropy(logits_TV, batch.targets_T, reduction="none").view(len(batch.lengths), -1)


@torch.inference_mode()
def by_place(model: Decoder, batches: list[Batch], size: int) -> list[float]:
    """Mean loss over each `size` tokens, from the beginning of the texts on."""
    losses_NT = torch.cat([losses(model, batch) for batch in batches])
    return [float(part.mean()) for part in losses_NT.split(size, 1)]


def quarters(bins: list[float]) -> list[float]:
    """Means over stretches of the trained length, which has `BINS` bins."""
    return [statistics.mean(bins[i : i + BINS]) for i in range(0, len(bins), BINS)]


def beyond(weights_HTS: Tensor, trained: int) -> Tensor:
    """Share of weight further away than the trained length, of the last queries, by head: share_H."""
    return weights_HTS.tril(-trained)[:, -trained:].sum(-1).mean(-1)
