"""Which numbers of a chip matter: what it can hold, read and multiply, each for another task.

    fits          memory, less the weights, over what a sequence keeps
    prompt        FLOP/s: the weights are used for many tokens at once
    next token    bytes/s: the weights are read for one token alone
    training      FLOP/s again, over months

FLOPs for each byte say which of the two a chip has too little of. The same calculator, given this machine's own rates,
is held against a model that runs here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

from cutaway.budget import choosing, roofline, training
from cutaway.budget.chips import CHIPS, HERE, Chip, measured
from cutaway.budget.figures import named
from cutaway.budget.published import spec_named
from cutaway.labs.engine.speed import Arm, arms, chip_of, decode, in_turns, judged, on_threads, prefill, products
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.models.cost import Cost

DTYPE, SHEETS = "bfloat16", ("rtx-4090", "a100-40gb", "a100-80gb", "h100-sxm", "h200", "b200", "mi300x")
RIDGES = {"rtx-4090": 164, "a100-80gb": 153, "a100-40gb": 201, "h100-sxm": 295, "h200": 206}
TRAINED = 15e12  # tokens
MEGABYTES = 128  # of the matrix that bandwidth is measured on


class Here(NamedTuple):
    """This machine and a model on it: seconds to the first token and of a further one, by each way to know its rates.

    chip: as `budget.chips` measures it. own: what the arithmetic of the model reaches.
    """

    chip: Chip
    own: Chip
    arm: Arm
    prompt: int
    measured: tuple[float, float]

    def ratios(self, chip: Chip) -> list[float]:
        """Measured over calculated."""
        values = named(roofline.latency(self.arm.cost, chip, self.arm.dtype, self.prompt, 1))
        return [
            m / values[name] for m, name in zip(self.measured, ("first token", "next token, at least"), strict=True)
        ]


@lab(
    "hardware-choice",
    title=both("Choosing a chip by its numbers", "芯片选型计算器"),
    question=both(
        "Which numbers of a chip matter for training and for inference, and how do I compare candidates?",
        "芯片的哪些指标对训练与推理要紧？如何比较候选？",
    ),
    seconds={"quick": 4, "full": 30},
)
def hardware_choice(
    run: Run,
    *,
    shape: Annotated[str, Knob("the model to choose for, a published shape", "为哪个已发布模型选型")] = "llama-3-8b",
    context: Annotated[int, Knob("tokens of a sequence in the cache", "缓存中每序列词元数", min=1)] = 8192,
    prompt: Annotated[int, Knob("tokens of the prompt", "提示词元数", min=1)] = 1000,
    model: Annotated[str, Knob("the model that is timed here", "本机计时的模型")] = MODEL,
    length: Annotated[int, Knob("tokens of its prompt", "其提示词元数", quick=64, min=16, max=4096)] = 256,
    tokens: Annotated[int, Knob("tokens of its reply", "其回答词元数", quick=4, min=4, max=512)] = 16,
    threads: Annotated[int, Knob("threads", "线程数", min=1, max=64)] = 1,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=1, min=1, max=99)] = 5,
) -> Finding:
    cost = Cost(spec_named(shape))
    with on_threads(threads):
        here = on_this_machine(model, length, tokens, repeats)
    found = {
        chip.name: named(choosing.candidate(cost, chip, DTYPE, context=context, prompt=prompt, tokens=TRAINED))
        for chip in [*map(CHIPS.__getitem__, SHEETS), here.chip]
    }
    return Finding(
        table=table(COLUMNS, [_row(name, figures) for name, figures in found.items()]),
        plot=_plot(found),
        verdict=_verdict(shape, found, here),
        checks=_checks(here),
    )


def on_this_machine(model: str, length: int, tokens: int, repeats: int) -> Here:
    """Its rates, and how fast float32 modules are on it."""
    arm = arms(model, running=1, context=length + tokens + 1, budget=length)[-1]
    ways = [*products(arm, MEGABYTES), prefill(arm, length), decode(arm, 1, tokens)]
    many, one, first, following = in_turns(ways, repeats)
    own = chip_of(arm, many, one, MEGABYTES)
    return Here(measured(repeats=max(3, repeats)), own, arm, length, (first, following))


COLUMNS = {
    "chip": "",
    "FLOP per byte": "",
    "weights": "GB",
    "sequences that fit": "",
    "prompt, at half its rate": "ms",
    "next token, at least": "ms",
    "tokens per second, at most": "",
    "training 15T tokens": "chip hours",
}


def _row(name: str, f: dict[str, float]) -> list[Cell]:
    times = [1e3 * f["first token"], 1e3 * f["next token, at least"], f["tokens per second, at most"]]
    return [name, f["ridge"], f["weights"] / 1e9, f["sequences that fit"], *times, f["chip hours"]]


def _plot(found: dict[str, dict[str, float]]) -> Plot:
    """Of the chips with data sheets: how many times the slowest each is at either task."""
    sheets = {name: f for name, f in found.items() if name != HERE}
    series = [
        Series(name=title, x=[*sheets], y=[max(f[what] for f in sheets.values()) / f[what] for f in sheets.values()])
        for title, what in (("prompts and training", "first token"), ("next token", "next token, at least"))
    ]
    return Plot(kind="bar", x=Axis(label="chip"), y=Axis(label="times the slowest"), series=series)


def hours_as_told() -> float:
    """8 billion parameters on 15 trillion tokens at 40 % of an H100's 989 TFLOP/s, both as makers round them."""
    rounded = replace(CHIPS["h100-sxm"], flops={DTYPE: 989e12})
    return named(training.training_time(8 * 10**9, TRAINED, rounded, DTYPE))["chip hours"]


def _checks(here: Here) -> list[Check]:
    """Of the calculator; times are shown, not checked."""
    ridges = {name: CHIPS[name].ridge(DTYPE) for name in RIDGES}
    large, hours = Cost(spec_named("llama-3-8b")), hours_as_told()
    fits = [
        named(choosing.candidate(large, CHIPS[name], DTYPE, context=8192, prompt=1, tokens=1))["sequences that fit"]
        for name in ("rtx-4090", "a100-80gb")
    ]
    said = ", ".join(f"{name} {ridge:.0f}" for name, ridge in ridges.items())
    return [
        check(
            {n: round(r) for n, r in ridges.items()} == RIDGES, f"FLOPs for each byte: {said}", f"每字节 FLOPs：{said}"
        ),
        check(
            round(hours) == 505_561,
            f"8 billion parameters on 15 trillion tokens take {hours:,.0f} hours of an H100 at 40 % of 989 TFLOP/s",
            f"80 亿参数、15 万亿词元，以 H100 989 TFLOP/s 的 40 % 需 {hours:,.0f} 卡时",
        ),
        check(
            fits == [5, 52],
            f"beside Llama-3-8B an RTX 4090 holds {fits[0]:.0f} sequences of 8,192 tokens, an A100-80 {fits[1]:.0f}",
            f"放下 Llama-3-8B 后，RTX 4090 还容 {fits[0]:.0f} 个 8,192 词元的序列，A100-80 容 {fits[1]:.0f} 个",
        ),
        check(
            here.arm.cost.parameters * here.arm.width < here.chip.memory,
            f"the model that was timed fits this machine's {here.chip.memory / 1e9:.0f} GB, as calculated",
            f"按计算，计时的模型放得进本机 {here.chip.memory / 1e9:.0f} GB 内存",
        ),
    ]


def _verdict(shape: str, found: dict[str, dict[str, float]], here: Here) -> Words:
    sheets = [name for name in found if name != HERE]
    prompt, following = (min(sheets, key=lambda n: found[n][what]) for what in ("first token", "next token, at least"))
    most = max(sheets, key=lambda n: found[n]["sequences that fit"])
    said = [_said(here, chip) for chip in (here.chip, here.own)]
    return both(
        f"For {shape}, of {len(sheets)} chips {prompt} reads prompts and trains fastest (FLOP/s), {following} writes "
        f"fastest (bytes/s), {most} holds most sequences (memory). On this machine {here.arm.loaded.name} in float32 "
        f"reads {here.prompt} tokens in {1e3 * here.measured[0]:,.0f} ms and writes one in "
        f"{1e3 * here.measured[1]:,.1f} ms. Measured over calculated, by the rates of a square product and a sum over "
        f"memory ({said[0].en}); by those of products like the model's ({said[1].en}).",
        f"对 {shape}，{len(sheets)} 种芯片中 {prompt} 读提示与训练最快（FLOP/s），{following} 写词元最快（带宽），"
        f"{most} 容纳序列最多（显存）。本机 {here.arm.loaded.name} 以 float32 读 {here.prompt} 个词元 "
        f"{1e3 * here.measured[0]:,.0f} 毫秒，写一个 {1e3 * here.measured[1]:,.1f} 毫秒。实测与计算之比：按方阵乘积与"
        f"内存求和的速率（{said[0].zh}）；按与模型相同的乘积的速率（{said[1].zh}）。",
    )


def _said(here: Here, chip: Chip) -> Words:
    first, following = here.ratios(chip)
    rates = f"{chip.flops[here.arm.dtype] / 1e9:.0f} GFLOP/s, {chip.bandwidth / 1e9:.1f} GB/s"
    return both(
        f"{rates}): prompt {first:.2f} ({judged(first).en}), next token {following:.2f} ({judged(following).en}",
        f"{rates}）：提示 {first:.2f}（{judged(first).zh}），词元 {following:.2f}（{judged(following).zh}",
    )
