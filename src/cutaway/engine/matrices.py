"""Weights as the native kernels take them: packed from what a checkpoint stores, or from a model's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cutaway.models.block import Stack
from cutaway.native.packing import GROUP, LANES, Layout, Packed, pack_rows
from cutaway.weights import blocks
from cutaway.weights.checkpoint import Checkpoint


class Stored(NamedTuple):
    """A matrix where it lies: row i is row order[i] of `rows`, uint8 [N, bytes] in the format called `type`."""

    rows: Tensor
    order_N: Tensor
    type: str

    @staticmethod
    def of(numbers_NK: Tensor) -> Stored:
        """A matrix of numbers; what is no 16-bit float becomes float32."""
        type = {torch.bfloat16: "BF16", torch.float16: "F16"}.get(numbers_NK.dtype, "F32")
        plain_NK = numbers_NK.detach() if type != "F32" else numbers_NK.detach().float()
        return Stored(plain_NK.contiguous().view(torch.uint8), torch.arange(len(plain_NK)), type)

    @property
    def places_N(self) -> Tensor:
        """The address of each row."""
        return self.rows.data_ptr() + self.order_N * self.rows.stride(0)

    @property
    def k(self) -> int:
        """How many weights a row has."""
        form = blocks.named(self.type)
        return self.rows.shape[1] // form.bytes * form.elements

    @property
    def numbers(self) -> Tensor:
        """float32 [N, K]."""
        return blocks.dequantize(self.rows[self.order_N], self.type, (len(self.order_N), self.k))


class Source(Protocol):
    """Where weights come from, by the names of our parameters."""

    def matrix(self, name: str) -> Stored:
        """A matrix as it is stored."""
        ...

    def vector(self, name: str) -> Tensor | None:
        """Any tensor in float32; None where the model has no such parameter."""
        ...


class OfModel:
    """The tensors of a model in memory."""

    def __init__(self, model: Stack) -> None:
        self.tensors = dict(model.named_parameters())

    def matrix(self, name: str) -> Stored:
        """See `Source`."""
        return Stored.of(self.tensors[name])

    def vector(self, name: str) -> Tensor | None:
        """See `Source`."""
        return self.tensors[name].detach().float().contiguous() if name in self.tensors else None


class OfCheckpoint:
    """The tensors of a file, quantized ones as they are."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def matrix(self, name: str) -> Stored:
        """See `Source`."""
        found = self.checkpoint.stored_rows(name)
        return Stored(*found) if found else Stored.of(self.checkpoint.tensor(name))

    def vector(self, name: str) -> Tensor | None:
        """See `Source`."""
        return self.checkpoint.tensor(name).float().contiguous() if name in self.checkpoint.bindings else None


def joined(source: Source, names: list[str]) -> Iterator[tuple[int, Packed]]:
    """Matrices stacked row by row, as few as their formats allow, each with its first row."""
    first = 0
    for _, run in groupby(map(source.matrix, names), lambda stored: stored.type):
        some = list(run)
        made = _packed(some, torch.cat([stored.places_N for stored in some]))
        yield first, made
        first += made.n


def interleaved(source: Source, names: list[str]) -> Packed:
    """Matrices of equal size, 32 rows of each in turn; of different formats they all become float32."""
    parts = [source.matrix(name) for name in names]
    if len({part.type for part in parts}) > 1:
        parts = [Stored.of(part.numbers) for part in parts]
    return _packed(parts, torch.stack([part.places_N.unflatten(0, (-1, GROUP)) for part in parts], 1).flatten())


def pack(stored: Stored) -> Packed:
    """A matrix for the kernels; formats that are no integers with scales become floats."""
    return _packed([stored], stored.places_N)


def _packed(parts: list[Stored], places_N: Tensor) -> Packed:
    """One matrix of rows of `parts`, which are of one format."""
    form = blocks.named(parts[0].type)
    return pack_rows(places_N, parts[0].k, form.id, layout(form.name), threads=torch.get_num_threads())


@cache
def layout(type: str) -> Layout:
    """How weights of a format are packed."""
    form = blocks.named(type)
    if form.split is None:
        return Layout(16 if type == "BF16" else 32)
    a = form.split(torch.zeros(1, form.bytes, dtype=torch.uint8))
    return Layout(a.bits, a.zero, a.offset_BS is not None, a.scale_BS.shape[1] * LANES == form.elements)
