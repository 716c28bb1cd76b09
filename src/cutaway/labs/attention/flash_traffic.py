"""What attention moves through memory, with tiles and without (Dao et al. 2022, arXiv:2205.14135).

Both algorithms of `cutaway.nn.flash` really run; every read and write of slow memory is counted on the way, and so is
the memory that they take. Counts do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.memory import peak_bytes
from cutaway.nn.flash import Tile, Traffic, flash, naive
from cutaway.nn.patterns import Everything

BYTES = 2  # traffic is told for 16-bit numbers
MIB = 2**20
EVERYTHING = Everything()


class Bill(NamedTuple):
    """Of n tokens and a chip for `chip` numbers: MiB moved in 16 bit, naively, in tiles, and if everything were read
    and written once; how far their outputs are apart; MiB of memory that the two take beyond q, k and v, if asked."""

    tokens: int
    chip: int
    naive: float
    tiled: float
    once: float
    apart: float
    naive_memory: float | None = None
    tiled_memory: float | None = None


COLUMNS = {
    "tokens": "",
    "numbers on the chip": "",
    "naive, moved": "MiB",
    "in tiles, moved": "MiB",
    "q, k, v, out once": "MiB",
    "largest difference": "",
    "naive, memory": "MiB",
    "in tiles, memory": "MiB",
}


@lab(
    "flash-traffic",
    title=both("What tiles save attention", "分块为注意力省下了什么"),
    question=both(
        "How many bytes does attention move with and without tiling?", "分块与不分块，注意力各要搬运多少字节？"
    ),
    seconds={"quick": 2, "full": 8},
)
def flash_traffic(
    run: Run,
    *,
    longest: Annotated[
        int, Knob("tokens; from 512 on, doubled", "最多词元数；从 512 起翻倍", quick=2048, min=2048, max=16384)
    ] = 4096,
    width: Annotated[int, Knob("width of the head", "注意力头的宽度", min=8, max=256)] = 64,
    chip: Annotated[
        int, Knob("numbers that fit on the chip", "片上能放下的数的个数", min=16_384, max=10_000_000)
    ] = 51_200,
) -> Finding:
    lengths = [n for n in (512 * 2**i for i in range(6)) if n <= longest]
    grown = [with_memory(moved(n, width, chip, run), width, run) for n in run.each(lengths, "tokens")]
    varied = [moved(lengths[-1], width, c, run) for c in run.each([chip // 4, chip // 2], "numbers on the chip")]
    return Finding(
        table=table(COLUMNS, [*grown, *varied]),
        plot=_plot(grown),
        verdict=_verdict(grown, varied[0], width),
        checks=_checks(grown, [*varied, grown[-1]], width),
    )


def inputs(n: int, width: int, run: Run) -> list[Tensor]:
    """q, k and v of one head, random."""
    return list(torch.randn(3, n, 1, width, generator=run.generator()))


def moved(n: int, width: int, chip: int, run: Run) -> Bill:
    """Both algorithms on n tokens, counted."""
    plain, tiled, scale = Traffic(), Traffic(), width**-0.5
    qkv, tile = inputs(n, width, run), Tile.fitting(chip, width)
    out = naive(*qkv, scale=scale, rule=EVERYTHING, traffic=plain)
    apart = (out - flash(*qkv, scale=scale, rule=EVERYTHING, tile=tile, traffic=tiled).out_QHV).abs().max()
    return Bill(n, chip, moved_mib(plain), moved_mib(tiled), once_mib(n, width), float(apart))


def with_memory(bill: Bill, width: int, run: Run) -> Bill:
    """The same with what the two hold at once."""
    qkv, tile = inputs(bill.tokens, width, run), Tile.fitting(bill.chip, width)
    ways: list[Callable[[], object]] = [
        lambda: naive(*qkv, scale=1.0, rule=EVERYTHING, traffic=Traffic()),
        lambda: flash(*qkv, scale=1.0, rule=EVERYTHING, tile=tile),
    ]
    plain, tiled = (peak_bytes(way) / MIB for way in ways)
    return bill._replace(naive_memory=plain, tiled_memory=tiled)


def moved_mib(traffic: Traffic) -> float:
    """In 16 bit."""
    return BYTES * (traffic.read + traffic.written) / MIB


def once_mib(n: int, width: int) -> float:
    """q, k, v and the output, once."""
    return BYTES * 4 * n * width / MIB


def naive_formula(n: int, width: int) -> float:
    """MiB in 16 bit: q, k, v and the output once, scores and weights each written and read."""
    return BYTES * (4 * n * width + 4 * n * n) / MIB


def tiled_formula(n: int, width: int, chip: int) -> float:
    """MiB in 16 bit: q, the output and a number per row once, keys and values once for every tile of rows."""
    rows = Tile.fitting(chip, width).rows
    return BYTES * (2 * n * width + n + -(-n // rows) * 2 * n * width) / MIB


def _plot(grown: list[Bill]) -> Plot:
    def series(name: str, values: list[float]) -> Series:
        return Series(name=name, x=[float(b.tokens) for b in grown], y=values)

    return Plot(
        kind="line",
        x=Axis(label="tokens", log=True),
        y=Axis(label="MiB in 16 bit", log=True),
        series=[
            series("naive, moved", [b.naive for b in grown]),
            series("in tiles, moved", [b.tiled for b in grown]),
            series("q, k, v, out once", [b.once for b in grown]),
            series("in tiles, memory", [b.tiled_memory or 0 for b in grown]),
        ],
    )


def _checks(grown: list[Bill], varied: list[Bill], width: int) -> list[Check]:
    off = max(
        max(abs(b.naive - naive_formula(b.tokens, width)), abs(b.tiled - tiled_formula(b.tokens, width, b.chip)))
        for b in (*grown, *varied)
    )
    known, once = naive_formula(4096, 64), once_mib(4096, 64)
    naive_memory, tiled_memory = (
        [float(m or 0) for m in column] for column in zip(*(b[6:] for b in grown), strict=True)
    )
    growth = [b.naive / a.naive for a, b in pairwise(grown)] + [b / a for a, b in pairwise(naive_memory)]
    linear = max(
        abs(c - b - 2 * (b - a)) for a, b, c in zip(tiled_memory, tiled_memory[1:], tiled_memory[2:], strict=False)
    )
    halved = [(b.tiled - b.once / 2) / (a.tiled - a.once / 2) for a, b in pairwise(varied)]
    apart = max(b.apart for b in (*grown, *varied))
    return [
        check(
            off == 0,
            f"counted traffic is that of the formulas; for 4,096 tokens of width 64 they give {known:.0f} MiB naively, "
            f"where everything once is {once:.0f} MiB",
            f"计数的搬运量与公式一致；4096 个宽 64 的词元，按公式不分块为 {known:.0f} MiB，各读写一次为 {once:.0f} MiB",
        ),
        check(
            min(growth) > 3.5,
            f"naive traffic and memory grow {min(growth):.2f} to {max(growth):.2f} times per doubling of the length",
            f"不分块时，长度每翻一倍，搬运量与内存增至 {min(growth):.2f} 到 {max(growth):.2f} 倍",
        ),
        check(
            linear < 0.01,
            "in tiles, memory grows linearly: every doubling adds twice what the one before added",
            "分块时内存线性增长：每次翻倍增加的内存是上一次的两倍",
        ),
        check(
            all(0.4 < ratio < 0.65 for ratio in halved),
            f"twice the chip, about half the traffic of keys and values: {min(halved):.2f} to {max(halved):.2f}",
            f"片上内存加倍，键与值的搬运量约减半：{min(halved):.2f} 到 {max(halved):.2f}",
        ),
        check(apart < 1e-5, f"both give the same output, to {apart:.0e}", f"两者输出相同，相差 {apart:.0e}"),
    ]


def _verdict(grown: list[Bill], few: Bill, width: int) -> Words:
    last, steps = grown[-1], [b.tiled / a.tiled for a, b in pairwise(grown)]
    return both(
        f"For {last.tokens:,} tokens of width {width} in 16 bit, naive attention moves {last.naive:.0f} MiB per head, "
        f"in tiles it is {last.tiled:.1f} MiB with {last.chip:,} numbers on the chip and {few.tiled:.1f} with "
        f"{few.chip:,}; reading and writing everything once would be "
        f"{last.once:.1f}. The memory that tiles need is linear in the length ({last.tiled_memory:.1f} MiB against "
        f"{last.naive_memory:.0f}). Their traffic is not: keys pass by once per tile of rows, so on one chip it grows "
        f"{steps[0]:.2f} to {steps[-1]:.2f} times per doubling here, n²d²/M as the paper says, with a small constant.",
        f"{last.tokens:,} 个宽 {width} 的词元、16 位：不分块时每头搬运 {last.naive:.0f} MiB；分块且片上可放 "
        f"{last.chip:,} 个数时为 {last.tiled:.1f} MiB，{few.chip:,} 个数时 "
        f"{few.tiled:.1f}；全部只读写一次为 {last.once:.1f}。分块所需内存随长度线性增长（{last.tiled_memory:.1f} MiB，"
        f"不分块 {last.naive_memory:.0f}）。搬运量却不是：每块查询都要让所有键经过一遍，同一芯片上长度每翻倍增至 "
        f"{steps[0]:.2f} 到 {steps[-1]:.2f} 倍，正如论文的 n²d²/M，只是常数很小。",
    )
