"""The best of n: how far it leads from the base model, what it gains, and what a scorer's mistakes make of it.

With distinct scores the best of n draws is outcome i with probability F_i^n - F_(i-1)^n, F the base model's cumulative
probability in order of score. Its divergence from the base model is at most ln n - (n - 1)/n (Beirami et al. 2024,
arXiv:2401.01879). What is selected is what the scorer likes; if its errors have heavy tails, the best of many is the
one it was most wrong about (Gao et al. 2022, arXiv:2210.10760).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab

COUNTS = (1, 2, 4, 16, 64, 256, 1024)


class Row(NamedTuple):
    """n: candidates. divergence, bound: nats. expected, drawn: best score of uniform ones, by formula and by draws.

    honest, heavy: true score of the chosen where the scorer's errors are normal, and where they have heavy tails.
    """

    n: int
    divergence: float
    bound: float
    expected: float
    drawn: float
    honest: float
    heavy: float


@lab(
    "best-of-n",
    title=both("The best of n candidates", "n 个候选里挑最好的"),
    question=both(
        "How do I draw several candidates and keep the best one without a human judge?",
        "怎样在没有人工评判的情况下抽多个候选并留下最好的？",
    ),
    seconds={"quick": 1, "full": 3},
)
def best_of_n(
    run: Run,
    *,
    outcomes: Annotated[
        int, Knob("outcomes of the toy model", "玩具模型的结果数", quick=2000, min=2, max=10**6)
    ] = 100_000,
    trials: Annotated[int, Knob("selections per n", "每个 n 的选择次数", quick=2000, min=100, max=10**6)] = 20_000,
) -> Finding:
    rows = [measure(n, outcomes, trials, run.generator()) for n in run.each(COUNTS, "candidates")]
    return Finding(
        table=table(COLUMNS, rows), plot=_plot(rows), verdict=_verdict(rows), checks=_checks(rows, outcomes, trials)
    )


def measure(n: int, outcomes: int, trials: int, generator: torch.Generator) -> Row:
    """One number of candidates."""
    base_M = torch.full((outcomes,), 1 / outcomes, dtype=torch.float64)
    score_M = torch.arange(1, outcomes + 1, dtype=torch.float64) / outcomes
    best_M = selected(base_M, n)
    drawn = sum(float(torch.rand(n, generator=generator).max()) for _ in range(trials)) / trials
    return Row(
        n=n,
        divergence=divergence(best_M, base_M),
        bound=math.log(n) - (n - 1) / n,
        expected=float((best_M * score_M).sum()),
        drawn=drawn,
        honest=chosen(n, trials, generator, heavy=False),
        heavy=chosen(n, trials, generator, heavy=True),
    )


def selected(base_M: Tensor, n: int) -> Tensor:
    """The distribution of the best of n draws; outcomes in order of their scores, the worst first."""
    cumulative_M = base_M.cumsum(0).clamp(max=1) ** n
    return cumulative_M.diff(prepend=cumulative_M.new_zeros(1))


def divergence(p_M: Tensor, q_M: Tensor) -> float:
    """KL(p || q), nats."""
    return float(torch.special.xlogy(p_M, p_M).sum() - torch.special.xlogy(p_M, q_M).sum())


def chosen(n: int, trials: int, generator: torch.Generator, heavy: bool) -> float:
    """Mean true score (standard normal) of the candidate whose score plus error is highest.

    heavy: errors of Student's t with 2 degrees of freedom, whose variance is infinite.
    """
    total = 0.0
    for _ in range(trials // 100):
        true_TN, error_TN, below_TN = torch.randn(3, 100, n, generator=generator)
        if heavy:
            other_TN = torch.randn(100, n, generator=generator)
            error_TN = error_TN / ((below_TN**2 + other_TN**2) / 2).sqrt()
        total += float(true_TN.gather(1, (true_TN + error_TN).argmax(1, keepdim=True)).sum())
    return total / (trials // 100 * 100)


COLUMNS = {
    "n": "candidates",
    "divergence": "nats",
    "ln n - (n - 1)/n": "nats",
    "expected best": "",
    "best, drawn": "",
    "true score, normal errors": "standard deviations",
    "true score, heavy errors": "standard deviations",
}


def _plot(rows: list[Row]) -> Plot:
    x = [float(row.n) for row in rows]
    return Plot(
        kind="line",
        x=Axis(label="candidates", log=True),
        y=Axis(label="true score of the chosen"),
        series=[
            Series(name="normal errors", x=x, y=[row.honest for row in rows]),
            Series(name="heavy errors", x=x, y=[row.heavy for row in rows]),
        ],
    )


def _peak(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row.heavy)


def _checks(rows: list[Row], outcomes: int, trials: int) -> list[Check]:
    peak, last, sixteen, error = _peak(rows), rows[-1], next(r for r in rows if r.n == 16), trials**-0.5
    close = [row for row in rows if row.n * 10 <= outcomes]
    return [
        check(
            all(-1e-9 <= row.divergence <= row.bound + 1e-9 for row in rows)
            and all(row.bound - row.divergence < 0.05 for row in close),
            f"the divergence never exceeds ln n - (n - 1)/n and comes within 0.05 nats of it: {sixteen.divergence:.3f} "
            f"of {sixteen.bound:.3f} at n = 16",
            f"散度从不超过 ln n - (n - 1)/n，且相差不到 0.05 纳特：n = 16 时为 {sixteen.divergence:.3f}，"
            f"上界 {sixteen.bound:.3f}",
        ),
        check(
            all(abs(row.expected - row.n / (row.n + 1)) <= 1 / outcomes for row in rows)
            and all(abs(row.drawn - row.expected) < 2 * error for row in rows),
            "the expected best of n uniform scores is n / (n + 1), by the formula and in the draws",
            "n 个均匀分数的最大值期望为 n / (n + 1)，公式与抽样一致",
        ),
        check(
            all(a.honest < b.honest for a, b in pairwise(rows)),
            "with normal errors of the scorer the true score rises with every n",
            "打分误差为正态时，真实分数随 n 一路上升",
        ),
        check(
            rows[0].heavy + 5 * error < peak.heavy and last.heavy + 3 * error < peak.heavy,
            f"with heavy-tailed errors it rises, peaks at n = {peak.n} and falls",
            f"误差为重尾时，它先升，在 n = {peak.n} 达到峰值，然后下降",
        ),
    ]


def _verdict(rows: list[Row]) -> Words:
    peak, last = _peak(rows), rows[-1]
    return both(
        f"Draw n, score each, keep the best. It leaves the base model by at most ln n - (n - 1)/n nats and gains ever "
        f"less: the expected rank of the best is n / (n + 1). A scorer with normal errors still gains at n = {last.n} "
        f"({last.honest:.2f} standard deviations). One with heavy-tailed errors is best at n = {peak.n} "
        f"({peak.heavy:.2f}); at {last.n} the chosen one is worth {last.heavy:.2f}, for it is the largest mistake.",
        f"抽 n 个、逐个打分、留下最好的。它偏离基础模型至多 ln n - (n - 1)/n 纳特，收益递减："
        "最好者的期望名次为 n / (n + 1)。"
        f"误差为正态的打分器在 n = {last.n} 时仍有收益（{last.honest:.2f} 个标准差）；"
        f"重尾误差的打分器在 n = {peak.n} 时最好"
        f"（{peak.heavy:.2f}），到 {last.n} 时选中的只值 {last.heavy:.2f}，因为它就是最大的误判。",
    )
