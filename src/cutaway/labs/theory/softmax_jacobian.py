"""The Jacobian of the softmax, and how backpropagation uses it without building it.

    J = diag(p) - p p^T          V x V: the covariance matrix of a one-hot draw from p
    J g = p * (g - p . g)        V numbers from V numbers

The first form is what a textbook derives, the second what a program runs. Their memory is counted at sizes at which the
first no longer fits into the machine: tensors on PyTorch's device "meta" have a size but take no room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.memory import peak_bytes
from cutaway.labs.statistics import growth
from cutaway.labs.timing import interleaved

BY_HAND = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
SIZES = (64, 256, 1024, 4096, 16_384, 49_152)


@lab(
    "softmax-jacobian",
    title=both("The Jacobian of the softmax that nobody builds", "没有人真去构造的 softmax 雅可比矩阵"),
    question=both(
        "What is the Jacobian of the softmax, and how does backpropagation use it without building it?",
        "softmax 的雅可比矩阵是什么？反向传播如何不构造它就用上它？",
    ),
    seconds={"quick": 1, "full": 2},
)
def softmax_jacobian(
    run: Run,
    *,
    timed_up_to: Annotated[
        int,
        Knob("largest V at which both are really run", "两种形式都真正运行的最大 V", quick=1024, min=64, max=16_384),
    ] = 4096,
    repeats: Annotated[int, Knob("timings of each form, in turns", "交替计时的次数", quick=5, min=5, max=1001)] = 15,
) -> Finding:
    bytes_ = [(counted(built, v), counted(pulled, v)) for v in SIZES]
    times = {v: timed(v, repeats, run.generator()) for v in run.each([v for v in SIZES if v <= timed_up_to], "V")}
    rows = [
        [v, *(b / 1e6 for b in pair), pair[0] / pair[1], *times.get(v, (None, None))]
        for v, pair in zip(SIZES, bytes_, strict=True)
    ]
    names = {"V": "", "matrix": "MB", "p * (g - p.g)": "MB", "memory, ratio": ""}
    return Finding(
        table=table(names | {"matrix, time": "µs", "p * (g - p.g), time": "µs"}, rows),
        plot=_plot(bytes_),
        verdict=_verdict(bytes_, times),
        checks=_checks(bytes_, run.generator()),
    )


def jacobian(p_V: Tensor) -> Tensor:
    """d p / d logits, [V, V], symmetric."""
    jacobian_VV = torch.outer(p_V, p_V).neg_()
    jacobian_VV.diagonal().add_(p_V)
    return jacobian_VV


def built(p_V: Tensor, upstream_V: Tensor) -> Tensor:
    """The gradient at the logits by way of the matrix."""
    return jacobian(p_V) @ upstream_V


def pulled(p_V: Tensor, upstream_V: Tensor) -> Tensor:
    """The same without it."""
    return (upstream_V - p_V @ upstream_V).mul_(p_V)


def counted(form: Callable[[Tensor, Tensor], Tensor], size: int) -> int:
    """The most bytes that a form holds at once for V = size in float32."""
    nothing_V = torch.empty(size, device="meta")
    return peak_bytes(lambda: form(nothing_V, nothing_V))


def timed(size: int, repeats: int, generator: torch.Generator) -> tuple[float, float]:
    """Microseconds of both forms."""
    p_V, upstream_V = torch.randn(2, size, generator=generator)
    p_V = p_V.softmax(-1)
    slow, fast = interleaved([lambda: built(p_V, upstream_V), lambda: pulled(p_V, upstream_V)], repeats)
    return 1e6 * slow, 1e6 * fast


def apart(generator: torch.Generator) -> float:
    """Largest difference between the two forms, autograd's softmax and the covariance of one-hot draws."""
    logits_V, upstream_V = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    p_V = logits_V.softmax(-1)
    (expected_V,) = torch.autograd.grad(logits_V.requires_grad_(True).softmax(-1), logits_V, upstream_V)
    whole_VV = torch.autograd.functional.jacobian(lambda x: x.softmax(-1), logits_V.detach())
    draws_VV = torch.eye(300, dtype=torch.float64)
    covariance_VV = torch.cov(draws_VV, correction=0, aweights=p_V.detach())
    found = jacobian(p_V.detach())
    gaps = [built(p_V, upstream_V) - expected_V, pulled(p_V, upstream_V) - expected_V]
    return max(float(gap.abs().max()) for gap in (*gaps, found - whole_VV, found - covariance_VV))


def _plot(bytes_: list[tuple[int, int]]) -> Plot:
    x = [float(v) for v in SIZES]
    built_, pulled_ = zip(*bytes_, strict=True)
    return Plot(
        kind="line",
        x=Axis(label="V", log=True),
        y=Axis(label="bytes held at once", log=True),
        series=[
            Series(name="diag(p) - p pᵀ, times g", x=x, y=[float(b) for b in built_]),
            Series(name="p * (g - p.g)", x=x, y=[float(b) for b in pulled_]),
        ],
    )


def _checks(bytes_: list[tuple[int, int]], generator: torch.Generator) -> list[Check]:
    values = torch.linalg.eigvalsh(jacobian(BY_HAND))
    sums = float(jacobian(BY_HAND).sum(-1).abs().max())
    off = apart(generator)
    slopes = [growth(SIZES, [float(pair[i]) for pair in bytes_]) for i in (0, 1)]
    named = ", ".join(f"{v:.3f}" for v in values.abs().tolist())
    return [
        check(
            bool((values - torch.tensor([0.0, 0.126, 0.334])).abs().max() < 5e-4) and sums < 1e-15,
            f"for p = (.7, .2, .1) the eigenvalues are {named} and every row sums to 0",
            f"p = (.7, .2, .1) 时特征值为 {named}，每行之和为 0",
        ),
        check(
            off < 1e-12,
            f"matrix, shortcut, autograd and the covariance of one-hot draws agree to {off:.0e}",
            f"矩阵、捷径、自动微分与 one-hot 抽样的协方差一致（相差 {off:.0e}）",
        ),
        check(
            abs(slopes[0] - 2) < 0.01 and abs(slopes[1] - 1) < 0.01,
            f"counted memory grows as V^{slopes[0]:.2f} with the matrix, as V^{slopes[1]:.2f} without",
            f"计得的内存：有矩阵时按 V^{slopes[0]:.2f} 增长，没有时按 V^{slopes[1]:.2f}",
        ),
    ]


def _verdict(bytes_: list[tuple[int, int]], times: dict[int, tuple[float, float]]) -> Words:
    (matrix, shortcut), largest = bytes_[-1], max(times)
    slow, fast = times[largest]
    return both(
        f"The Jacobian is diag(p) - p pᵀ: raising one logit takes from all others in proportion, so rows sum to 0. "
        f"Backpropagation needs only its product with one vector, p * (g - p.g). At V = {SIZES[-1]:,} in float32 the "
        f"matrix takes {matrix / 1e9:.1f} GB, the product {shortcut / 1e6:.1f} MB; at V = {largest:,} they took "
        f"{slow:,.0f} and {fast:,.0f} µs.",
        f"雅可比矩阵是 diag(p) - p pᵀ：抬高一个 logit 就按比例从其余各处拿走，所以每行之和为 0。反向传播只需要它与一个"
        f"向量的乘积 p * (g - p.g)。float32、V = {SIZES[-1]:,} 时矩阵要 {matrix / 1e9:.1f} GB，乘积只要 "
        f"{shortcut / 1e6:.1f} MB；V = {largest:,} 时分别用了 {slow:,.0f} 与 {fast:,.0f} 微秒。",
    )
