"""The sinusoidal position table (Vaswani et al. 2017, arXiv:1706.03762, 3.5): what follows from its formula.

    PE(p, 2i) = sin(p * w_i)    PE(p, 2i + 1) = cos(p * w_i)    w_i = 10000^(-2i/D)

Each pair is a hand of a clock that turns once in 2*pi/w_i tokens. Moving on by k turns every hand by a fixed angle,
so PE(p + k) = M_k PE(p) with the same matrix everywhere; and since a rotation keeps inner products, those of two
rows know the distance of their positions and nothing else.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.nn.positions import RopeSpec, deinterleave, rope_frequencies, sinusoids

FURTHEST = 64  # distances that the plot shows
EXACT = 1e-12


class Waves(NamedTuple):
    """Of a table of width D. shortest, longest: wavelengths in tokens. Errors are largest absolute ones.

    shift: of PE(p + k) at all p against PE(p) turned by the matrix that PE(k) gives away. inner: of inner products of
    rows equally far apart. layout: between the interleaved table, permuted, and the concatenated one.
    """

    width: int
    shortest: float
    longest: float
    shift: float
    inner: float
    layout: float


@lab(
    "sinusoids",
    title=both("What sinusoidal positions can express", "正余弦位置编码能表达什么"),
    question=both(
        "Why sines and cosines of many frequencies, and which properties follow from the formula?",
        "为什么用许多频率的正弦和余弦？由公式能推出哪些性质？",
    ),
    seconds={"quick": 1, "full": 4},
)
def sinusoidal(
    run: Run,
    *,
    widest: Annotated[
        int, Knob("widest table; from 8 in steps of 4", "最宽的表；从 8 起每步乘 4", min=32, max=2048)
    ] = 512,
    positions: Annotated[int, Knob("positions compared", "比较多少个位置", quick=300, min=100, max=5000)] = 2000,
) -> Finding:
    widths = [d for d in (8 * 4**i for i in range(8)) if d <= widest]
    found = [waves(d, positions, run.generator()) for d in run.each(widths, "width")]
    alike = similarity(widths[-1])
    return Finding(
        table=_table(found), plot=_plot(alike, widths[-1]), verdict=_verdict(found, alike), checks=_checks(found)
    )


def waves(width: int, positions: int, generator: torch.Generator) -> Waves:
    """Everything that is measured of one width."""
    wavelength_k = 2 * math.pi / rope_frequencies(RopeSpec(), width)
    at_T = torch.arange(positions)
    table_TD = sinusoids(at_T, width)
    products_TS = table_TD @ table_TD.T
    concatenated_TD = sinusoids(at_T, width, layout="concatenated")
    return Waves(
        width=width,
        shortest=float(wavelength_k[0]),
        longest=float(wavelength_k[-1]),
        shift=max(shift_error(table_TD, int(k)) for k in torch.randint(1, positions // 2, (8,), generator=generator)),
        inner=max(float((line := products_TS.diagonal(k)).max() - line.min()) for k in range(positions)),
        layout=float((deinterleave(table_TD) - concatenated_TD).abs().max()),
    )


def shift_error(table_TD: Tensor, k: int) -> float:
    """Read each pair's rotation off position k, where it has turned (0, 1); try it at all other positions."""
    pairs_TkP = table_TD.unflatten(-1, (-1, 2))
    sin_k, cos_k = pairs_TkP[k].unbind(-1)
    turn_kPP = torch.stack([torch.stack([cos_k, sin_k], -1), torch.stack([-sin_k, cos_k], -1)], -2)
    moved_TkP = torch.einsum("kop,tkp->tko", turn_kPP, pairs_TkP[:-k])
    return float((moved_TkP - pairs_TkP[k:]).abs().max())


def similarity(width: int) -> list[float]:
    """Inner product of rows by their distance, divided by that of a row with itself."""
    table_TD = sinusoids(torch.arange(FURTHEST + 1), width)
    return (table_TD @ table_TD[0] / (width / 2)).tolist()


def _table(found: list[Waves]) -> Table:
    columns = {
        "width D": "",
        "shortest wavelength": "tokens",
        "longest wavelength": "tokens",
        "error of one matrix for all shifts by k": "",
        "spread of inner products at equal distance": "",
        "difference of layouts, permuted": "",
    }
    return table(columns, ([*waves] for waves in found))


def _plot(alike: list[float], width: int) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="distance of two positions, tokens"),
        y=Axis(label=f"inner product, 1 at distance 0 (D = {width})"),
        series=[Series(name="PE(p) · PE(p + distance)", x=[float(i) for i in range(len(alike))], y=alike)],
    )


def _checks(found: list[Waves]) -> list[Check]:
    shift, inner = max(w.shift for w in found), max(w.inner / w.width for w in found)
    rising = all(a.longest < b.longest for a, b in pairwise(found))
    shortest, longest, end = found[0].shortest, found[-1].longest, 2e4 * math.pi
    return [
        check(
            rising and all(abs(w.shortest / (2 * math.pi) - 1) < EXACT for w in found) and longest < end,
            f"wavelengths begin at 2π = {shortest:.2f} and end below 2π · 10,000 = {end:,.0f}, nearer for wider tables",
            f"波长从 2π = {shortest:.2f} 开始，上限为 2π · 10,000 = {end:,.0f}，表越宽越接近",
        ),
        check(
            shift < EXACT,
            f"PE(p + k) is the same matrix times PE(p) at every p, to {shift:.0e}",
            f"对每个 p，PE(p + k) 都等于同一个矩阵乘 PE(p)，误差 {shift:.0e}",
        ),
        check(
            inner < EXACT,
            f"inner products depend on the distance alone, to {inner:.0e} per coordinate",
            f"内积只取决于距离，每个坐标误差 {inner:.0e}",
        ),
        check(
            max(w.layout for w in found) == 0,
            "the interleaved and the concatenated table hold the same numbers, in another order",
            "交错与拼接两种布局的数值完全相同，只是次序不同",
        ),
    ]


def _verdict(found: list[Waves], alike: list[float]) -> Words:
    wide = found[-1]
    return both(
        f"Many frequencies are the hands of a clock: at D = {wide.width} they turn once in {wide.shortest:.2f} to "
        f"{wide.longest:,.0f} tokens, so near positions differ in the fast pairs and far ones in the slow pairs. A "
        f"shift by k is one rotation, the same at every position (error {wide.shift:.0e}), so a linear layer can look "
        f"“k tokens back”. The inner product of two rows depends on their distance alone: {alike[1]:.3f} of its "
        f"maximum at distance 1, {alike[FURTHEST]:.3f} at {FURTHEST}; it does not tell before from after.",
        f"许多频率就像钟的许多指针：D = {wide.width} 时，转一圈需要 {wide.shortest:.2f} 到 {wide.longest:,.0f} 个词元，"
        f"近处的位置靠快指针区分，远处的靠慢指针。平移 k 是一个处处相同的旋转（误差 {wide.shift:.0e}），因此一个线性层"
        f"就能“回看 k 个词元”。两行的内积只取决于距离：距离 1 时为最大值的 {alike[1]:.3f}，距离 {FURTHEST} 时为 "
        f"{alike[FURTHEST]:.3f}；它分不出前后。",
    )
