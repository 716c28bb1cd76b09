"""Optimizations of inference, one upon the other: tokens a second, memory, and what each does to the logits.

    (nothing)     float32 modules compute the whole text for every token
    cache         keys and values are kept
    native        a tape of fused operations, weights in float32, keys and values in float16
    stored        the weights as the file stores them, multiplied as integers
    batching      all requests in the same steps
    prefix        what several prompts begin with is computed once
    speculation   what followed the last words before is guessed, and checked in one step

All rungs answer the same requests, which begin alike and repeat themselves. The ladder is climbed and descended again,
each time with a new engine: without its last rung it must do the very work that it did before that was added.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.budget.chips import clock
from cutaway.engine.drafter import PromptLookup
from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfCheckpoint, OfModel
from cutaway.engine.profile import replaced
from cutaway.engine.runner import Batch, Modules, Native, ends_of
from cutaway.engine.sampler import Logits
from cutaway.engine.sequence import Sequence
from cutaway.errors import CutawayError
from cutaway.labs.engine.replay import greedy, stored
from cutaway.labs.engine.speed import on_threads
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, TEXT, decoder, last_logits, logits_of, subject
from cutaway.native.packing import GROUP, LANES

CACHE, NATIVE, STORED, BATCHING, PREFIX, SPECULATION = RUNGS = (
    "cache", "native", "stored", "batching", "prefix", "speculation",
)  # fmt: skip
NEEDS = {NATIVE: CACHE, STORED: NATIVE, BATCHING: CACHE, PREFIX: CACHE, SPECULATION: CACHE}
EXACT = (BATCHING, PREFIX, SPECULATION)  # on native kernels these change no bit of a logit
SPARES = {CACHE: "computed", BATCHING: "steps", PREFIX: "computed", SPECULATION: "steps", STORED: "read"}
ROUNDING = 1e-3  # of logits in float32
NEAR = 0.1

Switches = tuple[str, ...]


class Load(NamedTuple):
    """What is asked: prompts, and how many tokens in reply to each."""

    texts: list[list[int]]
    tokens: int


class Work(NamedTuple):
    """Counted. computed, steps, read: tokens, steps and bytes of weights, per reply token. replies: of each request.

    weights, kept: bytes of the weights, and of the most keys and values at a time.
    """

    computed: float
    steps: float
    read: float
    weights: int
    kept: int
    replies: list[list[int]]


class Rung(NamedTuple):
    """logits_RV: of the first request's reply. rate: tokens a second."""

    switches: Switches
    work: Work
    logits_RV: Tensor
    rate: float

    @property
    def name(self) -> str:
        return f"+ {self.switches[-1]}" if self.switches else "no cache"


class Climbed(NamedTuple):
    """A rung on the way up and on the way down. difference: of logits from the whole text in float32, the largest.

    without: tokens a second of the whole ladder without this rung alone, None where others stand on it.
    """

    up: Rung
    down: Rung
    difference: float
    without: float | None


@lab(
    "optimization-ladder",
    title=both("The ladder of optimizations", "推理优化阶梯"),
    question=both(
        "Which inference optimizations exist beyond compression, and what is each worth alone and together?",
        "除压缩外有哪些推理优化？各自与叠加各值多少？",
    ),
    seconds={"quick": 7, "full": 150},
)
def optimization_ladder(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    rungs: Annotated[str, Knob("in this order, with commas", "按此顺序，逗号分隔")] = ",".join(RUNGS),
    requests: Annotated[int, Knob("requests", "请求数", quick=2, min=2, max=64)] = 8,
    shared: Annotated[
        int, Knob("tokens that all prompts begin with", "提示共有的开头词元数", quick=32, min=32, max=1024)
    ] = 128,
    own: Annotated[int, Knob("tokens of a text that repeats itself", "自我重复文本的词元数", quick=16, min=8)] = 48,
    tokens: Annotated[int, Knob("tokens of a reply", "回答词元数", quick=4, min=4, max=256)] = 24,
    threads: Annotated[int, Knob("threads", "线程数", min=1, max=64)] = 1,
    repeats: Annotated[int, Knob("timings after the first", "首次之后的计时次数", quick=0, min=0, max=99)] = 2,
    alone: Annotated[bool, Knob("also leave out each rung alone", "另测单独去掉每一级", quick=False)] = True,
) -> Finding:
    switches = switched(rungs)
    load = Load(texts(model, requests, shared, own), tokens)
    with on_threads(threads):
        ways = [switches[:i] for i in range(len(switches) + 1)]
        order = [*ways, *ways[-2::-1]]
        seen = [measure(model, way, load, repeats) for way in run.each(order, "climbing and descending")]
        left = removable(switches) if alone else ()
        others = {s: measure(model, without(switches, s), load, repeats).rate for s in run.each(left, "leaving out")}
        ladder = [
            Climbed(up, down, apart(model, up, load), others.get(up.switches[-1]) if up.switches else None)
            for up, down in zip(seen[: len(ways)], [*seen[len(ways) :][::-1], seen[len(ways) - 1]], strict=True)
        ]
    return Finding(
        table=table(COLUMNS, [_row(c, below, ladder[0]) for below, c in zip([None, *ladder], ladder, strict=False)]),
        plot=_plot(ladder),
        verdict=_verdict(ladder, threads),
        checks=_checks(ladder),
    )


def switched(rungs: str) -> Switches:
    """The rungs that a knob names. Errors: unknown ones, another order, one whose support is missing."""
    found = tuple(filter(None, rungs.split(",")))
    if found != tuple(rung for rung in RUNGS if rung in found):
        raise CutawayError(f"must be some of {','.join(RUNGS)} in this order, got {rungs!r}", "knob rungs")
    for rung in found:
        if (below := NEEDS.get(rung)) and below not in found:
            raise CutawayError(f"has {rung} without {below}", "knob rungs", f"{rung} stands on {below}")
    return found


def removable(switches: Switches) -> Switches:
    """On which no other stands."""
    return tuple(s for s in switches if not any(NEEDS.get(other) == s for other in switches))


def without(switches: Switches, one: str) -> Switches:
    """All but one."""
    return tuple(s for s in switches if s != one)


def texts(model: str, requests: int, shared: int, own: int) -> list[list[int]]:
    """Prompts that begin alike, each followed by a phrase of its own that comes twice, and begins a third time."""
    ids = stored(model).tokenizer.encode(TEXT)
    begin = [ids[i % len(ids)] for i in range(shared)]
    phrase = max(2, own * 2 // 5)
    phrases = [[ids[(shared + i * phrase + j) % len(ids)] for j in range(phrase)] for i in range(requests)]
    return [begin + [some[j % phrase] for j in range(own)] for some in phrases]


def built(model: str, switches: Switches, load: Load) -> Engine:
    """An engine with these switches on."""
    loaded, threads = stored(model), torch.get_num_threads()
    make = partial(
        Engine,
        tokenizer=loaded.tokenizer,
        running=len(load.texts) if BATCHING in switches else 1,
        context=max(map(len, load.texts)) + load.tokens + 1,
        drafter=PromptLookup() if SPECULATION in switches else None,
    )
    if STORED in switches:
        return make(Native(loaded.checkpoint.spec, OfCheckpoint(loaded.checkpoint), threads))
    plain = decoder(subject(model))
    return make(Native(plain.spec, OfModel(plain), threads) if NATIVE in switches else plain)


def measure(model: str, switches: Switches, load: Load, repeats: int) -> Rung:
    """Build and answer: counted the first time, timed the others, if there are any."""
    if CACHE not in switches:
        return whole_texts(model, load)
    engine = built(model, switches, load)
    mine, heard, first = answer(engine, load, PREFIX in switches)
    work = counted(engine, mine)
    seconds = [answer(engine, load, PREFIX in switches)[2] for _ in range(repeats)] or [first]
    logits_RV = torch.stack([heard[at] for at in range(len(mine[0].prompt) - 1, len(mine[0].tokens) - 1)])
    return Rung(switches, work, logits_RV, load.tokens * len(mine) / statistics.median(seconds))


def answer(engine: Engine, load: Load, sharing: bool) -> tuple[list[Sequence], dict[int, Tensor], float]:
    """All requests; the logits of the first one's positions, if no step was before; seconds."""
    turn, heard = engine.stats.steps, dict[int, Tensor]()
    mine = [engine.add(text, greedy(load.tokens, f"{turn}.{0 if sharing else i}")) for i, text in enumerate(load.texts)]
    run = engine.runner.run if turn else overheard(engine.runner.run, mine[0], heard)
    with replaced(engine.runner, "run", run):
        began = clock()
        while engine.busy:
            engine.step()
        return mine, heard, clock() - began


def overheard(
    run: Callable[[Batch, list[int]], list[Logits]], mine: Sequence, heard: dict[int, Tensor]
) -> Callable[[Batch, list[int]], list[Logits]]:
    """The same; what one sequence's positions say comes next is kept, the latest if it is asked again."""

    def running(spans: Batch, wanted: list[int]) -> list[Logits]:
        logits = run(spans, wanted)
        for span, end in zip(spans, ends_of(spans), strict=True):
            if span.sequence is mine:
                first = end - span.count
                rows = [(row - first, i) for i, row in enumerate(wanted) if first <= row < end]
                heard.update({span.start + at: logits[i].values_V.clone() for at, i in rows})
        return logits

    return running


def counted(engine: Engine, mine: list[Sequence]) -> Work:
    """Of an engine's first requests."""
    replies, weights = [sequence.reply for sequence in mine], weight_bytes(engine)
    tokens, stats = sum(map(len, replies)), engine.stats
    kept = max(held for step in engine.steps for _, _, held in [step.pages]) * engine.runner.page_bytes
    return Work(stats.tokens / tokens, stats.steps / tokens, stats.steps * weights / tokens, weights, kept, replies)


def weight_bytes(engine: Engine) -> int:
    """Of all matrices, each once."""
    if isinstance(engine.runner, Modules):
        return 4 * sum(p.numel() for p in engine.runner.model.parameters())
    assert isinstance(engine.runner, Native)
    used = {op.matrix.contents.blocks: op.matrix.contents for op in engine.runner.graph.tape.ops if op.matrix}
    return sum(-(-m.n // LANES) * (m.k // GROUP) * m.bytes for m in used.values())


@torch.inference_mode()
def whole_texts(model: str, load: Load) -> Rung:
    """Without a cache: the first request alone, for the others take as long."""
    plain, tokens, said, began = decoder(subject(model)), [*load.texts[0]], list[Tensor](), clock()
    for _ in range(load.tokens):
        said.append(last_logits(plain, torch.tensor(tokens)))
        tokens.append(int(said[-1].argmax()))
    seconds, prompt = clock() - began, len(load.texts[0])
    weights = 4 * sum(p.numel() for p in plain.parameters())
    computed = sum(range(prompt, prompt + load.tokens)) / load.tokens
    work = Work(computed, 1.0, weights, weights, 0, [tokens[prompt:]])
    return Rung((), work, torch.stack(said), load.tokens / seconds)


@torch.inference_mode()
def apart(model: str, rung: Rung, load: Load) -> float:
    """How far its logits are from those of its whole text at once, in float32."""
    tokens_T = torch.tensor(load.texts[0] + rung.work.replies[0])[:-1]
    whole_TV = logits_of(decoder(subject(model)), tokens_T)
    return float((whole_TV[-load.tokens :] - rung.logits_RV).abs().max())


COLUMNS = {
    "rung": "",
    "speed": "tokens/s",
    "times the one below": "",
    "times the first": "",
    "removed again": "of its speed",
    "all but this": "tokens/s",
    "computed": "tokens/token",
    "steps": "per token",
    "weights read": "MB/token",
    "weights": "MB",
    "keys and values": "MB",
    "logits off": "",
    "its work": "",
}


def _row(c: Climbed, below: Climbed | None, first: Climbed) -> list[Cell]:
    up, work = c.up, c.up.work
    times = up.rate / first.up.rate
    same = "the same again" if again(c) else "another"
    sizes = [number / 1e6 for number in (work.read, work.weights, work.kept)]
    back = c.down.rate / up.rate if c.down is not up else None
    speeds = [up.rate, up.rate / below.up.rate if below else None, times, back, c.without]
    return [up.name, *speeds, work.computed, work.steps, *sizes, c.difference, same]


def again(c: Climbed) -> bool:
    """Whether the ladder without what was above does the work that it did before."""
    return c.up.work == c.down.work and torch.equal(c.up.logits_RV, c.down.logits_RV)


def steps_of(ladder: list[Climbed]) -> list[tuple[str, Rung, Rung]]:
    """Each rung with its name and the one below."""
    return [(b.up.switches[-1], a.up, b.up) for a, b in pairwise(ladder)]


def _plot(ladder: list[Climbed]) -> Plot:
    names = [c.up.name for c in ladder]
    ways = {"way up": [c.up.rate for c in ladder], "way down": [c.down.rate for c in ladder]}
    return Plot(
        kind="bar",
        x=Axis(label="rung"),
        y=Axis(label="tokens/s", log=True),
        series=[Series(name=name, x=names, y=rates) for name, rates in ways.items()],
    )


def _checks(ladder: list[Climbed]) -> list[Check]:
    plain = [c for c in ladder if NATIVE not in c.up.switches]
    worst = max(c.difference for c in plain)
    pairs = steps_of(ladder)
    able = {name: (getattr(a.work, of), getattr(b.work, of)) for name, a, b in pairs if (of := SPARES.get(name))}
    if len({*able.get(SPECULATION, (0, 1))}) == 1:  # among so many requests no guess promised to pay
        del able[SPECULATION]
    spares = [name for name, (before, after) in able.items() if after < before]
    exact = [torch.equal(a.logits_RV, b.logits_RV) for name, a, b in pairs if name in EXACT and NATIVE in a.switches]
    return [
        check(
            all(map(again, ladder)),
            "without what was put upon it every rung computes the same tokens, steps and logits as before, to the bit",
            "去掉上面各级后，每一级的词元、步数与 logits 都与先前逐位相同",
        ),
        check(
            worst < ROUNDING,
            f"in float32 modules logits stay within {worst:.1g} of those of the whole text",
            f"float32 模块的 logits 与整段计算相差不超过 {worst:.1g}",
        ),
        check(
            len(spares) == len(able),
            f"{len(spares)} of {len(able)} rungs spare what they are to spare: {', '.join(spares)}",
            f"{len(able)} 级中有 {len(spares)} 级省下了应省之物：{'、'.join(spares)}",
        ),
        check(
            all(exact),
            f"on native kernels {len(exact)} rungs that only order the work change no bit of a logit",
            f"原生内核上，{len(exact)} 级只改变次序的优化不改变任何一位 logits",
        ),
    ]


def _verdict(ladder: list[Climbed], threads: int) -> Words:
    first, last = ladder[0].up, ladder[-1].up
    gains = [f"{name} {b.rate / a.rate:.2f}" for name, a, b in steps_of(ladder)]
    near = [c for c in ladder[:-1] if abs(c.down.rate / c.up.rate - 1) <= NEAR]
    left = [f"{c.up.switches[-1]} {c.without:.0f}" for c in ladder if c.without]
    alone = f" All but one rung: {', '.join(left)} tokens/s." if left else ""
    alone_zh = f"单独去掉某一级（词元/秒）：{'，'.join(left)}。" if left else ""
    off = max(ladder, key=lambda c: c.difference)
    sizes = [rung.work.weights / 1e6 for rung in (first, last)]
    return both(
        f"On {threads} threads {first.rate:.2f} tokens/s become {last.rate:.0f}, {last.rate / first.rate:,.0f} times "
        f"as many. Times the rung below: {', '.join(gains)}.{alone} Descending, {len(near)} of {len(ladder) - 1} "
        f"speeds come back within {NEAR:.0%}. The logits are furthest off, by {off.difference:.2g}, at {off.up.name}; "
        f"weights take {sizes[0]:.0f} MB at first and {sizes[1]:.0f} at last.",
        f"{threads} 线程下由每秒 {first.rate:.2f} 个词元提高到 {last.rate:.0f} 个，为 "
        f"{last.rate / first.rate:,.0f} 倍。相对下一级的倍数：{'，'.join(gains)}。{alone_zh}逐级撤下时，"
        f"{len(ladder) - 1} 个速度中有 {len(near)} 个回到 {NEAR:.0%} 以内。logits 偏差最大处为 {off.up.name}，"
        f"{off.difference:.2g}；权重由 {sizes[0]:.0f} MB 变为 {sizes[1]:.0f} MB。",
    )
