"""The key/value cache: what attention needs of earlier tokens, kept instead of computed again.

Only K and V are kept: a later token asks with its own query, and an earlier token's query is not asked again. Latent
attention keeps one vector for both; a recurrent mixer keeps a state; cross-attention keeps the source's K and V.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cutaway.models.spec import Spec
from cutaway.native.tape import untouched
from cutaway.nn.attention import Project, Question, attend, ends


class Memory(ABC):
    """What one sequence remembers beside its keys and values. `put` and `get` are its kinds' own.

    memory_SD: the hidden states of its source, in an encoder-decoder. reach: how long the text may become; rotations
    that adapt to that must know, for kept keys are not turned again.
    """

    def __init__(self, reach: int = 0) -> None:
        self.reach = reach
        self.memory_SD: Tensor | None = None
        self.sources: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: dict[int, Any] = {}

    def source(self, layer: int, project: Project) -> tuple[Tensor, Tensor]:
        """Keys and values of the source, [G, S, K]: computed when first asked for, then kept."""
        if layer not in self.sources:
            assert self.memory_SD is not None, "cross-attention needs the source's hidden states"
            k_SGK, v_SGK = project(self.memory_SD)
            self.sources[layer] = k_SGK.transpose(0, 1), v_SGK.transpose(0, 1)
        return self.sources[layer]

    @abstractmethod
    def put(self, layer: int, start: int, *rows_TGK: Tensor) -> None:
        """Store what T tokens at positions start, start + 1, ... leave behind."""

    @abstractmethod
    def get(self, layer: int, first: int, end: int) -> list[Tensor]:
        """What is kept of positions first ... end - 1, [G, S, K]."""


class KVCache(Memory):
    """Keys and values in buffers of one sequence: per layer [G, capacity, K]. They double when full."""

    def __init__(
        self, spec: Spec, dtype: torch.dtype, device: torch.device, capacity: int = 256, reach: int = 0
    ) -> None:
        super().__init__(reach)
        self.buffers = [
            [torch.empty(heads, capacity, width, dtype=dtype, device=device) for heads, width in kept]
            for kept in kept_of(spec)
        ]

    def put(self, layer: int, start: int, *rows_TGK: Tensor) -> None:
        """See `Memory.put`."""
        end = start + len(rows_TGK[0])
        buffers = self.buffers[layer]
        for i, new_TGK in enumerate(rows_TGK):
            if end > buffers[i].shape[1]:
                buffers[i] = _larger(buffers[i], max(end, 2 * buffers[i].shape[1]))
            buffers[i][:, start:end] = new_TGK.transpose(0, 1)

    def get(self, layer: int, first: int, end: int) -> list[Tensor]:
        """See `Memory.get`; views."""
        return [buffer[:, first:end] for buffer in self.buffers[layer]]


def kept_of(spec: Spec) -> list[tuple[tuple[int, int], ...]]:
    """(heads, width) of what each layer keeps of a token, those that look ahead last."""
    return [layer.attention.cached for layer in (*spec.layers, *spec.ahead)]


def _larger(buffer: Tensor, capacity: int) -> Tensor:
    fresh = buffer.new_empty(buffer.shape[0], capacity, buffer.shape[2])
    fresh[:, : buffer.shape[1]] = buffer
    return fresh


class Pool:
    """Pages for the keys and values of all sequences: per layer [pages * size, G, K], a slot for each token."""

    def __init__(self, spec: Spec, dtype: torch.dtype, device: torch.device, pages: int, size: int) -> None:
        self.size, self.device = size, device
        self.stores = [
            [untouched(pages * size, heads, width, dtype=dtype, device=device) for heads, width in kept]
            for kept in kept_of(spec)
        ]

    @staticmethod
    def bytes_of_page(spec: Spec, dtype: torch.dtype, size: int) -> int:
        """What a page takes."""
        return size * dtype.itemsize * sum(heads * width for kept in kept_of(spec) for heads, width in kept)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """What each first page holds into each second."""
        for store in (store for stores in self.stores for store in stores):
            pages = store.unflatten(0, (-1, self.size))
            for old, new in pairs:
                pages[new] = pages[old]


class Paged(Memory):
    """Keys and values in the pages of a pool. `table` is set before each step: pages in order."""

    def __init__(self, pool: Pool, reach: int = 0) -> None:
        super().__init__(reach)
        self.pool = pool
        self.slots_S = torch.empty(0, dtype=torch.long)

    def open(self, table: list[int]) -> None:
        """Go on in these pages."""
        page_P, within = torch.tensor(table), torch.arange(self.pool.size)
        self.slots_S = (page_P[:, None] * self.pool.size + within).flatten().to(self.pool.device)

    def put(self, layer: int, start: int, *rows_TGK: Tensor) -> None:
        """See `Memory.put`."""
        slots_T = self.slots_S[start : start + len(rows_TGK[0])]
        for store, new_TGK in zip(self.pool.stores[layer], rows_TGK, strict=True):
            store[slots_T] = new_TGK

    def get(self, layer: int, first: int, end: int) -> list[Tensor]:
        """See `Memory.get`; gathered."""
        return [store[self.slots_S[first:end]].transpose(0, 1) for store in self.pool.stores[layer]]


Part = tuple[Memory, int, int]  # n new tokens at positions start ... start + n - 1, after those in the cache


class Spans:
    """The context of a step: a span of new tokens for each sequence."""

    remembers = True

    def __init__(self, spans: list[Part]) -> None:
        self.spans = spans

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """Remember the new keys and values, then let each sequence's queries look at all of its own."""
        kept = (k_TGK,) if v_TGK is None else (k_TGK, v_TGK)
        return self._each(lambda span, q, *new: self._one(layer, span, q, new, question), q_THK, *kept)

    def recall(self, layer: int, q_THK: Tensor, project: Project, question: Question) -> Tensor:
        """Let each sequence's queries look at its source, whose keys and values are computed once."""

        def one(span: Part, q_QHK: Tensor) -> Tensor:
            k_GSK, v_GSK = span[0].source(layer, project)
            return attend(q_QHK.transpose(0, 1)[None], k_GSK[None], v_GSK[None], question)[0].transpose(0, 1)

        return self._each(one, q_THK)

    def scan(self, layer: int, step: Callable[..., tuple[Tensor, Any]], *parts: Tensor) -> Tensor:
        """Go on from each sequence's state and keep the new one."""

        def one(span: Part, *new: Tensor) -> Tensor:
            out, span[0].states[layer] = step(span[0].states.get(layer), *new)
            return out

        return self._each(one, *parts)

    def reach(self, positions_T: Tensor) -> Tensor:
        """See `Context.reach`: what its cache was told, unless the text is longer already."""
        counts = [n for _, _, n in self.spans]
        told_N = torch.tensor([cache.reach for cache, _, _ in self.spans], device=positions_T.device)
        told_T = told_N.repeat_interleave(torch.tensor(counts, device=positions_T.device))
        return ends(positions_T, counts).maximum(told_T)

    def _each(self, one: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """`one(span, *its rows of each part)` for every span, laid end to end."""
        rows = zip(*(part.split([n for _, _, n in self.spans]) for part in parts), strict=True)
        return torch.cat([one(span, *row) for span, row in zip(self.spans, rows, strict=True)])

    def _one(self, layer: int, span: Part, q_QHK: Tensor, new: tuple[Tensor, ...], question: Question) -> Tensor:
        cache, start, n = span
        cache.put(layer, start, *new)
        window = None if question.anchors else question.window  # anchors keep the first tokens in sight
        first = 0 if window is None else max(0, start - window + 1)
        k_GSK, *values = cache.get(layer, first, start + n)
        v_GSK = values[0] if values else k_GSK[..., : question.values]
        return attend(q_QHK.transpose(0, 1)[None], k_GSK[None], v_GSK[None], question)[0].transpose(0, 1)
