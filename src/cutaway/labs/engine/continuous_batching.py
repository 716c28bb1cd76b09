"""One trace of requests, batched in three ways (Yu et al. 2022, "Orca", OSDI; chunks: Agrawal et al. 2023,
arXiv:2308.16369).

    static      waits until a batch is full; the next begins when the longest reply of this one has ended
    dynamic     the same, but waits no longer than `PATIENCE` for it to become full
    continuous  whoever has arrived joins the next step, whoever has ended leaves it

Time is counted, so that every run meets the same arrivals: a step costs as much as its tokens and `FIXED` more, for
the weights that each step reads. Seconds are measured beside it.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import numpy as np

from cutaway.budget.chips import clock as now
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.sequence import Event, Sequence
from cutaway.labs.engine.replay import greedy, prompts, stored
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL

FIXED = 6  # tokens of a long prompt that take as long as what a step of SmolLM2 takes beside its tokens
PATIENCE = 400  # tokens
Rule = Literal["static", "dynamic", "continuous"]


class Request(NamedTuple):
    """arrives: on the counted clock."""

    arrives: float
    prompt: list[int]
    wanted: int


class Way(NamedTuple):
    """How a trace is served. places: sequences at a time. budget: tokens of a step."""

    name: str
    rule: Rule
    places: int
    budget: int


@dataclass
class Served:
    """What came of it. clock, seconds: at the end of each step, waiting excluded from seconds.

    idle: rows of the steps that computed nothing; starving: of these, how many while a request waited. told: by
    request, the step of each of its tokens. replies: the tokens.
    """

    way: Way
    clock: list[float] = field(default_factory=lambda: [0.0])
    seconds: list[float] = field(default_factory=lambda: [0.0])
    idle: int = 0
    starving: int = 0
    told: list[list[int]] = field(default_factory=list)
    replies: list[list[int]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.clock) - 1

    @property
    def latencies(self) -> list[float]:
        """From arrival to the last token, counted."""
        return [self.clock[steps[-1]] - arrived for steps, arrived in zip(self.told, self.arrivals, strict=True)]

    @property
    def speed(self) -> float:
        """Reply tokens per second of the steps."""
        return sum(map(len, self.replies)) / self.seconds[-1]

    def gap(self, clock: list[float]) -> float:
        """The longest time between two tokens of a reply."""
        return max(clock[b] - clock[a] for steps in self.told for a, b in pairwise(steps))


@lab(
    "continuous-batching",
    title=both("Static, dynamic and continuous batching", "静态、动态与连续批处理"),
    question=both(
        "How do static and continuous batching change throughput and latency?", "静态与连续批处理如何影响吞吐与延迟？"
    ),
    seconds={"quick": 4, "full": 80},
)
def continuous_batching(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    requests: Annotated[int, Knob("requests of the trace", "请求数", quick=10, min=4, max=1000)] = 100,
    longest_prompt: Annotated[int, Knob("tokens of the longest prompt", "最长提示词元数", quick=48, min=8)] = 128,
    longest_reply: Annotated[int, Knob("tokens of the longest reply", "最长回答词元数", quick=12, min=4)] = 32,
    places: Annotated[int, Knob("sequences of a batch", "批大小", quick=4, min=2, max=64)] = 8,
    chunk: Annotated[int, Knob("tokens of a step, with chunks", "分块时每步词元数", quick=16, min=8)] = 32,
    load: Annotated[
        float, Knob("arrivals, times what one at a time can bear", "到达率，以逐个处理能力为 1", min=0.1)
    ] = 1.5,
) -> Finding:
    loaded, whole = stored(model), places * longest_prompt
    lengths = mixed(random.Random(run.seed), requests, longest_prompt, longest_reply)
    texts = prompts(loaded, [prompt for prompt, _ in lengths])
    trace = [
        Request(at, text, n) for at, text, (_, n) in zip(arrivals(lengths, load, run.seed), texts, lengths, strict=True)
    ]
    ways = [Way("one by one", "continuous", 1, whole)]
    ways += [Way(rule, rule, places, whole) for rule in ("static", "dynamic", "continuous")]  # type: ignore[arg-type]
    ways += [Way(f"{rule}, chunks", rule, places, chunk) for rule in ("static", "dynamic", "continuous")]  # type: ignore[arg-type]
    context = longest_prompt + longest_reply + 1
    served = []
    for way in run.each(ways, "serving"):
        served.append(serve(engine_of(loaded, running=way.places, budget=way.budget, context=context), trace, way))
    return Finding(
        table=table(COLUMNS, map(_row, served)),
        plot=_plot(served),
        verdict=_verdict({s.way.name: s for s in served}, requests),
        checks=_checks({s.way.name: s for s in served}),
    )


def mixed(rng: random.Random, requests: int, prompt: int, reply: int) -> list[tuple[int, int]]:
    """Lengths of prompts and replies: many short ones, few long ones; one of each is the longest."""
    drawn = [
        (1 + int((prompt - 1) * rng.random() ** 3), 2 + int((reply - 2) * rng.random() ** 2)) for _ in range(requests)
    ]
    return [*drawn[: requests // 2], (prompt, reply), *drawn[requests // 2 + 1 :]]


def arrivals(lengths: list[tuple[int, int]], load: float, seed: int) -> list[float]:
    """When each arrives, at random, `load` times as fast as one at a time can be served."""
    rng = random.Random(seed + 1)
    cost = sum(prompt + reply * (FIXED + 1) for prompt, reply in lengths) / len(lengths)
    return np.cumsum([rng.expovariate(load / cost) for _ in lengths]).tolist()


def admitted(way: Way, queue: deque[Request], busy: bool, clock: float, last: bool) -> int:
    """How many of those who wait go to the engine now. last: nobody else will come."""
    if way.rule == "continuous":
        return len(queue)
    patient = way.rule == "static" or not queue or clock - queue[0].arrives < PATIENCE
    return 0 if busy or (len(queue) < way.places and patient and not last) else way.places


def serve(served_by: Engine, trace: list[Request], way: Way) -> Served:
    """Replay a trace: the clock goes on by what each step costs, or to the next arrival when nothing is to do."""
    made, coming, queue, clock = Served(way), deque(trace), deque[Request](), 0.0
    mine: dict[Sequence, int] = {}
    while coming or queue or served_by.busy:
        while coming and coming[0].arrives <= clock:
            queue.append(coming.popleft())
        for _ in range(min(len(queue), admitted(way, queue, served_by.busy, clock, not coming))):
            asked = queue.popleft()
            mine[served_by.add(asked.prompt, greedy(asked.wanted))] = len(mine)
            made.arrivals.append(asked.arrives)
            made.told.append([])
            made.replies.append([])
        if served_by.busy:
            clock = step(served_by, made, mine, clock, len(queue))
        else:
            clock = min(
                [c.arrives for c in [*coming][:1]] + [q.arrives + PATIENCE for q in queue if way.rule == "dynamic"]
            )
    return made


def step(served_by: Engine, made: Served, mine: dict[Sequence, int], clock: float, waiting: int) -> float:
    """One step, and what is noted of it; the clock after it."""
    began = now()
    told = served_by.step()
    made.seconds.append(made.seconds[-1] + now() - began)
    for sequence, event in told:
        assert isinstance(event, Event)
        made.told[mine[sequence]].append(len(made.clock))
        made.replies[mine[sequence]].append(event.choice.token)
    done = served_by.steps[-1]
    free = made.way.places - len(done.spans)
    made.idle, made.starving = made.idle + free, made.starving + min(free, waiting + done.waiting)
    clock += FIXED + sum(count for _, _, count, _, _ in done.spans)
    made.clock.append(clock)
    return clock


COLUMNS = {
    "batching": "",
    "steps": "",
    "rows idle": "",
    "idle while others wait": "",
    "done after": "token times",
    "p50 to the end": "token times",
    "p99 to the end": "token times",
    "longest gap": "token times",
    "longest gap, measured": "ms",
    "reply tokens": "per s of steps",
}


def _row(s: Served) -> list[str | int | float]:
    p50, p99 = (float(np.percentile(s.latencies, q)) for q in (50, 99))
    gaps = s.gap(s.clock), 1e3 * s.gap(s.seconds)
    return [s.way.name, s.steps, s.idle, s.starving, s.clock[-1], p50, p99, *gaps, s.speed]


def _plot(served: list[Served]) -> Plot:
    names, share = [s.way.name for s in served], [50, 99]
    return Plot(
        kind="bar",
        x=Axis(label="batching"),
        y=Axis(label="token times from arrival to the last token"),
        series=[Series(name=f"p{q}", x=names, y=[float(np.percentile(s.latencies, q)) for s in served]) for q in share],
    )


def _checks(by: dict[str, Served]) -> list[Check]:
    alone, static, free, chunks = (by[n] for n in ("one by one", "static", "continuous", "continuous, chunks"))
    p50 = {s.way.name: float(np.percentile(s.latencies, 50)) for s in by.values()}
    return [
        check(
            all(s.replies == alone.replies for s in by.values()),
            f"all {len(by)} ways give the same tokens as one request at a time",
            f"{len(by)} 种方式生成的词元与逐个处理完全一致",
        ),
        check(
            free.starving == 0 < static.starving,
            f"continuous batching leaves no row idle while a request waits, static batching {static.starving}",
            f"连续批处理在有请求等待时没有空闲行，静态批处理有 {static.starving} 行",
        ),
        check(
            p50["continuous"] < min(p50["static"], p50["dynamic"]),
            f"half of the requests end within {p50['continuous']:,.0f} token times of their arrival, with static "
            f"batches {p50['static']:,.0f}, with dynamic ones {p50['dynamic']:,.0f}",
            f"从到达到完成的中位数：连续 {p50['continuous']:,.0f}，静态 {p50['static']:,.0f}，动态 "
            f"{p50['dynamic']:,.0f} 个词元时",
        ),
        check(
            chunks.gap(chunks.clock) < free.gap(free.clock),
            f"chunks of prompts shorten the longest gap between two tokens of a reply from {free.gap(free.clock):,.0f} "
            f"to {chunks.gap(chunks.clock):,.0f} token times",
            f"提示分块把回答中两个词元的最长间隔从 {free.gap(free.clock):,.0f} 缩短到 "
            f"{chunks.gap(chunks.clock):,.0f} 个词元时",
        ),
    ]


def _verdict(by: dict[str, Served], requests: int) -> Words:
    alone, static, dynamic, free, chunks = (
        by[n] for n in ("one by one", "static", "dynamic", "continuous", "continuous, chunks")
    )
    p99 = {s.way.name: float(np.percentile(s.latencies, 99)) for s in by.values()}
    gap, cut = (1e3 * s.gap(s.seconds) for s in (free, chunks))
    return both(
        f"{requests} requests take {alone.steps:,} steps one by one, {static.steps:,} in static batches, "
        f"{dynamic.steps:,} in dynamic and {free.steps:,} in continuous ones; static batches leave {static.idle:,} "
        f"rows idle, {static.starving:,} of them while a request waits, continuous ones {free.idle:,} and "
        f"{free.starving:,}. The slowest hundredth ends {p99['static']:,.0f} token times after its arrival with "
        f"static, {p99['dynamic']:,.0f} with dynamic and {p99['continuous']:,.0f} with continuous batches. Chunks cut "
        f"the longest gap measured between two tokens from {gap:.0f} to {cut:.0f} ms, for {chunks.steps:,} steps. "
        f"Speeds here: {alone.speed:.0f} tokens/s one by one, {static.speed:.0f} static, {free.speed:.0f} continuous, "
        f"{chunks.speed:.0f} with chunks.",
        f"{requests} 个请求逐个处理需 {alone.steps:,} 步，静态批 {static.steps:,} 步，动态批 {dynamic.steps:,} 步，"
        f"连续批 {free.steps:,} 步；静态批空闲 {static.idle:,} 行，其中 {static.starving:,} 行是在有请求等待时，"
        f"连续批为 {free.idle:,} 与 {free.starving:,}。p99 完成时间：静态 {p99['static']:,.0f}、动态 "
        f"{p99['dynamic']:,.0f}、连续 {p99['continuous']:,.0f} 个词元时。"
        f"分块把实测最长间隔从 {gap:.0f} 毫秒降到 {cut:.0f} 毫秒，共 "
        f"{chunks.steps:,} 步。实测速度（词元/秒）：逐个 {alone.speed:.0f}，静态 {static.speed:.0f}，连续 "
        f"{free.speed:.0f}，分块 {chunks.speed:.0f}。",
    )
