"""What skip connections do to gradients in a deep stack (He et al. 2015, arXiv:1512.03385).

    without   x_n = f(x_n-1)             dx_n / dx_0 = product of f'              each factor at most 1/4 for a sigmoid
    with      x_n = x_n-1 + f(x_n-1)     dx_n / dx_0 = product of (1 + f')        one term of which is 1

First sigmoid layers, whose slopes are known; then a Transformer whose residual stream is cut. There norms keep the
gradient from vanishing, and something else goes wrong: tokens become alike (Dong et al. 2021, arXiv:2103.03404).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit, loss_of, next_bytes, prose, small_spec, with_layers
from cutaway.models.block import positions_of
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.init import initialize
from cutaway.nn.probes import Scale, scales

NESTED = 20  # the sigmoids of the textbook's bound
LENGTH, ROWS = 64, 8  # bytes per sequence, sequences per step


class Outcome(NamedTuple):
    """One stack. scales: of each layer before training. losses: of every step. alike: `likeness`, at the end."""

    name: str
    skip: bool
    scales: list[Scale]
    losses: list[float]
    alike: float | None

    @property
    def after(self) -> float:
        """Loss at the end: the mean of the last five steps, for batches differ."""
        return statistics.mean(self.losses[-5:])


@lab(
    "residual-path",
    title=both("The residual path and gradients", "残差通路与梯度"),
    question=both("What do skip connections do to gradients in a deep stack?", "跳跃连接对深层网络的梯度起什么作用？"),
    seconds={"quick": 4, "full": 40},
)
def residual_path(
    run: Run,
    *,
    depth: Annotated[int, Knob("sigmoid layers", "sigmoid 层数", min=2, max=200)] = 64,
    width: Annotated[int, Knob("their width", "它们的宽度", quick=16, min=4, max=512)] = 32,
    steps: Annotated[int, Knob("their training steps", "它们的训练步数", quick=120, min=5, max=10**4)] = 200,
    blocks: Annotated[int, Knob("blocks of the Transformer", "Transformer 的块数", quick=8, min=2, max=64)] = 12,
    updates: Annotated[int, Knob("its training steps", "Transformer 的训练步数", quick=15, min=5, max=10**4)] = 200,
) -> Finding:
    found = [sigmoids(skip, depth, width, steps, run) for skip in (True, False)]
    found += [transformer(skip, blocks, updates, run) for skip in (True, False)]
    slope = steepest(NESTED)
    return Finding(
        table=_table(found),
        plot=_plot(found[:2]),
        verdict=_verdict(found, slope, depth),
        checks=_checks(found, slope),
    )


# ---- sigmoid layers


class Sigmoid(nn.Module):
    """x -> sigmoid(W x + b), with x added or not."""

    def __init__(self, width: int, skip: bool, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(width, width, generator=generator, dtype=torch.float64) * width**-0.5
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.skip = skip

    def forward(self, x_TD: Tensor) -> Tensor:
        made_TD = torch.sigmoid(F.linear(x_TD, self.weight, self.bias))
        return x_TD + made_TD if self.skip else made_TD


def steepest(layers: int) -> float:
    """The largest slope of `layers` nested sigmoids, over inputs from -10 to 10."""
    x = torch.linspace(-10, 10, 100_001, dtype=torch.float64, requires_grad=True)
    y = x
    for _ in range(layers):
        y = torch.sigmoid(y)
    return float(torch.autograd.grad(y.sum(), x)[0].abs().max())


def sigmoids(skip: bool, depth: int, width: int, steps: int, run: Run) -> Outcome:
    """A stack that shall tell whether two of its inputs have the same sign; as many do as do not.

    Gradients are taken under a random head; training starts from a head of zeros, at a loss of ln 2 exactly.
    """
    generator = run.generator()
    layers = nn.Sequential(*(Sigmoid(width, skip, generator) for _ in range(depth)))
    x_TD = torch.randn(256, width, generator=generator, dtype=torch.float64)
    x_TD[:, 1] = x_TD[:, 1].abs() * x_TD[:, 0].sign() * torch.tensor([1.0, -1.0]).repeat(128)
    same_T = (x_TD[:, 0] * x_TD[:, 1] > 0).long()
    head_VD = torch.randn(2, width, generator=generator, dtype=torch.float64) * width**-0.5
    before = scales(layers, lambda: F.cross_entropy(F.linear(layers(x_TD), head_VD), same_T))
    head = nn.Parameter(torch.zeros_like(head_VD))
    fitted = fit(
        [*layers.parameters(), head],
        lambda _: F.cross_entropy(F.linear(layers(x_TD), head), same_T),
        steps,
        run,
        f"sigmoids {_with(skip)[0]}",
        seed=run.seed,
        lr=3e-3,
        weight_decay=0.0,
    )
    return Outcome(f"{depth} sigmoid layers", skip, before, fitted.losses, None)


# ---- a Transformer


def transformer(skip: bool, blocks: int, steps: int, run: Run) -> Outcome:
    """A small decoder on bytes of English, with a residual stream or none."""
    spec = with_layers(small_spec(layers=blocks), lambda layer: replace(layer, residual=float(skip)))
    model, task = build(spec), next_bytes(prose(), LENGTH, ROWS)
    assert isinstance(model, Decoder)
    initialize(model, "xavier", run.generator())
    batch = task(run.generator())
    before = scales(model.layers, lambda: loss_of(model, batch))
    fitted = fit(
        model.parameters(),
        lambda generator: loss_of(model, task(generator)),
        steps,
        run,
        f"Transformer {_with(skip)[0]}",
        seed=run.seed,
    )
    return Outcome(
        f"Transformer, {blocks} blocks", skip, before, fitted.losses, likeness(model, batch.inputs_T[:LENGTH])
    )


@torch.no_grad()
def likeness(model: Decoder, tokens_T: Tensor) -> float:
    """Mean cosine between the last hidden states of different tokens of one sequence: 1 if all are alike."""
    hidden_TD = model(tokens_T, positions_of([len(tokens_T)]), BlockDiagonal([len(tokens_T)]))
    unit_TD = F.normalize(hidden_TD.double(), dim=-1)
    n = len(unit_TD)
    return float((unit_TD.sum(0).square().sum() - n) / (n * (n - 1)))


# ---- what it comes to


def _with(skip: bool) -> tuple[str, str]:
    return ("with skips", "有跳连") if skip else ("without skips", "无跳连")


def _table(found: list[Outcome]) -> Table:
    columns = {
        "stack": "",
        "skips": "",
        "gradient norm, first layer": "",
        "gradient norm, last layer": "",
        "first loss": "nats",
        "last losses": "nats",
        "cosine between tokens": "",
    }
    rows = (
        [o.name, o.skip, o.scales[0].parameters, o.scales[-1].parameters, o.losses[0], o.after, o.alike] for o in found
    )
    return table(columns, rows)


def _plot(found: list[Outcome]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="sigmoid layer"),
        y=Axis(label="gradient norm of its parameters", log=True),
        series=[
            Series(
                name=_with(o.skip)[0],
                x=[float(i) for i in range(1, len(o.scales) + 1)],
                y=[max(s.parameters, 1e-300) for s in o.scales],
            )
            for o in found
        ],
    )


def _checks(found: list[Outcome], slope: float) -> list[Check]:
    kept, cut, stream, none = found
    first = [o.scales[0].parameters for o in (kept, cut)]
    learned = math.log(2) - kept.after, math.log(2) - cut.after
    bound = 0.25**NESTED
    return [
        check(
            slope <= bound < 9.1e-13,
            f"{NESTED} nested sigmoids are nowhere steeper than 0.25^{NESTED} = {bound:.2e} (measured {slope:.1e})",
            f"{NESTED} 层嵌套 sigmoid 的斜率处处不超过 0.25^{NESTED} = {bound:.2e}（实测 {slope:.1e}）",
        ),
        check(
            first[0] > 1e6 * first[1],
            "the first sigmoid layer's gradient is more than a million times larger with skips",
            "有跳连时第一层 sigmoid 的梯度大一百万倍以上",
        ),
        check(
            learned[0] > 0.05 and learned[1] < 1e-3,
            "only the stack with skips gets below ln 2, the loss of guessing",
            "只有带跳连的网络把损失降到瞎猜的 ln 2 以下",
        ),
        check(
            none.scales[0].parameters > stream.scales[0].parameters and stream.after < none.after,
            "a Transformer without its stream has no small gradients, thanks to its norms, and still learns less",
            "Transformer 去掉残差流后，归一化使梯度并不小，却依然学得更差",
        ),
    ]


def _verdict(found: list[Outcome], slope: float, depth: int) -> Words:
    kept, cut, stream, none = found
    a, b, c, d = (o.scales[0].parameters for o in found)
    assert stream.alike is not None
    assert none.alike is not None
    return both(
        f"A sigmoid's slope is at most 0.25, so {NESTED} of them pass on at most {0.25**NESTED:.1e} of a gradient "
        f"({slope:.1e} measured). In stacks of {depth} the first layer's gradient is {a:.1e} with skips and {b:.1e} "
        f"without; after {len(kept.losses)} steps the losses are {kept.after:.1e} and {cut.after:.3f}, guessing "
        f"being 0.693. The Transformer is another case: its norms rescale every layer, and without skips its first "
        f"block's gradient is {d:.1e} instead of {c:.1e}. Nevertheless its loss after {len(none.losses)} steps is "
        f"{none.after:.2f} against {stream.after:.2f} with skips, and the mean cosine between its tokens' last states "
        f"{none.alike:.3f} against {stream.alike:.3f}: at 1 all tokens are alike.",
        f"sigmoid 的斜率至多 0.25，{NESTED} 层最多传回梯度的 {0.25**NESTED:.1e}（实测 {slope:.1e}）。{depth} 层时，"
        f"第一层的梯度有跳连为 {a:.1e}，无跳连为 {b:.1e}；训练 {len(kept.losses)} 步后损失分别为 {kept.after:.1e} "
        f"和 {cut.after:.3f}，瞎猜是 0.693。Transformer 情形不同：归一化在每层重新定标，去掉跳连后第一块的梯度是 "
        f"{d:.1e}，而有跳连时为 {c:.1e}。但训练 {len(none.losses)} 步后，无跳连的损失为 {none.after:.2f}，有跳连为 "
        f"{stream.after:.2f}；词元末层状态的平均余弦分别为 {none.alike:.3f} 和 {stream.alike:.3f}（1 即全部相同）。",
    )
