"""What computes the spans of a step, and keeps their keys and values: the model's own modules, or a native tape."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from cutaway.engine.adapters import Changes, Fitted, Twin, changes
from cutaway.engine.cache import Paged, Part, Pool, Spans, kept_of
from cutaway.engine.graph import ADAPTIVE, KEPT, PAGE, Graph, refusal
from cutaway.engine.matrices import OfCheckpoint, Source
from cutaway.engine.paged_attention import DTYPES, available, plain, tokens_of_tile
from cutaway.engine.replay import Inputs, Replay, Together, laid_out, moved, replayable
from cutaway.engine.sampler import Logits
from cutaway.engine.sequence import Sequence
from cutaway.engine.span import Span
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.spec import Spec
from cutaway.native.adapters import Adapted, adapt
from cutaway.native.build import library
from cutaway.native.tape import batch_of, untouched
from cutaway.weights.adapters import Adapter
from cutaway.weights.checkpoint import Checkpoint, Loaded

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

    def fit(self, adapter: Adapter) -> Any:
        """What `run` needs of an adapter, where a sequence has it as `adapter.made`. Any thread may ask."""
        ...

    def run(self, spans: Batch, wanted: list[int]) -> list[Logits]:
        """Compute the spans laid end to end; the logits of the tokens `wanted`, counted through the batch."""
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
    drafts = sequence.drafts[max(0, start - len(sequence.tokens)) :]
    return (sequence.tokens[start : start + count] + drafts)[:count]


class Modules:
    """The model's own modules: every architecture, on any device, rounded as PyTorch does.

    fused: one kernel answers the plain questions of the whole batch, and small steps are replayed; if None, on a GPU.
    hear: told of each step's spans and their tokens' hidden states, hidden_TD; such steps are not replayed.
    """

    size = PAGE

    def __init__(self, model: Decoder, fused: bool | None = None) -> None:
        self.model, self.fused = model, available(model.device) if fused is None else fused
        self.memories: dict[Sequence, Paged] = {}
        self.replays: dict[int, Replay] = {}
        self.twin: Twin | None = None  # as soon as there is an adapter
        self.hear: Callable[[Batch, Tensor], None] | None = None

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

    def fit(self, adapter: Adapter) -> Changes:
        """See `Runner`."""
        self.twin = self.twin or Twin(self.model)
        return changes(adapter, self.model.dtype, self.model.device)

    def run(self, spans: Batch, wanted: list[int]) -> list[Logits]:
        """See `Runner`."""
        ids, rows = [token for span in spans for token in tokens_of(span)], rows_of(spans)
        pieces = [(start, count, s.table, s.limit) for s, start, count in spans]
        with torch.cuda.device(self.model.device) if self.model.device.type == "cuda" else nullcontext():
            if len(ids) <= self.few and not rows and not self.hear:
                return Logits.each(self._replay(len(ids))(ids, pieces, wanted).cpu())
            inputs = moved(laid_out(ids, pieces, wanted, self.size, self.tile), self.model.device)
            model = partial(self.twin, rows) if rows and self.twin else self.model
            hidden_TD = model(inputs.tokens_T, inputs.positions_T, self._context(spans, inputs))
            if self.hear:
                self.hear(spans, hidden_TD)
            return Logits.each(self.model.logits(hidden_TD[inputs.wanted_R]).float().cpu())

    def _context(self, spans: Batch, inputs: Inputs) -> Spans:
        whole = self.fused and not self.hear and self.model.dtype in DTYPES and all(map(plain, self.spec.layers))
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

    Results do not depend on it. What was slow is thought a little better of with every step that does without it, and
    so gets another try after a while, the sooner the less it was behind.
    """

    FORGIVEN = 0.98  # of its time, a step

    def __init__(self, most: int) -> None:
        self.choices = sorted({1, most})
        self.lately: dict[int, dict[int, tuple[float, int]]] = {}  # size, threads: seconds a token, steps without

    def choose(self, tokens: int) -> int:
        """Threads for a step."""
        lately = self.lately.setdefault(tokens.bit_length(), {})
        untried = [threads for threads in self.choices if threads not in lately]
        return untried[-1] if untried else min(lately, key=lambda threads: self._hoped(*lately[threads]))

    def note(self, tokens: int, threads: int, seconds: float) -> None:
        """How long that took."""
        lately = self.lately[tokens.bit_length()]
        before, _ = lately.get(threads, (seconds / tokens, 0))
        lately |= {other: (time, idle + 1) for other, (time, idle) in lately.items()}
        lately[threads] = 0.7 * before + 0.3 * seconds / tokens, 0

    def _hoped(self, seconds: float, idle: int) -> float:
        return float(seconds * self.FORGIVEN**idle)


class Native:
    """A tape of native operations: see `graph`. Batch-invariant to the bit, quantized weights as they are stored."""

    size = PAGE

    def __init__(self, spec: Spec, source: Source, threads: int | None = None, cache: str | None = None) -> None:
        """threads: always so many; by default as many as are best, at most as many as PyTorch uses.

        cache: how keys and values are kept, "float16" or, so that nearly twice the tokens fit, "int8". Errors: neither.
        """
        if (cache := cache or "float16") not in KEPT:
            raise CutawayError(f"a cache of {cache} is not known", "--cache-dtype", f"there are {', '.join(KEPT)}")
        self._spec, self.source, self.threads, self.cache = spec, source, threads, cache
        self.pace = Pace(torch.get_num_threads())

    @property
    def spec(self) -> Spec:
        return self._spec

    @property
    def page_bytes(self) -> int:
        return KEPT[self.cache] * sum(heads * width for kept in kept_of(self.spec) for heads, width in kept)

    @property
    def room(self) -> int:
        return ROOM

    def allocate(self, pages: int, context: int, tokens: int, rows: int) -> None:
        """See `Runner`."""
        self.graph = Graph(
            self.spec, self.source, context=context, pages=pages, tokens=tokens, rows=rows, cache=self.cache
        )
        self.scratch = untouched(SCRATCH, dtype=torch.float32)

    def fit(self, adapter: Adapter) -> Adapted:
        """See `Runner`."""
        return Adapted(self.graph.targets, adapter)

    def run(self, spans: Batch, wanted: list[int]) -> list[Logits]:
        """See `Runner`."""
        ids, tables = [token for span in spans for token in tokens_of(span)], [span.sequence.table for span in spans]
        batch = batch_of(ids, [span[1:] for span in spans], tables, wanted, self.scratch)
        adapt(batch, [fitted.made if (fitted := span.sequence.adapter) else None for span in spans])
        threads, began = self.threads or self.pace.choose(len(ids)), time.perf_counter()
        logits = self.graph(batch, threads)
        if not self.threads:
            self.pace.note(len(ids), threads, time.perf_counter() - began)
        return logits

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """See `Runner`."""
        self.graph.copy_pages(pairs)

    def forget(self, sequence: Sequence) -> None:
        """See `Runner`: nothing is kept but pages."""


def native(checkpoint: Checkpoint, threads: int | None = None, cache: str | None = None) -> Native | None:
    """The fast runner of a checkpoint; None where its architecture or this machine has none. Errors: of `Native`."""
    if refusal(checkpoint.spec) or library() is None:
        return None
    return Native(checkpoint.spec, OfCheckpoint(checkpoint), threads, cache)


def runner_of(loaded: Loaded, cache: str | None = None) -> Runner:
    """The fast one if the model was loaded to run as stored and has one, else its modules.

    cache: type of keys and values, see `Native`. Errors: one is named, and the model runs on its modules.
    """
    if runner := native(loaded.checkpoint, cache=cache) if loaded.stored else None:
        return runner
    if cache:
        hint = "only native kernels can do that, for most decoders with --dtype stored"
        raise CutawayError(f"{loaded.name} keeps keys and values as it computes them", "--cache-dtype", hint)
    return Modules(cast(Decoder, loaded.model))


def salt(spec: Spec, tenant: str, reach: int, adapter: Fitted | None = None) -> bytes:
    """What cached keys and values depend on beside the tokens before them; nobody shares what must not be shared."""
    if spec.encoder or has_states(spec):  # no page holds a source or states
        return os.urandom(16)
    ropes = [rope for layer in spec.layers if (rope := getattr(layer.attention, "rope", None))]
    adapts = any(rope.scaling and rope.scaling.kind in ADAPTIVE for rope in ropes)
    return (adapter.salt if adapter else b"") + f"{reach if adapts else 0}:{tenant}".encode()


def rows_of(spans: Batch) -> dict[Fitted, list[int]]:
    """Which rows of the batch have each adapter."""
    rows: dict[Fitted, list[int]] = {}
    for (sequence, _, count), end in zip(spans, ends_of(spans), strict=True):
        if sequence.adapter:
            rows.setdefault(sequence.adapter, []).extend(range(end - count, end))
    return rows


def has_states(spec: Spec) -> bool:
    """Whether layers go on from a state, which no wrong guess can be taken out of again."""
    return any(getattr(layer.attention, "state", ()) for layer in spec.layers)


def pages_for(runner: Runner, context: int, running: int, cache: int) -> int:
    """Pages for so many sequences of so many tokens, at least one, if so many bytes hold them."""
    return max(1, min(running * (-(-context // runner.size) + 1), cache // max(1, runner.page_bytes)))


def ends_of(spans: Batch) -> list[int]:
    """Where each span ends, counted through the batch."""
    return [*accumulate(span.count for span in spans)]
