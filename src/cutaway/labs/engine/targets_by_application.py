"""Which latency an application needs, and how large a batch serves most of its requests in time.

    chat           a first token soon, further ones faster than people read
    summarizing    documents in bulk: nobody waits for a token, and the queue must not grow
    completion     the whole of a few words of code before the programmer types on
    voice          a first token before the pause grows long, further ones faster than they are spoken

Requests arrive at random, the same ones at every rate. The engine is the real one, with its scheduler and its limit of
sequences at a time; its steps last as long as steps of the model were measured to last, a part for each step and a part
for each token, on a virtual clock. Then the model itself answers at one of the rates. Goodput is the rate at which the
share of requests that meet all their targets falls below `GOOD` (Zhong et al. 2024, "DistServe", arXiv:2401.09670).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch

from cutaway.engine.engine import Engine, Step, engine_of
from cutaway.engine.runner import PAGE, Batch, Runner
from cutaway.engine.sampler import Logits
from cutaway.engine.sequence import Sequence
from cutaway.labs.engine.replay import finish, greedy, prompts, stored
from cutaway.labs.engine.speed import numbers
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.models.spec import Spec
from cutaway.weights.checkpoint import Loaded

GOOD = 0.9  # of the requests
ALIKE = 0.98  # of the best goodput: the smallest limit that gives so much is recommended
LITTLE = 0.05
LOWEST = 0.1  # rate that is tried, of what the largest limit can bear
LOOKS = 5000  # at how many moments requests in flight are counted
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # tokens of the steps that are timed
SPREAD = 0.5  # of the logarithm of lengths


class Shape(NamedTuple):
    """Median tokens of prompt and reply; seconds to the first token, between tokens on average, and to the last."""

    name: str
    zh: str
    prompt: int
    reply: int
    first: float | None = None
    gap: float | None = None
    whole: float | None = None


SHAPES = (
    Shape("chat", "聊天", 96, 48, first=1.0, gap=0.1),
    Shape("summarizing", "批量摘要", 384, 48, whole=5.0),
    Shape("completion", "代码补全", 192, 12, whole=0.5),
    Shape("voice", "语音", 32, 32, first=0.3, gap=0.05),
)


class Pace(NamedTuple):
    """Seconds of a step: of its own, and for each token."""

    step: float
    token: float

    def of(self, step: Step) -> float:
        """That it lasts."""
        return self.step + self.token * sum(count for _, _, count, _, _ in step.spans)

    def rate(self, shape: Shape, limit: int) -> float:
        """Requests a second that so many at a time can be given at most."""
        return 1 / (self.token * (shape.prompt + shape.reply) + self.step * shape.reply / limit)


class Ask(NamedTuple):
    """at: seconds after the beginning, if one a second arrives."""

    at: float
    prompt: list[int]
    new: int


class Answer(NamedTuple):
    """When it was asked for, and when each token came."""

    at: float
    times: list[float]


class Met(NamedTuple):
    """At a rate: shares of the requests that meet each target, and all. seen: in flight, counted by looking.

    expected: in flight by Little's law, arrivals a second times the mean latency.
    """

    rate: float
    first: float | None
    gap: float | None
    whole: float | None
    all: float
    seen: float
    expected: float


class Tuned(NamedTuple):
    """curves, goodput: by limit. real: the model's own answers with the limit that is recommended, at one rate."""

    shape: Shape
    curves: dict[int, list[Met]]
    goodput: dict[int, float]
    best: int
    real: Met
    foreseen: Met


@lab(
    "targets-by-application",
    title=both("Latency targets by application", "不同应用的延迟目标"),
    question=both(
        "Chat, batch summarizing, code completion, voice: which latency and throughput does each need, and how do I "
        "tune for it?",
        "聊天、批量摘要、代码补全、语音：各需要怎样的延迟与吞吐？如何调节？",
    ),
    seconds={"quick": 5, "full": 70},
)
def targets_by_application(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    requests: Annotated[int, Knob("requests of each trace", "每条轨迹的请求数", quick=60, min=10, max=2000)] = 150,
    limits: Annotated[
        str, Knob("sequences at a time, with commas", "同时处理的序列数，逗号分隔", quick="1,8")
    ] = "1,2,4,8,16,32",
    rates: Annotated[int, Knob("rates that are tried", "所试到达率的个数", quick=4, min=3, max=50)] = 10,
    top: Annotated[
        float,
        Knob("highest rate, times what the largest limit bears", "最高到达率，以最大批的能力为 1", quick=4.0, min=0.2),
    ] = 2.0,
    real: Annotated[int, Knob("requests that the model answers", "真实模型回答的请求数", quick=3, min=2)] = 60,
    budget: Annotated[int, Knob("tokens of a step at most", "每步最多词元数", min=32, max=2048)] = 256,
    step: Annotated[float, Knob("ms of a step, 0: as measured", "每步毫秒，0 为实测", quick=4.0, min=0)] = 0.0,
    token: Annotated[float, Knob("ms of a token, 0: as measured", "每词元毫秒，0 为实测", quick=0.5, min=0)] = 0.0,
) -> Finding:
    loaded, sizes = stored(model), numbers(limits, "limits", budget)
    measured = measure(loaded) if not (step and token) else Pace(0, 0)
    pace = Pace(step / 1e3 or measured.step, token / 1e3 or measured.token)
    tuned = []
    for shape in run.each(SHAPES, "shape"):
        asks = trace(loaded, shape, requests, run.seed)
        tried = (np.geomspace(LOWEST, top, rates) * pace.rate(shape, sizes[-1])).tolist()
        tuned.append(tune(Setup(loaded, shape, pace, sizes, budget), asks, tried, real))
    return Finding(
        table=table(COLUMNS, [_row(t.shape, t.best, met) for t in tuned for met in t.curves[t.best]]),
        plot=_plot(tuned),
        verdict=_verdict(tuned, pace),
        checks=_checks(tuned),
    )


# ---- load


def trace(loaded: Loaded, shape: Shape, count: int, seed: int) -> list[Ask]:
    """Lengths are log-normal, at most four times their median; arrivals are those of a Poisson process."""
    rng = np.random.default_rng(seed)
    lengths = [
        np.clip(rng.lognormal(np.log(median), SPREAD, count), 2, 4 * median).astype(int).tolist()
        for median in (shape.prompt, shape.reply)
    ]
    times = np.cumsum(rng.exponential(1.0, count)).tolist()
    return [*map(Ask, times, prompts(loaded, lengths[0]), lengths[1])]


def serve(engine: Engine, asks: list[Ask], rate: float, lasts: Callable[[Step], float]) -> list[Answer]:
    """All requests at so many a second; the clock goes on by what a step lasts, or to the next arrival."""
    coming, clock, answers = deque(asks), 0.0, dict[Sequence, Answer]()
    while coming or engine.busy:
        while coming and coming[0].at / rate <= clock:
            ask = coming.popleft()
            answers[engine.add(ask.prompt, greedy(ask.new))] = Answer(ask.at / rate, [])
        if not engine.busy:
            clock = coming[0].at / rate
            continue
        told = engine.step()
        clock += lasts(engine.steps[-1])
        for sequence, _ in told:
            answers[sequence].times.append(clock)
    return [*answers.values()]


class Pretended:
    """A runner that computes nothing: every token is the first of the vocabulary."""

    size, page_bytes, room = PAGE, 1, 1 << 30

    def __init__(self, spec: Spec) -> None:
        self.spec, self.said = spec, Logits(torch.zeros(1), 0, 0.0)

    def allocate(self, pages: int, context: int, tokens: int, rows: int) -> None:
        """Nothing."""

    def fit(self, adapter: Any) -> None:
        """Nothing."""

    def run(self, spans: Batch, wanted: list[int]) -> list[Logits]:
        """The same for all."""
        return [self.said] * len(wanted)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Nothing."""

    def forget(self, sequence: Sequence) -> None:
        """Nothing."""


def measure(loaded: Loaded) -> Pace:
    """The line through the seconds of real steps of several sizes, short ones as important as long ones."""
    engine, points = engine_of(loaded, context=2 * SIZES[-1], running=1), list[tuple[int, float]]()
    for turn in range(4):
        for text in prompts(loaded, [*SIZES]):
            engine.add(text, greedy(4, f"{turn}"))
            finish(engine)
            points += [(count, s.seconds[1]) for s in [*engine.steps][-4:] for _, _, count, _, _ in s.spans if turn]
    counts_N, seconds_N = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    lines_N2 = np.stack([1 / seconds_N, counts_N / seconds_N], 1)
    return Pace(*np.maximum(np.linalg.lstsq(lines_N2, np.ones(len(points)), rcond=None)[0], 1e-9).tolist())


class Setup(NamedTuple):
    """What answers a shape's requests. budget: tokens of a step."""

    loaded: Loaded
    shape: Shape
    pace: Pace
    limits: list[int]
    budget: int

    def engine(self, limit: int, runner: Runner | None = None) -> Engine:
        """Of the model, or of a runner that stands in for it."""
        context = 4 * (self.shape.prompt + self.shape.reply) + 1
        make = partial(Engine, runner, self.loaded.tokenizer) if runner else partial(engine_of, self.loaded)
        return make(running=limit, budget=self.budget, context=context)

    def pretended(self, limit: int, asks: list[Ask], rate: float) -> Met:
        """On the virtual clock."""
        engine = self.engine(limit, Pretended(self.loaded.checkpoint.spec))
        return met(self.shape, serve(engine, asks, rate, self.pace.of), rate)


# ---- what comes of it


def met(shape: Shape, answers: list[Answer], rate: float) -> Met:
    """Shares, and requests in flight in two ways."""
    latencies = [a.times[-1] - a.at for a in answers]
    waits = {
        "first": [a.times[0] - a.at for a in answers],
        "gap": [(a.times[-1] - a.times[0]) / max(1, len(a.times) - 1) for a in answers],
        "whole": latencies,
    }
    fine = {kind: [wait <= target for wait in some] for kind, some in waits.items() if (target := getattr(shape, kind))}
    shares = {kind: float(np.mean(fine[kind])) if kind in fine else None for kind in waits}
    every = float(np.mean([all(some) for some in zip(*fine.values(), strict=True)]))
    end = max(a.times[-1] for a in answers)
    return Met(rate, **shares, all=every, seen=in_flight(answers, end), expected=sum(latencies) / end)


def in_flight(answers: list[Answer], end: float) -> float:
    """Requests that have arrived and not ended, counted at evenly spaced moments: the mean."""
    looks = (np.arange(LOOKS) + 0.5) * end / LOOKS
    came, went = np.sort([a.at for a in answers]), np.sort([a.times[-1] for a in answers])
    return float(np.mean(np.searchsorted(came, looks, "right") - np.searchsorted(went, looks, "right")))


def knee(curve: list[Met]) -> float:
    """The rate at which the share falls below `GOOD`, by straight line between two rates; the last if it never does."""
    points = [(0.0, 1.0), *((m.rate, m.all) for m in curve)]
    for (slow, before), (fast, after) in pairwise(points):
        if after < GOOD:
            return slow + (fast - slow) * (before - GOOD) / (before - after)
    return points[-1][0]


def recommended(goodput: dict[int, float]) -> int:
    """The smallest limit that is nearly as good as the best."""
    return min(limit for limit, rate in goodput.items() if rate >= ALIKE * max(goodput.values()))


def tune(setup: Setup, asks: list[Ask], rates: list[float], real: int) -> Tuned:
    """Every limit at every rate on the virtual clock; then the model at the last rate before the knee."""
    curves = {limit: [setup.pretended(limit, asks, rate) for rate in rates] for limit in setup.limits}
    goodput = {limit: knee(curve) for limit, curve in curves.items()}
    best = recommended(goodput)
    rate = max([rate for rate in rates if rate <= goodput[best]] or rates[:1])
    answers = serve(setup.engine(best), asks[:real], rate, lambda step: step.seconds[1])
    foreseen = setup.pretended(best, asks[:real], rate)
    return Tuned(setup.shape, curves, goodput, best, met(setup.shape, answers, rate), foreseen)


COLUMNS = {
    "shape": "",
    "at a time": "",
    "rate": "requests/s",
    "first token in time": "%",
    "gaps in time": "%",
    "whole in time": "%",
    "all in time": "%",
    "in flight, counted": "",
    "rate x latency": "",
}


def _row(shape: Shape, limit: int, m: Met) -> list[Cell]:
    shares = [None if share is None else 100 * share for share in (m.first, m.gap, m.whole, m.all)]
    return [shape.name, limit, m.rate, *shares, m.seen, m.expected]


def _plot(tuned: list[Tuned]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="requests/s", log=True),
        y=Axis(label="% in time"),
        series=[
            Series(
                name=f"{t.shape.name}, {t.best} at a time",
                x=[m.rate for m in t.curves[t.best]],
                y=[100 * m.all for m in t.curves[t.best]],
            )
            for t in tuned
        ],
    )


def _checks(tuned: list[Tuned]) -> list[Check]:
    every = [m for t in tuned for some in (*t.curves.values(), [t.real]) for m in some]
    worst = max(abs(m.seen / m.expected - 1) for m in every)
    best = {t.shape.name: t.best for t in tuned}
    found = [t.shape.name for t in tuned if 0 < t.goodput[t.best] < t.curves[t.best][-1].rate]
    return [
        check(
            worst <= LITTLE,
            f"requests in flight, counted, are arrivals a second times latency to within {worst:.2%} at all "
            f"{len(every)} points",
            f"在全部 {len(every)} 个点上，数得的在途请求数与到达率乘延迟相差不超过 {worst:.2%}",
        ),
        check(
            len(found) == len(tuned),
            f"the knee is found within the rates tried for {len(found)} of {len(tuned)} shapes",
            f"{len(tuned)} 种流量中有 {len(found)} 种在所试到达率内找到拐点",
        ),
        check(
            len({*best.values()}) > 1,
            f"the recommended limit differs by shape: {best}",
            f"推荐的批上限因流量而异：{best}",
        ),
    ]


def _verdict(tuned: list[Tuned], pace: Pace) -> Words:
    en, zh = [], []
    for t in tuned:
        others = ", ".join(f"{limit}: {rate:.3g}" for limit, rate in t.goodput.items())
        real = f"{t.real.all:.0%}", f"{t.foreseen.all:.0%}", f"{t.real.rate:.3g}"
        en.append(
            f"{t.shape.name}: {t.best} at a time, {t.goodput[t.best]:.3g} requests/s in time (by limit {others}); the "
            f"model itself met {real[0]} at {real[2]}/s, foreseen {real[1]}"
        )
        zh.append(
            f"{t.shape.zh}：批上限 {t.best}，达标吞吐每秒 {t.goodput[t.best]:.3g} 个请求（各上限 {others}）；"
            f"真实模型在每秒 {real[2]} 个时达标 {real[0]}，预计 {real[1]}"
        )
    return both(
        f"A step takes {1e3 * pace.step:.2f} ms and {1e3 * pace.token:.2f} ms for each token. Goodput is where fewer "
        f"than {GOOD:.0%} of the requests meet all their targets. {'; '.join(en)}.",
        f"每步 {1e3 * pace.step:.2f} 毫秒，每词元 {1e3 * pace.token:.2f} 毫秒。达标吞吐是达标请求不足 {GOOD:.0%} "
        f"时的到达率。{'；'.join(zh)}。",
    )
