"""How far back can a network hear? Recurrence, recurrence with attention, and self-attention on one recall task.

    symbol  noise noise ... noise  question  ->  symbol
            `---- the gap ----´

A recurrent state passes through every token of the gap; attention looks at the symbol directly (Vaswani et al. 2017,
section 4: path length n against 1). The gradient that tells the first token what it should have said travels the same
way back (Hochreiter 1991; Bengio et al. 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.classics.seq2seq import AdditiveAttention, Seq2Seq
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.older_models import attentions, calls, fit_until, recurrences, seeded, size_of
from cutaway.labs.statistics import growth
from cutaway.labs.training import fresh, small_spec
from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal

SYMBOLS, NOISE = 8, 16
QUESTION = SYMBOLS + NOISE
VOCAB = QUESTION + 1
ROWS, TESTED = 32, 256
SOLVED = 0.05  # nats, mean over five steps


class Net(NamedTuple):
    """logits: sources_NS -> logits_NV of the answer. first: whose output holds the first token's row, S rows a
    sequence or S + 1. links: what carries something from one position to another, on the shortest way."""

    name: str
    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    first: nn.Module
    links: list[nn.Module]


class Found(NamedTuple):
    """One network at one gap. fresh: gradient from the loss to the first token before training. trained: from the right
    answer's logit after it. path: links between symbol and answer, counted. steps: until it was learned, or all."""

    name: str
    gap: int
    path: int
    fresh: float
    trained: float
    accuracy: float
    steps: int
    size: int


@lab(
    "long-range",
    title=both("How far back can a network hear?", "网络能听到多远以前？"),
    question=both(
        "Why does self-attention carry information further than recurrence or the attention bolted onto it?",
        "为什么自注意力比循环网络、比给循环网络外加的注意力传得更远？",
    ),
    seconds={"quick": 5, "full": 280},
)
def long_range(
    run: Run,
    *,
    longest: Annotated[
        int, Knob("longest gap; from 8 in steps of 4", "最长间隔；从 8 起每步乘 4", quick=32, min=32, max=2048)
    ] = 512,
    steps: Annotated[int, Knob("training steps at most", "训练步数上限", quick=80, min=1, max=10**5)] = 300,
    width: Annotated[int, Knob("of all networks", "所有网络的宽度", quick=48, min=8, max=512)] = 64,
    layers: Annotated[int, Knob("of the transformer", "Transformer 的层数", quick=1, min=1, max=8)] = 2,
) -> Finding:
    gaps = [g for g in (8 * 4**i for i in range(5)) if g <= longest]
    found = [
        measured(net, gap, steps, run)
        for gap in gaps
        for net in (make(width, gap, run.seed) for make in (lstm, lstm_with_attention, transformer_of(layers)))
    ]
    return Finding(
        table=table(COLUMNS, ([*f] for f in found)), plot=_plot(found), verdict=_verdict(found), checks=_checks(found)
    )


COLUMNS = {"network": "", "gap": "tokens", "path": "links", "gradient, fresh": "", "gradient, trained": ""}
COLUMNS |= {"accuracy": "", "training steps": "", "parameters": ""}
NAMES = LSTM, ATTENDED, TRANSFORMER = "LSTM", "LSTM + attention", "transformer"


# ---- networks


def lstm(width: int, gap: int, seed: int) -> Net:
    """Everything that is known of the source is its last state."""
    net = seeded(lambda: Seq2Seq(VOCAB, width, attention=False), seed)
    return Net(LSTM, net, lambda sources_NS: _answers(net, sources_NS), net.source, recurrences(net.encoder))


def lstm_with_attention(width: int, gap: int, seed: int) -> Net:
    """The same, and a look at every hidden state of the source."""
    net = seeded(lambda: Seq2Seq(VOCAB, width, attention=True), seed)
    links: list[nn.Module] = [part for part in net.modules() if isinstance(part, AdditiveAttention)]
    return Net(ATTENDED, net, lambda sources_NS: _answers(net, sources_NS), net.source, links)


def _answers(net: Seq2Seq, sources_NS: Tensor) -> Tensor:
    count, length = sources_NS.shape
    memory = net.read(sources_NS.flatten(), [length] * count)
    return net.logits(net(memory, torch.full((count,), QUESTION), [1] * count))


def transformer_of(layers: int) -> Callable[[int, int, int], Net]:
    """A decoder that reads source and question as one text. One layer is enough to look back."""

    def make(width: int, gap: int, seed: int) -> Net:
        net = fresh(small_spec(vocab=VOCAB, width=width, layers=layers, context=gap + 2), seed)

        def logits(sources_NS: Tensor) -> Tensor:
            tokens_NS = F.pad(sources_NS, (0, 1), value=QUESTION)
            lengths = [tokens_NS.shape[1]] * len(tokens_NS)
            hidden_TD = net(tokens_NS.flatten(), positions_of(lengths), BlockDiagonal(lengths))
            return net.logits(hidden_TD.unflatten(0, tokens_NS.shape)[:, -1])

        return Net(TRANSFORMER, net, logits, net.embedding, attentions(net)[:1])

    return make


# ---- measurements


def recall(rows: int, gap: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sources_NS that begin with a symbol, and the symbols."""
    symbol_N = torch.randint(SYMBOLS, (rows,), generator=generator)
    noise_NS = torch.randint(SYMBOLS, QUESTION, (rows, gap), generator=generator)
    return torch.cat([symbol_N[:, None], noise_NS], 1), symbol_N


def measured(net: Net, gap: int, steps: int, run: Run) -> Found:
    """A network before training, in training, and after it."""
    sources_NS, symbol_N = recall(TESTED, gap, torch.Generator().manual_seed(run.seed + 1))
    few = sources_NS[:8], symbol_N[:8]
    path = calls(net.links, lambda: net.logits(few[0]))
    before = heard(net, *few, lambda logits_NV, y_N: F.cross_entropy(logits_NV, y_N, reduction="sum"))

    def loss(generator: torch.Generator) -> Tensor:
        batch_NS, wanted_N = recall(ROWS, gap, generator)
        return F.cross_entropy(net.logits(batch_NS), wanted_N)

    taken = fit_until(net.module, loss, steps, run, goal=SOLVED, note=f"{net.name}, gap {gap}")
    after = heard(net, *few, lambda logits_NV, y_N: logits_NV.gather(1, y_N[:, None]).sum())
    with torch.no_grad():
        accuracy = float((net.logits(sources_NS).argmax(-1) == symbol_N).double().mean())
    return Found(net.name, gap, path, before, after, accuracy, taken, size_of(net.module))


def heard(net: Net, sources_NS: Tensor, symbol_N: Tensor, says: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Norm of the gradient at the first token's row, mean over sequences, in float64: it can be very small.

    says: what is differentiated, a sum over sequences of something made of logits_NV and the right answers.
    """
    rows: list[Tensor] = []
    handle = net.first.register_forward_hook(lambda module, inputs, out_TD: rows.append(out_TD))
    net.module.double()
    value = says(net.logits(sources_NS), symbol_N)
    (slope_TD,) = torch.autograd.grad(value, rows[:1])
    handle.remove()
    net.module.float()
    return float(slope_TD.unflatten(0, (len(sources_NS), -1))[:, 0].norm(dim=-1).mean())


def decay(found: Sequence[Found], name: str, which: Callable[[Found], float]) -> tuple[float, float]:
    """How a gradient shrinks over the gaps: by which factor per token, and as which power of the gap."""
    rows = [f for f in found if f.name == name]
    tokens = rows[-1].gap - rows[0].gap
    per_token = (max(which(rows[-1]), 5e-324) / which(rows[0])) ** (1 / tokens)
    return per_token, growth([f.gap for f in rows], [max(which(f), 5e-324) for f in rows])


# ---- what it comes to


def _plot(found: Sequence[Found]) -> Plot:
    def series(name: str) -> Series:
        rows = [f for f in found if f.name == name]
        return Series(name=name, x=[float(f.gap) for f in rows], y=[max(f.fresh, 1e-300) for f in rows])

    return Plot(
        kind="line",
        x=Axis(label="gap, tokens", log=True),
        y=Axis(label="gradient at the first token before training", log=True),
        series=[series(name) for name in NAMES],
    )


def _checks(found: Sequence[Found]) -> list[Check]:
    factor, _ = decay(found, LSTM, lambda f: f.fresh)
    powers = [decay(found, name, lambda f: f.fresh)[1] for name in (ATTENDED, TRANSFORMER)]
    paths = {name: [f.path for f in found if f.name == name] for name in NAMES}
    gaps = [f.gap for f in found if f.name == LSTM]
    seeing = [f.accuracy for f in found if f.name == TRANSFORMER]
    return [
        check(
            paths[LSTM] == [gap + 1 for gap in gaps] and {*paths[ATTENDED], *paths[TRANSFORMER]} == {1},
            f"counted: between symbol and answer lie {paths[LSTM][-1]} links of the recurrence at gap {gaps[-1]}, and "
            "one of attention at any gap",
            f"按计数：间隔 {gaps[-1]} 时符号与答案之间有 {paths[LSTM][-1]} 个循环环节，而注意力在任何间隔下都只有一个",
        ),
        check(
            factor < 0.9 and min(powers) > -1.5,
            f"before training the LSTM's gradient shrinks by a factor of {factor:.3f} with every token of the gap; "
            f"with attention as a power of the gap ({powers[0]:.2f}), in the transformer too ({powers[1]:.2f})",
            f"训练之前，间隔每多一个词元，LSTM 的梯度就乘以 {factor:.3f}；加注意力后只按间隔的幂次下降（"
            f"{powers[0]:.2f}），Transformer 也是（{powers[1]:.2f}）",
        ),
        check(
            min(seeing) > 0.9,
            f"the transformer learns to recall at every gap (accuracy {min(seeing):.0%} at least)",
            f"Transformer 在每个间隔上都学会了回忆（准确率至少 {min(seeing):.0%}）",
        ),
    ]


def _verdict(found: Sequence[Found]) -> Words:
    def each(say: Callable[[Found], str]) -> str:
        by_name = {name: [say(f) for f in found if f.name == name] for name in NAMES}
        return "; ".join(f"{name} {', '.join(said)}" for name, said in by_name.items())

    gaps = ", ".join(str(f.gap) for f in found if f.name == LSTM)
    accuracy, steps = each(lambda f: f"{f.accuracy:.0%}"), each(lambda f: str(f.steps))
    fresh, trained = each(lambda f: f"{f.fresh:.0e}"), each(lambda f: f"{f.trained:.0e}")
    return both(
        f"At gaps of {gaps} tokens, in this order. Accuracy: {accuracy} (chance {1 / SYMBOLS:.0%}), after training "
        f"steps: {steps}. Gradient from the loss to the first token before training: {fresh}. Attention decays too "
        "while it is fresh, because it averages over the gap, but as a power of it. After training, from the right "
        f"answer's logit: {trained}.",
        f"间隔依次为 {gaps} 个词元。准确率：{accuracy}（随机为 {1 / SYMBOLS:.0%}），所用训练步数：{steps}。训练之前损失"
        f"到第一个词元的梯度：{fresh}。注意力在训练之前会对整个间隔取平均，所以也会衰减，但只是间隔的幂次。训练之后，从"
        f"正确答案的 logit 到第一个词元的梯度：{trained}。",
    )
