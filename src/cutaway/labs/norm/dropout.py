"""What dropout computes, and what its rescaling repairs and does not (Srivastava et al. 2014, JMLR 15:1929).

    E[x * mask / (1 - p)]   = E[x]                the mean is that of inference
    E[(x * mask / (1 - p))^2] = E[x^2] / (1 - p)    the second moment is not

No constant can repair both: a scale of 1 / (1 - p) keeps the mean, 1 / sqrt(1 - p) would keep the second moment.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.nn.dropout import Dropout, dropout
from cutaway.nn.norms import NormSpec, make_norm


class Form(NamedTuple):
    """A way to rescale. Ratios of training to inference: of means and of second moments."""

    name: str
    mean: float
    power: float


class Gradient(NamedTuple):
    """off: how far it is from mask / (1 - p). same: PyTorch's gradcheck finds it by finite differences."""

    off: float
    same: bool


class Normed(NamedTuple):
    """An RMSNorm behind inverted dropout, training over inference. power: of its input. mean: of its output."""

    power: float
    mean: float


@lab(
    "dropout",
    title=both("What dropout's rescaling repairs", "Dropout 的缩放修好了什么"),
    question=both(
        "What does dropout compute, forward and backward, and does its rescaling repair mean and variance?",
        "Dropout 前向与反向算了什么？缩放是否同时修好了均值和方差？",
    ),
    seconds={"quick": 1, "full": 3},
)
def dropout_lab(
    run: Run,
    *,
    p: Annotated[float, Knob("probability of dropping a number", "丢弃概率", min=0.01, max=0.9)] = 0.1,
    draws: Annotated[int, Knob("numbers drawn", "抽取的数", quick=10**6, min=10**4, max=10**8)] = 10**7,
) -> Finding:
    x = 1 + torch.randn(draws, generator=run.generator(), dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        forms, behind, identity = compared(x, p), normed(x, p), torch.equal(Dropout(p).eval()(x), x)
        gradient = backward(p)
    noise = 4 * math.sqrt(2 * p / (1 - p) / draws)  # four standard errors of a mean of x, whose second moment is 2
    return Finding(
        table=_table(forms, behind),
        plot=_plot(forms),
        verdict=_verdict(forms, behind, p),
        checks=_checks(forms, behind, gradient, identity, p=p, noise=noise),
    )


def compared(x: Tensor, p: float) -> list[Form]:
    """Three ways: inverted, as in the paper, and the mistake of rescaling nowhere."""
    dropped = dropout(x, p, inverted=False)
    ways = {
        "inverted: / (1 - p) in training": (Dropout(p).train()(x), Dropout(p).eval()(x)),
        "original: * (1 - p) at inference": (Dropout(p, False).train()(x), Dropout(p, False).eval()(x)),
        "never rescaled": (dropped, x),
    }
    return [
        Form(name, float(t.mean() / i.mean()), float(t.square().mean() / i.square().mean()))
        for name, (t, i) in ways.items()
    ]


def backward(p: float) -> Gradient:
    """In float64, the mask being that of the forward pass."""
    x = torch.ones(10_000, dtype=torch.float64, requires_grad=True)
    out = Dropout(p).train()(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    off = float((gradient - (out != 0).double() / (1 - p)).abs().max())

    def repeatable(x: Tensor) -> Tensor:
        return dropout(x, p, generator=torch.Generator().manual_seed(0))

    same = torch.autograd.gradcheck(repeatable, (x[:50].detach().requires_grad_(),), raise_exception=False)
    return Gradient(off, same)


@torch.no_grad()
def normed(x: Tensor, p: float, width: int = 500) -> Normed:
    """Rows of `width` numbers through inverted dropout and an RMSNorm."""
    x_TD = x[: len(x) // width * width].view(-1, width)
    norm, layer = make_norm(NormSpec("rms", 1e-6), width).double(), Dropout(p)
    training_TD, inference_TD = layer.train()(x_TD), layer.eval()(x_TD)
    return Normed(
        power=float(training_TD.square().mean() / inference_TD.square().mean()),
        mean=float(norm(training_TD).mean() / norm(inference_TD).mean()),
    )


def _table(forms: list[Form], behind: Normed) -> Table:
    columns = dict.fromkeys(("form", "mean, training / inference", "second moment, training / inference"), "")
    return table(columns, [*forms, ["inverted, then RMSNorm: its input", None, behind.power]])


def _plot(forms: list[Form]) -> Plot:
    names = [form.name.partition(":")[0] for form in forms]
    return Plot(
        kind="bar",
        x=Axis(label="form"),
        y=Axis(label="training / inference"),
        series=[
            Series(name="mean", x=names, y=[form.mean for form in forms]),
            Series(name="second moment", x=names, y=[form.power for form in forms]),
        ],
    )


def _checks(
    forms: list[Form], behind: Normed, gradient: Gradient, identity: bool, *, p: float, noise: float
) -> list[Check]:
    inverted, original, never = forms
    grown = 1 / (1 - p)
    return [
        check(
            max(abs(inverted.mean - 1), abs(original.mean - 1), abs(never.mean - 1 + p)) < noise and identity,
            f"both forms keep the mean (to {noise:.4f}), no rescaling leaves {never.mean:.4f} of it; inference changes "
            "nothing in the inverted form",
            f"两种形式都保持均值（误差 {noise:.4f} 内），不缩放则只剩 {never.mean:.4f}；倒置形式在推理时是恒等映射",
        ),
        check(
            gradient.off < 1e-12 and gradient.same,
            "the gradient is mask / (1 - p) with the mask of the forward pass; finite differences agree",
            "梯度等于前向掩码 / (1 - p)，与有限差分一致",
        ),
        check(
            max(abs(inverted.power - grown), abs(original.power - grown)) < 2 * noise,
            f"the second moment in training is 1 / (1 - p) = {grown:.3f} times that at inference, in both forms",
            f"两种形式下，训练时的二阶矩都是推理时的 1 / (1 - p) = {grown:.3f} 倍",
        ),
        check(
            abs(behind.power - grown) < 2 * noise and abs(behind.mean - math.sqrt(1 - p)) < 0.01,
            f"a norm behind it sees {behind.power - 1:.1%} more power in training, and its outputs are "
            f"{behind.mean:.3f} as large in the mean",
            f"其后的归一化层在训练时多看到 {behind.power - 1:.1%} 的功率，输出均值只有推理时的 {behind.mean:.3f}",
        ),
    ]


def _verdict(forms: list[Form], behind: Normed, p: float) -> Words:
    inverted, _, never = forms
    return both(
        f"At p = {p:g} the mean in training is {never.mean:.3f} of that at inference if nothing is rescaled and "
        f"{inverted.mean:.3f} with the inverted form; the backward pass uses the forward mask at the same scale. That "
        f"rescaling repairs mean and variance both is a common answer, and wrong: the second moment is "
        f"{inverted.power:.3f} times as large in training. A following norm divides by it and so undoes part of the "
        f"repair: the mean of its outputs is {behind.mean:.3f} of that at inference.",
        f"p = {p:g} 时，若完全不缩放，训练时的均值是推理时的 {never.mean:.3f}；倒置形式为 {inverted.mean:.3f}。反向传播"
        f"使用前向的掩码和同样的系数。常见回答说缩放同时修好了均值和方差，这是错的：训练时的二阶矩是推理时的 "
        f"{inverted.power:.3f} 倍。其后的归一化层会除掉它，从而抵消一部分修正：其输出均值只有推理时的 "
        f"{behind.mean:.3f}。",
    )
