"""Where a slow deployment loses its time: a profile, what can be counted beside it, and a table that names the cause.

The clock says which part has grown, and not why: products take long because a text is computed again, because it is
padded, or because the weights come from a disk. What tells these apart is counted, and so is the same on every machine.
Five slow-downs are planted, one at a time and then together, and the table is asked each time without being told.
"""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ctypes import c_char
from itertools import accumulate, takewhile
from typing import Annotated, Any, NamedTuple

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode

from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.params import SamplingParams
from cutaway.engine.profile import ATTENTION, PARTS, QUEUEING, SAMPLING, WEIGHTS, Profile, profiling, replaced
from cutaway.engine.runner import Native
from cutaway.engine.sampler import Logits
from cutaway.engine.sequence import Event, Sequence
from cutaway.errors import CutawayError
from cutaway.labs.engine.replay import greedy, prompts, stored
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.native.packing import GROUP, LANES
from cutaway.native.tape import Kind, Matrix

HEALTHY, ALL = "none", "all five"
SWAPPED, TINY, REPEATED, PADDED, SORTED = PLANTED = (
    "swapped weights", "tiny batch", "recomputed prefix", "padding", "vocabulary sort",
)  # fmt: skip
CLOSE = 0.05  # of the whole may be missing from the parts
FETCHED = 1 << 16  # bytes that come with a fault at most, where a file's pages are at hand


Hindrance = Callable[[], None]


class Signs(NamedTuple):
    """What was counted. Shares of the tokens computed: repeated, padded. ordered: numbers sorted for each one drawn.

    queued: share of the steps that left others waiting. fetched: share of the weights' bytes that the median step may
    have had to fetch into memory.
    """

    fetched: float
    queued: float
    repeated: float
    padded: float
    ordered: float


class Rule(NamedTuple):
    """A line of the table. parts: in which it shows. fix: what to do."""

    cause: str
    applies: Callable[[Signs], bool]
    parts: tuple[str, ...]
    fix: Words


RULES = (
    Rule(SWAPPED, lambda s: s.fetched > 0.1, (WEIGHTS,),
         both("fewer bits per weight, or more memory", "减少每权重位数，或增加内存")),
    Rule(TINY, lambda s: s.queued > 0.5, (QUEUEING,), both("more places per step", "增大批大小")),
    Rule(REPEATED, lambda s: s.repeated > 0.2, (WEIGHTS, ATTENTION), both("share prefixes", "共享前缀缓存")),
    Rule(PADDED, lambda s: s.padded > 0.2, (WEIGHTS, ATTENTION), both("pack, do not pad", "拼接而不填充")),
    Rule(SORTED, lambda s: s.ordered > 1000, (SAMPLING,), both("filter without sorting", "不排序地筛选")),
)  # fmt: skip
"""Memory first and the batch next: while these are wrong, the other parts say little."""


class Diagnosed(NamedTuple):
    """planted: what was. named: by the table. seconds: a request's, by part, the mean. steps, requests: the median
    share of the whole that the parts account for. step: the median, in seconds."""

    planted: str
    named: list[str]
    signs: Signs
    seconds: dict[str, float]
    steps: float
    requests: float
    step: float


class Texts(NamedTuple):
    """What all prompts begin with, and what each adds."""

    shared: list[int]
    own: list[list[int]]


@lab(
    "bottleneck-diagnosis",
    title=both("What makes a deployment slow", "性能瓶颈怎么定位"),
    question=both(
        "Given a slow deployment, how do I find the bottleneck and pick fixes in the right order?",
        "部署太慢时，怎样找到瓶颈并按正确的顺序改进？",
    ),
    seconds={"quick": 4, "full": 40},
)
def bottleneck_diagnosis(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    requests: Annotated[int, Knob("requests that come at once", "同时到来的请求数", quick=4, min=3, max=16)] = 16,
    shared: Annotated[
        int, Knob("tokens that all prompts begin with", "提示共有的开头词元数", quick=64, min=32, max=2048)
    ] = 256,
    longest: Annotated[int, Knob("tokens of the longest own text", "自有文本最长词元数", quick=48, min=16)] = 128,
    tokens: Annotated[int, Knob("tokens of a reply", "回答词元数", quick=4, min=2, max=100)] = 24,
) -> Finding:
    loaded = stored(model)
    lengths = [longest, *(4 + (7 * i) % (longest // 8) for i in range(requests - 1))]
    first, *own = prompts(loaded, [shared, *lengths])
    engine = engine_of(loaded, context=shared + longest + tokens + 1, running=requests)
    diagnose(engine, Texts(first, own), (), tokens)  # not counted: memory is touched for the first time
    plans: list[tuple[str, ...]] = [(), *((one,) for one in PLANTED), PLANTED]
    found = [diagnose(engine, Texts(first, own), plan, tokens) for plan in run.each(plans, "planting")]
    return Finding(
        table=table(COLUMNS, map(_row, found)), plot=_plot(found), verdict=_verdict(found), checks=_checks(found)
    )


def named(signs: Signs) -> list[str]:
    """The causes that the table finds."""
    return [rule.cause for rule in RULES if rule.applies(signs)]


def diagnose(engine: Engine, texts: Texts, planted: tuple[str, ...], tokens: int) -> Diagnosed:
    """Answer all requests with these slow-downs in place; what the profile and the counts say of it."""
    lengths, pad = [len(own) for own in texts.own], min(engine.tokenizer.stop_ids, default=0)
    filled = [(max(lengths) - n if PADDED in planted else 0) * [pad] for n in lengths]
    asked = [texts.shared + own + fill for fill, own in zip(filled, texts.own, strict=True)]
    before = engine.stats.steps, engine.scheduler.arrivals
    with ExitStack() as stack:
        hindrances = [stack.enter_context(PLANT[cause](engine)) for cause in planted]
        sorting, profile = stack.enter_context(Sorting()), stack.enter_context(profiling(engine))
        mine = [engine.add(prompt, alone(i, tokens, REPEATED in planted, before[0])) for i, prompt in enumerate(asked)]
        fetched = [*stepping(engine, hindrances)]
    steps = [*engine.steps][before[0] - engine.stats.steps :]
    spans = [(who - before[1] - 1, start, count) for step in steps for who, start, count, _, _ in step.spans]
    computed = sum(count for _, _, count in spans)
    signs = Signs(
        statistics.median(fetched) * FETCHED / weight_bytes(engine),
        statistics.fmean(step.waiting > 0 for step in steps),
        repeated(asked, spans) / computed,
        sum(asked[who][start : start + count].count(pad) for who, start, count in spans) / computed,
        sorting.numbers / (tokens * len(asked)),
    )
    what = planted[0] if len(planted) == 1 else ALL if planted else HEALTHY
    return told(what, signs, profile, mine)


def told(planted: str, signs: Signs, profile: Profile, mine: list[Sequence]) -> Diagnosed:
    """All of it together."""
    splits = [profile.request(sequence) for sequence in mine]
    seconds = {part: statistics.fmean(split.seconds[part] for split in splits) for part in PARTS}
    steps, requests = (statistics.median(split.accounted for split in some) for some in (profile.steps, splits))
    return Diagnosed(
        planted, named(signs), signs, seconds, steps, requests, statistics.median(step.whole for step in profile.steps)
    )


def alone(i: int, tokens: int, apart: bool, turn: int) -> SamplingParams:
    """Settings of a request; nothing is kept from one turn to the next, nor, if they are to be apart, shared."""
    return greedy(tokens, f"{turn}.{i if apart else 0}")


def stepping(engine: Engine, hindrances: list[Hindrance]) -> Iterator[int]:
    """Step until nothing is left to do: pages of memory that each step waited for."""
    while engine.busy:
        for happen in hindrances:
            happen()
        before = faults()
        engine.step()
        yield faults() - before


def faults() -> int:
    """Pages of memory that this process has waited for."""
    import resource  # not every system has it

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt + usage.ru_minflt


def repeated(texts: list[list[int]], spans: list[tuple[int, int, int]]) -> int:
    """Tokens computed although a text that begins with them, and with all before them, had been computed so far.

    spans: (which text, start, count), in order.
    """
    done, again = [0] * len(texts), 0
    for who, start, count in spans:
        known = max(min(done[other], common(texts[who], texts[other])) for other in range(len(texts)))
        again += max(0, min(known, start + count) - start)
        done[who] = max(done[who], start + count)
    return again


def common(a: list[int], b: list[int]) -> int:
    """Tokens at the beginning of both."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


class Sorting(TorchDispatchMode):
    """Counts the numbers that PyTorch is made to sort."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("sort", "argsort"):
            self.numbers += args[0].numel()
        return func(*args, **(kwargs or {}))


# ---- what is planted: each yields what happens before every step


@contextmanager
def in_the_prompts(engine: Engine) -> Iterator[Hindrance]:
    """Nothing in the engine."""
    yield nothing


@contextmanager
def one_place(engine: Engine) -> Iterator[Hindrance]:
    """One sequence at a time, whoever else waits."""
    places, engine.scheduler.places = engine.scheduler.places, 1
    try:
        yield nothing
    finally:
        engine.scheduler.places = places


@contextmanager
def sorted_first(engine: Engine) -> Iterator[Hindrance]:
    """Every draw sorts the whole vocabulary, as a plain filter does."""
    draw = engine._draw

    def sorting(sequence: Sequence, logits: Logits) -> Event:
        logits.values_V.sort(descending=True)
        return draw(sequence, logits)

    with replaced(engine, "_draw", sorting):
        yield nothing


@contextmanager
def swapped_out(engine: Engine) -> Iterator[Hindrance]:
    """Weights in a file that is put out of memory."""
    used = matrices_of(engine)
    contents = {m.blocks: bytes((c_char * size_of(m)).from_address(m.blocks)) for m in used}
    places = dict(zip(contents, accumulate(map(whole_pages, contents.values()), initial=0), strict=False))
    with tempfile.TemporaryFile() as file:
        for address, stored_there in contents.items():
            file.seek(places[address])
            file.write(stored_there.ljust(whole_pages(stored_there), b"\0"))
        file.flush()
        os.fsync(file.fileno())
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        def evict() -> None:
            mapping.madvise(mmap.MADV_DONTNEED)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        with moved(used, np.frombuffer(mapping, np.uint8).ctypes.data, places):
            yield evict


@contextmanager
def moved(matrices: list[Matrix], base: int, places: dict[int, int]) -> Iterator[None]:
    """The blocks of each matrix at another address, for a while."""
    before = [matrix.blocks for matrix in matrices]
    try:
        for matrix in matrices:
            matrix.blocks = base + places[matrix.blocks]
        yield
    finally:
        for matrix, address in zip(matrices, before, strict=True):
            matrix.blocks = address


def nothing() -> None:
    """Happens."""


def matrices_of(engine: Engine) -> list[Matrix]:
    """Those that each step reads whole."""
    runner = engine.runner
    if not isinstance(runner, Native):
        raise CutawayError("does not run on native kernels", "the model", "their parts are what is clocked")
    return [op.matrix.contents for op in runner.graph.tape.ops if op.kind in (Kind.LINEAR, Kind.FEED)]


def size_of(matrix: Matrix) -> int:
    """Bytes."""
    return -(-matrix.n // LANES) * (matrix.k // GROUP) * matrix.bytes


def whole_pages(contents: bytes) -> int:
    """Bytes of the pages that they take."""
    return -(-len(contents) // mmap.PAGESIZE) * mmap.PAGESIZE


def weight_bytes(engine: Engine) -> int:
    """What a step reads."""
    return sum(map(size_of, matrices_of(engine)))


PLANT = {SWAPPED: swapped_out, TINY: one_place, REPEATED: in_the_prompts, PADDED: in_the_prompts, SORTED: sorted_first}


# ---- what is shown

COLUMNS = {
    "planted": "",
    "named": "",
    "weights fetched": "of their bytes",
    "steps leaving others": "",
    "computed again": "of tokens",
    "padding": "of tokens",
    "sorted": "numbers/token",
    **dict.fromkeys(PARTS, "ms/request"),
    "step": "ms",
    "accounted, steps": "%",
    "accounted, requests": "%",
}


def _row(d: Diagnosed) -> list[Cell]:
    parts = [1e3 * d.seconds[part] for part in PARTS]
    return [d.planted, ", ".join(d.named) or HEALTHY, *d.signs, *parts, 1e3 * d.step, 100 * d.steps, 100 * d.requests]


def _plot(found: list[Diagnosed]) -> Plot:
    names = [d.planted for d in found]
    return Plot(
        kind="bar",
        x=Axis(label="planted"),
        y=Axis(label="ms of a request"),
        series=[Series(name=part, x=names, y=[1e3 * d.seconds[part] for d in found]) for part in PARTS],
    )


def _checks(found: list[Diagnosed]) -> list[Check]:
    healthy, *single, all_five = found
    right = [d for d in single if d.named == [d.planted]]
    worst = min((share for d in found for share in (d.steps, d.requests)), key=lambda share: -abs(share - 1))
    return [
        check(not healthy.named, "nothing is named where nothing is planted", "没有埋设时不报任何原因"),
        check(
            len(right) == len(single),
            f"{len(right)} of {len(single)} slow-downs are named by what was counted, and nothing else with them",
            f"{len(single)} 种减速中有 {len(right)} 种由计数准确指出，且不误报其他",
        ),
        check(
            all_five.named == [rule.cause for rule in RULES],
            f"of all {len(RULES)} planted together {len(all_five.named)} are named",
            f"{len(RULES)} 种同时埋设时指出了 {len(all_five.named)} 种",
        ),
        check(
            abs(worst - 1) <= CLOSE,
            f"the parts' own clocks add up to {worst:.1%} of the whole or nearer, for the median step and request",
            f"各部分各自计时之和与整体最差相符程度为 {worst:.1%}（步与请求的中位数）",
        ),
    ]


def _verdict(found: list[Diagnosed]) -> Words:
    healthy, *single, _ = found
    grown = {d.planted: max(PARTS, key=lambda part: d.seconds[part] - healthy.seconds[part]) for d in single}
    expected = [rule for rule in RULES if grown[rule.cause] in rule.parts]
    largest = max(PARTS, key=lambda part: healthy.seconds[part])
    usual = sum(healthy.seconds.values())
    slower = {d.planted: sum(d.seconds.values()) / usual for d in single}
    en, zh = (
        form.join(words.format(rule.cause, slower[rule.cause], grown[rule.cause], fix) for rule, fix in fixes)
        for form, words, fixes in (
            ("; ", "{} ({:.1f} times as long, mostly {}): {}", [(rule, rule.fix.en) for rule in RULES]),
            ("；", "{}（耗时 {:.1f} 倍，主要在 {}）：{}", [(rule, rule.fix.zh) for rule in RULES]),
        )
    )
    share = healthy.seconds[largest] / usual
    return both(
        f"Where nothing is planted, {share:.0%} of a request goes to {largest}. In the order in which to look: {en}. "
        f"The part that grew most is one that the table expects for {len(expected)} of {len(RULES)}; several causes "
        "show in the same part, so that a clock alone does not tell them apart, and the counts do.",
        f"未埋设时，{largest} 占请求时间的 {share:.0%}。按查看顺序：{zh}。{len(RULES)} 种中有 {len(expected)} 种"
        "增长最多的部分与表一致；几种原因表现在同一部分，仅凭时钟分不清，要靠计数。",
    )
