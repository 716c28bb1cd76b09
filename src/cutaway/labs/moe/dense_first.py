"""Dense first layers: what routing is like at the bottom of the stack, and what keeping it away from there changes.

DeepSeekMoE (Dai et al. 2024, arXiv:2401.06066, section 4.1.2) leaves the first layer dense because its load evens out
most slowly. Here models of equal active size differ in how many of their first layers are dense; looked at is the
lowest layer that has experts:

    explained by the token = I(expert; token) / H(expert)      0: any token goes anywhere, 1: a token fixes its expert

Counted over held-out text, for a token's first choice. Chance finds some of it too: that share, with tokens shuffled,
is taken off.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.moe.sparse import LENGTH, ROWS, TESTED, Remedy, Trained, experts_like, sparse, train
from cutaway.labs.training import next_bytes, prose, small_spec
from cutaway.models.cost import Cost
from cutaway.nn.balance import load_of

DENSE = (0, 1, 3)
LAYERS = 6


class Lowest(NamedTuple):
    """The lowest layer with experts, on held-out text. busiest: over the mean load.

    early: the same, of a step of the first half of training, mean.
    entropy: of the experts' loads; sharpness: of one token's shares of the scores, mean; both over log E, 1 if even.
    token: share of the first choice explained by the token. loss: of the model, nats per byte.
    """

    busiest: float
    early: float
    entropy: float
    sharpness: float
    token: float
    loss: float


class Arm(NamedTuple):
    """Models with so many dense first layers. active: parameters that a token uses."""

    dense: int
    active: int
    parameters: int
    by_seed: list[Lowest]

    def mean(self, name: str) -> float:
        """Of a measure of `Lowest`."""
        return statistics.mean(getattr(one, name) for one in self.by_seed)


COLUMNS = {
    "dense first layers": "",
    "active parameters": "",
    "parameters": "",
    "busiest of a step, first half": "times the mean",
    "busiest, held out": "times the mean",
    "entropy of loads": "of log E",
    "entropy of a token's scores": "of log E",
    "explained by the token": "%",
    "held-out loss": "nats/byte",
    "spread": "max - min",
}


@lab(
    "dense-first",
    title=both("Dense first layers", "底层保持稠密"),
    question=both(
        "What changes in routing and loss if expert layers start right at the bottom of the stack?",
        "如果从最底层就开始用专家层，路由和损失会有什么变化？",
    ),
    seconds={"quick": 4, "full": 110},
)
def dense_first(
    run: Run,
    *,
    width: Annotated[int, Knob("of the model", "模型宽度", quick=32, min=16, max=512)] = 96,
    experts: Annotated[int, Knob("in each layer; two are chosen", "每层专家数，选两个", min=4, max=64)] = 8,
    hidden: Annotated[int, Knob("units of an expert", "每个专家的隐藏单元数", quick=32, min=8, max=2048)] = 320,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=32, min=20, max=10**5)] = 120,
    rate: Annotated[float, Knob("learning rate", "学习率", quick=4e-3, min=1e-5, max=1.0)] = 2e-3,
    auxiliary: Annotated[float, Knob("weight of the balance loss", "均衡损失的权重", min=0.0, max=10.0)] = 0.02,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
) -> Finding:
    arms = []
    for dense in DENSE:
        spec = sparse(small_spec(width=width, layers=LAYERS), experts_like(hidden, experts, "softmax"), dense)
        found = [
            lowest(
                train(spec, Remedy(auxiliary), steps, seed, run, note=f"training, {dense} dense layers", lr=rate), steps
            )
            for seed in range(run.seed, run.seed + seeds)
        ]
        cost = Cost(spec)
        arms.append(Arm(dense, cost.active, cost.parameters, found))
    return Finding(
        table=table(COLUMNS, map(_row, arms)), plot=_plot(arms), verdict=_verdict(arms), checks=_checks(arms)
    )


def lowest(trained: Trained, steps: int) -> Lowest:
    """Looks at the first layer that routes."""
    batches, alone = trained.routings[0], trained._replace(counts_SLE=trained.counts_SLE[:, :1])
    load, tokens_T = load_of(*batches), held_out_tokens()
    share_TE = torch.cat([r.scores_TE / r.scores_TE.sum(-1, keepdim=True) for r in batches])
    even = math.log(share_TE.shape[1])
    return Lowest(
        load.busiest,
        statistics.mean(alone.busiest(step, step + 1) for step in range(steps // 2)),
        load.entropy / even,
        float(torch.special.entr(share_TE).sum(-1).mean()) / even,
        explained(tokens_T, torch.cat([r.chosen_TC[:, 0] for r in batches])),
        trained.loss,
    )


def held_out_tokens() -> Tensor:
    """The bytes that `read` shows every model, in its order."""
    text, generator = prose(), torch.Generator().manual_seed(0)
    test = next_bytes(text[len(text) * 9 // 10 :], LENGTH, ROWS)
    return torch.cat([test(generator).inputs_T for _ in range(TESTED)])


def explained(tokens_T: Tensor, expert_T: Tensor) -> float:
    """I(expert; token) / H(expert), less what is left when tokens are shuffled."""
    shuffled_T = tokens_T[torch.randperm(len(tokens_T), generator=torch.Generator().manual_seed(0))]
    told, chance = (ratio(some_T, expert_T) for some_T in (tokens_T, shuffled_T))
    return (told - chance) / (1 - chance)


def ratio(token_T: Tensor, expert_T: Tensor) -> float:
    """Mutual information over the entropy of the second, both as counted; 0 where the second is always the same."""
    experts = int(expert_T.max()) + 1
    joint = (token_T * experts + expert_T).bincount(minlength=int(token_T.max() + 1) * experts)
    p_VE = joint.view(-1, experts).double() / joint.sum()
    whole, tokens, choices = (float(torch.special.entr(p).sum()) for p in (p_VE, p_VE.sum(1), p_VE.sum(0)))
    return (tokens + choices - whole) / choices if choices > 0 else 0.0


def known(tokens_T: Tensor, experts: int = 8) -> tuple[float, float]:
    """The measure where it is known: an expert for each kind of token, and any expert for any token."""
    generator = torch.Generator().manual_seed(0)
    return (
        explained(tokens_T, tokens_T % experts),
        explained(tokens_T, torch.randint(experts, (len(tokens_T),), generator=generator)),
    )


# ---- what it comes to


def _row(arm: Arm) -> list[Cell]:
    losses = [one.loss for one in arm.by_seed]
    means = [arm.mean(name) for name in ("early", "busiest", "entropy", "sharpness")]
    spread = max(losses) - min(losses) if len(losses) > 1 else None
    return [arm.dense, arm.active, arm.parameters, *means, 100 * arm.mean("token"), arm.mean("loss"), spread]


def _plot(arms: Sequence[Arm]) -> Plot:
    names = {"token": "explained by the token", "entropy": "entropy of loads, of log E"}
    return Plot(
        kind="bar",
        x=Axis(label="dense first layers"),
        y=Axis(label="lowest layer with experts"),
        series=[
            Series(name=shown, x=[str(arm.dense) for arm in arms], y=[arm.mean(name) for arm in arms])
            for name, shown in names.items()
        ],
    )


def _checks(arms: Sequence[Arm]) -> list[Check]:
    sizes, token = [arm.active for arm in arms], [arm.mean("token") for arm in arms]
    apart, bounds = max(sizes) / min(sizes) - 1, known(held_out_tokens())
    return [
        check(
            apart < 0.03,
            f"a token uses as many parameters in all models, to {apart:.1%} (the routers)",
            f"各模型每个词元所用参数相同，相差 {apart:.1%}（路由器）",
        ),
        check(
            bounds[0] > 0.999 and abs(bounds[1]) < 0.02 and all(-0.02 < share <= 1 for share in token),
            f"where the token decides alone the measure says {bounds[0]:.0%}, where chance does {abs(bounds[1]):.0%}; "
            f"found are {min(token):.0%} to {max(token):.0%}",
            f"完全由词元决定时该度量为 {bounds[0]:.0%}，完全随机时为 {abs(bounds[1]):.0%}；实测 {min(token):.0%} 到 "
            f"{max(token):.0%}",
        ),
        check(
            all(one.loss < 0.75 * math.log(256) for arm in arms for one in arm.by_seed),
            f"every model learns: losses up to {max(one.loss for arm in arms for one in arm.by_seed):.2f}",
            f"每个模型都学会了：损失不超过 {max(one.loss for arm in arms for one in arm.by_seed):.2f}",
        ),
    ]


def _verdict(arms: Sequence[Arm]) -> Words:
    def listed(name: str, form: str) -> str:
        return ", ".join(format(arm.mean(name), form) for arm in arms)

    spread = max(max(o.loss for o in a.by_seed) - min(o.loss for o in a.by_seed) for a in arms)
    dense, seeds = ", ".join(map(str, DENSE)), len(arms[0].by_seed)
    return both(
        f"With {dense} dense first layers, at equal active size, the token alone explains {listed('token', '.0%')} of "
        f"where the lowest layer with experts sends it. That layer's busiest expert has {listed('busiest', '.2f')} "
        f"times the mean load on held-out text ({listed('early', '.2f')} in a step of the first half of training), "
        f"its loads have {listed('entropy', '.0%')} and a token's scores {listed('sharpness', '.1%')} of the entropy "
        f"of even ones. Held-out losses are {listed('loss', '.3f')} nats per byte (seeds: {seeds}; at most "
        f"{spread:.3f} apart); layers without experts also make the model smaller: {arms[0].parameters:,} to "
        f"{arms[-1].parameters:,} parameters.",
        f"激活规模相同，底部 {dense} 层稠密时，最低的专家层的去向分别有 {listed('token', '.0%')} 由词元本身决定。该层"
        f"最忙专家在测试文本上的负载是平均的 {listed('busiest', '.2f')} 倍（训练前半程每步为 "
        f"{listed('early', '.2f')}），负载的熵为均匀时的 {listed('entropy', '.0%')}，单个词元分数的熵为 "
        f"{listed('sharpness', '.1%')}。测试损失为 {listed('loss', '.3f')} 奈特/字节（{seeds} 个种子，最多相差 "
        f"{spread:.3f}）；稠密层也使总参数从 {arms[0].parameters:,} 降到 {arms[-1].parameters:,}。",
    )
