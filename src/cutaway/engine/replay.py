"""A step of the model's own modules, all that changes in it laid out as one array; on a GPU recorded, then replayed.

Python starts a GPU's operations one by one, hundreds of them in a step, and for a few tokens that takes longer than the
operations. A CUDA graph is a list of operations recorded once: they run again in the same memory, on other numbers. So
a step is padded to a power of two of rows, its inputs are copied to where the recorded operations read them, and its
logits are found where they were written. What is recorded must neither ask the host nor have shapes that depend on
numbers: `replayable` says whose steps are so, and a test runs all of them where either would be an error.

Rows that pad are sequences of one token in a spare page, which nobody else has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cutaway.engine.cache import Part, Pool, Spans
from cutaway.engine.paged_attention import DTYPES, answers, paged_attention, plain
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec
from cutaway.nn.attention import Question
from cutaway.nn.feed_forward import FeedForwardSpec

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Piece = tuple[int, int, list[int], int]  # first position, tokens, pages, how long the text may become


class Inputs(NamedTuple):
    """What a step must know of its batch. slots: where keys and values of each token go. reach: see `Context.reach`.

    wanted: the rows whose logits are asked for. tiles, tables: see `paged_attention`.
    """

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    reach_T: Tensor
    wanted_R: Tensor
    tiles_N4: Tensor
    tables_BP: Tensor


def laid_out(ids: list[int], pieces: Sequence[Piece], wanted: list[int], size: int, tile: int) -> list[Numbers]:
    """The arrays of `Inputs`. ids: of all pieces laid end to end. size: tokens of a page. tile: most of a tile."""
    start_B, count_B, reach_B = np.array([(start, count, reach) for start, count, _, reach in pieces]).T
    tables_BP = tabled([table for _, _, table, _ in pieces])
    owner_T, end_B = np.arange(len(pieces)).repeat(count_B), start_B + count_B
    positions_T = np.arange(len(ids)) - (count_B.cumsum() - end_B)[owner_T]
    slots_T = tables_BP[owner_T, positions_T // size] * size + positions_T % size
    row_N = np.flatnonzero((positions_T - start_B[owner_T]) % tile == 0)
    owner_N, first_N = owner_T[row_N], positions_T[row_N]
    tiles_N4 = np.stack([row_N, np.minimum(end_B[owner_N] - first_N, tile), first_N, owner_N], 1)
    reach_T = np.maximum(reach_B, end_B)[owner_T]
    return [np.array(ids), positions_T, slots_T, reach_T, np.array(wanted, np.int64), tiles_N4, tables_BP]


def tabled(tables: list[list[int]]) -> Numbers:
    """Rows of pages, zeros after the shorter ones."""
    made_BP = np.zeros((len(tables), max(map(len, tables))), np.int64)
    for row, table in zip(made_BP, tables, strict=True):
        row[: len(table)] = table
    return made_BP


def moved(arrays: list[Numbers], device: torch.device) -> Inputs:
    """By one copy."""
    return _views(_flat(arrays).to(device), [array.shape for array in arrays])


class Together(Spans):
    """The context of spans whose plain questions one kernel answers for all, other questions each of its `parts`."""

    def __init__(self, pool: Pool, inputs: Inputs, tile: int, parts: list[Part]) -> None:
        super().__init__(parts)
        self.pool, self.inputs, self.tile = pool, inputs, tile

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Spans.attend`."""
        if v_TGK is None or not answers(question, q_THK):
            return super().attend(layer, q_THK, k_TGK, v_TGK, question)
        keys, values = self.pool.stores[layer]
        keys[self.inputs.slots_T], values[self.inputs.slots_T] = k_TGK, v_TGK
        tiles, tables, how = self.inputs.tiles_N4, self.inputs.tables_BP, {"size": self.pool.size, "tile": self.tile}
        return paged_attention(q_THK, keys, values, tiles, tables, question=question, **how)

    def reach(self, positions_T: Tensor) -> Tensor:
        """See `Context.reach`."""
        return self.inputs.reach_T


def compute(model: Decoder, inputs: Inputs, context: Spans) -> Tensor:
    """Logits of the rows wanted, float32 [R, V]."""
    hidden_TD = model(inputs.tokens_T, inputs.positions_T, context)
    return model.logits(hidden_TD[inputs.wanted_R]).float()


def replayable(model: Decoder) -> bool:
    """Whether its steps ask nothing of the host, rows know nothing of each other, and the kernel answers all layers."""
    return isinstance(model, Decoder) and model.dtype in DTYPES and all(map(_steady, model.spec.layers))


def _steady(layer: LayerSpec) -> bool:
    rope = getattr(layer.attention, "rope", None)
    tables = rope is not None and rope.scaling is not None and rope.scaling.kind == "longrope"  # brought from the host
    alone = layer.norm is None or layer.norm.kind != "batch"
    return plain(layer) and isinstance(layer.ffn, FeedForwardSpec) and alone and not tables


class Replay:
    """Steps of at most so many rows, in memory of their own. Elsewhere than on a GPU the operations run as they are.

    pages: the longest table. The pool's last page is the spare one. memory: of graphs that take turns; what one leaves
    there, its logits too, is gone when another runs. Weights must stay where they are; hooks see only the recording.
    """

    def __init__(self, model: Decoder, pool: Pool, rows: int, pages: int, tile: int, *, memory: Any = None) -> None:
        self.model, self.pool, self.rows, self.tile, self.memory = model, pool, rows, tile, memory
        self.shapes: list[tuple[int, ...]] = [*[(rows,)] * 5, (rows, 4), (rows, pages)]
        self.flat = torch.zeros(sum(map(math.prod, self.shapes)), dtype=torch.long, device=model.device)
        self.inputs = _views(self.flat, self.shapes)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, ids: list[int], pieces: list[Piece], wanted: list[int]) -> Tensor:
        """Logits_RV, float32, on the model's device, until the next step."""
        idle, spare = self.rows - len(ids), len(self.pool.stores[0][0]) // self.pool.size - 1
        pieces = [*pieces, *[(0, 1, [spare], 1)] * idle]
        arrays = laid_out([*ids, *[0] * idle], pieces, wanted, self.pool.size, self.tile)
        self.flat.copy_(_flat([_padded(array, shape) for array, shape in zip(arrays, self.shapes, strict=True)]))
        if self.flat.is_cuda:
            self.graph = self.graph or self._recorded()
            self.graph.replay()
        else:
            self.logits_RV = self.step()
        return self.logits_RV[: len(wanted)]

    def step(self) -> Tensor:
        """What is recorded."""
        return compute(self.model, self.inputs, Together(self.pool, self.inputs, self.tile, []))

    def _recorded(self) -> torch.cuda.CUDAGraph:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compiles and sets up what must not happen while recording
            self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self.memory, capture_error_mode="thread_local"):
            self.logits_RV = self.step()
        return graph


def _padded(array: Numbers, shape: tuple[int, ...]) -> Numbers:
    """With zeros: a tile of no rows, a table that nobody has."""
    made = np.zeros(shape, np.int64)
    made[tuple(map(slice, array.shape))] = array
    return made


def _flat(arrays: list[Numbers]) -> Tensor:
    return torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))


def _views(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> Inputs:
    parts = flat.split([math.prod(shape) for shape in shapes])
    return Inputs(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))
