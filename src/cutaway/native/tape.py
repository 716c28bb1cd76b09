"""A tape: the operations of a step in order, as `kernels.cpp` runs them. The structures here mirror its own."""

from __future__ import annotations

import ctypes
import math
import mmap
from array import array
from collections.abc import Iterable, Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from itertools import accumulate

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.files import advise
from cutaway.native.build import library
from cutaway.native.packing import GROUP, LANES, Packed

EXACT = 1 << 19  # bytes
SPARE = 15  # rows that a tile of 16 may read beyond the last one, see tiles.h


def untouched(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Zeros that take memory only where something is written: most pages of a cache may never be needed.

    Not from the heap, which writes zeros over what others had there. Beyond `EXACT` bytes memory comes in large pages:
    long texts are read faster, and a short one takes what it needs.
    """
    if str(device) != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, access=mmap.ACCESS_COPY)
    if len(memory) > EXACT:
        advise(memory, "MADV_HUGEPAGE", EXACT)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Kind(IntEnum):
    """What an operation does."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    FEED = 3
    TURN = 4
    ATTEND = 5
    MERGE = 6
    WEIGH = 7
    SHRINK = 8


ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2")


class Matrix(Structure):
    """An [N, K] matrix; `packed` is kept so that its memory stays."""

    _fields_ = (
        ("blocks", c_void_p), ("n", c_int32), ("k", c_int32), ("bits", c_int32), ("zero", c_int32),
        ("offset", c_int32), ("halves", c_int32), ("bytes", c_int32), ("unused", c_int32),
    )  # fmt: skip

    @staticmethod
    def of(packed: Packed) -> Matrix:
        """The matrix that was packed."""
        blocks, n, k, bits, zero, offset, halves = packed
        made = Matrix(blocks.data_ptr(), n, k, bits, zero, offset, halves, blocks.shape[2])
        made.packed = packed
        return made

    @property
    def integers(self) -> bool:
        """Whether it multiplies activations that were made integers."""
        return self.bits < 16


class Rows(Structure):
    """Activations of up to `count` tokens: floats and, to multiply integers, codes with a step and sums per group."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "q", "step", "sum", "mass")), ("width", c_int32), ("unused", c_int32)
    )  # fmt: skip

    @staticmethod
    def of(count: int, width: int) -> Rows:
        """Empty rows; the width is rounded up to whole panels."""
        width = -(-width // GROUP) * GROUP
        columns = ((width, torch.float32), (width, torch.int8), (width // GROUP, torch.float32),
                   (width // LANES, torch.int32), (width // GROUP, torch.float32))  # fmt: skip
        tensors = tuple(untouched(count + SPARE, many, dtype=dtype)[:count] for many, dtype in columns)
        made = Rows(*(tensor.data_ptr() for tensor in tensors), width)
        made.tensors = tensors
        return made

    def beginning_at(self, column: int) -> Rows:
        """The floats from a column on, in the same memory."""
        made = Rows(self.x + 4 * column, self.q, self.step, self.sum, self.mass, self.width)
        made.tensors = self.tensors
        return made

    @property
    def floats(self) -> Tensor:
        """[count, width]."""
        x: Tensor = self.tensors[0]
        return x


class Share(Structure):
    """Which ranks a panel of 16 outputs reads."""

    _fields_ = (("first", c_int32), ("rank", c_int32), ("at", c_int32), ("scale", c_float))


class Update(Structure):
    """What an adapter adds to the product of one operation; see `Update` in kernels.cpp."""

    _fields_ = (
        ("a", POINTER(Matrix)), ("b", c_void_p), ("shares", POINTER(Share)), ("bits", c_int32), ("unused", c_int32)
    )  # fmt: skip


class Op(Structure):
    """One operation; see `Op` in kernels.cpp for what each field means."""

    _fields_ = (
        *((name, c_int32) for name in (
            "kind", "activation", "of_rows", "add", "heads", "kv_heads", "head_dim", "window", "turning", "gated",
            "layered", "quantize",
        )),
        *((name, c_float) for name in ("eps", "scale", "softcap")), ("coded", c_int32), ("target", c_int32),
        ("in_", POINTER(Rows)), ("out", POINTER(Rows)), ("matrix", POINTER(Matrix)),
        *((name, c_void_p) for name in (
            "weight", "bias", "q_norm", "k_norm", "cos", "sin", "sinks", "table", "keys", "values"
        )),
    )  # fmt: skip


class Batch(Structure):
    """What changes from step to step; `arrays` are kept while it runs, `end` is one more than the last position."""

    _fields_ = (
        *((name, c_int32) for name in ("tokens", "rows", "sequences", "stride")),
        *((name, c_void_p) for name in ("ids", "positions", "owner", "first", "start", "tables", "wanted", "partial")),
        ("partial_size", c_int64), ("adapters", c_void_p), ("shrunk", c_void_p), ("shrunk_width", c_int64),
    )  # fmt: skip


class Tape:
    """Operations to run together, and everything that they point to."""

    def __init__(self, march: str = "native") -> None:
        kernels = library(march)
        if kernels is None:
            raise CutawayError("the native kernels could not be built", "tape")
        self._run = kernels.cutaway_run
        self._run.argtypes = [c_void_p, c_int32, c_void_p, c_int32, c_void_p]
        self._run.restype = None
        self.ops: list[Op] = []
        self._kept: list[object] = []
        self._array: ctypes.Array[Op] | None = None

    def add(self, kind: Kind, **fields: object) -> Op:
        """Append an operation. Tensors and structures are passed as they are and kept alive; None is a null pointer."""
        op = Op(kind=kind)
        for name, value in fields.items():
            if isinstance(value, Tensor):
                assert value.is_contiguous()
                assert value.device.type == "cpu"
                setattr(op, name, value.data_ptr())
            elif isinstance(value, Structure):
                setattr(op, name, ctypes.pointer(value))
            elif value is not None:
                setattr(op, name, value)
            self._kept.append(value)
        self.ops.append(op)
        self._array = None
        return op

    def run(self, batch: Batch, threads: int, seconds: Tensor | None = None) -> None:
        """All operations, in order. seconds: float64 [ops], what each took is added to it."""
        if self._array is None:
            self._array = (Op * len(self.ops))(*self.ops)
        timed = seconds.data_ptr() if seconds is not None else None
        self._run(self._array, len(self.ops), ctypes.byref(batch), threads, timed)


def batch_of(
    ids: Iterable[int],
    spans: Iterable[tuple[int, int]],
    tables: Iterable[Sequence[int]],
    wanted: Iterable[int],
    scratch: Tensor,
) -> Batch:  # fmt: skip
    """ids: of all spans laid end to end. spans: (first position, count) of each sequence, tables: its pages, in order.

    wanted: tokens of the batch whose logits are asked for. scratch: float32, for attention over long texts.
    """
    starts, counts = zip(*spans, strict=True)
    places = [*enumerate(zip(starts, counts, strict=True))]
    width, rows = max(map(len, tables := [*tables])), [*wanted]
    parts = [
        [*ids],
        [position for _, (start, count) in places for position in range(start, start + count)],
        [owner for owner, (_, count) in places for _ in range(count)],
        [0, *accumulate(counts)],
        starts,
        [page for table in tables for page in (*table, *[0] * (width - len(table)))],
        rows,
    ]
    numbers = array("i", [number for part in parts for number in part])
    at = [numbers.buffer_info()[0] + 4 * before for before in accumulate(map(len, parts), initial=0)]
    sizes = (sum(counts), len(rows), len(counts), width)
    made = Batch(*sizes, *at[:-1], scratch.data_ptr(), scratch.numel())
    made.arrays, made.end = (numbers, scratch), max(map(sum, zip(starts, counts, strict=True)))
    return made
