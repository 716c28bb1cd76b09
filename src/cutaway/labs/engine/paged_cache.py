"""What reserving memory for the longest reply wastes, and how pages repair it (Kwon et al. 2023, arXiv:2309.06180).

A server does not know how long a reply becomes. Reserving the longest for everyone wastes what is not used; pages are
taken as a text grows, so that a sequence wastes only the end of its last page. Reserving is paging with pages as long
as the longest request, so that one scheduler serves one trace both ways.
"""

from __future__ import annotations

import random
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.cache import KVCache, Paged, Pool, Spans
from cutaway.engine.pages import Chain, Pages
from cutaway.engine.scheduler import Scheduler
from cutaway.labs.engine.replay import Request
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fresh, small_spec
from cutaway.models.decoder import Decoder

SIZES = (1, 8, 16, 32, 64, 128)
TOLERANCE = 1e-12  # float64, of logits around 1
VOCAB, LONGEST, SIZE = 3, 40, 4  # of the random traffic: few tokens, so that texts begin alike


class Served(NamedTuple):
    """waste: slots held and not written, per sequence of the trace. together: requests running, mean over steps."""

    size: int
    waste: float
    together: float
    steps: int
    preemptions: int


class Traffic(NamedTuple):
    """What random operations did. difference: largest of the logits, paged against contiguous."""

    operations: int
    hits: int
    forks: int
    evictions: int
    held: int
    difference: float


@lab(
    "paged-cache",
    title=both("A cache in pages", "分页的 KV 缓存"),
    question=both(
        "What wastes cache memory in a server, and how does paging repair it?",
        "服务器里是什么浪费了缓存显存，分页又如何补救？",
    ),
    seconds={"quick": 4, "full": 60},
)
def paged_cache(
    run: Run,
    *,
    requests: Annotated[int, Knob("requests of the trace", "请求数", quick=200, min=50)] = 2000,
    longest: Annotated[
        int, Knob("tokens of the longest request", "最长请求的词元数", quick=256, min=256, max=8192)
    ] = 1024,
    memory: Annotated[int, Knob("the cache, in longest requests", "缓存可容纳的最长请求数", min=1, max=64)] = 8,
    operations: Annotated[int, Knob("random operations", "随机操作次数", quick=10_000, min=100)] = 100_000,
    checked: Annotated[
        int, Knob("operations with a model behind them", "带模型核对的操作次数", quick=500, min=100)
    ] = 2000,
) -> Finding:
    rng = random.Random(run.seed)
    lengths = [rng.randint(1, longest) for _ in range(requests)]
    sizes = [*SIZES, longest]
    served = [serve(lengths, size, memory * longest) for size in run.each(sizes, "pages of so many tokens")]
    bookkeeping = shuffle(random.Random(run.seed), operations, None)
    computed = shuffle(random.Random(run.seed), checked, Twin(run.seed))
    return Finding(
        table=table(COLUMNS, [[*s, s.together / served[-1].together] for s in served]),
        plot=_plot(served),
        verdict=_verdict(served, bookkeeping, computed, memory),
        checks=_checks(served, bookkeeping, computed, longest),
    )


def serve(lengths: list[int], size: int, slots: int) -> Served:
    """All requests, each a prompt of one token and then a token a step, in `slots` slots cut into pages of `size`.

    The scheduler admits only whom one more page is left for. Who needs one page in all never takes that: so the pages
    of the longest size are lent twice, and the places are as many as they really are.
    """
    reserved = size >= max(lengths)
    pages, places = Pages(slots // size * (2 if reserved else 1), size), slots // size if reserved else 256
    scheduler: Scheduler[Request] = Scheduler(pages, places=places, budget=places, queue=len(lengths))
    wanted = {Request([i], n + 1): n for i, n in enumerate(lengths)}
    for request in wanted:
        scheduler.add(request)
    steps = running = 0
    while scheduler.busy:
        spans = scheduler.plan()
        steps, running = steps + 1, running + len(scheduler.running)
        for span in spans:
            request = span.sequence
            if span.start + span.count == wanted[request]:
                request.finish = "length"
            elif span.start + span.count == len(request.tokens):
                request.tokens.append(0)
            scheduler.commit(span)
    waste = sum(-n % size for n in lengths) / len(lengths)
    return Served(size, waste, running / steps, steps, scheduler.preemptions)


class Twin:
    """A small model that computes every text in pages and in a buffer of its own, in float64."""

    def __init__(self, seed: int) -> None:
        self.model: Decoder = fresh(small_spec(vocab=VOCAB, width=16, heads=2, context=LONGEST), seed, std=0.3).double()
        self.difference = 0.0

    def allocate(self, pages: int) -> None:
        """Room for so many pages."""
        self.pool = Pool(self.model.spec, self.model.dtype, self.model.device, pages, SIZE)

    @torch.inference_mode()
    def compute(self, request: Request, start: int, end: int) -> None:
        """Tokens start ... end - 1, in its pages; beside it all from the beginning."""
        paged, plain = Paged(self.pool), KVCache(self.model.spec, self.model.dtype, self.model.device)
        paged.open(request.table)
        tokens_T = torch.tensor(request.tokens[:end])
        whole_TV = self._logits(tokens_T, Spans([(plain, 0, end)]), 0)
        some_TV = self._logits(tokens_T[start:], Spans([(paged, start, end - start)]), start)
        self.difference = max(self.difference, float((some_TV - whole_TV[start:]).abs().max()))

    def _logits(self, tokens_T: Tensor, context: Spans, start: int) -> Tensor:
        return self.model.logits(self.model(tokens_T, torch.arange(start, start + len(tokens_T)), context))


def shuffle(rng: random.Random, operations: int, twin: Twin | None) -> Traffic:
    """Texts begin, grow, fork and end at random in few pages, every invariant checked after each operation."""
    pages, alive, forks = Pages(40, SIZE), list[Request](), 0
    if twin:
        twin.allocate(pages.count)
    for _ in range(operations):
        what = rng.choice(["begin", "grow", "grow", "grow", "fork", "end"])
        if what == "begin" and len(alive) < 12:
            alive.append(begin(rng, pages, alive))
        elif what == "grow" and alive:
            grow(rng, pages, rng.choice(alive), twin)
        elif what == "fork" and alive and (child := fork(pages, rng.choice(alive), twin)):
            alive.append(child)
            forks += 1
        elif what == "end" and alive:
            pages.release(alive.pop(rng.randrange(len(alive))).table)
        pages.check([request.table for request in alive])
    for request in alive:
        pages.release(request.table)
    return Traffic(operations, pages.hits, forks, pages.evictions, pages.held, twin.difference if twin else 0.0)


def begin(rng: random.Random, pages: Pages, others: list[Request]) -> Request:
    """A text that perhaps begins like another; what is kept of its beginning is its own already."""
    known = rng.choice(others).tokens[: rng.randrange(LONGEST)] if others and rng.random() < 0.5 else []
    fresh = [rng.randrange(VOCAB) for _ in range(rng.randint(2, LONGEST))]
    request = Request((known + fresh)[:LONGEST], LONGEST)
    request.table = pages.match(request.tokens, request.chain)
    request.computed = len(request.table) * pages.size
    return request


def grow(rng: random.Random, pages: Pages, request: Request, twin: Twin | None) -> None:
    """Compute some of the tokens that it lacks, if there are pages."""
    start, end = request.computed, min(len(request.tokens), request.computed + rng.randint(1, 9))
    if start < end and pages.grow(request.table, end):
        if twin:
            twin.compute(request, start, end)
        pages.seal(request.table, request.tokens, start, end, request.chain)
        request.computed = end


def fork(pages: Pages, parent: Request, twin: Twin | None) -> Request | None:
    """A second text that goes on from the parent's computed tokens with others, if there is a page."""
    made = pages.fork(parent.table[: pages.needed(parent.computed)], parent.computed)
    if made is None:
        return None
    table, copies = made
    if twin:
        twin.pool.copy(copies)
    tokens = parent.tokens[: parent.computed] + [1 - t % 2 for t in parent.tokens[parent.computed :]]
    names = parent.chain.names[: parent.computed // pages.size]
    return Request(tokens, LONGEST, chain=Chain(names=names), computed=parent.computed, table=table)


COLUMNS = {
    "page": "tokens",
    "waste": "slots/sequence",
    "requests at a time": "",
    "steps": "",
    "preemptions": "",
    "admitted, times reserving": "",
}


def _plot(served: list[Served]) -> Plot:
    x = [float(s.size) for s in served]
    series = [Series(name="requests at a time", x=x, y=[s.together for s in served])]
    return Plot(kind="line", x=Axis(label="tokens of a page", log=True), y=Axis(label="requests"), series=series)


def _checks(served: list[Served], books: Traffic, computed: Traffic, longest: int) -> list[Check]:
    at = {s.size: s for s in served}
    share = at[16].together / at[longest].together
    return [
        check(
            computed.difference < TOLERANCE and min(computed.hits, computed.forks, computed.evictions) > 0,
            f"paged attention equals contiguous attention to {computed.difference:.0e} over {computed.hits} tokens "
            f"found, {computed.forks} forks, {computed.evictions} evictions",
            f"分页注意力与连续注意力相差至多 {computed.difference:.0e}（命中 {computed.hits} 个词元、分叉 "
            f"{computed.forks} 次、驱逐 {computed.evictions} 次）",
        ),
        check(
            abs(at[16].waste - 7.5) < 1,
            f"with pages of 16 a sequence wastes {at[16].waste:.2f} slots on average, 7.5 expected",
            f"页长 16 时每条序列平均浪费 {at[16].waste:.2f} 个槽位，期望 7.5",
        ),
        check(
            share > 1.2,
            f"in the same memory pages of 16 run {share:.2f} times the requests that reserving does",
            f"同样的内存，页长 16 时同时运行的请求数是预留方式的 {share:.2f} 倍",
        ),
        check(
            books.held == computed.held == 0,
            f"after {books.operations:,} random operations, every invariant checked after each, no page is held",
            f"{books.operations:,} 次随机操作（每次之后核对全部不变量）后没有页泄漏",
        ),
    ]


def _verdict(served: list[Served], books: Traffic, computed: Traffic, memory: int) -> Words:
    paged, reserved = next(s for s in served if s.size == 16), served[-1]
    return both(
        f"Reserving the longest request for everyone leaves {reserved.waste:,.0f} slots a sequence unused and admits "
        f"{reserved.together:.1f} requests at a time in memory for {memory}; pages of 16 tokens waste "
        f"{paged.waste:.1f} slots and admit {paged.together:.1f}, so that the trace ends after {paged.steps:,} steps "
        f"instead of {reserved.steps:,}, with {paged.preemptions} preemptions. {books.operations:,} random "
        f"operations, {books.forks:,} forks and {books.evictions:,} evictions among them, leak nothing; with a model "
        f"behind {computed.operations:,} of them the logits differ from a contiguous cache by "
        f"{computed.difference:.0e} at most.",
        f"为每个请求预留最大长度，平均每条序列闲置 {reserved.waste:,.0f} 个槽位，可容 {memory} 条最长请求的内存里"
        f"同时只运行 {reserved.together:.1f} 个请求；页长 16 时只浪费 {paged.waste:.1f} 个槽位，同时运行 "
        f"{paged.together:.1f} 个，整条轨迹用 {paged.steps:,} 步而非 {reserved.steps:,} 步，发生 {paged.preemptions} "
        f"次抢占。{books.operations:,} 次随机操作（含 {books.forks:,} 次分叉、{books.evictions:,} 次驱逐）没有泄漏；"
        f"其中 {computed.operations:,} 次带模型核对，logits 与连续缓存相差至多 {computed.difference:.0e}。",
    )
