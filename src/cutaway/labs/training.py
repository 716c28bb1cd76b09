"""Small models trained in seconds: what labs compare when the question is what training makes of a mechanism.

A task is a function from a generator to a `Batch`, so that a seed fixes the data; a seed also fixes the weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.labs.lab import Run
from cutaway.models.block import Stack, positions_of
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.spec import HeadSpec, LayerSpec, Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.positions import RopeSpec

IGNORED = -100  # a target that nothing is asked about


class Batch(NamedTuple):
    """Sequences laid end to end: inputs_T, and what each position should say, `IGNORED` where it does not matter."""

    inputs_T: Tensor
    targets_T: Tensor
    lengths: list[int]


Task = Callable[[torch.Generator], Batch]


class Fitted(NamedTuple):
    """losses: of every step, nats per target. seconds: of a step, median."""

    losses: list[float]
    seconds: float


def small_spec(
    *,
    vocab: int = 256,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    context: int = 512,
    norm: NormSpec | None = None,
) -> Spec:
    """A Llama-like decoder; vary it with `dataclasses.replace` and `with_layers`."""
    norm = norm or NormSpec("rms", 1e-5)
    head_dim = max(2, width // heads // 2 * 2)
    block = LayerSpec(
        attention=AttentionSpec(heads, kv_heads or heads, head_dim, head_dim**-0.5, rope=RopeSpec()),
        ffn=FeedForwardSpec(8 * width // 3, "silu", gated=True),
        norm=norm,
    )
    return Spec("llama", vocab, width, context, EmbeddingSpec(), (block,) * layers, norm, HeadSpec(tied=False))


def with_layers(spec: Spec, change: Callable[[LayerSpec], LayerSpec]) -> Spec:
    """The spec with every layer changed."""
    return replace(spec, layers=tuple(change(layer) for layer in spec.layers))


def fresh(spec: Spec, seed: int, std: float = 0.02) -> Decoder:
    """A model with matrices drawn from a normal distribution; norms and biases as built."""
    generator = torch.Generator().manual_seed(seed)
    model = build(spec)
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=std, generator=generator)
    return model


@cache
def prose() -> Tensor:
    """Bytes of English: the reference of the Python language, which every Python carries (`pydoc_data`)."""
    from pydoc_data.topics import topics

    return torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))


def next_bytes(data: Tensor, length: int, rows: int) -> Task:
    """Random stretches of `data`, each position asked for the byte that follows."""

    def batch(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(data) - length - 1, (rows,), generator=generator).tolist()
        inputs_T, targets_T = (torch.cat([data[s + shift : s + shift + length] for s in starts]) for shift in (0, 1))
        return Batch(inputs_T, targets_T, [length] * rows)

    return batch


def loss_of(model: Stack, batch: Batch) -> Tensor:
    """Mean cross-entropy over the targets, nats."""
    assert isinstance(model, Decoder)
    hidden_TD = model(batch.inputs_T, positions_of(batch.lengths), BlockDiagonal(batch.lengths))
    asked_T = batch.targets_T != IGNORED
    return F.cross_entropy(model.logits(hidden_TD[asked_T]), batch.targets_T[asked_T])


def accuracy_of(model: Decoder, batch: Batch) -> float:
    """Share of targets that are the likeliest token."""
    with torch.no_grad():
        hidden_TD = model(batch.inputs_T, positions_of(batch.lengths), BlockDiagonal(batch.lengths))
        asked_T = batch.targets_T != IGNORED
        return float((model.logits(hidden_TD[asked_T]).argmax(-1) == batch.targets_T[asked_T]).float().mean())


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[torch.Generator], Tensor],
    steps: int,
    run: Run,
    note: str,
    *,
    seed: int,
    lr: float = 3e-3,
    warmup: int = 0,
    weight_decay: float = 0.1,
) -> Fitted:
    """AdamW, gradients clipped to norm 1, the rate growing linearly over `warmup` steps. A seed fixes the batches."""
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(warmup, 1)))
    generator = torch.Generator().manual_seed(seed)
    losses, seconds = [], []
    for _ in run.each(range(steps), f"{note}, seed {seed}, step"):
        began = time.perf_counter()
        value = loss(generator)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        seconds.append(time.perf_counter() - began)
    return Fitted(losses, statistics.median(seconds))


@torch.no_grad()
def held_out(model: Decoder, task: Task, batches: int, seed: int = 0) -> float:
    """Mean loss over fresh batches, the same for every model."""
    generator = torch.Generator().manual_seed(seed)
    return statistics.mean(float(loss_of(model, task(generator))) for _ in range(batches))
