"""KL divergence: what it measures, that its direction matters, how it is estimated, and three places where it works.

    KL(p || q) = sum p ln(p / q)      the nats lost per symbol by taking q for p

Everything here is exact: distributions over a vocabulary, or densities on a fine grid, are summed in float64. Draws
are made only to see that the estimators do on average what their sums say.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, reading, subject
from cutaway.nn.divergence import ESTIMATORS, kl_divergence

GRID = torch.linspace(-8, 8, 1601, dtype=torch.float64)
MODES, SPREAD = (-2.0, 2.0), 0.6
FAIR, BENT = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
STEPS_APART = (0.1, 0.3, 1.0)  # of the way from one distribution of the model to the other
BETA = 0.3  # nats of divergence that a unit of reward may cost


class Row(NamedTuple):
    """Two distributions p and q, or means over R pairs. accepted: of q's drafts, by speculative decoding for p.

    bias: of each estimator of KL(q || p) from draws of q, relative. std: of a draw, in units of KL(q || p).
    """

    name: str
    forward: float
    reverse: float
    accepted: float
    bias: dict[str, float]
    std: dict[str, float]


@lab(
    "kl",
    title=both("KL divergence and its direction", "KL 散度与它的方向"),
    question=both(
        "What does KL divergence measure, why does its direction matter, and where does it appear in language models?",
        "KL 散度度量什么？方向为何要紧？它在语言模型的哪些地方出现？",
    ),
    seconds={"quick": 3, "full": 6},
)
def kl(
    run: Run,
    *,
    model: Annotated[str, Knob("whose next-token distributions", "取谁的下一词元分布")] = MODEL,
    length: Annotated[
        int, Knob("tokens of text; half are left out once", "文本词元数；有一次去掉前半", quick=48, min=8, max=2048)
    ] = 256,
    draws: Annotated[
        int, Knob("draws per pair for the estimators", "估计量的抽样次数", quick=5000, min=100, max=10**6)
    ] = 50_000,
) -> Finding:
    target_V = two_modes()
    wide_V, narrow_V = (fitted(target_V, forward) for forward in (True, False))
    p_RV, q_RV = with_and_without(model, length)
    rows = [
        describe("p = (.5, .5), q = (.9, .1)", FAIR, BENT),
        describe("two modes, q = the Gaussian of least KL(p || q)", target_V, wide_V),
        describe("two modes, q = the Gaussian of least KL(q || p)", target_V, narrow_V),
    ]
    rows += [
        describe(f"next token, q = {step:.0%} of the way to less context", p_RV, between(p_RV, q_RV, step))
        for step in run.each(STEPS_APART, "of the way")
    ]
    off = off_by_standard_errors(p_RV[-1], between(p_RV, q_RV, STEPS_APART[0])[-1], draws, run.generator())
    return Finding(
        table=table(COLUMNS, map(_cells, rows)),
        plot=_plot(target_V, wide_V, narrow_V),
        verdict=_verdict(rows, wide_V, narrow_V),
        checks=[
            *_checks(rows, wide_V, narrow_V, off),
            *links(p_RV, between(p_RV, q_RV, 1.0), run.generator()),
        ],
    )


def describe(name: str, p_RV: Tensor, q_RV: Tensor) -> Row:
    """Exact values, from log-probabilities."""
    p_RV, q_RV = p_RV.log_softmax(-1), q_RV.log_softmax(-1)
    log_r, weight_RV = p_RV - q_RV, q_RV.exp()
    exact_R = kl_divergence(q_RV, p_RV)
    bias, std = {}, {}
    for key, estimator in ESTIMATORS.items():
        draws_RV = estimator(log_r)
        mean_R = (weight_RV * draws_RV).sum(-1)
        variance_R = (weight_RV * (draws_RV - mean_R[..., None]).square()).sum(-1)
        bias[key] = float(((mean_R - exact_R) / exact_R).mean())
        std[key] = float((variance_R.sqrt() / exact_R).mean())
    accepted = float(torch.minimum(p_RV, q_RV).exp().sum(-1).mean())
    return Row(name, float(kl_divergence(p_RV, q_RV).mean()), float(exact_R.mean()), accepted, bias, std)


# ---- one Gaussian for two modes


def gaussian(mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probabilities on the grid."""
    return (-((GRID - mean) / log_std.exp()).square() / 2).log_softmax(-1)


def two_modes() -> Tensor:
    """Half of the probability around each mode."""
    log_std = torch.tensor(math.log(SPREAD))
    return torch.stack([gaussian(torch.tensor(mode), log_std) for mode in MODES]).logsumexp(0).log_softmax(-1)


def fitted(target_V: Tensor, forward: bool) -> Tensor:
    """The Gaussian of least KL(target || it), or of least KL(it || target), as descents from three starts find it.

    Backward, the middle is a local minimum as well, with all of the valley between the modes to pay for.
    """
    found = [descend(target_V, forward, start) for start in ((0.3, 0.5), (-1.0, -0.5), (1.1, -0.5))]
    return min(found, key=lambda q_V: float(kl_divergence(*((target_V, q_V) if forward else (q_V, target_V)))))


def descend(target_V: Tensor, forward: bool, start: tuple[float, float]) -> Tensor:
    """From a mean and the logarithm of a standard deviation."""
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        q_V = gaussian(parameters[0], parameters[1])
        value = kl_divergence(target_V, q_V) if forward else kl_divergence(q_V, target_V)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return gaussian(parameters[0], parameters[1]).detach()


def moments(log_p_V: Tensor) -> tuple[float, float]:
    """Mean and standard deviation on the grid."""
    p_V = log_p_V.exp()
    mean = float(p_V @ GRID)
    return mean, float((p_V @ (GRID - mean).square()).sqrt())


# ---- a model's distributions


@torch.inference_mode()
def with_and_without(model: str, length: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [R, V] at every position of a text's second half: with the first half before it, without."""
    loaded = subject(model)
    tokens_T, half = reading(loaded, length), length // 2
    pair = logits_of(decoder(loaded), tokens_T)[half:], logits_of(decoder(loaded), tokens_T[half:])
    with_RV, without_RV = (logits_RV.double().log_softmax(-1) for logits_RV in pair)
    return with_RV, without_RV


def between(p_RV: Tensor, q_RV: Tensor, step: float) -> Tensor:
    """From p to q along a straight line of logits, as training moves a policy away from its reference."""
    return ((1 - step) * p_RV + step * q_RV).log_softmax(-1)


def off_by_standard_errors(p_V: Tensor, q_V: Tensor, draws: int, generator: torch.Generator) -> float:
    """How far the estimators' means over real draws are from their sums, in standard errors; the largest."""
    log_r, weight_V = p_V - q_V, q_V.exp()
    drawn = torch.multinomial(weight_V, draws, replacement=True, generator=generator)
    off = []
    for estimator in ESTIMATORS.values():
        seen, expected = estimator(log_r)[drawn], weight_V @ estimator(log_r)
        off.append(float((seen.mean() - expected).abs() / (seen.std() / draws**0.5)))
    return max(off)


# ---- where it works


def links(p_RV: Tensor, q_RV: Tensor, generator: torch.Generator) -> list[Check]:
    """Distillation, preference tuning, speculation."""
    distilled = distillation_gap(p_RV[:4], q_RV[:4])
    tuned = tuning_slope(p_RV[0], generator)
    distance_R = (p_RV.exp() - q_RV.exp()).abs().sum(-1) / 2
    bound_R = (kl_divergence(p_RV, q_RV) / 2).sqrt()
    accepted_R = torch.minimum(p_RV, q_RV).exp().sum(-1)
    spoken = float((accepted_R - (1 - distance_R)).abs().max())
    return [
        check(
            distilled < 1e-12,
            f"distillation: cross-entropy with a teacher's probabilities is KL(teacher || student) plus the teacher's "
            f"entropy, with the same gradient (to {distilled:.0e})",
            f"蒸馏：以教师概率为目标的交叉熵等于 KL(教师 || 学生) 加教师的熵，梯度相同（相差 {distilled:.0e}）",
        ),
        check(
            tuned < 1e-9,
            "preference tuning: E[reward] - β KL(policy || reference) has no slope left at reference * exp(reward / "
            f"β) ({tuned:.0e})",
            f"偏好调优：E[奖励] - β KL(策略 || 参考) 在 参考 * exp(奖励 / β) 处斜率为零（{tuned:.0e}）",
        ),
        check(
            spoken < 1e-12 and bool((distance_R <= bound_R).all()),
            f"speculation: a draft is accepted with 1 - total variation, which √(KL / 2) bounds at all {len(p_RV)} "
            "positions",
            f"推测解码：草稿的接受率为 1 - 全变差距离；全部 {len(p_RV)} 个位置上它都不超过 √(KL / 2)",
        ),
    ]


def distillation_gap(teacher_RV: Tensor, student_RV: Tensor) -> float:
    """Largest difference of value and gradient between soft cross-entropy minus entropy, and KL."""
    student_RV = student_RV.clone().requires_grad_(True)
    soft_R = -(teacher_RV.exp() * student_RV.log_softmax(-1)).sum(-1)
    kl_R = kl_divergence(teacher_RV, student_RV)
    slopes = [torch.autograd.grad(loss_R.sum(), student_RV)[0] for loss_R in (soft_R, kl_R)]
    entropy_R = torch.special.entr(teacher_RV.exp()).sum(-1)
    return max(float(gap.detach().abs().max()) for gap in (soft_R - entropy_R - kl_R, slopes[0] - slopes[1]))


def tuning_slope(reference_V: Tensor, generator: torch.Generator) -> float:
    """Largest slope of the regularized reward, along the logits of the policy, at the closed form."""
    reward_V = torch.rand(len(reference_V), generator=generator, dtype=torch.float64)
    policy_V = (reference_V + reward_V / BETA).requires_grad_(True)
    value = policy_V.softmax(-1) @ reward_V - BETA * kl_divergence(policy_V, reference_V)
    return float(torch.autograd.grad(value, policy_V)[0].abs().max())


# ---- what it comes to


COLUMNS = {
    "distributions": "",
    "KL(p || q)": "nats",
    "KL(q || p)": "nats",
    "drafts accepted": "%",
    **{f"{key} bias": "% of KL(q || p)" for key in ESTIMATORS},
    **{f"{key} std": "KL(q || p)" for key in ESTIMATORS},
}


def _cells(row: Row) -> list[Cell]:
    biases = [100 * bias for bias in row.bias.values()]
    return [row.name, row.forward, row.reverse, 100 * row.accepted, *biases, *row.std.values()]


def _plot(target_V: Tensor, wide_V: Tensor, narrow_V: Tensor) -> Plot:
    thin = slice(None, None, 16)
    density = 1 / float(GRID[1] - GRID[0])
    named = {"two modes": target_V, "least KL(p || q)": wide_V, "least KL(q || p)": narrow_V}
    return Plot(
        kind="line",
        x=Axis(label="x"),
        y=Axis(label="density"),
        series=[
            Series(name=name, x=GRID[thin].tolist(), y=(log_p_V.exp() * density)[thin].tolist())
            for name, log_p_V in named.items()
        ],
    )


def _checks(rows: list[Row], wide_V: Tensor, narrow_V: Tensor, off: float) -> list[Check]:
    coins, *_ = rows
    (middle, wide), (mode, narrow) = moments(wide_V), moments(narrow_V)
    expected = math.sqrt(MODES[1] ** 2 + SPREAD**2)
    close = rows[3:]
    unbiased = max(abs(row.bias[key]) for row in close for key in ("k1", "k3"))
    return [
        check(
            abs(coins.forward - 0.511) < 5e-4 and abs(coins.reverse - 0.368) < 5e-4,
            f"from (.5, .5) to (.9, .1) it is {coins.forward:.3f} nats, back {coins.reverse:.3f}",
            f"从 (.5, .5) 到 (.9, .1) 为 {coins.forward:.3f} 奈特，反向为 {coins.reverse:.3f}",
        ),
        check(
            abs(middle) < 0.01
            and abs(wide - expected) < 0.01
            and abs(abs(mode) - 2) < 0.1
            and abs(narrow / SPREAD - 1) < 0.1,
            f"of two modes at ±2 one direction covers both (mean {middle:.2f}, std {wide:.2f}), the other picks one "
            f"(mean {mode:.2f}, std {narrow:.2f})",
            f"对 ±2 处的两个峰，一个方向两个都盖住（均值 {middle:.2f}，标准差 {wide:.2f}），另一个方向只选一个"
            f"（均值 {mode:.2f}，标准差 {narrow:.2f}）",
        ),
        check(
            unbiased < 1e-6 and all(abs(a.bias["k2"]) < abs(b.bias["k2"]) for a, b in pairwise(close)) and off < 5,
            f"k1 and k3 are unbiased (to {unbiased:.0e}), k2 is not, and the further apart the worse: "
            + ", ".join(f"{row.bias['k2']:+.0%}" for row in close)
            + f"; draws agree (within {off:.1f} standard errors)",
            f"k1 与 k3 无偏（相差 {unbiased:.0e}）；k2 有偏，分布离得越远偏得越多："
            + "、".join(f"{row.bias['k2']:+.0%}" for row in close)
            + f"；抽样与之相符（{off:.1f} 个标准误以内）",
        ),
        check(
            close[0].std["k3"] < close[0].std["k1"],
            f"close to the reference k3 scatters less than k1: {close[0].std['k3']:.1f} against "
            f"{close[0].std['k1']:.1f} times the value",
            f"离参考分布近时 k3 比 k1 更稳：标准差为真值的 {close[0].std['k3']:.1f} 倍对 {close[0].std['k1']:.1f} 倍",
        ),
    ]


def _verdict(rows: list[Row], wide_V: Tensor, narrow_V: Tensor) -> Words:
    coins, covering, picking, near, _, far = rows
    return both(
        f"KL(p || q) is what q's surprise at p's draws costs beyond p's own: {coins.forward:.3f} nats from a fair "
        f"coin to (.9, .1), {coins.reverse:.3f} back. Made small in one direction it demands that q covers all of p "
        f"(a Gaussian of std {moments(wide_V)[1]:.2f} over two modes, KL {covering.forward:.2f}), in the other that "
        f"q goes nowhere where p is not (one mode, std {moments(narrow_V)[1]:.2f}, KL {picking.reverse:.2f}; ln 2 is "
        f"{math.log(2):.2f}). From draws, k3 scatters with {near.std['k3']:.1f} times the value near the reference "
        f"(k1: {near.std['k1']:.1f}) and {far.std['k3']:.1f} far from it (k1: {far.std['k1']:.1f}). Without its "
        f"first half of the text the model is {far.forward:.2f} nats a token from itself, and {far.accepted:.0%} of "
        "such a draft's tokens would be accepted.",
        f"KL(p || q) 是用 q 去猜 p 的样本比 p 自己多付的代价：从公平硬币到 (.9, .1) 为 {coins.forward:.3f} 奈特，反向"
        f"为 {coins.reverse:.3f}。朝一个方向最小化，要求 q 盖住整个 p（跨两峰的高斯，标准差 "
        f"{moments(wide_V)[1]:.2f}，KL {covering.forward:.2f}）；朝另一个方向，要求 q 不去 p 没有的地方（只占一峰，标"
        f"准差 {moments(narrow_V)[1]:.2f}，KL {picking.reverse:.2f}；ln 2 为 {math.log(2):.2f}）。靠抽样估计时，k3 的"
        f"标准差在参考附近为真值的 {near.std['k3']:.1f} 倍（k1 为 {near.std['k1']:.1f}），离远后为 "
        f"{far.std['k3']:.1f} 倍（k1 为 {far.std['k1']:.1f}）。去掉文本前半后，模型与自己每词元相差 "
        f"{far.forward:.2f} 奈特，这样的草稿会被接受 {far.accepted:.0%}。",
    )
