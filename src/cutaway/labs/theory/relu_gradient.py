"""The slope of ReLU: why it helped deep networks, and how units die of it (Glorot et al. 2011; He et al. 2015).

A gradient that passes through a layer is multiplied by the slope of its activation. The sigmoid's is at most 1/4, so
through 20 layers at most 9.1e-13 is left of it; ReLU's is exactly 1 wherever it lets anything through, and exactly 0
elsewhere: a unit that is negative on every example gets no gradient, and so never comes back.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.nn.feed_forward import ACTIVATIONS


@dataclass(frozen=True)
class Activation:
    """gain: by which a matrix keeps the scale, std = gain / sqrt(inputs): He's for the half-open, Xavier's else."""

    function: Callable[[Tensor], Tensor]
    gain: float


KINDS = {
    "ReLU": Activation(ACTIVATIONS["relu"], 2**0.5),
    "GELU": Activation(ACTIVATIONS["gelu"], 2**0.5),
    "SiLU": Activation(ACTIVATIONS["silu"], 2**0.5),
    "tanh": Activation(torch.tanh, 1.0),
    "sigmoid": Activation(torch.sigmoid, 1.0),
}
SMOOTH = ("GELU", "SiLU")
RATES = (0.001, 0.01, 0.1, 1.0)
STARTS = (-3.0, 0.0, 1.0)
EXAMPLES, FEATURES = 256, 8


@lab(
    "relu-gradient",
    title=both("The slope of ReLU, deep networks and dead units", "ReLU 的斜率、深层网络与死亡单元"),
    question=both(
        "What is the slope of ReLU, why did it help deep nets, and what are dead units?",
        "ReLU 的导数是什么？它为什么帮到深层网络？什么是死亡单元？",
    ),
    seconds={"quick": 2, "full": 50},
)
def relu_gradient(
    run: Run,
    *,
    depth: Annotated[int, Knob("layers the gradient passes", "梯度要穿过的层数", min=2, max=100)] = 20,
    width: Annotated[int, Knob("units per layer", "每层单元数", quick=128, min=16, max=2048)] = 256,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=60, min=1, max=10**5)] = 400,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
) -> Finding:
    paths = {name: surviving(kind, depth, width, run.generator()) for name, kind in KINDS.items()}
    arms = [Arm("ReLU", rate, start) for rate in RATES for start in STARTS]
    arms += [Arm(name, rate, 0.0) for rate in RATES for name in SMOOTH]
    dead: Shares = {
        arm: mean_pair([shares_dead(arm, width, steps, seed) for seed in range(run.seed, run.seed + seeds)])
        for arm in run.each(arms, "training")
    }
    return Finding(
        table=_table(paths, dead),
        plot=_plot(paths),
        verdict=_verdict(paths, dead, depth),
        checks=_checks(paths, dead, depth),
    )


class Arm(NamedTuple):
    """One way to train: activation, learning rate, what the hidden biases start from."""

    kind: str
    rate: float
    start: float


Shares = dict[Arm, tuple[float, float]]
"""The share of hidden units without gradient on any example, before and after training."""


def mean_pair(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Over seeds."""
    before, after = zip(*pairs, strict=True)
    return statistics.mean(before), statistics.mean(after)


def slope(function: Callable[[Tensor], Tensor], at: Sequence[float]) -> list[float]:
    """The derivative by autograd."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(x).sum(), x)[0].tolist()


def surviving(kind: Activation, depth: int, width: int, generator: torch.Generator) -> list[float]:
    """Norm of the gradient that reaches each layer of a new network from above, the last layer's being 1."""
    x_TD = torch.randn(64, width, generator=generator, dtype=torch.float64).requires_grad_(True)
    seen = [x_TD]
    for _ in range(depth):
        matrix_DD = torch.randn(width, width, generator=generator, dtype=torch.float64) * kind.gain / width**0.5
        seen.append(kind.function(seen[-1] @ matrix_DD))
    upstream_TD = torch.randn(64, width, generator=generator, dtype=torch.float64)
    norms = [float(g.norm()) for g in torch.autograd.grad(seen[-1], seen, upstream_TD)]
    return [norm / norms[-1] for norm in norms]


def shares_dead(arm: Arm, width: int, steps: int, seed: int) -> tuple[float, float]:
    """Fit two hidden layers to a wavy function of random points by Adam: units without gradient before and after."""
    generator, kind = torch.Generator().manual_seed(seed), KINDS[arm.kind]
    x_TF = torch.randn(EXAMPLES, FEATURES, generator=generator)
    y_T = torch.sin(2 * x_TF @ torch.randn(FEATURES, generator=generator))
    layers = [nn.Linear(FEATURES, width), nn.Linear(width, width), nn.Linear(width, 1)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=kind.gain / layer.in_features**0.5, generator=generator)
        nn.init.constant_(layer.bias, arm.start if layer.out_features > 1 else 0.0)
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=arm.rate)
    before = dead_units(layers, x_TF, kind)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(hidden(layers, x_TF, kind)[-1][:, 0], y_T).backward()
        optimizer.step()
    return before, dead_units(layers, x_TF, kind)


def hidden(layers: list[nn.Linear], x_TF: Tensor, kind: Activation) -> list[Tensor]:
    """What each layer gives before its activation."""
    out = [layers[0](x_TF)]
    for layer in layers[1:]:
        out.append(layer(kind.function(out[-1])))
    return out


def dead_units(layers: list[nn.Linear], x_TF: Tensor, kind: Activation) -> float:
    """The share of hidden units whose slope is 0 on every example."""
    slopes = []
    for out_TD in hidden(layers, x_TF, kind)[:-1]:
        at_TD = out_TD.detach().requires_grad_(True)
        slopes.append(torch.autograd.grad(kind.function(at_TD).sum(), at_TD)[0])
    return float((torch.cat(slopes, -1) == 0).all(0).float().mean())


# ---- what it comes to


def _table(paths: dict[str, list[float]], dead: Shares) -> Table:
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64).tolist()
    rows: list[list[Cell]] = []
    for name, kind in KINDS.items():
        slopes = slope(kind.function, [-1.0, 0.0, 1.0])
        rows.append([name, *slopes, max(slope(kind.function, grid)), paths[name][0], *[None] * 4])
    rows += [[arm.kind, *[None] * 5, arm.rate, arm.start, *shares] for arm, shares in dead.items()]
    slopes_ = ("slope at -1", "slope at 0", "slope at 1", "largest slope")
    trained = ("learning rate", "first bias", "dead at first", "dead after training")
    return table(dict.fromkeys(("activation", *slopes_, "gradient left", *trained), ""), rows)


def _plot(paths: dict[str, list[float]]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="layer (0 is the input)"),
        y=Axis(label="gradient, relative to the last layer's", log=True),
        series=[Series(name=name, x=[float(i) for i in range(len(y))], y=y) for name, y in paths.items()],
    )


def _checks(paths: dict[str, list[float]], dead: Shares, depth: int) -> list[Check]:
    bound = max(slope(torch.sigmoid, [0.0])) ** depth
    relu, sigmoid = paths["ReLU"][0], paths["sigmoid"][0]
    slow, fast = (dead[Arm("ReLU", rate, 0.0)][1] for rate in (RATES[0], RATES[-1]))
    low, zero = (dead[Arm("ReLU", RATES[0], start)][0] for start in STARTS[:2])
    return [
        check(
            slope(torch.relu, [-1.0, 0.0, 1.0]) == [0, 0, 1],
            "the slope of ReLU is 0 below zero, 1 above, and 0 at exactly zero by PyTorch's convention",
            "ReLU 的斜率：负半轴为 0，正半轴为 1，恰为零处按 PyTorch 的约定为 0",
        ),
        check(
            sigmoid < 10 * bound and 0.01 < relu < 100,
            f"through {depth} layers ReLU keeps {relu:.2g} of the gradient, the sigmoid {sigmoid:.0e} (its slopes "
            f"alone: {bound:.1e} at most)",
            f"穿过 {depth} 层后，ReLU 留下 {relu:.2g} 的梯度，sigmoid 只剩 {sigmoid:.0e}（仅斜率之积至多 {bound:.1e}）",
        ),
        check(
            fast > slow + 0.1,
            f"ReLU units die of a high learning rate: {slow:.1%} at {RATES[0]:g}, {fast:.1%} at {RATES[-1]:g}",
            f"学习率过高会使 ReLU 单元死亡：{RATES[0]:g} 时 {slow:.1%}，{RATES[-1]:g} 时 {fast:.1%}",
        ),
        check(
            low > zero,
            f"a low bias kills before training begins: {low:.1%} from {STARTS[0]:g}, {zero:.1%} from 0",
            f"偏置过低在训练前就使单元死亡：从 {STARTS[0]:g} 开始 {low:.1%}，从 0 开始 {zero:.1%}",
        ),
    ]


def _verdict(paths: dict[str, list[float]], dead: Shares, depth: int) -> Words:
    said = ", ".join(f"{name} {path[0]:.2g}" for name, path in paths.items())
    shares = {name: dead[Arm(name, RATES[-1], 0.0)][1] for name in ("ReLU", *SMOOTH)}
    starts = [dead[Arm("ReLU", 0.01, start)][1] for start in STARTS]
    return both(
        f"ReLU passes a gradient whole or not at all. Of a gradient at the end of {depth} new layers this much reaches "
        f"the input: {said}. The price are units without gradient on any example: after training at a rate of "
        f"{RATES[-1]:g}, {shares['ReLU']:.0%} of ReLU units, {shares['GELU']:.0%} with GELU and {shares['SiLU']:.0%} "
        f"with SiLU, whose slopes below zero are not zero until they are too small for float32. At a rate of 0.01, "
        f"biases that start from {STARTS[0]:g}, {STARTS[1]:g} and {STARTS[2]:g} end with {starts[0]:.0%}, "
        f"{starts[1]:.0%} and {starts[2]:.0%} dead.",
        f"ReLU 要么让梯度完整通过，要么完全不通过。穿过 {depth} 个新建的层，梯度传到输入处还剩：{said}。代价是有些"
        f"单元在所有样本上都没有梯度：学习率 {RATES[-1]:g} 训练后，ReLU 为 {shares['ReLU']:.0%}，GELU 为 "
        f"{shares['GELU']:.0%}，SiLU 为 {shares['SiLU']:.0%}，后两者在负半轴的斜率要小到 float32 表示不了才算零。"
        f"学习率 0.01 时，偏置从 {STARTS[0]:g}、{STARTS[1]:g}、{STARTS[2]:g} 开始，最终死亡 {starts[0]:.0%}、"
        f"{starts[1]:.0%}、{starts[2]:.0%}。",
    )
