"""Deeper or wider: models of one size, from one wide layer to many narrow ones, trained with the same FLOPs.

A block holds about 12·D² numbers, so L·D² fixes the size. Kaplan et al. 2020 (arXiv:2001.08361, section 3.1) found that
within a wide range the shape hardly matters; Levine et al. 2020 (arXiv:2006.12467) why too deep for its width is waste.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple

import torch

from cutaway.budget import shape
from cutaway.budget.figures import named
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import Task, fit, fresh, held_out, loss_of, next_bytes, prose, small_spec
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.init import initialize

DEPTHS = (1, 2, 4, 8, 12, 24)
LENGTH, ROWS = 64, 8  # bytes per training sequence, sequences per step
TESTED = 8  # batches


class Shape(NamedTuple):
    """flops: of a training step. steps: so many that all shapes spend the same. losses: by seed, nats per byte."""

    layers: int
    width: int
    parameters: int
    flops: int
    steps: int
    losses: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        return statistics.mean(self.losses)


COLUMNS = {
    "layers": "",
    "width": "",
    "width / layers": "",
    "parameters": "",
    "FLOPs of a step": "GFLOP",
    "steps": "",
    "held-out loss": "nats/byte",
    "spread over seeds": "max - min",
}


@lab(
    "depth-width",
    title=both("Deeper or wider", "更深还是更宽"),
    question=both(
        "I have ten times the parameter budget: how much deeper and how much wider should the model get?",
        "参数预算增加到十倍，模型该加深多少、加宽多少？",
    ),
    seconds={"quick": 5, "full": 220},
)
def depth_width(
    run: Run,
    *,
    parameters: Annotated[
        int, Knob("of every shape", "每种形状的参数量", quick=30_000, min=20_000, max=10**8)
    ] = 1_000_000,
    steps: Annotated[
        int, Knob("training steps of the shape with four layers", "四层形状的训练步数", quick=20, min=5, max=10**6)
    ] = 200,
    rate: Annotated[float, Knob("learning rate", "学习率", min=1e-5, max=1.0)] = 3e-3,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 2,
) -> Finding:
    specs = [fitting(layers, parameters) for layers in DEPTHS]
    budget = steps * step_flops(specs[DEPTHS.index(4)])
    found = [trained(spec, budget, rate, range(run.seed, run.seed + seeds), run) for spec in specs]
    return Finding(
        table=table(COLUMNS, map(_row, found)),
        plot=_plot(found),
        verdict=_verdict(found, parameters),
        checks=_checks(found),
    )


def fitting(layers: int, parameters: int) -> Spec:
    """The width at which `layers` blocks come closest to so many parameters."""
    most = max(8, math.isqrt(parameters // (8 * layers)))
    specs = [small_spec(width=width, layers=layers) for width in range(8, most + 1)]
    return min(specs, key=lambda spec: abs(Cost(spec).parameters - parameters))


def step_flops(spec: Spec) -> int:
    """Of a training step: forward, and twice that backward."""
    return 3 * ROWS * Cost(spec).flops(LENGTH, rows=LENGTH)


def trained(spec: Spec, budget: int, rate: float, seeds: Sequence[int], run: Run) -> Shape:
    """For `budget` FLOPs, with every seed; tested on text not trained on."""
    text, each = prose(), step_flops(spec)
    cut, steps, losses = len(text) * 9 // 10, max(1, round(budget / each)), []
    learned, test = (next_bytes(part, LENGTH, ROWS) for part in (text[:cut], text[cut:]))
    for seed in seeds:
        model, note = fresh(spec, seed), f"training {len(spec.layers)} layers of width {spec.width}"
        initialize(model, "lecun", torch.Generator().manual_seed(seed))  # fair to all widths: signals keep their size
        loss = partial(_loss, model, learned)
        fit(model.parameters(), loss, steps, run, note, seed=seed, lr=rate, warmup=min(20, steps // 2))
        losses.append(held_out(model, test, TESTED))
    return Shape(len(spec.layers), spec.width, Cost(spec).parameters, each, steps, tuple(losses))


def _loss(model: Decoder, task: Task, draws: torch.Generator) -> torch.Tensor:
    return loss_of(model, task(draws))


def _row(s: Shape) -> list[Cell]:
    spread = max(s.losses) - min(s.losses) if len(s.losses) > 1 else None
    return [s.layers, s.width, s.width / s.layers, s.parameters, s.flops / 1e9, s.steps, s.loss, spread]


def _plot(found: list[Shape]) -> Plot:
    losses = [s.loss for s in found]
    return Plot(
        kind="line",
        x=Axis(label="width / layers", log=True),
        y=Axis(label="held-out loss, nats per byte"),
        series=[Series(name="equal FLOPs", x=[s.width / s.layers for s in found], y=losses)],
    )


def _checks(found: list[Shape]) -> list[Check]:
    sizes, spent = [s.parameters for s in found], [s.flops * s.steps for s in found]
    grown = named(shape.growth(10))
    return [
        check(
            max(sizes) / min(sizes) < 1.15 and max(spent) / min(spent) < 1.1,
            f"sizes are at most {max(sizes) / min(sizes) - 1:.1%} apart, FLOPs {max(spent) / min(spent) - 1:.1%}",
            f"参数量最多相差 {max(sizes) / min(sizes) - 1:.1%}，计算量最多相差 {max(spent) / min(spent) - 1:.1%}",
        ),
        check(
            all(s.loss < 0.95 * math.log(256) for s in found),
            f"every shape learns: losses {min(s.loss for s in found):.3f} to {max(s.loss for s in found):.3f}",
            f"每种形状都学到了东西：损失 {min(s.loss for s in found):.3f} 至 {max(s.loss for s in found):.3f}",
        ),
        check(
            (round(grown["depth and width, each"], 3), round(grown["width alone"], 3)) == (2.154, 3.162),
            f"12·L·D²: ten times as many are {grown['depth and width, each']:.3f} times depth and width, or "
            f"{grown['width alone']:.3f} times the width alone",
            f"12·L·D²：十倍参数即深度、宽度各 {grown['depth and width, each']:.3f} 倍，或只加宽 "
            f"{grown['width alone']:.3f} 倍",
        ),
    ]


def _verdict(found: list[Shape], parameters: int) -> Words:
    best = min(found, key=lambda s: s.loss)
    near = [s for s in found if s.loss < 1.02 * best.loss]
    wide, deep = found[0], found[-1]
    shapes = ", ".join(f"{s.layers} × {s.width}" for s in near)
    return both(
        f"At about {parameters:,} parameters and equal FLOPs the best of six shapes is {best.layers} layers of width "
        f"{best.width} (loss {best.loss:.3f}); within 2 % of it: {shapes}. The widest ({wide.layers} × {wide.width}) "
        f"is at {wide.loss:.3f}, the deepest ({deep.layers} × {deep.width}) at {deep.loss:.3f}: "
        f"{wide.loss / best.loss - 1:+.1%} and {deep.loss / best.loss - 1:+.1%}.",
        f"约 {parameters:,} 个参数、计算量相同，六种形状中最好的是 {best.layers} 层、宽 {best.width}（损失 "
        f"{best.loss:.3f}）；与它相差 2% 以内的有：{shapes}。最宽的（{wide.layers} × {wide.width}）为 {wide.loss:.3f}，"
        f"最深的（{deep.layers} × {deep.width}）为 {deep.loss:.3f}：分别 {wide.loss / best.loss - 1:+.1%} 与 "
        f"{deep.loss / best.loss - 1:+.1%}。",
    )
