"""At which batch a machine stops waiting for memory (Williams et al. 2009, "Roofline"; for decoding: Pope et al. 2022,
arXiv:2211.05102).

A step reads the weights once, whatever the batch, and computes for each sequence: its time is flat until computing
takes longer than reading, and grows from there. Every sequence also reads its own cache; past some length it reads for
longer than it computes, and then no batch is large enough.

    knee, predicted    the batch at which computing takes as long as reading, of a chip's two rates
    knee, measured     tokens per second of the best batch over those of batch 1: the two meet there if both are limits
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

from cutaway.budget import roofline as best
from cutaway.budget.chips import CHIPS, Chip
from cutaway.budget.figures import named
from cutaway.budget.published import spec_named
from cutaway.labs.engine.batch_drift import doubled
from cutaway.labs.engine.speed import Arm, arms, chip_of, decode, in_turns, judged, on_threads, products, reply
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.models.cost import Cost

LARGE, CARD, DTYPE = "llama-3-8b", "h100-sxm", "bfloat16"  # the example on paper
CONTEXTS = (0, 256, 1024)
TOLD = {"a100-80gb": 153, "h100-sxm": 295}  # FLOP per byte


class Knee(NamedTuple):
    """batch: None if no batch is large enough. last: tokens of context past which that is so, None if it never is."""

    context: int
    batch: float | None
    last: float | None


class Curve(NamedTuple):
    """An arm's tokens per second by batch, as they are and at best; context: tokens each sequence had before."""

    arm: Arm
    chip: Chip
    context: int
    rates: dict[int, float]
    best: dict[int, float]

    @property
    def predicted(self) -> Knee:
        return knee(self.arm.cost, self.chip, self.arm.dtype, self.context, width=self.arm.width)

    @property
    def measured(self) -> float:
        return max(self.rates.values()) / self.rates[1]


@lab(
    "roofline",
    title=both("The batch that stops waiting for memory", "带宽与算力的平衡点"),
    question=both("At which batch size does a given chip stop waiting for memory?", "批大到多少，芯片才不再等内存？"),
    seconds={"quick": 5, "full": 200},
)
def roofline(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that is timed", "计时的模型")] = MODEL,
    batch: Annotated[int, Knob("the largest batch, by doubling", "最大批，逐次翻倍", quick=4, min=2, max=256)] = 64,
    context: Annotated[
        int, Knob("tokens of a long prompt, on native kernels", "长提示词元数（原生内核）", quick=32, min=2, max=4096)
    ] = 256,
    tokens: Annotated[int, Knob("tokens of a reply", "回答词元数", quick=4, min=4, max=512)] = 12,
    threads: Annotated[int, Knob("threads", "线程数", min=1, max=64)] = 1,
    megabytes: Annotated[
        int, Knob("of the matrix that bandwidth is measured on", "测带宽所用矩阵，兆字节", quick=64, min=1, max=4096)
    ] = 256,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=1, min=1, max=99)] = 3,
) -> Finding:
    large, curves = Cost(spec_named(LARGE)), list[Curve]()
    knees = [knee(large, CHIPS[CARD], DTYPE, n) for n in CONTEXTS]
    with on_threads(threads):
        some = arms(model, running=batch, context=context + reply(batch, tokens, context) + 1)
        asked = [(arm, 1) for arm in some] + [(arm, context) for arm in some[:-1]]
        for arm, before in run.each(asked, "timing batches"):
            curves.append(curve(arm, before, doubled(batch), tokens=tokens, megabytes=megabytes, repeats=repeats))
    return Finding(
        table=table(COLUMNS, [row for c in curves for row in _rows(c)]),
        plot=_plot(curves),
        verdict=_verdict(knees, curves, threads),
        checks=_checks(large, knees),
    )


def knee(cost: Cost, chip: Chip, dtype: str, context: int, *, width: float | None = None) -> Knee:
    """Where the formulas put it."""
    found = named(best.balance(cost, chip, dtype, context, width=width))
    return Knee(context, found.get("batch at balance"), found.get("no batch reaches it past"))


def curve(arm: Arm, context: int, batches: list[int], *, tokens: int, megabytes: int, repeats: int) -> Curve:
    """An arm's two rates and its steps, in turns."""
    ways = [*products(arm, megabytes), *(decode(arm, batch, tokens, context) for batch in batches)]
    many, one, *steps = in_turns(ways, repeats)
    chip = chip_of(arm, many, one, megabytes)
    ideal = {b: best.step(arm.cost, chip, arm.dtype, b, context, width=arm.width).seconds for b in batches}
    return Curve(
        arm,
        chip,
        context,
        {b: b / s for b, s in zip(batches, steps, strict=True)},
        {b: b / s for b, s in ideal.items()},
    )


COLUMNS = {
    "arithmetic": "",
    "context": "tokens",
    "computes": "GFLOP/s",
    "reads": "GB/s",
    "FLOP per byte": "",
    "batch": "",
    "at best": "tokens/s",
    "measured": "tokens/s",
    "measured over best": "",
}


def _rows(c: Curve) -> list[list[Cell]]:
    rate, read = c.chip.rate(c.arm.dtype), c.chip.bandwidth
    told: list[Cell] = [c.arm.name, c.context, rate / 1e9, read / 1e9, rate / read]
    return [[*told, b, c.best[b], c.rates[b], c.rates[b] / c.best[b]] for b in c.rates]


def _plot(curves: list[Curve]) -> Plot:
    series = [
        Series(name=f"{c.arm.name}, {c.context} before: {name}", x=[float(b) for b in rates], y=[*rates.values()])
        for c in curves
        for name, rates in (("at best", c.best), ("measured", c.rates))
    ]
    return Plot(
        kind="line", x=Axis(label="batch", log=True), y=Axis(label="tokens per second", log=True), series=series
    )


def _checks(large: Cost, knees: list[Knee]) -> list[Check]:
    """Of the formulas; times are shown, not checked."""
    ridges = {name: CHIPS[name].ridge(DTYPE) for name in TOLD}
    none, some, beyond = knees
    said = ", ".join(f"{name} {ridge:.0f}" for name, ridge in ridges.items())
    at = math.floor(some.batch or 0)
    return [
        check(
            {name: round(ridge) for name, ridge in ridges.items()} == TOLD,
            f"FLOPs that a chip can do for each byte it reads: {said}",
            f"芯片每读一字节可做的 FLOPs：{said}",
        ),
        check(
            round(none.batch or 0) == 295 and at == 754,
            f"{LARGE} on {CARD} is in balance at a batch of {none.batch:.0f} without context, of {at} with 256 tokens",
            f"{LARGE} 在 {CARD} 上：无上下文时批为 {none.batch:.0f} 平衡，256 个词元时为 {at}",
        ),
        check(
            round(none.last or 0) == 421 and beyond.batch is None,
            f"past {none.last:.0f} cached tokens no batch reaches balance",
            f"缓存超过 {none.last:.0f} 个词元后，多大的批都不能平衡",
        ),
        check(
            all(_waits(large, k) for k in knees),
            "counted exactly, 0.8 of the batch at balance waits for memory and 1.3 of it for arithmetic; past the last "
            "length a million sequences still wait for their caches",
            "精确计数：批为平衡点的 0.8 倍时等内存，1.3 倍时等运算；超过该长度后一百万个序列仍在等缓存",
        ),
    ]


def _waits(cost: Cost, k: Knee) -> bool:
    """Whether the exact cost model, in which no token multiplies the input table, has its balance near."""
    batches = [int(0.8 * k.batch), int(1.3 * k.batch)] if k.batch else [10**6]
    limits = [best.step(cost, CHIPS[CARD], DTYPE, batch, k.context).bottleneck for batch in batches]
    return limits == (["weights" if k.context == 0 else "cache", "compute"] if k.batch else ["cache"])


def _verdict(knees: list[Knee], curves: list[Curve], threads: int) -> Words:
    said = [_said(c) for c in curves]
    return both(
        f"On paper {CARD} can do {CHIPS[CARD].ridge(DTYPE):.0f} FLOPs for each byte, so {LARGE} needs a batch of "
        f"{knees[0].batch:.0f}, with 256 tokens each of {math.floor(knees[1].batch or 0)}, past {knees[0].last:.0f} "
        f"none is enough. Here, {threads} threads: {'; '.join(s.en for s in said)}.",
        f"手算：{CARD} 每字节可做 {CHIPS[CARD].ridge(DTYPE):.0f} FLOPs，故 {LARGE} 的批须达 {knees[0].batch:.0f}，"
        f"每序列 256 个词元时须达 {math.floor(knees[1].batch or 0)}，超过 {knees[0].last:.0f} 个则多大都不够。"
        f"本机 {threads} 线程：{'；'.join(s.zh for s in said)}。",
    )


def _said(c: Curve) -> Words:
    top, foreseen = max(c.rates, key=lambda b: c.rates[b]), _foreseen(c)
    return both(
        f"{c.arm.name} with {c.context} tokens before: {c.chip.ridge(c.arm.dtype):.1f} FLOPs for a byte, "
        f"{foreseen.en}; {c.rates[1]:,.0f} tokens/s at batch 1, {c.rates[top]:,.0f} at {top}",
        f"{c.arm.name}，此前 {c.context} 个词元：每字节 {c.chip.ridge(c.arm.dtype):.1f} FLOPs，{foreseen.zh}；批为 1 "
        f"时每秒 {c.rates[1]:,.0f} 个词元，{top} 时 {c.rates[top]:,.0f} 个",
    )


def _foreseen(c: Curve) -> Words:
    """The knee as predicted and measured. It cannot be seen before batches beyond it were tried."""
    batch, last, most = c.predicted.batch, c.predicted.last, max(c.rates)
    if batch is None:
        return both(
            f"no knee foreseen past {last:.0f} tokens, rates differ {c.measured:.1f} times",
            f"预测超过 {last:.0f} 个词元即无平衡点，速率相差 {c.measured:.1f} 倍",
        )
    if batch > most:
        return both(
            f"knee foreseen at {batch:.1f}, beyond the batches that were tried",
            f"平衡点预测为 {batch:.1f}，大于试过的批",
        )
    worth = judged(c.measured / batch)
    return both(
        f"knee foreseen at {batch:.1f}, measured {c.measured:.1f} ({worth.en})",
        f"平衡点预测 {batch:.1f}，实测 {c.measured:.1f}（{worth.zh}）",
    )
