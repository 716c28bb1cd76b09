"""What computes the spans of a step, and keeps their keys and values: the model's own modules, or a native tape."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from cutaway.engine.cache import Paged, Part, Pool, Spans
from cutaway.engine.graph import ADAPTIVE, PAGE, Graph, refusal
from cutaway.engine.matrices import OfCheckpoint, Source
from cutaway.engine.paged_attention import DTYPES, available, plain, tokens_of_tile
from cutaway.engine.replay import Inputs, Replay, Together, compute, laid_out, moved, replayable, tabled
from cutaway.engine.sequence import Sequence
from cutaway.engine.span import Span
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.spec import Spec
from cutaway.native.build import library
from cutaway.native.tape import batch_of
from cutaway.weights.checkpoint import Checkpoint

Batch = list[Span[Sequence]]
SCRATCH = 1 << 22  # float32 numbers, for attention over long texts
ROOM = 1 << 30  # bytes for keys and values where nobody says
SHARE = 0.8  # of what a GPU has free
FEW = 64  # rows of the largest step that is recorded and replayed


class Runner(Protocol):
    """size: tokens of a page. `allocate` comes first."""

    size: int

    @property
    def spec(self) -> Spec: ...

    @property
    def page_bytes(self) -> int:
        """What a page takes."""
        ...

    @property
    def room(self) -> int:
        """Bytes for keys and values where nobody says."""
        ...

    def allocate(self, pages: int, context: int, tokens: int, rows: int) -> None:
        """Make room for so many pages, and for steps of at most so many tokens, the logits of `rows` of them wanted."""
        ...

    def run(self, spans: Batch, wanted: list[int]) -> Tensor:
        """Compute the spans laid end to end; logits_RV, float32, of the tokens `wanted`, counted through the batch."""
        ...

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """What each first page holds into each second."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """It will not go on."""
        ...


def tokens_of(span: Span[Sequence]) -> list[int]:
    """What a span computes: tokens that the sequence has, and then its drafts."""
    sequence, start, count = span
    return (sequence.tokens[start : start + count] + sequence.drafts)[:count]


class Modules:
    """The model's own modules: every architecture, on any device, rounded as PyTorch does.

    fused: one kernel answers the plain questions of the whole batch, and small steps are replayed; if None, on a GPU.
    """

    size = PAGE

    def __init__(self, model: Decoder, fused: bool | None = None) -> None:
        self.model, self.fused = model, available(model.device) if fused is None else fused
        self.memories: dict[Sequence, Paged] = {}
        self.replays: dict[int, Replay] = {}

    @property
    def spec(self) -> Spec:
        return self.model.spec

    @property
    def page_bytes(self) -> int:
        return Pool.bytes_of_page(self.spec, self.model.dtype, self.size)

    @property
    def room(self) -> int:
        gpu = self.model.device.type == "cuda"
        return int(SHARE * torch.cuda.mem_get_info(self.model.device)[0]) if gpu else ROOM

    def allocate(self, pages: int, context: int, tokens: int, rows: int) -> None:
        """See `Runner`."""
        self.replays.clear()
        self.pool = Pool(self.spec, self.model.dtype, self.model.device, pages + self.fused, self.size)
        self.tile, self.pages = tokens_of_tile(self.spec), -(-context // self.size) + 1
        self.few = FEW if self.fused and replayable(self.model) else 0
        self.memory = torch.cuda.graph_pool_handle() if self.few and self.model.device.type == "cuda" else None

    def run(self, spans: Batch, wanted: list[int]) -> Tensor:
        """See `Runner`."""
        ids = [token for span in spans for token in tokens_of(span)]
        pieces = [(start, count, s.table, s.limit) for s, start, count in spans]
        with torch.cuda.device(self.model.device) if self.model.device.type == "cuda" else nullcontext():
            if len(ids) <= self.few:
                return self._replay(len(ids))(ids, pieces, wanted).cpu()
            inputs = moved(laid_out(ids, pieces, wanted, self.size, self.tile), self.model.device)
            return compute(self.model, inputs, self._context(spans, inputs)).cpu()

    def _context(self, spans: Batch, inputs: Inputs) -> Spans:
        whole = self.fused and self.model.dtype in DTYPES and all(map(plain, self.spec.layers))
        parts: list[Part] = [] if whole else [(self._memory(s, start), start, count) for s, start, count in spans]
        return Together(self.pool, inputs, self.tile, parts) if self.fused else Spans(parts)

    def _replay(self, rows: int) -> Replay:
        """Of the next power of two; the first time it is made."""
        rows = 1 << (rows - 1).bit_length()
        if rows not in self.replays:
            self.replays[rows] = Replay(self.model, self.pool, rows, self.pages, self.tile, memory=self.memory)
        return self.replays[rows]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """See `Runner`."""
        self.pool.copy(pairs)

    def forget(self, sequence: Sequence) -> None:
        """See `Runner`."""
        self.memories.pop(sequence, None)

    def _memory(self, sequence: Sequence, start: int) -> Paged:
        """What the sequence remembers; where it begins (again) nothing but its source, read whole."""
        if start == 0 or sequence not in self.memories:
            memory = self.memories[sequence] = Paged(self.pool, sequence.limit)
            if isinstance(self.model, EncoderDecoder):
                source_M = torch.tensor(sequence.source, device=self.model.device)
                memory.memory_SD = self.model.encode(source_M, [len(source_M)])
        self.memories[sequence].open(sequence.table)
        return self.memories[sequence]


class Pace:
    """How many threads are best for steps of about so many tokens, found by trying: others may use the processor too.

    Results do not depend on it. Every so often the choice that was not the best gets another try.
    """

    AGAIN = 32  # steps

    def __init__(self, most: int) -> None:
        self.choices = sorted({1, most})
        self.lately: dict[int, dict[int, float]] = {}  # by size of step and threads, seconds per token
        self.steps = 0

    def choose(self, tokens: int) -> int:
        """Threads for a step."""
        lately, self.steps = self.lately.setdefault(tokens.bit_length(), {}), self.steps + 1
        untried = [threads for threads in self.choices if threads not in lately]
        if untried:
            return untried[-1]
        pick = max if self.steps % self.AGAIN == 0 else min
        return pick(lately, key=lambda threads: lately[threads])

    def note(self, tokens: int, threads: int, seconds: float) -> None:
        """How long that took."""
        lately = self.lately[tokens.bit_length()]
        lately[threads] = 0.7 * lately.get(threads, seconds / tokens) + 0.3 * seconds / tokens


class Native:
    """A tape of native operations: see `graph`. Batch-invariant to the bit, quantized weights as they are stored."""

    size = PAGE

    def __init__(self, spec: Spec, source: Source, threads: int | None = None) -> None:
        """threads: always so many; by default as many as are best, at most as many as PyTorch uses."""
        self._spec, self.source, self.threads = spec, source, threads
        self.pace = Pace(torch.get_num_threads())

    @property
    def spec(self) -> Spec:
        return self._spec

    @property
    def page_bytes(self) -> int:
        return Pool.bytes_of_page(self.spec, torch.float16, self.size)

    @property
    def room(self) -> int:
        return ROOM

    def allocate(self, pages: int, context: int, tokens: int, rows: int) -> None:
        """See `Runner`."""
        self.graph = Graph(self.spec, self.source, context=context, pages=pages, tokens=tokens, rows=rows)
        self.scratch = torch.zeros(SCRATCH)

    def run(self, spans: Batch, wanted: list[int]) -> Tensor:
        """See `Runner`."""
        tables, ids = tabled([s.table for s, _, _ in spans]), [token for span in spans for token in tokens_of(span)]
        batch = batch_of(ids, [span[1:] for span in spans], torch.from_numpy(tables), wanted, self.scratch)
        threads, began = self.threads or self.pace.choose(len(ids)), time.perf_counter()
        logits_RV = self.graph(batch, threads)
        if not self.threads:
            self.pace.note(len(ids), threads, time.perf_counter() - began)
        return logits_RV

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """See `Runner`."""
        self.graph.copy_pages(pairs)

    def forget(self, sequence: Sequence) -> None:
        """See `Runner`: nothing is kept but pages."""


def native(checkpoint: Checkpoint, threads: int | None = None) -> Native | None:
    """The fast runner of a checkpoint; None where its architecture or this machine has none."""
    if refusal(checkpoint.spec) or library() is None:
        return None
    return Native(checkpoint.spec, OfCheckpoint(checkpoint), threads)


def salt(spec: Spec, tenant: str, reach: int) -> bytes:
    """What cached keys and values depend on beside the tokens before them; nobody shares what must not be shared."""
    mixers = [layer.attention for layer in spec.layers]
    if spec.encoder or any(getattr(a, "state", ()) for a in mixers):  # a source, or states, which no page holds
        return os.urandom(16)
    ropes = [rope for a in mixers if (rope := getattr(a, "rope", None))]
    adapts = any(rope.scaling and rope.scaling.kind in ADAPTIVE for rope in ropes)
    return f"{reach if adapts else 0}:{tenant}".encode()


def ends_of(spans: Batch) -> list[int]:
    """Where each span ends, counted through the batch."""
    return [*accumulate(span.count for span in spans)]
