"""Small language models of bytes, trained in seconds on this package's own source code."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.labs.lab import Run
from cutaway.labs.machine import PACKAGE
from cutaway.models.block import positions_of
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.spec import HeadSpec, LayerSpec, Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.positions import RopeSpec

LENGTH, RUNS = 96, 8  # bytes per training sequence, sequences per step


class Trained(NamedTuple):
    """held_out: loss after training, nats per byte. seconds: of a step, median."""

    held_out: float
    seconds: float


def byte_spec(norm: NormSpec, width: int, layers: int) -> Spec:
    """A Llama-like decoder of bytes."""
    head_dim = max(2, width // 8 * 2)
    block = LayerSpec(
        attention=AttentionSpec(4, 2, head_dim, head_dim**-0.5, rope=RopeSpec()),
        ffn=FeedForwardSpec(8 * width // 3, "silu", gated=True),
        norm=norm,
    )
    return Spec("llama", 256, width, LENGTH, EmbeddingSpec(), (block,) * layers, norm, HeadSpec(tied=False))


def source_bytes() -> Tensor:
    """This package's Python files, one after the other."""
    files = sorted(PACKAGE.rglob("*.py"))
    return torch.tensor(list(b"\n".join(path.read_bytes() for path in files)))


def train(spec: Spec, data: Tensor, steps: int, seed: int, run: Run) -> Trained:
    """AdamW on nine tenths of the data, loss on the rest. A seed fixes the matrices and the batches."""
    generator = torch.Generator().manual_seed(seed)
    model = build(spec)
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    learned, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    seconds = []
    for _ in run.each(range(steps), f"training with {spec.layers[0].norm.kind} norm, seed {seed}, step"):
        began = time.perf_counter()
        loss = batch_loss(model, learned, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        test_rng = torch.Generator().manual_seed(0)
        losses = [float(batch_loss(model, held_out, test_rng)) for _ in range(max(4, steps // 10))]
    return Trained(statistics.mean(losses), statistics.median(seconds))


def batch_loss(model: Decoder, data: Tensor, generator: torch.Generator) -> Tensor:
    """Loss of `RUNS` random stretches laid end to end, nats per byte."""
    starts = torch.randint(len(data) - LENGTH - 1, (RUNS,), generator=generator).tolist()
    inputs_T, targets_T = (torch.cat([data[s + shift : s + shift + LENGTH] for s in starts]) for shift in (0, 1))
    lengths = [LENGTH] * RUNS
    return F.cross_entropy(model.logits(model(inputs_T, positions_of(lengths), BlockDiagonal(lengths))), targets_T)
