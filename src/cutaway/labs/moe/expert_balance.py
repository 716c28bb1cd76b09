"""Uneven load: how experts starve, and what a further loss, a bias of the choice and a capacity do about it.

    auxiliary loss    E * sum of (choices that fell on it) * (its mean score)      GShard, Switch (arXiv:2101.03961)
    bias              +- speed on what is chosen by, never on what is weighed      DeepSeek-V3 (arXiv:2408.15664)
    capacity          a full expert turns tokens away                              GShard (arXiv:2006.16668)
    z-loss            squared log-partition of the logits                          ST-MoE (arXiv:2202.08906)

Models of English bytes are trained from an even start, and from one in which two experts of each layer are ahead.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.moe.sparse import CHOSEN, Remedy, Trained, experts_like, routers, sparse, train
from cutaway.labs.training import small_spec
from cutaway.models.cost import Cost
from cutaway.nn.balance import balance_loss, load_of, z_loss
from cutaway.nn.routing import Routing

AUXILIARY, CAPACITY, Z = 0.1, 1.25, 0.01
HEAD_START = 3.0  # of two experts' logits
FACTORS = (1.0, 1.25, 1.5, 2.0, 4.0)  # capacities
REMEDIES = {
    "none": Remedy(),
    "auxiliary loss": Remedy(auxiliary=AUXILIARY),
    "bias": Remedy(speed=1.0),  # times that of the knob
    "capacity": Remedy(capacity=CAPACITY),
    "z-loss": Remedy(z=Z),
    "auxiliary loss and z-loss": Remedy(auxiliary=AUXILIARY, z=Z),
}
COMPARED = ("none", "auxiliary loss", "bias")  # from both starts


class Arm(NamedTuple):
    """A remedy and a start. first: busiest over the mean load, of the first step; loads: of each tenth of the steps.

    loss: by seed, nats per byte. idle: experts that held-out text leaves alone, mean over layers. dropped: share of its
    choices by capacity. logits: root mean square of their log-partition.
    """

    remedy: str
    ahead: bool
    first: float
    loads: list[float]
    loss: list[float]
    idle: float
    dropped: list[float]
    logits: float

    @property
    def name(self) -> str:
        return self.remedy + (", two ahead" if self.ahead else "")


@lab(
    "expert-balance",
    title=both("Uneven load on experts, and what helps", "专家负载失衡与对策"),
    question=both(
        "What goes wrong when training experts, and what do the usual remedies do?",
        "训练专家模型时会出什么问题？常用的对策各起什么作用？",
    ),
    seconds={"quick": 8, "full": 280},
)
def expert_balance(
    run: Run,
    *,
    width: Annotated[int, Knob("of the model", "模型宽度", quick=48, min=16, max=512)] = 96,
    layers: Annotated[int, Knob("its blocks", "层数", quick=2, min=1, max=16)] = 4,
    experts: Annotated[int, Knob("in each layer; two are chosen", "每层专家数，选两个", min=4, max=64)] = 8,
    hidden: Annotated[int, Knob("units of an expert", "每个专家的隐藏单元数", quick=48, min=8, max=2048)] = 512,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=60, min=20, max=10**5)] = 200,
    rate: Annotated[float, Knob("learning rate", "学习率", quick=2e-3, min=1e-5, max=1.0)] = 1e-3,
    speed: Annotated[
        float, Knob("of the bias, at the first step", "偏置第一步的步长", quick=0.04, min=1e-4, max=1.0)
    ] = 0.02,
    seeds: Annotated[int, Knob("from the uneven start", "不均衡起点的种子数", quick=1, min=1, max=16)] = 3,
) -> Finding:
    trained = {}
    for ahead, names in ((False, tuple(REMEDIES)), (True, COMPARED)):
        for name in names:
            remedy = REMEDIES[name]._replace(speed=speed * REMEDIES[name].speed)
            kind = experts_like(hidden, experts, "sigmoid", remedy.capacity)
            spec = sparse(small_spec(width=width, layers=layers), kind)
            head_start = HEAD_START if ahead else 0.0
            trained[name, ahead] = [
                train(spec, remedy, steps, seed, run, note=f"training, {name}", head_start=head_start, lr=rate)
                for seed in range(run.seed, run.seed + (seeds if ahead else 1))
            ]
    arms = [measured(name, ahead, found, steps) for (name, ahead), found in trained.items()]
    told = Cost(spec).parameters
    return Finding(
        table=_table(arms),
        plot=_plot(arms, steps),
        verdict=_verdict(arms, told, experts),
        checks=[*known(experts), never_weighs(trained["bias", True][0]), *_checks(arms, experts)],
    )


def measured(remedy: str, ahead: bool, found: list[Trained], steps: int) -> Arm:
    """Means over seeds, but for the losses."""
    tenths = [(steps * i // 10, steps * (i + 1) // 10) for i in range(10)]
    layers = [batches for one in found for batches in one.routings]
    return Arm(
        remedy,
        ahead,
        statistics.mean(one.busiest(0, 1) for one in found),
        [statistics.mean(one.busiest(*tenth) for one in found) for tenth in tenths],
        [one.loss for one in found],
        statistics.mean(load_of(*batches).idle for batches in layers),
        [statistics.mean(dropped(batches, factor) for batches in layers) for factor in FACTORS],
        statistics.mean(float(z_loss(batches[-1])) for batches in layers) ** 0.5,
    )


def dropped(batches: list[Routing], factor: float) -> float:
    """Share of the choices for which experts would have no room at this capacity, each batch on its own."""
    over = torch.stack([r.counts_E - factor * r.counts_E.sum() / len(r.counts_E) for r in batches])
    return float(over.floor().clamp(min=0).sum() / sum(r.chosen_TC.numel() for r in batches))


# ---- what holds whatever is trained


def routing_of(chosen_TC: Tensor, scores_TE: Tensor) -> Routing:
    """A router that decided so."""
    return Routing(scores_TE.log(), scores_TE, chosen_TC, scores_TE.gather(1, chosen_TC))


def known(experts: int) -> list[Check]:
    """The auxiliary loss where its value is known: everyone used alike, and all on the same."""
    token_T1 = torch.arange(experts)[:, None]
    even_TE, same_TE = torch.full((experts, experts), 1 / experts), torch.eye(experts)[:1].expand(experts, -1)
    one = float(balance_loss(routing_of(token_T1, even_TE)))
    two = float(balance_loss(routing_of(torch.cat([token_T1, (token_T1 + 1) % experts], 1), even_TE)))
    worst = float(balance_loss(routing_of(torch.zeros_like(token_T1), same_TE)))
    return [
        check(
            max(abs(one - 1), abs(two - CHOSEN), abs(worst - experts)) < 1e-5,
            f"the auxiliary loss is {one:g} with one choice and {two:g} with two if perfectly balanced, and "
            f"{worst:g} of {experts} experts if every token goes to the same one",
            f"完全均衡时辅助损失在选一个时为 {one:g}、选两个时为 {two:g}；所有词元都去同一专家时（共 {experts} "
            f"个）为 {worst:g}",
        )
    ]


def never_weighs(trained: Trained) -> Check:
    """Held against the definition: chosen by score + bias, weighed by score alone."""
    wrong, moved, tokens = 0.0, 0, 0
    for router, batches in zip(routers(trained.model), trained.routings, strict=True):
        for r in batches:
            assert router.choice_bias is not None
            scores_TC = r.logits_TE.sigmoid().gather(1, r.chosen_TC)
            wrong = max(wrong, float((r.weights_TC - scores_TC / scores_TC.sum(-1, keepdim=True)).abs().max()))
            plain_TC = r.logits_TE.topk(CHOSEN).indices
            moved += int((plain_TC.sort(-1).values != r.chosen_TC.sort(-1).values).any(-1).sum())
            tokens += len(r.chosen_TC)
    return check(
        wrong < 1e-6 and moved > 0,
        f"the bias moves the choice of {moved / tokens:.0%} of held-out tokens and is never in their weights, which "
        f"are the scores' alone (to {wrong:.0e})",
        f"偏置改变了 {moved / tokens:.0%} 的测试词元的选择，但从不进入权重；权重只由分数决定（相差 {wrong:.0e}）",
    )


# ---- what it comes to


def _table(arms: list[Arm]) -> Table:
    columns = {"remedy": "", "start": "", "load, first step": "busiest / mean", "load, last tenth": "busiest / mean"}
    columns |= {"idle experts": "a layer", "held-out loss": "nats/byte", "spread": "max - min"}
    columns |= {"log-partition": "rms"} | {f"dropped at capacity {factor:g}": "%" for factor in FACTORS}
    return table(columns, map(_row, arms))


def _row(arm: Arm) -> list[Cell]:
    spread = max(arm.loss) - min(arm.loss) if len(arm.loss) > 1 else None
    start = "two ahead" if arm.ahead else "even"
    shares = [100 * share for share in arm.dropped]
    loss = statistics.mean(arm.loss)
    return [arm.remedy, start, arm.first, arm.loads[-1], arm.idle, loss, spread, arm.logits, *shares]


def _plot(arms: list[Arm], steps: int) -> Plot:
    middles = [steps * (i + 0.5) / 10 for i in range(10)]
    return Plot(
        kind="line",
        x=Axis(label="training step"),
        y=Axis(label="busiest / mean load"),
        series=[Series(name=arm.name, x=middles, y=arm.loads) for arm in arms],
    )


def _checks(arms: list[Arm], experts: int) -> list[Check]:
    by_name, worst = {arm.name: arm for arm in arms}, experts / CHOSEN
    stuck, eased = by_name["none, two ahead"], [by_name[f"{name}, two ahead"] for name in COMPARED[1:]]
    alone, with_z = by_name["none"], by_name["z-loss"]
    drops = [a.dropped for a in arms]
    return [
        check(
            stuck.loads[-1] > 0.9 * worst,
            f"two experts that start ahead stay ahead: the busiest has {stuck.loads[-1]:.2f} times the mean load at "
            f"the end, of {worst:g} at worst",
            f"领先的两个专家一直领先：结束时最忙者为平均负载的 {stuck.loads[-1]:.2f} 倍（最坏 {worst:g} 倍）",
        ),
        check(
            all(arm.loads[-1] < 0.7 * stuck.loads[-1] for arm in eased),
            f"from the same start the auxiliary loss ends at {eased[0].loads[-1]:.2f}, the bias at "
            f"{eased[1].loads[-1]:.2f}",
            f"同样起点，辅助损失最终为 {eased[0].loads[-1]:.2f}，偏置为 {eased[1].loads[-1]:.2f}",
        ),
        check(
            with_z.logits < alone.logits,
            f"the z-loss makes the logits' log-partition {with_z.logits:.2f} instead of {alone.logits:.2f}",
            f"z 损失使 logits 的对数配分由 {alone.logits:.2f} 变为 {with_z.logits:.2f}",
        ),
        check(
            all(a >= b for shares in drops for a, b in pairwise(shares)),
            f"capacity {FACTORS[0]:g} turns away {min(d[0] for d in drops):.0%} to {max(d[0] for d in drops):.0%} of "
            f"the choices, {FACTORS[-1]:g} {min(d[-1] for d in drops):.0%} to {max(d[-1] for d in drops):.0%}",
            f"容量 {FACTORS[0]:g} 丢弃 {min(d[0] for d in drops):.0%} 到 {max(d[0] for d in drops):.0%} 的选择，容量 "
            f"{FACTORS[-1]:g} 丢弃 {min(d[-1] for d in drops):.0%} 到 {max(d[-1] for d in drops):.0%}",
        ),
    ]


def _verdict(arms: list[Arm], parameters: int, experts: int) -> Words:
    by_name = {arm.name: arm for arm in arms}
    none, auxiliary, bias = (by_name[name] for name in COMPARED)
    ahead = [by_name[f"{name}, two ahead"] for name in COMPARED]
    losses = [statistics.mean(arm.loss) for arm in ahead]
    full, z = by_name["capacity"], by_name["z-loss"]
    return both(
        f"Left alone, a model of {parameters:,} parameters with {experts} experts a layer goes from a busiest expert "
        f"of {none.first:.2f} times the mean load at the first step to {none.loads[-1]:.2f}, with {none.idle:.1f} "
        f"experts of a layer idle on held-out text. With the auxiliary loss it ends at {auxiliary.loads[-1]:.2f}, "
        f"{max(auxiliary.loads):.2f} at most in a tenth of training, with the bias at {bias.loads[-1]:.2f}; a "
        f"capacity of {CAPACITY:g} alone ({full.loads[-1]:.2f}) turns away {full.dropped[1]:.0%} of the choices, and "
        f"with the z-loss alone the load ends at {z.loads[-1]:.2f}. From a start with two experts ahead: none "
        f"{ahead[0].loads[-1]:.2f}, auxiliary loss {ahead[1].loads[-1]:.2f}, bias {ahead[2].loads[-1]:.2f}, with "
        f"losses of {losses[0]:.3f}, {losses[1]:.3f} and {losses[2]:.3f} nats per byte (seeds: {len(ahead[0].loss)}).",
        f"不加干预时，一个 {parameters:,} 参数、每层 {experts} 个专家的模型，最忙专家的负载从第一步平均的 "
        f"{none.first:.2f} 倍变为 {none.loads[-1]:.2f} 倍，测试文本上每层有 {none.idle:.1f} 个专家闲置。加辅助损失后为"
        f" {auxiliary.loads[-1]:.2f}（训练各十分之一中最多 {max(auxiliary.loads):.2f}），加偏置后为 "
        f"{bias.loads[-1]:.2f}；只设容量 {CAPACITY:g}（{full.loads[-1]:.2f}）会丢弃 {full.dropped[1]:.0%} 的选择；只用"
        f" z 损失时最终为 {z.loads[-1]:.2f}。若起点有两个专家领先：无对策 {ahead[0].loads[-1]:.2f}，辅助损失 "
        f"{ahead[1].loads[-1]:.2f}，偏置 {ahead[2].loads[-1]:.2f}；损失分别为 {losses[0]:.3f}、{losses[1]:.3f}、"
        f"{losses[2]:.3f} 奈特/字节（{len(ahead[0].loss)} 个种子）。",
    )
