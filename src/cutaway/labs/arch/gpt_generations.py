"""How the GPT line grew, by count: from the sizes in papers and configurations to exact parameters.

Radford et al. 2018 and 2019, Brown et al. 2020 (arXiv:2005.14165). Of GPT-4 (OpenAI 2023, arXiv:2303.08774) only what
was published is listed: no number of parameters, layers or tokens was.
"""

from __future__ import annotations

from typing import NamedTuple

from cutaway.budget.published import PUBLISHED
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.lab import Run, lab
from cutaway.models.build import build
from cutaway.models.cost import Cost
from cutaway.models.spec import Spec


class Generation(NamedTuple):
    """year, and the parameters, in millions, that its paper tells."""

    name: str
    year: int
    told: float


LINE = (
    Generation("gpt-1", 2018, 117),
    Generation("gpt-2-small", 2019, 117),
    Generation("gpt-2-medium", 2019, 345),
    Generation("gpt-2-large", 2019, 762),
    Generation("gpt-2-xl", 2019, 1542),
    Generation("gpt-3", 2020, 175_000),
)
GPT4 = "reads text and images, writes text; bar exam around the top 10 %, MMLU 86.4 % (5-shot); size not published"

COLUMNS = {
    "model": "",
    "year": "",
    "layers": "",
    "width": "",
    "heads": "",
    "context": "tokens",
    "parameters": "",
    "tensors hold": "",
    "told": "million",
    "told / counted": "",
    "published": "",
}


class Recount(NamedTuple):
    """Of one model: by formulas, and by the tensors that are built of its description."""

    generation: Generation
    spec: Spec
    counted: int
    held: int

    @property
    def off(self) -> float:
        return self.generation.told * 1e6 / self.counted - 1


@lab(
    "gpt-generations",
    title=both("The GPT line, recounted", "重新清点 GPT 系列"),
    question=both(
        "How did the GPT line grow, and which published sizes survive a recount?",
        "GPT 系列是怎样增长的？公布的参数量经得起重新清点吗？",
    ),
    seconds={"quick": 4, "full": 4},
)
def gpt_generations(run: Run) -> Finding:
    found = [recount(generation) for generation in run.each(LINE, "counting")]
    nothing = [None] * (len(COLUMNS) - 3)
    return Finding(
        table=table(COLUMNS, [*map(_row, found), ["gpt-4", 2023, *nothing, GPT4]]),
        plot=_plot(found),
        verdict=_verdict(found),
        checks=_checks(found),
    )


def recount(generation: Generation) -> Recount:
    """Formulas beside tensors; these have shapes and no content."""
    spec = PUBLISHED[generation.name].spec
    held = sum(p.numel() for p in build(spec, "meta").parameters())
    return Recount(generation, spec, Cost(spec).parameters, held)


def _row(r: Recount) -> list[Cell]:
    s, layers = r.spec, r.spec.layers
    sizes = len(layers), s.width, layers[0].attention.heads, s.context
    source = PUBLISHED[r.generation.name].source
    return [r.generation.name, r.generation.year, *sizes, r.counted, r.held, r.generation.told, 1 + r.off, source]


def _plot(found: list[Recount]) -> Plot:
    names = [r.generation.name for r in found]
    bars = Series(name="parameters, counted", x=names, y=[float(r.counted) for r in found])
    return Plot(kind="bar", x=Axis(label="model"), y=Axis(label="parameters", log=True), series=[bars])


def _checks(found: list[Recount]) -> list[Check]:
    wrong = [r for r in found if r.generation.year == 2019]
    millions = ", ".join(f"{r.counted / 1e6:,.1f}" for r in found)
    return [
        check(
            all(r.counted == r.held for r in found),
            f"formulas and tensors agree to the last number: {millions} million",
            f"公式与张量逐一相符：{millions} 百万",
        ),
        check(
            all(abs(r.off) < 0.006 for r in found if r not in wrong),
            "GPT-1 and GPT-3 are as large as told, to 0.6 %",
            "GPT-1 与 GPT-3 与所述相差不到 0.6%",
        ),
        check(
            all(-0.07 < r.off < -0.009 for r in wrong),
            f"all four GPT-2 are larger than their paper's table says, by up to {max(-r.off for r in wrong):.1%}",
            f"四个 GPT-2 都比论文表中所写的大，最多相差 {max(-r.off for r in wrong):.1%}",
        ),
    ]


def _verdict(found: list[Recount]) -> Words:
    first, last = found[0], found[-1]
    by_name = {r.generation.name: r for r in found}
    small, medium = by_name["gpt-2-small"], by_name["gpt-2-medium"]
    times, positions = last.counted / first.counted, last.spec.context / first.spec.context
    return both(
        f"From GPT-1 ({first.counted / 1e6:,.1f} million) to GPT-3 ({last.counted / 1e9:,.1f} billion) parameters grew "
        f"{times:,.0f} times, layers {len(last.spec.layers) / len(first.spec.layers):.0f} times, width "
        f"{last.spec.width / first.spec.width:.0f} times, context {positions:.0f} times. The recount corrects GPT-2: "
        f"{small.counted / 1e6:,.1f} and {medium.counted / 1e6:,.1f} million, where its paper says "
        f"{small.generation.told:.0f} and {medium.generation.told:.0f}. Of GPT-4 no size was published.",
        f"从 GPT-1（{first.counted / 1e6:,.1f} 百万）到 GPT-3（{last.counted / 1e9:,.1f} 十亿），参数增长 {times:,.0f} "
        f"倍，层数 {len(last.spec.layers) / len(first.spec.layers):.0f} 倍，宽度 "
        f"{last.spec.width / first.spec.width:.0f} 倍，上下文 {positions:.0f} 倍。重新清点更正了 GPT-2："
        f"{small.counted / 1e6:,.1f} 与 {medium.counted / 1e6:,.1f} 百万，而论文写的是 {small.generation.told:.0f} 与 "
        f"{medium.generation.told:.0f}。GPT-4 的规模从未公布。",
    )
