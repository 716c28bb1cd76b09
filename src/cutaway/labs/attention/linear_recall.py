"""What a kernel feature map gives up: recall from a state of fixed size (after Arora et al. 2023, arXiv:2312.04927).

One attention layer and nothing else: a set of (key, value) pairs to look up in, and some of the keys to ask for. A
softmax keeps all pairs; linear attention keeps one matrix of features x 64 numbers, whatever the number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit
from cutaway.nn.linear_attention import LinearSpec, linear

KEYS, VALUES, WIDTH, ASKED, ROWS = 1024, 64, 64, 16, 32
PAIRS = (4, 16, 64, 128, 256)
RATES = (2e-2, 5e-3)
MAPS: dict[str, LinearSpec | None] = {
    "softmax": None,
    "elu + 1": LinearSpec(1, WIDTH),
    "Taylor": LinearSpec(1, 7, "taylor"),  # 1 + 7 + 49 features, the most that a state of 64 x 64 has room for
    "random": LinearSpec(1, WIDTH, "random", WIDTH),
}


class Questions(NamedTuple):
    """B sets of N pairs, keys_BN and values_BN; M of the keys are asked for, asked_BM, with answers_BM."""

    keys_BN: Tensor
    values_BN: Tensor
    asked_BM: Tensor
    answers_BM: Tensor


class Recall(nn.Module):
    """A layer that looks up: embeddings, projections to queries and keys, attention, scores of the 64 values."""

    def __init__(self, spec: LinearSpec | None, generator: torch.Generator) -> None:
        super().__init__()
        self.phi = spec.map if spec else None
        inner = spec.head_dim if spec else WIDTH

        def drawn(rows: int, columns: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(rows, columns, generator=generator))

        self.keys, self.values = drawn(KEYS, WIDTH, 1.0), drawn(VALUES, WIDTH, WIDTH**-0.5)
        self.q, self.k = (drawn(WIDTH, inner, WIDTH**-0.5) for _ in range(2))
        self.out = drawn(WIDTH, VALUES, WIDTH**-0.5)

    def forward(self, questions: Questions) -> Tensor:
        """Scores_BMV."""
        q_BMK, k_BNK = (self.keys @ self.q)[questions.asked_BM], (self.keys @ self.k)[questions.keys_BN]
        v_BNK = self.values[questions.values_BN]
        if self.phi is None:
            return F.scaled_dot_product_attention(q_BMK, k_BNK, v_BNK) @ self.out
        sets_as_heads = (x.transpose(0, 1) for x in (self.phi(q_BMK), self.phi(k_BNK), v_BNK))
        return linear(*sets_as_heads).transpose(0, 1) @ self.out


@lab(
    "linear-recall",
    title=both("What linear attention cannot keep", "线性注意力记不住什么"),
    question=both(
        "What ability is given up when a kernel feature map replaces the softmax?",
        "用核特征映射替换 softmax，会失去什么能力？",
    ),
    seconds={"quick": 4, "full": 60},
)
def linear_recall(
    run: Run,
    *,
    steps: Annotated[
        int, Knob("training steps for each map", "每种映射的训练步数", quick=100, min=20, max=20_000)
    ] = 1000,
    sets: Annotated[int, Knob("sets to test on", "测试的集合数", quick=40, min=8, max=10_000)] = 200,
) -> Finding:
    found = {name: curve(name, spec, steps, sets, run) for name, spec in MAPS.items()}
    columns = {"pairs": ""} | {f"right, {name}": "%" for name in MAPS}
    rows = [[n, *(100 * accuracies[i] for accuracies in found.values())] for i, n in enumerate(PAIRS)]
    return Finding(table=table(columns, rows), plot=_plot(found), verdict=_verdict(found), checks=_checks(found))


def questions(pairs: int, sets: int, generator: torch.Generator) -> Questions:
    """Different keys within a set, any values; the same key may be asked for twice."""
    keys_BN = torch.rand(sets, KEYS, generator=generator).topk(pairs).indices
    values_BN = torch.randint(VALUES, (sets, pairs), generator=generator)
    at_BM = torch.randint(pairs, (sets, ASKED), generator=generator)
    return Questions(keys_BN, values_BN, keys_BN.gather(1, at_BM), values_BN.gather(1, at_BM))


def curve(name: str, spec: LinearSpec | None, steps: int, sets: int, run: Run) -> list[float]:
    """The share of right answers for each number of pairs, by the better of two models.

    A map that does not stand the learning rate of another must not be judged by it; the two are chosen between on
    sets of their own. The short profile has one rate.
    """
    rates = RATES[:1] if run.profile == "quick" else RATES
    models = [trained(f"{name}, rate {rate}", spec, steps, rate, run) for rate in rates]
    best = max(models, key=lambda model: sum(accuracies(model, sets, run.seed + 2)))
    return accuracies(best, sets, run.seed + 1)


def trained(note: str, spec: LinearSpec | None, steps: int, rate: float, run: Run) -> Recall:
    """On all numbers of pairs in turn."""
    model, turn = Recall(spec, run.generator()), iter(range(steps))
    loss = partial(loss_of, model, turn)
    fit(model.parameters(), loss, steps, run, note, seed=run.seed, lr=rate, warmup=20, weight_decay=0)
    return model


def accuracies(model: Recall, sets: int, seed: int) -> list[float]:
    """For each number of pairs."""
    generator = torch.Generator().manual_seed(seed)
    return [accuracy_of(model, questions(n, sets, generator)) for n in PAIRS]


def loss_of(model: Recall, turn: Iterator[int], generator: torch.Generator) -> Tensor:
    """Cross-entropy over one batch."""
    asked = questions(PAIRS[next(turn) % len(PAIRS)], ROWS, generator)
    return F.cross_entropy(model(asked).flatten(0, 1), asked.answers_BM.flatten())


@torch.no_grad()
def accuracy_of(model: Recall, asked: Questions) -> float:
    """Share of questions whose likeliest value is the right one."""
    return float((model(asked).argmax(-1) == asked.answers_BM).float().mean())


def state(spec: LinearSpec | None) -> str:
    """What is kept of the pairs."""
    return "all pairs" if spec is None else f"{spec.state[0][1]} × {WIDTH}"


def _plot(found: dict[str, list[float]]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="pairs to keep", log=True),
        y=Axis(label="% right"),
        series=[
            Series(name=f"{name} ({state(MAPS[name])})", x=[float(n) for n in PAIRS], y=[100 * a for a in accuracies])
            for name, accuracies in found.items()
        ],
    )


def _checks(found: dict[str, list[float]]) -> list[Check]:
    softmax, others = found["softmax"], {name: a for name, a in found.items() if name != "softmax"}
    ends = ", ".join(f"{name} {a[-1]:.0%}" for name, a in others.items())
    return [
        check(
            min(softmax) > 0.95,
            f"the softmax is right at least {min(softmax):.1%} of the time, up to {PAIRS[-1]} pairs",
            f"softmax 直到 {PAIRS[-1]} 对都至少答对 {min(softmax):.1%}",
        ),
        check(
            all(a[0] - a[-1] > 0.1 and a[-1] < softmax[-1] - 0.1 for a in others.values()),
            f"every map of about 64 features forgets as pairs exceed them: at {PAIRS[-1]} pairs {ends}",
            f"约 64 个特征的映射在对数超出后都会遗忘：{PAIRS[-1]} 对时 {ends}",
        ),
    ]


def _verdict(found: dict[str, list[float]]) -> Words:
    at = PAIRS.index(WIDTH)
    en = "; ".join(
        f"{name} (state {state(spec)}) {found[name][0]:.0%}, {found[name][at]:.0%} and {found[name][-1]:.0%}"
        for name, spec in MAPS.items()
        if spec
    )
    zh = "；".join(
        f"{name}（状态 {state(spec)}）{found[name][0]:.0%}、{found[name][at]:.0%}、{found[name][-1]:.0%}"
        for name, spec in MAPS.items()
        if spec
    )
    return both(
        f"Exact recall of many things. With {PAIRS[0]}, {WIDTH} and {PAIRS[-1]} pairs the softmax answers "
        f"{found['softmax'][0]:.0%}, {found['softmax'][at]:.0%} and {found['softmax'][-1]:.0%} right; {en}. A softmax "
        "keeps every key apart; in a matrix of fixed size pairs lie on top of each other, and many of them blur.",
        f"失去的是对大量内容的精确回忆。{PAIRS[0]}、{WIDTH}、{PAIRS[-1]} 对时，softmax 答对 {found['softmax'][0]:.0%}、"
        f"{found['softmax'][at]:.0%}、{found['softmax'][-1]:.0%}；{zh}。softmax 保留每个键；而在固定大小的"
        "矩阵里各对彼此叠加，越多越模糊。",
    )
