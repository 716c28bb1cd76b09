"""What no position information costs: an encoder sees a bag of tokens, a decoder is told order by its mask.

    f(x in another order) = f(x) in that other order         attention sums over keys, all else works token by token

So to an encoder without positions "a before b" and "b before a" are one text. A causal decoder is different: what a
token sees depends on its place, and a second layer can read that off (Haviv et al. 2022, arXiv:2203.16634;
Kazemnejad et al. 2023, arXiv:2305.19466). Its first layer cannot: the last row sums embeddings, which know no place.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.schemes import SCHEMES, hidden_at, told_by
from cutaway.labs.training import IGNORED, Batch, accuracy_of, fit, fresh, loss_of, small_spec
from cutaway.models.decoder import Decoder

WORDS, LENGTH, ROWS, WIDTH = 16, 8, 48, 32  # fillers, tokens before the question, texts a step
FIRST, SECOND, QUESTION = WORDS, WORDS + 1, WORDS + 2
EXACT = 1e-6


class Arm(NamedTuple):
    """One kind of model."""

    name: str
    zh: str
    scheme: str
    causal: bool
    layers: int = 2


class Outcome(NamedTuple):
    """unlike: see `unlike`, of trained models, the largest over seeds. accuracy: of each seed. losses: of the first."""

    arm: Arm
    unlike: float
    accuracy: list[float]
    losses: list[float]


BLIND = Arm("encoder, no positions", "编码器，无位置", "no positions", causal=False)
SIGHTED = [
    Arm(f"encoder, {name}", f"编码器，{SCHEMES[name].zh}", name, causal=False) for name in ("learned table", "rotary")
]
MASKED = Arm("decoder, no positions", "解码器，无位置", "no positions", causal=True)
SHALLOW = Arm("decoder, no positions, one layer", "解码器，无位置，一层", "no positions", causal=True, layers=1)
ARMS = [BLIND, *SIGHTED, MASKED, SHALLOW]


@lab(
    "without-positions",
    title=both("Without positions", "没有位置信息"),
    question=both(
        "What would a Transformer lose if it got no position information at all?",
        "如果完全没有位置信息，Transformer 会失去什么？",
    ),
    seconds={"quick": 6, "full": 40},
)
def without_positions(
    run: Run,
    *,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=180, min=10, max=20_000)] = 600,
    seeds: Annotated[int, Knob("models of each kind", "每种模型的个数", quick=1, min=1, max=10)] = 3,
) -> Finding:
    found = [outcome(arm, steps, seeds, run) for arm in ARMS]
    return Finding(table=_table(found), plot=_plot(found), verdict=_verdict(found), checks=_checks(found))


def outcome(arm: Arm, steps: int, seeds: int, run: Run) -> Outcome:
    """Train the arm's models to say which of two tokens came first."""
    losses, accuracy, orders = [], [], []
    for seed in range(run.seed, run.seed + seeds):
        spec = small_spec(vocab=QUESTION + 1, width=WIDTH, layers=arm.layers, context=LENGTH + 1)
        model = fresh(told_by(arm.scheme, spec, arm.causal), seed, std=0.1)
        loss = partial(asked_loss, model)
        losses.append(fit(model.parameters(), loss, steps, run, arm.name, seed=seed, warmup=10).losses)
        accuracy.append(tested(model))
        orders.append(unlike(model, run.generator()))
    return Outcome(arm, max(orders), accuracy, losses[0])


# ---- the task


def texts(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fillers with one FIRST and one SECOND among them, then the question, [N, T]; and which of the two comes first."""
    text_NT = torch.randint(WORDS, (rows, LENGTH + 1), generator=generator)
    places_N2 = torch.rand(rows, LENGTH, generator=generator).argsort(-1)[:, :2]
    text_NT.scatter_(1, places_N2, torch.tensor([FIRST, SECOND]).expand(rows, 2))
    text_NT[:, -1] = QUESTION
    return text_NT, torch.where(places_N2[:, 0] < places_N2[:, 1], FIRST, SECOND)


def as_batch(text_NT: Tensor, answer_N: Tensor) -> Batch:
    """The last token of each text is asked."""
    target_NT = torch.full_like(text_NT, IGNORED)
    target_NT[:, -1] = answer_N
    return Batch(text_NT.flatten(), target_NT.flatten(), [text_NT.shape[1]] * len(text_NT))


def asked_loss(model: Decoder, generator: torch.Generator) -> Tensor:
    """What is trained on."""
    return loss_of(model, as_batch(*texts(ROWS, generator)))


def tested(model: Decoder) -> float:
    """Accuracy on fresh texts, each of them also with the two tokens exchanged: who ignores order gets one half."""
    text_NT, answer_N = texts(256, torch.Generator().manual_seed(10_000))
    both_NT, answers_N = (torch.cat([x, exchanged(x)]) for x in (text_NT, answer_N))
    return accuracy_of(model, as_batch(both_NT, answers_N))


def exchanged(tokens: Tensor) -> Tensor:
    """FIRST for SECOND and the other way around."""
    return torch.where(tokens == FIRST, SECOND, torch.where(tokens == SECOND, FIRST, tokens))


@torch.no_grad()
def unlike(model: Decoder, generator: torch.Generator) -> float:
    """How far f(x in another order) is from f(x) in that order, by the largest number in f(x); in float64."""
    twin = fresh(model.spec, 0).double()
    twin.load_state_dict(model.state_dict())
    text_NT, _ = texts(16, generator)
    order_T = torch.randperm(LENGTH + 1, generator=generator)
    plain_NTD = hidden_at(twin, text_NT)
    return float((hidden_at(twin, text_NT[:, order_T]) - plain_NTD[:, order_T]).abs().max() / plain_NTD.abs().max())


# ---- what it comes to


def _table(found: list[Outcome]) -> Table:
    columns = {
        "model": "",
        "change by another order of the tokens": "",
        "which came first: mean accuracy": "%",
        "lowest seed": "%",
        "highest seed": "%",
        "training loss, last tenth": "nats",
    }
    rows: list[list[Cell]] = [
        [o.arm.name, o.unlike, 100 * _mean(o), 100 * min(o.accuracy), 100 * max(o.accuracy), _settled(o)] for o in found
    ]
    return table(columns, rows)


def _plot(found: list[Outcome]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="training step"),
        y=Axis(label=f"loss, nats (guessing: {math.log(2):.2f})"),
        series=[Series(name=o.arm.name, x=[float(i) for i in range(len(o.losses))], y=o.losses) for o in found],
    )


def _mean(outcome: Outcome) -> float:
    return statistics.mean(outcome.accuracy)


def _settled(outcome: Outcome) -> float:
    return statistics.mean(outcome.losses[-max(1, len(outcome.losses) // 10) :])


def _checks(found: list[Outcome]) -> list[Check]:
    blind, table_, rotary, masked, shallow = found
    least = min(table_.unlike, rotary.unlike)
    return [
        check(
            blind.unlike < EXACT < 0.01 < least,
            f"without positions an encoder's rows change order with its tokens, to {blind.unlike:.0e}; with positions "
            f"they differ by at least {least:.2f} of the largest number",
            f"没有位置时，编码器的各行只随词元换序，误差 {blind.unlike:.0e}；有位置时相差至少为最大值的 {least:.2f}",
        ),
        check(
            all(abs(a - 0.5) < 0.01 for o in (blind, shallow) for a in o.accuracy),
            "“which token came first” stays at chance for an encoder and for one decoder layer, both without positions",
            "“哪个词元先出现”：没有位置的编码器、没有位置的单层解码器都停在瞎猜",
        ),
        check(
            min(*table_.accuracy, *rotary.accuracy) > 0.9,
            f"with positions the encoder solves it: {_mean(table_):.0%} (table), {_mean(rotary):.0%} (rotary)",
            f"有了位置编码器就能解：{_mean(table_):.0%}（表）、{_mean(rotary):.0%}（旋转）",
        ),
        check(
            min(masked.accuracy) > 0.7,
            f"two causal layers without positions beat chance: {_mean(masked):.0%}",
            f"没有位置的两层因果解码器好于瞎猜：{_mean(masked):.0%}",
        ),
    ]


def _verdict(found: list[Outcome]) -> Words:
    blind, table_, rotary, masked, shallow = found
    return both(
        f"Order. Without positions an encoder's output moves along with its tokens (difference {blind.unlike:.0e} in "
        f"float64, {table_.unlike:.2f} with a table, {rotary.unlike:.2f} with rotation): it reads a bag. Asked which "
        f"of two tokens came first, it is right in {_mean(blind):.0%}, a coin; with a table {_mean(table_):.0%}, with "
        f"rotation {_mean(rotary):.0%}. A causal decoder without positions is right in {_mean(masked):.0%}: its mask "
        f"shows each token another past, and its second layer reads that. With one layer it is {_mean(shallow):.0%} "
        f"again, for the last row then only sums embeddings.",
        f"失去的是次序。没有位置时，编码器的输出只跟着词元换位（float64 下相差 {blind.unlike:.0e}；用表为 "
        f"{table_.unlike:.2f}，旋转为 {rotary.unlike:.2f}）：它读到的是一袋词。问两个词元哪个先出现，它答对 "
        f"{_mean(blind):.0%}，等于抛硬币；用表 {_mean(table_):.0%}，用旋转 {_mean(rotary):.0%}。没有位置的因果解码器"
        f"答对 {_mean(masked):.0%}：掩码让每个词元看到不同的过去，第二层能读出来。只有一层时又是 "
        f"{_mean(shallow):.0%}，因为最后一行只是对词嵌入求和。",
    )
