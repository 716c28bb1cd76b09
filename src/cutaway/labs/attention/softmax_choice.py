"""Why softmax: the same small model with other ways from scores to weights, and with other temperatures.

The weightings are those of `cutaway.nn.simplex`; each trains a decoder of its own on the same batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import Batch, fit, fresh, next_bytes, prose, small_spec
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.attention import BlockDiagonal, Question
from cutaway.nn.patterns import CAUSAL, mask
from cutaway.nn.simplex import WEIGHTINGS, sparsemax, weighted

LENGTH, ROWS, TESTED = 128, 6, 8
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
HOT = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)

COLUMNS = {
    "weights by": "",
    "temperature": "",
    "seed": "",
    "held-out loss": "nats/byte",
    "entropy": "nats",
    "weights of zero": "%",
    "sum of a row": "",
}


@dataclass
class Seen:
    """What went by: of every layer, the mean entropy of rows (shares of their sum), zeros, sums."""

    entropy: list[float] = field(default_factory=list)
    zeros: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    def note(self, weights_BHQS: Tensor, seen_QS: Tensor) -> None:
        sums_BHQ = weights_BHQS.sum(-1)
        shares_BHQS = weights_BHQS / sums_BHQ.clamp_min(1e-30)[..., None]
        self.entropy.append(float(torch.special.entr(shares_BHQS).sum(-1).mean()))
        self.zeros.append(float((weights_BHQS == 0)[..., seen_QS].float().mean()))
        self.sums.append(float(sums_BHQ.mean()))


class Weighted(BlockDiagonal):
    """Causal attention within sequences of equal length, with weights of another kind."""

    def __init__(self, lengths: list[int], name: str, temperature: float = 1.0, watch: Seen | None = None) -> None:
        super().__init__(lengths)
        self.name, self.temperature, self.watch = name, temperature, watch

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        assert v_TGK is not None
        seen_QS = mask(CAUSAL, self.lengths[0])
        q, k, v = (x.unflatten(0, (len(self.lengths), -1)).transpose(1, 2) for x in (q_THK, k_TGK, v_TGK))
        weights_BHQS = weighted(self.name, q @ k.mT * question.scale, seen_QS, self.temperature)
        if self.watch:
            self.watch.note(weights_BHQS, seen_QS)
        return (weights_BHQS @ v).transpose(1, 2).flatten(0, 1)


class Outcome(NamedTuple):
    """A trained model read at a temperature: its held-out loss, and what its weights are like."""

    name: str
    temperature: float
    seed: int
    loss: float
    entropy: float
    zeros: float
    sums: float


@lab(
    "softmax-choice",
    title=both("Why softmax", "为什么用 softmax"),
    question=both(
        "Why softmax for the weights, could another function do, and what does a temperature inside it change?",
        "注意力权重为什么用 softmax，换别的函数行吗，其中的温度改变什么？",
    ),
    seconds={"quick": 3, "full": 240},
)
def softmax_choice(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the models", "模型宽度", quick=32, min=16, max=1024)] = 128,
    layers: Annotated[int, Knob("their blocks", "模型层数", quick=2, min=1, max=48)] = 5,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=30, min=10, max=100_000)] = 140,
    seeds: Annotated[int, Knob("models of each kind", "每种模型的个数", quick=1, min=1, max=20)] = 3,
) -> Finding:
    spec, found = small_spec(width=width, layers=layers), list[Outcome]()
    for name in WEIGHTINGS:
        for seed in range(run.seed, run.seed + seeds):
            model = trained(name, spec, steps, seed, run)
            first = seed == run.seed
            found += [read(model, name, t, seed) for t in TEMPERATURES if t == 1 or (first and name == "softmax")]
    entropies = [entropy_at(t, run) for t in HOT]
    return Finding(
        table=table(COLUMNS, (_row(o) for o in found)),
        plot=_plot(found),
        verdict=_verdict(found, steps),
        checks=_checks(found, entropies, optimality(run)),
    )


def parts() -> tuple[Tensor, Tensor]:
    """Nine tenths of the text to learn from, one to test on."""
    text = prose()
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def trained(name: str, spec: Spec, steps: int, seed: int, run: Run) -> Decoder:
    """A decoder whose attention weights by `name`."""
    model, task = fresh(spec, seed), next_bytes(parts()[0], LENGTH, ROWS)
    fit(model.parameters(), lambda g: loss_of(model, task(g), name), steps, run, name, seed=seed, lr=4e-3, warmup=10)
    return model


def loss_of(model: Decoder, batch: Batch, name: str, temperature: float = 1.0, watch: Seen | None = None) -> Tensor:
    """Mean cross-entropy, nats."""
    context = Weighted(batch.lengths, name, temperature, watch)
    hidden_TD = model(batch.inputs_T, positions_of(batch.lengths), context)
    return F.cross_entropy(model.logits(hidden_TD), batch.targets_T)


@torch.no_grad()
def read(model: Decoder, name: str, temperature: float, seed: int) -> Outcome:
    """On text that it was not trained on, the same for all."""
    task, generator, watch = next_bytes(parts()[1], LENGTH, ROWS), torch.Generator().manual_seed(0), Seen()
    losses = [float(loss_of(model, task(generator), name, temperature, watch)) for _ in range(TESTED)]
    seen = (statistics.mean(values) for values in (losses, watch.entropy, watch.zeros, watch.sums))
    return Outcome(name, temperature, seed, *seen)


def entropy_at(temperature: float, run: Run, keys: int = 64) -> float:
    """Mean entropy of softmax weights over random scores of unit variance, as a share of ln n."""
    scores_QS = torch.randn(256, keys, generator=run.generator(), dtype=torch.float64)
    weights_QS = weighted("softmax", scores_QS, torch.ones(keys, dtype=torch.bool), temperature)
    return float(torch.special.entr(weights_QS).sum(-1).mean()) / math.log(keys)


def optimality(run: Run) -> float:
    """How far sparsemax is from the nearest point of the simplex, by the conditions that single it out.

    Weights are not negative and sum to one; s - w is the same number wherever w > 0, and at most that elsewhere.
    """
    scores_QS = 2 * torch.randn(200, 40, generator=run.generator(), dtype=torch.float64)
    w_QS = sparsemax(scores_QS, torch.ones(40, dtype=torch.bool))
    rest_QS = scores_QS - w_QS
    threshold_Q1 = rest_QS.amax(-1, keepdim=True)
    uneven = (threshold_Q1 - rest_QS)[w_QS > 0].abs().max()
    return float(torch.stack([uneven, (w_QS.sum(-1) - 1).abs().max(), (-w_QS).max().clamp_min(0)]).max())


def _row(o: Outcome) -> list[Cell]:
    return [o.name, o.temperature, o.seed, o.loss, o.entropy, 100 * o.zeros, o.sums]


def losses(found: Iterable[Outcome], name: str) -> list[float]:
    """One per seed, at the temperature of training."""
    return [o.loss for o in found if o.name == name and o.temperature == 1]


def sweep(found: list[Outcome]) -> list[Outcome]:
    """One softmax model at all temperatures."""
    return [o for o in found if o.name == "softmax" and o.seed == found[0].seed]


def _plot(found: list[Outcome]) -> Plot:
    means = [statistics.mean(losses(found, name)) for name in WEIGHTINGS]
    return Plot(
        kind="bar",
        x=Axis(label="weights by"),
        y=Axis(label="held-out loss, nats per byte"),
        series=[Series(name="mean over seeds", x=list(WEIGHTINGS), y=means)],
    )


def _checks(found: list[Outcome], entropies: list[float], off: float) -> list[Check]:
    worst = max(o.loss for o in found if o.temperature == 1)
    trained_entropies = [o.entropy for o in sweep(found)]
    return [
        check(
            worst < 0.9 * math.log(256),
            f"all four learn to predict text: {worst:.2f} nats per byte at most, guessing has {math.log(256):.2f}",
            f"四种都能学会预测文本：每字节至多 {worst:.2f} 奈特，瞎猜为 {math.log(256):.2f}",
        ),
        check(
            all(a < b for a, b in pairwise(entropies)) and entropies[-1] > 0.9999,
            f"over random scores the entropy of softmax weights rises with every temperature, from {entropies[0]:.0%} "
            f"of ln n at {HOT[0]} to {entropies[-1]:.3%} at {HOT[-1]:.0f}",
            f"随机分数上，softmax 权重的熵随温度逐级上升：温度 {HOT[0]} 时为 ln n 的 {entropies[0]:.0%}，"
            f"{HOT[-1]:.0f} 时为 {entropies[-1]:.3%}",
        ),
        check(
            all(a < b for a, b in pairwise(trained_entropies)),
            f"in the trained model too, from {trained_entropies[0]:.2f} to {trained_entropies[-1]:.2f} nats",
            f"训练好的模型里也是如此：从 {trained_entropies[0]:.2f} 到 {trained_entropies[-1]:.2f} 奈特",
        ),
        check(
            off < 1e-9,
            f"sparsemax is the nearest point of the simplex, to {off:.0e}",
            f"sparsemax 就是单纯形上最近的点，误差 {off:.0e}",
        ),
    ]


def _verdict(found: list[Outcome], steps: int) -> Words:
    told = {name: losses(found, name) for name in WEIGHTINGS}
    en = ", ".join(f"{name} {statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for name, v in told.items())
    zh = "、".join(f"{name} {statistics.mean(v):.3f}（{min(v):.3f} 到 {max(v):.3f}）" for name, v in told.items())
    best = min(told, key=lambda name: statistics.mean(told[name]))
    zeros = statistics.mean(o.zeros for o in found if o.name == "sparsemax")
    cold, hot, own = sweep(found)[0], sweep(found)[-1], next(o for o in sweep(found) if o.temperature == 1)
    return both(
        f"Other functions do. Held-out loss in nats per byte after {steps} steps, {len(told[best])} model(s) each: "
        f"{en}; the lowest here is that of {best}. What softmax has: positive weights that sum to one, at any length. "
        f"Sparsemax sets {zeros:.0%} of the weights to exactly zero. Temperature trades sharp for even: read at "
        f"{cold.temperature} the trained softmax model's loss is {cold.loss:.3f}, at 1 {own.loss:.3f}, at "
        f"{hot.temperature:.0f} {hot.loss:.3f}.",
        f"别的函数也行。训练 {steps} 步、每种 {len(told[best])} 个模型的留出损失（每字节奈特）：{zh}；此处最低的是 "
        f"{best}。softmax 的长处是：任何长度下权重为正且和为一。sparsemax 把 {zeros:.0%} 的权重变成正好为零。温度在"
        f"尖锐与均匀之间取舍：训练好的 softmax 模型在温度 {cold.temperature} 下损失为 {cold.loss:.3f}，1 时 "
        f"{own.loss:.3f}，{hot.temperature:.0f} 时 {hot.loss:.3f}。",
    )
