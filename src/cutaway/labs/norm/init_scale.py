"""How large weights should start: what a wrong scale breaks, and where Xavier and Kaiming come from.

A layer multiplies the second moment of what passes by fan_in * var(w) * c, where c is what the activation leaves:
1/2 for ReLU, nearly 1 for tanh near zero. Keeping it at one gives var(w) = 1 / fan_in for tanh, 2 / fan_in for ReLU
(He et al. 2015, arXiv:1502.01852); the way back has fan_out in place of fan_in, and Xavier takes the mean of both
(Glorot & Bengio 2010, AISTATS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.labs.training import Batch, loss_of
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.nn.init import SCHEMES, initialize, matrices
from cutaway.nn.probes import rms, scales

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"ReLU": nn.ReLU, "tanh": nn.Tanh}
PAIR = ("xavier", "kaiming")
DEPTH, DEEP = 30, 100


class Passage(NamedTuple):
    """Through a stack. activations: rms before it and after each layer. gradient: at the first layer over the last."""

    activations: list[float]
    gradient: float

    @property
    def kept(self) -> float:
        """What is left of the activations' size."""
        return self.activations[-1] / self.activations[0]

    @property
    def imbalance(self) -> float:
        """How many powers of ten the worse of forward and backward pass is away from keeping its size."""
        return max(abs(math.log10(self.kept)), abs(math.log10(self.gradient)))


Pairs = dict[tuple[str, str, int], Passage]
"""By activation, scheme and number of layers."""


class First(NamedTuple):
    """The loss of a fresh model of a real one's shape: by formula and measured. std: of its logits, by formula."""

    std: float
    expected: float
    measured: float


@lab(
    "init-scale",
    title=both("How large weights should start", "权重该从多大开始"),
    question=both(
        "What can a bad initial scale break, and where do the Xavier and Kaiming formulas come from?",
        "初始尺度不当会弄坏什么？Xavier 与 Kaiming 公式从何而来？",
    ),
    seconds={"quick": 4, "full": 40},
)
def init_scale(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the stacks", "网络宽度", quick=128, min=16, max=4096)] = 512,
    networks: Annotated[
        int, Knob("ReLU networks averaged over", "取平均的 ReLU 网络数", quick=800, min=10, max=10**5)
    ] = 4000,
    model: Annotated[str, Knob("the model whose shape is used", "借用其形状的模型")] = MODEL,
    layers: Annotated[int, Knob("how many of its blocks", "用其中多少块", quick=2, min=1, max=200)] = 30,
    length: Annotated[int, Knob("random tokens it reads", "读入的随机词元数", quick=256, min=8, max=8192)] = 512,
) -> Finding:
    stds = {0.001: "vanishes", math.sqrt(2 / width): "stays", 1.0: "explodes"}
    scaled = {std: passage("ReLU", "normal", width, run, std=std) for std in run.each(list(stds), "30 layers, std")}
    pairs = {(a, s, n): passage(a, s, width, run, depth=n) for a in ACTIVATIONS for s in PAIR for n in (DEPTH, DEEP)}
    left = halved(networks, run.generator())
    first = first_loss(model, layers, length, run.generator())
    units = {name: distinct(value, run.generator()) for name, value in {"0": 0.0, "0.1": 0.1, "random": None}.items()}
    return Finding(
        table=_table(scaled, pairs, left, first, units),
        plot=_plot(scaled),
        verdict=_verdict(scaled, pairs, left, first, units),
        checks=_checks(scaled, pairs, left, first, units),
    )


# ---- stacks


def passage(activation: str, scheme: str, width: int, run: Run, *, std: float = 0.02, depth: int = DEPTH) -> Passage:
    """Unit-variance inputs through a stack, and a random gradient back, in float64."""
    generator = run.generator()
    layers = nn.Sequential(
        *(nn.Sequential(nn.Linear(width, width), ACTIVATIONS[activation]()) for _ in range(depth))
    ).double()
    initialize(layers, scheme, generator, std)
    x_TD, probe_TD = (torch.randn(16, width, generator=generator, dtype=torch.float64) for _ in range(2))
    found = scales(layers, lambda: torch.sum(layers(x_TD) * probe_TD))
    return Passage([rms(x_TD), *(s.activation for s in found)], found[0].gradient / found[-1].gradient)


def halved(networks: int, generator: torch.Generator, width: int = 128) -> float:
    """What `DEPTH` ReLU layers with var(w) = 1 / fan_in leave of the second moment, mean over networks."""
    x_ND = torch.randn(networks, width, generator=generator)
    before = float(x_ND.square().mean())
    for _ in range(DEPTH):
        weight_NDD = torch.randn(networks, width, width, generator=generator) * width**-0.5
        x_ND = torch.relu(weight_NDD @ x_ND[..., None])[..., 0]
    return float(x_ND.double().square().mean()) / before


def distinct(value: float | None, generator: torch.Generator) -> int:
    """Different hidden units of a small network after 50 steps, from weights all of one value or random ones."""
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    initialize(net, "lecun", generator)
    if value is not None:
        for p in net.parameters():
            nn.init.constant_(p, value)
    x_TD = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        F.mse_loss(net(x_TD)[:, 0], x_TD[:, 0] * x_TD[:, 1]).backward()
        optimizer.step()
    into, out = (net.get_parameter(f"{layer}.weight").detach() for layer in (0, 2))
    units = torch.cat([into, out.T], 1)
    return len({tuple(round(w, 9) for w in unit) for unit in units.tolist()})


# ---- a real model's shape


def first_loss(source: str, layers: int, length: int, generator: torch.Generator) -> First:
    """A model as `source`, with fresh weights of std 0.02, on random tokens: text says the same words too often.

    Its final norm makes rows of length sqrt(D), so that logits have the std 0.02 sqrt(D).
    """
    spec = decoder(subject(source)).spec
    model = build(replace(spec, layers=spec.layers[:layers]))
    assert isinstance(model, Decoder)
    initialize(model, "normal", generator)
    tokens_T, std = torch.randint(spec.vocab, (length,), generator=generator), 0.02 * math.sqrt(spec.width)
    with torch.inference_mode():
        measured = float(loss_of(model, Batch(tokens_T[:-1], tokens_T[1:], [length - 1])))
    return First(std, math.log(spec.vocab) + std**2 / 2, measured)


# ---- what it comes to


def textbook() -> dict[str, float]:
    """The standard deviations of a matrix from 512 to 2,048 numbers."""
    (matrix,) = matrices(nn.Linear(512, 2048, bias=False))
    return {scheme: SCHEMES[scheme](matrix, 0.02) for scheme in PAIR}


def winner(pairs: Pairs, activation: str, depth: int) -> str:
    """The scheme that keeps both passes closer to their size."""
    return min(PAIR, key=lambda scheme: pairs[activation, scheme, depth].imbalance)


def _table(
    scaled: dict[float, Passage],
    pairs: Pairs,
    left: float,
    first: First,
    units: dict[str, int],
) -> Table:
    rows: list[list[Cell]] = [
        [f"ReLU, std {std:.4g}, {DEPTH} layers", None, p.kept, p.gradient] for std, p in scaled.items()
    ]
    rows += [[f"{a}, {s}, {n} layers", None, p.kept, p.gradient] for (a, s, n), p in pairs.items()]
    rows.append([f"second moment after {DEPTH} ReLU layers, var(w) = 1 / fan_in", 0.5**DEPTH, left, None])
    rows.append(["first loss of a real model's shape, nats", first.expected, first.measured, None])
    rows += [[f"distinct hidden units of 16, weights {how}", None, float(n), None] for how, n in units.items()]
    rows += [[f"std from 512 to 2,048, {scheme}", None, std, None] for scheme, std in textbook().items()]
    columns = ("what", "by formula", "measured, or rms after / before", "gradient, first layer / last")
    return table(dict.fromkeys(columns, ""), rows)


def _plot(scaled: dict[float, Passage]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="layer"),
        y=Axis(label="root mean square of activations", log=True),
        series=[
            Series(name=f"std {std:.4g}", x=[float(i) for i in range(DEPTH + 1)], y=p.activations)
            for std, p in scaled.items()
        ],
    )


def _checks(
    scaled: dict[float, Passage],
    pairs: Pairs,
    left: float,
    first: First,
    units: dict[str, int],
) -> list[Check]:
    small, right, large = (p.kept for p in scaled.values())
    xavier, kaiming = textbook().values()
    return [
        check(
            small < 1e-20 and 0.1 < right < 10 and large > 1e20,
            f"through {DEPTH} layers activations vanish at std 0.001 ({small:.0e}), stay at the right one "
            f"({right:.2f}) and explode at 1 ({large:.0e})",
            f"经过 {DEPTH} 层，std 0.001 时激活消失（{small:.0e}），合适时保持（{right:.2f}），1 时爆炸（{large:.0e}）",
        ),
        check(
            abs(left / 0.5**DEPTH - 1) < 0.2,
            f"ReLU halves the second moment: {left:.2e} is left after {DEPTH} layers, 0.5^{DEPTH} = {0.5**DEPTH:.2e}",
            f"ReLU 使二阶矩减半：{DEPTH} 层后剩 {left:.2e}，0.5^{DEPTH} = {0.5**DEPTH:.2e}",
        ),
        check(
            (winner(pairs, "ReLU", DEEP), winner(pairs, "tanh", DEEP)) == ("kaiming", "xavier"),
            f"through {DEEP} layers Kaiming keeps sizes best with ReLU, Xavier with tanh",
            f"经过 {DEEP} 层，ReLU 用 Kaiming、tanh 用 Xavier 最能保持大小",
        ),
        check(
            abs(first.measured - first.expected) < 0.1,
            f"a fresh model of the real one's shape starts at {first.measured:.2f} nats, by formula "
            f"ln V + s²/2 = {first.expected:.2f}",
            f"同形状的新模型初始损失为 {first.measured:.2f} 奈特，按公式 ln V + s²/2 = {first.expected:.2f}",
        ),
        check(
            units["0"] == units["0.1"] == 1 and units["random"] == 16,
            "from equal weights, zeros or not, all hidden units stay one and the same",
            "权重全相同（无论是否为零）时，所有隐藏单元始终一模一样",
        ),
        check(
            abs(xavier - 0.02795) < 1e-5 and kaiming == 0.0625,
            f"from 512 to 2,048: Xavier {xavier:.5f}, Kaiming {kaiming}",
            f"从 512 到 2,048：Xavier {xavier:.5f}，Kaiming {kaiming}",
        ),
    ]


def _verdict(
    scaled: dict[float, Passage],
    pairs: Pairs,
    left: float,
    first: First,
    units: dict[str, int],
) -> Words:
    small, right, large = (p.kept for p in scaled.values())
    relu = [pairs["ReLU", scheme, DEPTH].kept for scheme in PAIR]
    x_short, k_short, x_deep, k_deep = (pairs["tanh", scheme, n] for n in (DEPTH, DEEP) for scheme in PAIR)
    closer = winner(pairs, "tanh", DEPTH).title()
    return both(
        f"{DEPTH} ReLU layers pass on {small:.0e} of an activation with weights of std 0.001, {large:.0e} with 1, and "
        f"{right:.2f} with sqrt(2 / fan_in). ReLU leaves half of the second moment, so var(w) = 1 / fan_in leaves "
        f"{left:.1e} of it. Xavier passes {relu[0]:.1e} through ReLU and Kaiming {relu[1]:.2f}. With tanh they swap "
        f"places only in deep stacks: over {DEEP} layers Xavier's activations keep {x_deep.kept:.2f} and its gradient "
        f"{x_deep.gradient:.2f}, while Kaiming's gradient grows {k_deep.gradient:.0f} times on the way down; over "
        f"{DEPTH} it is {x_short.kept:.2f} and {x_short.gradient:.2f} against {k_short.kept:.2f} and "
        f"{k_short.gradient:.2f}, and {closer} is the closer one. It shows before training: "
        f"the first loss should be ln V + s²/2 = {first.expected:.2f} for logits of std s = {first.std:.2f}, and is "
        f"{first.measured:.2f}. From equal weights 16 hidden units remain {units['0']}.",
        f"{DEPTH} 层 ReLU：std 为 0.001 时只传过 {small:.0e}，为 1 时放大到 {large:.0e}，为 sqrt(2 / fan_in) 时为 "
        f"{right:.2f}。ReLU 留下一半二阶矩，所以 var(w) = 1 / fan_in 最后只剩 {left:.1e}。过 ReLU 时 Xavier 为 "
        f"{relu[0]:.1e}，Kaiming 为 {relu[1]:.2f}。换成 tanh，要很深时两者才易位：{DEEP} 层时 Xavier 的激活剩 "
        f"{x_deep.kept:.2f}、梯度剩 {x_deep.gradient:.2f}，而 Kaiming 的梯度往回增大 {k_deep.gradient:.0f} 倍；"
        f"{DEPTH} 层时分别是 {x_short.kept:.2f}、{x_short.gradient:.2f} 对 {k_short.kept:.2f}、{k_short.gradient:.2f}，"
        f"更接近原样的是 {closer}。训练前就能看出来：logits 标准差 s = {first.std:.2f} 时首步损失应为 ln V + s²/2 = "
        f"{first.expected:.2f}，实测 {first.measured:.2f}。权重全相同时，16 个隐藏单元始终只是 {units['0']} 个。",
    )
