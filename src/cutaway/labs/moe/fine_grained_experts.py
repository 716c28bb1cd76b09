"""Many small experts and a shared one (DeepSeekMoE, Dai et al. 2024, arXiv:2401.06066): what changes at equal size.

Cutting each expert into m and choosing m times as many leaves a token's work as it was and multiplies the ways in which
it can be routed. A shared expert, which every token uses, is to hold what all tokens need, so that the others need not
each learn it again. That can be seen where the common part is known, because it was planted:

    y = common(x) + own_g(x)        small random networks; four numbers of x say which group g the token is of

    overlap of experts e, f = mean over tokens of cos(answer_e, answer_f)       1 if they say the same, 0 if unrelated
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.budget import shape
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit
from cutaway.nn.balance import balance_loss, load_of
from cutaway.nn.experts import Experts, ExpertsSpec
from cutaway.nn.feed_forward import FeedForward, FeedForwardSpec
from cutaway.nn.routing import RouterSpec

WIDTH, CODE, GROUPS = 16, 4, 8  # numbers of a token, those that say its group, groups
BALANCE = 0.01  # weight of the balance loss
TESTED = 2048  # tokens


class Layout(NamedTuple):
    """`experts` of 1 / cut of the common size, of which `chosen` are used; shared: so many more, used always."""

    experts: int
    chosen: int
    cut: int = 1
    shared: int = 0

    def spec(self, hidden: int) -> ExpertsSpec:
        """hidden: units of an expert that is not cut."""
        one = FeedForwardSpec(hidden // self.cut, "silu", gated=True)
        shared = replace(one, width=self.shared * one.width) if self.shared else None
        return ExpertsSpec(self.experts, RouterSpec(self.chosen), one, shared)

    def active(self, hidden: int) -> int:
        """Hidden units that a token uses."""
        return (self.chosen + self.shared) * (hidden // self.cut)


LAYOUTS = {
    "16, 2 chosen": Layout(16, 2),
    "15, 1 chosen, 1 shared": Layout(15, 1, shared=1),
    "64 quarters, 8 chosen": Layout(64, 8, 4),
    "60 quarters, 4 chosen, 4 shared": Layout(60, 4, 4, shared=4),
}
PAIRS = (("16, 2 chosen", "15, 1 chosen, 1 shared"), ("64 quarters, 8 chosen", "60 quarters, 4 chosen, 4 shared"))


class Planted(NamedTuple):
    """The task: codes of the groups, a network for all groups, one for each, and how much of y the first makes."""

    codes_GC: Tensor
    common: FeedForward
    own: list[FeedForward]
    common_share: float

    def draw(self, generator: torch.Generator, tokens: int = 512) -> tuple[Tensor, Tensor, Tensor]:
        """x_TD, y_TD and the common part of y_TD."""
        group_T = torch.randint(GROUPS, (tokens,), generator=generator)
        told_TD = F.pad(torch.randn(tokens, WIDTH - CODE, generator=generator), (0, CODE))  # no network sees the group
        common_TD, own_GTD = unit(self.common(told_TD)), torch.stack([unit(own(told_TD)) for own in self.own])
        own_TD = own_GTD[group_T, torch.arange(tokens)]
        x_TD = torch.cat([told_TD[:, :-CODE], self.codes_GC[group_T]], -1)
        common_TD = common_TD * self.common_share**0.5
        return x_TD, common_TD + own_TD * (1 - self.common_share) ** 0.5, common_TD


class Found(NamedTuple):
    """error: share of the variance of y that is missed. overlap: of two experts, mean. common: cosine of the planted
    common part and what an expert answers a token that chose it. ways: distinct sets of experts among tested tokens.
    busiest: over the mean load.
    """

    error: float
    overlap: float
    common: float
    ways: float
    busiest: float


@lab(
    "fine-grained-experts",
    title=both("Many small experts and a shared one", "细粒度专家与共享专家"),
    question=both(
        "What changes when a few large experts become many small ones plus a shared one?",
        "把少数大专家换成许多小专家再加一个共享专家，会有什么变化？",
    ),
    seconds={"quick": 4, "full": 45},
)
def fine_grained_experts(
    run: Run,
    *,
    hidden: Annotated[int, Knob("units of an expert that is not cut", "未切分专家的隐藏单元", min=4, max=1024)] = 32,
    common: Annotated[float, Knob("share of the planted common part", "植入公共部分的占比", min=0.0, max=1.0)] = 0.5,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=240, min=20, max=10**5)] = 800,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
) -> Finding:
    runs: dict[str, list[Found]] = {name: [] for name in LAYOUTS}
    for seed in range(run.seed, run.seed + seeds):
        task = planted(common, torch.Generator().manual_seed(seed))
        for name, layout in LAYOUTS.items():
            runs[name].append(learned(layout.spec(hidden), task, steps, seed, run, note=f"training {name}"))
    found = {name: mean(each) for name, each in runs.items()}
    return Finding(
        table=_table(found, hidden),
        plot=_plot(found),
        verdict=_verdict(found, common, seeds),
        checks=_checks(found, hidden),
    )


def planted(common: float, generator: torch.Generator) -> Planted:
    """A new task."""

    def network() -> FeedForward:
        made = FeedForward(WIDTH, FeedForwardSpec(WIDTH // 2, "silu", gated=True)).requires_grad_(False)
        for parameter in made.parameters():
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        return made

    codes_GC = F.normalize(torch.randn(GROUPS, CODE, generator=generator), dim=-1) * CODE**0.5
    return Planted(codes_GC, network(), [network() for _ in range(GROUPS)], common)


def unit(y_TD: Tensor) -> Tensor:
    """Rows of mean square 1."""
    return F.rms_norm(y_TD, y_TD.shape[-1:])


def learned(spec: ExpertsSpec, task: Planted, steps: int, seed: int, run: Run, *, note: str) -> Found:
    """One layer of experts, trained to say y_TD of x_TD."""
    layer, draws = Experts(WIDTH, spec), torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=draws)

    def loss(generator: torch.Generator) -> Tensor:
        x_TD, y_TD, _ = task.draw(generator)
        return F.mse_loss(layer(x_TD), y_TD) + BALANCE * balance_loss(layer.route(x_TD))

    fit(layer.parameters(), loss, steps, run, note, seed=seed, lr=1e-2, weight_decay=0.0)
    return tested(layer, task)


@torch.no_grad()
def tested(layer: Experts, task: Planted) -> Found:
    """On new tokens."""
    x_TD, y_TD, common_TD = task.draw(torch.Generator().manual_seed(999), TESTED)
    routing, answers_ETD = layer.route(x_TD), answers(layer, x_TD)
    asked_CTD = answers_ETD[routing.chosen_TC.T, torch.arange(len(x_TD))]
    return Found(
        float(F.mse_loss(layer(x_TD), y_TD) / y_TD.square().mean()),
        overlap(answers_ETD),
        float(F.cosine_similarity(asked_CTD, common_TD, dim=-1).mean()),
        len(routing.chosen_TC.sort(-1).values.unique(dim=0)),
        load_of(routing).busiest,
    )


def answers(layer: Experts, x_TD: Tensor) -> Tensor:
    """What every expert says of every token, asked or not: [E, T, D]."""
    up_ETF = torch.einsum("td,efd->etf", x_TD, layer.up)
    assert layer.gate is not None
    gate_ETF = layer.activation(torch.einsum("td,efd->etf", x_TD, layer.gate))
    return torch.einsum("etf,edf->etd", gate_ETF * up_ETF, layer.down)


def overlap(answers_ETD: Tensor) -> float:
    """Mean cosine of two different experts' answers to a token."""
    along_ETD = F.normalize(answers_ETD, dim=-1)
    count = len(along_ETD)
    together_T = along_ETD.sum(0).square().sum(-1)  # of all pairs, each expert with itself among them
    return float(((together_T - count) / (count * (count - 1))).mean())


# ---- what it comes to


def mean(runs: list[Found]) -> Found:
    """Each measure's, over seeds."""
    return Found(*map(statistics.fmean, zip(*runs, strict=True)))


def _table(found: dict[str, Found], hidden: int) -> Table:
    columns = {"experts": "", "active units": "", "ways to route": "", "ways seen": f"in {TESTED:,} tokens"}
    columns |= {"error": "% of variance", "overlap": "mean cosine", "with the common part": "mean cosine"}
    columns |= {"busiest": "times the mean"}
    return table(columns, (_row(name, one, hidden) for name, one in found.items()))


def _row(name: str, found: Found, hidden: int) -> list[Cell]:
    layout = LAYOUTS[name]
    ways = int(shape.choices(layout.experts, layout.chosen).value)
    measures = [found.ways, 100 * found.error, found.overlap, found.common, found.busiest]
    return [name, layout.active(hidden), ways, *measures]


def _plot(found: dict[str, Found]) -> Plot:
    measures = {"overlap of experts": "overlap", "with the common part": "common"}
    return Plot(
        kind="bar",
        x=Axis(label="experts"),
        y=Axis(label="mean cosine"),
        series=[
            Series(name=shown, x=[*found], y=[getattr(one, name) for one in found.values()])
            for shown, name in measures.items()
        ],
    )


def _checks(found: dict[str, Found], hidden: int) -> list[Check]:
    ways = [int(shape.choices(*pair).value) for pair in ((8, 2), (16, 2), (64, 8))]
    sizes = {layout.active(hidden) for layout in LAYOUTS.values()}
    errors = [one.error for one in found.values()]
    return [
        check(
            ways == [28, 120, 4_426_165_368] and len(sizes) == 1,
            f"2 of 8 experts make {ways[0]} choices, 2 of 16 {ways[1]}, 8 of 64 quarters {ways[2]:,}, at the same "
            "active size as 2 of 16",
            f"8 选 2 有 {ways[0]} 种，16 选 2 有 {ways[1]} 种，64 个四分之一专家选 8 有 {ways[2]:,} 种，激活规模与 16 "
            "选 2 相同",
        ),
        check(
            max(errors) < 0.8,
            f"every layout learns the task: errors of {min(errors):.0%} to {max(errors):.0%} of the variance",
            f"每种布局都学到了任务：误差为方差的 {min(errors):.0%} 到 {max(errors):.0%}",
        ),
        check(
            all(found[b].common < found[a].common for a, b in PAIRS),
            "beside a shared expert the others say less of the planted common part: cosine "
            + ", ".join(" → ".join(f"{found[n].common:.2f}" for n in pair) for pair in PAIRS),
            "有共享专家时，其余专家更少重复植入的公共部分：余弦 "
            + "，".join(" → ".join(f"{found[n].common:.2f}" for n in pair) for pair in PAIRS),
        ),
    ]


def _verdict(found: dict[str, Found], share: float, seeds: int) -> Words:
    error, same, common, ways, _ = zip(*found.values(), strict=True)
    return both(
        f"At equal active size small experts can be combined in far more ways; {TESTED:,} tokens went {ways[0]:.0f} "
        f"ways with 2 of 16 and {ways[2]:.0f} with 8 of 64 quarters. Where {share:.0%} of the answer is common to all "
        f"tokens, two experts' answers have a cosine of {same[0]:.2f} and {same[2]:.2f} without a shared expert, "
        f"{same[1]:.2f} and {same[3]:.2f} beside one, and {common[0]:.2f} and {common[2]:.2f} against {common[1]:.2f} "
        f"and {common[3]:.2f} with the planted common part itself. What is missed of the variance: {error[0]:.1%} and "
        f"{error[2]:.1%} without, {error[1]:.1%} and {error[3]:.1%} with (seeds: {seeds}).",
        f"激活规模相同时，小专家的组合方式多得多；{TESTED:,} 个词元在 16 选 2 时走了 {ways[0]:.0f} 种，64 个四分之一专"
        f"家选 8 时走了 {ways[2]:.0f} 种。当答案的 {share:.0%} 对所有词元相同时，两个专家回答的余弦在没有共享专家时为 "
        f"{same[0]:.2f} 与 {same[2]:.2f}，有共享专家时为 {same[1]:.2f} 与 {same[3]:.2f}；与植入的公共部分的余弦为 "
        f"{common[0]:.2f}、{common[2]:.2f} 对 {common[1]:.2f}、{common[3]:.2f}。未解释的方差：无共享 {error[0]:.1%}、"
        f"{error[2]:.1%}，有共享 {error[1]:.1%}、{error[3]:.1%}（{seeds} 个种子）。",
    )
