"""Time to the first token and between tokens, from two numbers of a model and two of a chip.

    first token   2 FLOPs for each parameter and token of the prompt, at the rate at which the chip multiplies
    next token    one read of every parameter, at the rate at which it reads

A data sheet gives the two rates of an accelerator; of this machine they are measured, apart from the model, for each
arithmetic that can run it. What the formulas leave out is then seen beside what they predict.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from cutaway.budget import roofline
from cutaway.budget.chips import CHIPS, Chip
from cutaway.budget.figures import named
from cutaway.budget.published import spec_named
from cutaway.labs.engine.speed import Arm, arms, chip_of, decode, in_turns, judged, on_threads, prefill, products
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.models.cost import Cost

LARGE, CARD, DTYPE, PROMPT = "llama-3-8b", "a100-80gb", "bfloat16", 1000  # the example on paper


class Paper(NamedTuple):
    """Seconds by formula: to the first token; of a further one, at least."""

    first: float
    next: float


class Timed(NamedTuple):
    """An arm: the chip that it finds, seconds by the two formulas and as they are. work, read: counted, of both."""

    arm: Arm
    chip: Chip
    prompt: int
    formula: Paper
    measured: Paper
    work: float
    read: float


@lab(
    "latency-metrics",
    title=both("Latency and both token rates by hand", "延迟与两种吞吐，手算"),
    question=both(
        "Can I predict first-token time and both token rates from a model's size and a chip's data sheet?",
        "能否由模型大小与芯片参数预测首词元时间与两种词元速率？",
    ),
    seconds={"quick": 4, "full": 40},
)
def latency_metrics(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that is timed", "计时的模型")] = MODEL,
    prompt: Annotated[int, Knob("tokens of its prompt", "提示词元数", quick=64, min=16, max=4096)] = 512,
    tokens: Annotated[int, Knob("tokens of a reply", "回答词元数", quick=6, min=4, max=512)] = 32,
    threads: Annotated[int, Knob("threads", "线程数", min=1, max=64)] = 1,
    megabytes: Annotated[
        int, Knob("of the matrix that bandwidth is measured on", "测带宽所用矩阵，兆字节", quick=64, min=1, max=4096)
    ] = 256,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=1, min=1, max=99)] = 5,
) -> Finding:
    paper = on_paper(Cost(spec_named(LARGE)), CHIPS[CARD], DTYPE, PROMPT, 0.5)
    with on_threads(threads):
        some = arms(model, running=1, context=prompt + tokens + 1, budget=prompt)
        found = [timing(arm, prompt, tokens, megabytes, repeats) for arm in run.each(some, "timing an arithmetic")]
    return Finding(
        table=table(COLUMNS, [_paper_row(paper), *map(_row, found)]),
        plot=_plot(found),
        verdict=_verdict(paper, found, threads),
        checks=_checks(paper, found),
    )


def on_paper(
    cost: Cost, chip: Chip, dtype: str, prompt: int, utilization: float, *, width: float | None = None
) -> Paper:
    """The two formulas."""
    values = named(roofline.latency(cost, chip, dtype, prompt, utilization, width=width))
    return Paper(values["first token"], values["next token, at least"])


def timing(arm: Arm, prompt: int, tokens: int, megabytes: int, repeats: int) -> Timed:
    """An arm's two rates, and the two times that they should explain, in turns."""
    ways = [*products(arm, megabytes), prefill(arm, prompt), decode(arm, 1, tokens)]
    many, one, first, following = in_turns(ways, repeats)
    chip = chip_of(arm, many, one, megabytes)
    return Timed(
        arm,
        chip,
        prompt,
        on_paper(arm.cost, chip, arm.dtype, prompt, 1, width=arm.width),
        Paper(first, following),
        arm.cost.flops(prompt, rows=1) / (2 * arm.cost.parameters * prompt),
        arm.cost.read(1) / arm.cost.parameters,
    )


COLUMNS = {
    "model": "",
    "on": "",
    "computes": "GFLOP/s",
    "reads": "GB/s",
    "prompt": "tokens",
    "first token, formula": "ms",
    "first token, measured": "ms",
    "measured over formula ": "",
    "prompt, measured": "tokens/s",
    "next token, formula": "ms",
    "next token, measured": "ms",
    "measured over formula": "",
    "decode, formula": "tokens/s",
    "decode, measured": "tokens/s",
}


def _paper_row(paper: Paper) -> list[Cell]:
    chip = CHIPS[CARD]
    rates = [0.5 * chip.rate(DTYPE) / 1e9, chip.bandwidth / 1e9, PROMPT]
    return [LARGE, CARD, *rates, 1e3 * paper.first, None, None, None, 1e3 * paper.next, None, None,
            1 / paper.next, None]  # fmt: skip


def _row(t: Timed) -> list[Cell]:
    formula, measured = t.formula, t.measured
    return [
        t.arm.loaded.name, t.arm.name, t.chip.rate(t.arm.dtype) / 1e9, t.chip.bandwidth / 1e9, t.prompt,
        1e3 * formula.first, 1e3 * measured.first, measured.first / formula.first, t.prompt / measured.first,
        1e3 * formula.next, 1e3 * measured.next, measured.next / formula.next, 1 / formula.next, 1 / measured.next,
    ]  # fmt: skip


def _plot(found: list[Timed]) -> Plot:
    names = [t.arm.name for t in found]
    ways = {
        "first token": [t.measured.first / t.formula.first for t in found],
        "next token": [t.measured.next / t.formula.next for t in found],
    }
    series = [Series(name=name, x=names, y=y) for name, y in ways.items()]
    return Plot(kind="bar", x=Axis(label="arithmetic"), y=Axis(label="measured over formula"), series=series)


def _checks(paper: Paper, found: list[Timed]) -> list[Check]:
    """On paper and by counting; times are shown, not checked."""
    bytes_, (first, *_) = Cost(spec_named(LARGE)).parameters * 2, found
    return [
        check(
            round(1e3 * paper.first) == 103,
            f"{LARGE} on {CARD}: {PROMPT:,} tokens at half the rate take {1e3 * paper.first:.0f} ms",
            f"{LARGE} 在 {CARD} 上：以半速读 {PROMPT:,} 个词元需 {1e3 * paper.first:.0f} 毫秒",
        ),
        check(
            round(1e3 * paper.next, 1) == 7.9 and round(1 / paper.next) == 127 and round(bytes_ / 1e9, 2) == 16.06,
            f"each further token streams {bytes_ / 1e9:.2f} GB, at least {1e3 * paper.next:.1f} ms: at most "
            f"{1 / paper.next:.0f} tokens/s",
            f"其后每个词元读 {bytes_ / 1e9:.2f} GB，至少 {1e3 * paper.next:.1f} 毫秒：每秒至多 {1 / paper.next:.0f} 个",
        ),
        check(
            first.read > 0.99 and 0.5 < first.work < 1.2,
            f"counted exactly, the timed model multiplies {first.work:.0%} of what 2 FLOPs a parameter say for the "
            f"prompt (its head once, attention as well) and reads {first.read:.0%} of its parameters for a token",
            f"精确计数：该模型读提示的乘法为“每参数 2 FLOPs”的 {first.work:.0%}（输出层只算一次，另有注意力），"
            f"每个词元读取 {first.read:.0%} 的参数",
        ),
    ]


def _verdict(paper: Paper, found: list[Timed], threads: int) -> Words:
    said = [
        f"{t.arm.name}, {t.chip.rate(t.arm.dtype) / 1e9:,.0f} GFLOP/s and {t.chip.bandwidth / 1e9:.1f} GB/s: "
        f"first token after {t.prompt} in {1e3 * t.measured.first:,.0f} ms for {1e3 * t.formula.first:,.0f} by formula "
        f"({judged(t.measured.first / t.formula.first).en}), then {1 / t.measured.next:,.0f} tokens/s for "
        f"{1 / t.formula.next:,.0f} ({judged(t.measured.next / t.formula.next).en})"
        for t in found
    ]
    zh = [
        f"{t.arm.name}（{t.chip.rate(t.arm.dtype) / 1e9:,.0f} GFLOP/s、{t.chip.bandwidth / 1e9:.1f} GB/s）：{t.prompt} "
        f"个词元后首词元 {1e3 * t.measured.first:,.0f} 毫秒，公式 {1e3 * t.formula.first:,.0f}"
        f"（{judged(t.measured.first / t.formula.first).zh}）；其后每秒 {1 / t.measured.next:,.0f} 个，公式 "
        f"{1 / t.formula.next:,.0f}（{judged(t.measured.next / t.formula.next).zh}）"
        for t in found
    ]
    return both(
        f"On paper {LARGE} on {CARD} needs {1e3 * paper.first:.0f} ms for {PROMPT:,} tokens and writes at most "
        f"{1 / paper.next:.0f} tokens/s. Here, {threads} threads, rates measured apart from the model. "
        f"{'. '.join(said)}. (Measured times over those of the formula are judged.)",
        f"手算：{LARGE} 在 {CARD} 上读 {PROMPT:,} 个词元需 {1e3 * paper.first:.0f} 毫秒，每秒至多写 "
        f"{1 / paper.next:.0f} 个。本机 {threads} 线程，速率不经模型单独测得。{'。'.join(zh)}。"
        "（评判的是实测用时与公式之比。）",
    )
