"""Number formats: how far they reach, how finely, how many bits they store, and what a model makes of them.

A float spends its bits on range (exponent) or on precision (mantissa); an integer spends all on precision and gets its
range from a scale that a group shares, which costs 16 bits per group. Three things are measured of a real model: the
bytes of its file, its loss on a text, and how fast it decodes. The loss is taken twice: with the weights alone rounded,
in float32, and as the native kernels run it, which round activations to 8 bits where weights are integers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.compress import normal_float
from cutaway.compress.floats import FORMATS, FloatFormat
from cutaway.compress.simulated import Rounding
from cutaway.compress.uniform import stored_bits
from cutaway.engine.engine import Engine
from cutaway.engine.runner import Native
from cutaway.errors import CutawayError
from cutaway.labs.compress.rounding import floating, loss, of_file, of_inputs, of_weights, uniform
from cutaway.labs.engine.low_bit_speed import answer, arm, runs
from cutaway.labs.engine.replay import greedy, prompts
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, loss_of, reading, subject
from cutaway.labs.timing import interleaved
from cutaway.weights import blocks
from cutaway.weights.checkpoint import STORED as STORED_AS
from cutaway.weights.checkpoint import load
from cutaway.weights.convert import bytes_of, convert

TYPES = ("F32", "BF16", "F16", "Q8_0", "Q4_0")
TORCH = {
    "FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16, "E4M3": torch.float8_e4m3fn,
    "E5M2": torch.float8_e5m2,
}  # fmt: skip
STORED = ((4, 32), (4, 128), (8, 32))


class Stored(NamedTuple):
    """A model in a format. bytes: of its file. loss: of its weights in float32; run: as the native kernels run it.

    speed: tokens a second of decoding.
    """

    name: str
    bits: float
    bytes: int
    loss: float
    run: float
    speed: float


@lab(
    "number-formats",
    title=both("Number formats", "数值格式"),
    question=both(
        "Which number format should weights and activations use, and what does each give up in range, precision or "
        "size?",
        "权重和激活该用哪种数值格式？每种格式在范围、精度或大小上放弃了什么？",
    ),
    seconds={"quick": 8, "full": 120},
)
def number_formats(
    run: Run,
    *,
    model: Annotated[str, Knob("the model", "模型")] = MODEL,
    types: Annotated[str, Knob("of its files, with commas", "文件类型，逗号分隔", quick="Q8_0,Q4_0")] = ",".join(TYPES),
    rounded: Annotated[bool, Knob("also formats without kernels", "也测没有内核的格式", quick=False)] = True,
    length: Annotated[int, Knob("tokens of text read", "读入文本的词元数", quick=32, min=8, max=2048)] = 400,
    tokens: Annotated[int, Knob("tokens decoded", "解码词元数", quick=4, min=2, max=512)] = 32,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=1, min=1, max=99)] = 5,
) -> Finding:
    if unknown := {*types.split(",")} - {*TYPES}:
        raise CutawayError(f"does not know {', '.join(sorted(unknown))}", "knob types", f"known: {', '.join(TYPES)}")
    asked = [type for type in TYPES if type in types.split(",")]
    errors = {name: worst(form, run.generator()) for name, form in FORMATS.items()}
    loaded = subject(model)
    tokens_T = reading(loaded, length)
    base = loss(decoder(loaded), tokens_T)
    found = in_files(run, model, asked, tokens_T, tokens=tokens, repeats=repeats)
    tried = run.each([*WEIGHTS.items()] if rounded else [], "weights")
    weights = {name: of_weights(decoder(loaded), tokens_T, rounding) - base for name, (_, rounding) in tried}
    inputs = {n: of_inputs(decoder(loaded), tokens_T, r) - base for n, r in run.each([*INPUTS.items()], "activations")}
    return Finding(
        table=_table(errors, found, weights, inputs, base),
        plot=_plot(found),
        verdict=_verdict(found, weights, inputs, base),
        checks=_checks(errors, found, inputs, base),
    )


# ---- formats by themselves


def worst(form: FloatFormat, generator: torch.Generator) -> float:
    """Largest relative error of rounding numbers between the smallest and the largest."""
    low, high = torch.tensor([form.smallest, form.largest], dtype=torch.float64).log2().tolist()
    x = torch.exp2(low + (high - low) * torch.rand(200_000, generator=generator, dtype=torch.float64))
    return float((form.round(x) / x - 1).abs().max())


def most(form: FloatFormat) -> float:
    """The same by theory: half a step, at a number half a step above a power of two."""
    return form.roundoff / (1 + form.roundoff)


WEIGHTS: dict[str, tuple[float, Rounding]] = {
    "E4M3, a scale per row": (8.0, floating("E4M3", "row")),
    "INT8, a scale per row": (8.0, uniform(8, "row")),
    "Q5_1": (blocks.named("Q5_1").bits, of_file("Q5_1")),
    "Q5_0": (blocks.named("Q5_0").bits, of_file("Q5_0")),
    "Q4_1": (blocks.named("Q4_1").bits, of_file("Q4_1")),
    "INT4, groups of 32": (stored_bits(4, 32), uniform(4, 32)),
    "INT4, groups of 64": (stored_bits(4, 64), uniform(4, 64)),
    "NF4, doubled": (normal_float.bits(double=True), lambda x: normal_float.quantize(x).numbers),
}
INPUTS: dict[str, Rounding] = {
    "BF16": floating("BF16"),
    "FP16": floating("FP16"),
    "E4M3": floating("E4M3"),
    "E4M3, a scale per token": floating("E4M3", "row"),
    "INT8, a scale per token": uniform(8, "row"),
    "INT8, groups of 32": uniform(8, 32),
}


# ---- a model in files


def in_files(
    run: Run, model: str, types: Sequence[str], tokens_T: Tensor, *, tokens: int, repeats: int
) -> list[Stored]:
    """Bytes, losses and speeds, the formats timed in turns."""
    with tempfile.TemporaryDirectory() as folder:
        sizes, losses, engines, read = list[int](), list[float](), list[Engine](), list[float]()
        for type in run.each(types, "writing and reading"):
            path = Path(folder) / f"{type}.gguf"
            convert(model, path, type=type)
            sizes.append(bytes_of(path))
            losses.append(loss(decoder(load(str(path), "float32")), tokens_T))
            file = load(str(path), STORED_AS)
            engines.append(arm(type, Native(*runs(file)), file, len(tokens_T)).engine)
            read.append(natively(engines[-1], tokens_T.tolist()))
        short = prompts(file, [1])[0]
        seconds = interleaved([partial(answer, engine, short, tokens) for engine in engines], repeats)
    bits = [blocks.named(type).bits for type in types]
    speeds = [tokens / s for s in seconds]
    return [Stored(*row) for row in zip(types, bits, sizes, losses, read, speeds, strict=True)]


@torch.inference_mode()
def natively(engine: Engine, ids: list[int]) -> float:
    """The loss of a text as the engine's kernels compute it, in one step."""
    sequence = engine.add(ids, greedy(1, "loss"))
    spans = engine.scheduler.plan(time.monotonic())
    rows = engine.runner.run(spans, [*range(len(ids))])
    found = loss_of(torch.stack([row.values_V for row in rows]), torch.tensor(ids))
    engine.abort(sequence)
    return found


# ---- what it comes to


COLUMNS = {
    "format": "", "bits": "", "largest": "", "smallest normal": "", "rounding error": "", "file": "MB",
    "loss": "nats", "loss as run": "nats", "loses": "nats", "decode": "tokens/s",
}  # fmt: skip


def _table(
    errors: dict[str, float], found: list[Stored], weights: dict[str, float], inputs: dict[str, float], base: float
) -> Table:
    rows: list[list[Cell]] = [
        [name, float(FORMATS[name].bits), FORMATS[name].largest, FORMATS[name].smallest, e, *[None] * 5]
        for name, e in errors.items()
    ]
    rows += [[f"INT{bits}, groups of {n}", stored_bits(bits, n), *[None] * 8] for bits, n in STORED]
    rows += [
        [f"file: {s.name}", s.bits, None, None, None, s.bytes / 1e6, s.loss, s.run, s.loss - base, s.speed]
        for s in found
    ]
    rows += [[f"weights: {n}", WEIGHTS[n][0], *[None] * 6, lost, None] for n, lost in weights.items()]
    rows += [[f"activations: {n}", *[None] * 7, lost, None] for n, lost in inputs.items()]
    return table(COLUMNS, rows)


def _plot(found: list[Stored]) -> Plot:
    names, first = [s.name for s in found], found[0]
    ways = {"file size": [s.bytes / first.bytes for s in found], "speed": [s.speed / first.speed for s in found]}
    series = [Series(name=name, x=names, y=y) for name, y in ways.items()]
    return Plot(kind="bar", x=Axis(label="format"), y=Axis(label=f"times {first.name}"), series=series)


def _checks(errors: dict[str, float], found: list[Stored], inputs: dict[str, float], base: float) -> list[Check]:
    fp16, bf16, e4m3 = (FORMATS[name] for name in ("FP16", "BF16", "E4M3"))
    kept = [s for s in found if s.bits >= 8]
    return [
        check(
            all(
                (FORMATS[n].largest, 2 * FORMATS[n].roundoff) == (torch.finfo(t).max, torch.finfo(t).eps)
                for n, t in TORCH.items()
            )
            and all(0.98 * most(FORMATS[n]) < e <= most(FORMATS[n]) + 1e-12 for n, e in errors.items()),
            f"largest number and rounding error are what exponent and mantissa say: FP16 {fp16.largest:,.0f} and "
            f"{errors['FP16']:.1e}, BF16 {bf16.largest:.1e} and {errors['BF16']:.1e}, E4M3 {e4m3.largest:.0f} and "
            f"{errors['E4M3']:.1e}",
            f"最大值与舍入误差由指数和尾数位决定：FP16 {fp16.largest:,.0f} 与 {errors['FP16']:.1e}，BF16 "
            f"{bf16.largest:.1e} 与 {errors['BF16']:.1e}，E4M3 {e4m3.largest:.0f} 与 {errors['E4M3']:.1e}",
        ),
        check(
            [stored_bits(*s) for s in STORED]
            == [4.5, 4.125, 8.5]
            == [blocks.named("Q4_0").bits, 4.125, blocks.named("Q8_0").bits],
            "with 16-bit scales 4 bits are 4.5 in groups of 32 and 4.125 in groups of 128, 8 bits are 8.5; Q4_0 and "
            "Q8_0 store exactly that",
            "带 16 位缩放时，4 位在每组 32 时为 4.5 位、每组 128 时为 4.125 位，8 位为 8.5 位；Q4_0 与 Q8_0 正是如此",
        ),
        check(
            all(a.bytes >= b.bytes for a, b in pairwise(found)) and all(abs(s.loss - base) < 0.02 for s in kept),
            f"the file shrinks from {found[0].bytes / 1e6:.0f} to {found[-1].bytes / 1e6:.0f} MB, and down to 8 bits "
            "the loss moves by less than 0.02 nats",
            f"文件从 {found[0].bytes / 1e6:.0f} MB 缩到 {found[-1].bytes / 1e6:.0f} MB；8 位及以上损失变化不到 0.02 "
            "奈特",
        ),
        check(
            abs(inputs["E4M3, a scale per token"]) < 0.1
            and abs(inputs["INT8, groups of 32"]) < 0.05
            and abs(inputs["FP16"]) < 0.01,
            f"activations bear 16 bits ({inputs['FP16']:+.4f} in FP16, {inputs['BF16']:+.4f} in BF16) and 8 with "
            f"scales of their own ({inputs['INT8, groups of 32']:+.4f} as INT8 in groups, "
            f"{inputs['E4M3, a scale per token']:+.4f} as E4M3 per token)",
            f"激活可用 16 位（FP16 {inputs['FP16']:+.4f}，BF16 {inputs['BF16']:+.4f}），也可用各有缩放的 8 位（INT8 "
            f"分组 {inputs['INT8, groups of 32']:+.4f}，E4M3 按词元 {inputs['E4M3, a scale per token']:+.4f}）",
        ),
    ]


def _verdict(found: list[Stored], weights: dict[str, float], inputs: dict[str, float], base: float) -> Words:
    files = "; ".join(
        f"{s.name} {s.bytes / 1e6:.0f} MB, {s.loss - base:+.4f} ({s.run - base:+.4f} as run), {s.speed:.0f} tokens/s"
        for s in found
    )
    lost = "; ".join(f"{n} {v:+.3f}" for n, v in weights.items())
    read = "; ".join(f"{n} {v:+.4f}" for n, v in inputs.items())
    more, more_zh = (
        (f" Weights of the blocks rounded, the embedding left alone: {lost}.", f"只取整各层权重、不动嵌入表：{lost}。")
        if weights
        else ("", "")
    )
    return both(
        f"BF16 keeps the range of FP32 and gives up precision, FP16 the reverse; below 16 bits the scale carries the "
        f"range. File, nats over {base:.3f} and speed: {files}.{more} Activations: {read}. Speeds are medians taken in "
        "turns on this machine; F16 is expanded to float32 by the kernels.",
        f"BF16 保住 FP32 的范围而放弃精度，FP16 相反；16 位以下范围由缩放承担。文件大小、相对 {base:.3f} 的奈特数与速"
        f"度：{files}。{more_zh}激活：{read}。速度是在本机交替计时的中位数；F16 由内核展开为 float32。",
    )
