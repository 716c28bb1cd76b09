"""Scales for blocks: an outlier spoils its own block only, and the scales can be quantized too.

One scale for all numbers is set by the largest. With a scale for every 64 an outlier costs 64 numbers their precision
and no others, at 32/64 of a bit each; quantizing the scales brings that down to 0.127 (Dettmers et al. 2023, "QLoRA",
arXiv:2305.14314). And sixteen codes are better spent where weights are many: NF4 puts them at quantiles of a normal
distribution, an integer format at equal steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch

from cutaway.compress import normal_float
from cutaway.compress.simulated import Rounding
from cutaway.compress.uniform import Sharing, decibels, stored_bits
from cutaway.labs.compress.rounding import floating, loss, of_file, of_weights, uniform
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, reading, subject
from cutaway.weights import blocks

NUMBERS, OUTLIER, AT = 4096, 100.0, 1000
SPOILED: dict[str, Sharing] = {"one for all": "tensor", "256": 256, "64": 64, "16": 16}
SIZES = (16, 32, 64, 128, 256, 1024, 4096)
LARGE = 65e9  # parameters of the model that the paper counts with
PLAIN, DOUBLED, INTEGER = "NF4, blocks of 64", "NF4, blocks of 64, scales doubled", "INT4, blocks of 64"


class Spoiled(NamedTuple):
    """Signal to noise, dB, of all numbers but the outlier, in 8 bits: with it among them, and without."""

    scale: str
    with_it: float
    without: float


class Way(NamedTuple):
    """A 4-bit format. bits: stored for a weight. db: of normal numbers. lost: nats that a model's loss gains."""

    name: str
    bits: float
    db: float
    lost: float | None


@lab(
    "block-scaling",
    title=both("Scales for blocks, and NF4", "分块缩放与 NF4"),
    question=both(
        "How do block-wise scales and double quantization keep 4-bit weights accurate?",
        "分块缩放与双重量化怎样让 4 位权重保持准确？",
    ),
    seconds={"quick": 4, "full": 40},
)
def block_scaling(
    run: Run,
    *,
    model: Annotated[str, Knob("the model whose matrices are rounded", "被取整的模型")] = MODEL,
    numbers: Annotated[int, Knob("normal numbers", "正态分布的数", quick=1 << 17, min=1 << 15)] = 1 << 20,
    losses: Annotated[bool, Knob("measure the model's loss too", "也测模型的损失", quick=False)] = True,
    length: Annotated[int, Knob("tokens of text read", "读入文本的词元数", min=8, max=2048)] = 400,
) -> Finding:
    generator = run.generator()
    spoiled = [spoil(name, per, generator) for name, per in SPOILED.items()]
    x = torch.randn(numbers // NUMBERS, NUMBERS, generator=generator)
    sizes = {size: decibels(x, uniform(4, size)(x)) for size in SIZES}
    ways = [Way(name, bits, decibels(x, rounding(x)), None) for name, (bits, rounding) in FORMS.items()]
    base = 0.0
    if losses:
        loaded = subject(model)
        tokens_T = reading(loaded, length)
        base = loss(decoder(loaded), tokens_T)
        roundings = [FORMS[way.name][1] for way in run.each(ways, "rounding a model's weights")]
        ways = [
            w._replace(lost=of_weights(decoder(loaded), tokens_T, r) - base)
            for w, r in zip(ways, roundings, strict=True)
        ]
    return Finding(
        table=_table(spoiled, sizes, ways),
        plot=_plot(sizes, ways),
        verdict=_verdict(spoiled, ways),
        checks=_checks(spoiled, sizes, ways),
    )


def spoil(name: str, per: Sharing, generator: torch.Generator) -> Spoiled:
    """Normal numbers in 8 bits, before and after one of them becomes the outlier."""
    x = torch.randn(NUMBERS, generator=generator)
    rest = torch.arange(NUMBERS) != AT
    found = []
    for value in (OUTLIER, float(x[AT])):
        x[AT] = value
        found.append(decibels(x[rest], uniform(8, per)(x)[rest]))
    return Spoiled(name, *found)


FORMS: Mapping[str, tuple[float, Rounding]] = {
    "INT4, a scale per row": (stored_bits(4, NUMBERS, 32), uniform(4, "row")),
    INTEGER: (stored_bits(4, 64, 32), uniform(4, 64)),
    "INT4 with zero, blocks of 64": (stored_bits(4, 64, 32 + 4), uniform(4, 64, symmetric=False)),
    "E2M1, blocks of 64": (stored_bits(4, 64, 32), floating("E2M1", 64)),
    PLAIN: (normal_float.bits(double=False), lambda x: normal_float.quantize(x, double=False).numbers),
    DOUBLED: (normal_float.bits(double=True), lambda x: normal_float.quantize(x).numbers),
    "Q4_0, blocks of 32": (blocks.named("Q4_0").bits, of_file("Q4_0")),
    "Q4_1, blocks of 32": (blocks.named("Q4_1").bits, of_file("Q4_1")),
}


# ---- what it comes to


COLUMNS = {"what": "", "stored": "bits/weight", "with the outlier": "dB", "signal to noise": "dB", "loses": "nats"}


def _table(spoiled: list[Spoiled], sizes: dict[int, float], ways: list[Way]) -> Table:
    rows: list[list[Cell]] = [[f"INT8, scale: {s.scale}", None, s.with_it, s.without, None] for s in spoiled]
    rows += [[f"INT4, blocks of {n}", stored_bits(4, n, 32), None, db, None] for n, db in sizes.items()]
    rows += [[w.name, w.bits, None, w.db, w.lost] for w in ways]
    return table(COLUMNS, rows)


def _plot(sizes: dict[int, float], ways: list[Way]) -> Plot:
    return Plot(
        kind="scatter",
        x=Axis(label="bits a weight"),
        y=Axis(label="signal to noise of normal numbers, dB"),
        series=[
            Series(name="INT4, blocks of 16 to 4096", x=[stored_bits(4, n, 32) for n in sizes], y=[*sizes.values()]),
            *(Series(name=w.name, x=[w.bits], y=[w.db]) for w in ways[2:]),
        ],
    )


def _saved() -> float:
    """Bytes that doubling the scales saves in the large model."""
    return (normal_float.bits(double=False) - normal_float.bits(double=True)) * LARGE / 8


def _checks(spoiled: list[Spoiled], sizes: dict[int, float], ways: list[Way]) -> list[Check]:
    whole, small = spoiled[0], next(s for s in spoiled if s.scale == "64")
    named = {w.name: w for w in ways}
    plain, doubled, integer = named[PLAIN], named[DOUBLED], named[INTEGER]
    ordered = [*sizes.values()]
    return [
        check(
            abs(whole.with_it - 13) < 1 and abs(whole.without - 41) < 2 and small.with_it > whole.with_it + 15,
            f"{OUTLIER:g} among {NUMBERS:,} normal numbers takes the others' 8 bits from {whole.without:.1f} to "
            f"{whole.with_it:.1f} dB; with blocks of 64 they keep {small.with_it:.1f}",
            f"{NUMBERS:,} 个正态数里混入一个 {OUTLIER:g}，其余数的 8 位精度从 {whole.without:.1f} 掉到 "
            f"{whole.with_it:.1f} 分贝；每 64 个一块则保有 {small.with_it:.1f}",
        ),
        check(
            ordered == sorted(ordered, reverse=True),
            f"the smaller the blocks, the less noise in 4 bits: {ordered[-1]:.1f} to {ordered[0]:.1f} dB",
            f"块越小，4 位的噪声越小：{ordered[-1]:.1f} 到 {ordered[0]:.1f} 分贝",
        ),
        check(
            plain.bits == 4.5 and abs(doubled.bits - 4.127) < 5e-4 and abs(_saved() - 3.03e9) < 5e6,
            f"NF4 takes {doubled.bits:.3f} bits a weight with doubled scales instead of {plain.bits}, which saves "
            f"{_saved() / 1e9:.2f} GB at 65 billion weights",
            f"NF4 双重量化后每个权重 {doubled.bits:.3f} 位，而非 {plain.bits}；650 亿权重省下 {_saved() / 1e9:.2f} GB",
        ),
        check(
            plain.db > integer.db and plain.db - doubled.db < 0.1,
            f"on normal numbers NF4 has {plain.db - integer.db:.2f} dB more than INT4 of the same size, and doubling "
            f"the scales costs {plain.db - doubled.db:.3f} dB",
            f"正态数上 NF4 比同样大小的 INT4 多 {plain.db - integer.db:.2f} 分贝，双重量化只损失 "
            f"{plain.db - doubled.db:.3f} 分贝",
        ),
    ]


def _verdict(spoiled: list[Spoiled], ways: list[Way]) -> Words:
    whole, small = spoiled[0], next(s for s in spoiled if s.scale == "64")
    said = "; ".join(
        f"{w.name} {w.bits:.3f} bits, {w.db:.1f} dB" + ("" if w.lost is None else f", {w.lost:+.3f} nats") for w in ways
    )
    return both(
        f"One outlier sets the scale of all who share it: {whole.without:.1f} dB become {whole.with_it:.1f}, and "
        f"with blocks of 64 {small.with_it:.1f}. Scales cost bits, so they are quantized as well: {DOUBLED} takes "
        f"{normal_float.bits(double=True):.3f} bits instead of {normal_float.bits(double=False)}. Bits a weight, "
        f"signal to noise on normal numbers, and what a model loses whose matrices are rounded so: {said}. (The "
        "default model comes as Q4_1, so its weights lie on that grid already.)",
        f"一个离群值决定所有共用者的缩放：{whole.without:.1f} 分贝变成 {whole.with_it:.1f}，每 64 个一块则为 "
        f"{small.with_it:.1f}。缩放也占位数，所以缩放本身也被量化：{normal_float.bits(double=True):.3f} 位而非 "
        f"{normal_float.bits(double=False)} 位。每权重位数、正态数上的信噪比、"
        f"以及把模型矩阵这样取整的损失：{said}。（默认模型"
        "以 Q4_1 发布，它的权重本来就在那个格点上。）",
    )
