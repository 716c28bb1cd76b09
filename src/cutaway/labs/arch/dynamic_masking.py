"""Masks drawn once or anew for each reading of a text (Liu et al. 2019, RoBERTa, arXiv:1907.11692, section 4.1).

BERT wrote its masked text down before training: in every epoch a sequence hides the same words. RoBERTa masks when a
sequence is read. The paper's own scores: 78.3 and 78.7 for F1 on SQuAD, 84.3 and 84.0 on MNLI: hardly a difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, NamedTuple, cast

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import Batch, fit, fresh, loss_of, prose, small_spec, with_layers
from cutaway.models.cost import Cost
from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.masking import Masked, mask_tokens

BYTES, MASK, LENGTH, ROWS = 256, 256, 64, 16  # bytes are words here; texts a step
HELD_OUT = 256  # texts from the end of the prose, each masked once for all
KINDS = ("static", "dynamic")

Masker = Callable[[int], Masked]
"""The masked texts of an epoch."""


class Outcome(NamedTuple):
    """masks: how many different ones a text showed, the mean over texts. seen: the loss of each epoch on what was read.
    other: the loss on other text in the end."""

    kind: str
    masks: float
    seen: list[float]
    other: float


@lab(
    "dynamic-masking",
    title=both("Static and dynamic masking", "静态掩码与动态掩码"),
    question=both(
        "RoBERTa hides other words each time a text is read, BERT always the same: does it matter?",
        "RoBERTa 每次读文本都遮住不同的词，BERT 总遮同一些：有区别吗？",
    ),
    seconds={"quick": 5, "full": 240},
)
def dynamic_masking(
    run: Run,
    *,
    epochs: Annotated[int, Knob("times that each text is read", "每段文本读几遍", min=2, max=100)] = 10,
    texts: Annotated[int, Knob("texts", "文本段数", quick=32, min=16, max=4096)] = 512,
    width: Annotated[int, Knob("width of the model", "模型宽度", quick=32, min=16, max=512)] = 128,
    layers: Annotated[int, Knob("its layers", "模型层数", quick=1, min=1, max=24)] = 5,
    seeds: Annotated[int, Knob("seeds", "随机种子数", quick=1, min=1, max=10)] = 2,
) -> Finding:
    spec = bidirectional(small_spec(vocab=BYTES + 1, width=width, layers=layers, context=LENGTH))
    outcomes = [trained(spec, kind, (texts, epochs), run, run.seed + i) for i in range(seeds) for kind in KINDS]
    return Finding(
        table=_table(outcomes),
        plot=_plot(outcomes, epochs),
        verdict=_verdict(outcomes, Cost(spec).parameters, epochs),
        checks=_checks(outcomes, epochs),
    )


def bidirectional(spec: Spec) -> Spec:
    """Every token sees every other."""
    attention = replace(cast(AttentionSpec, spec.layers[0].attention), causal=False)
    return with_layers(spec, lambda layer: replace(layer, attention=attention))


def texts_of(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Texts to read and texts held out, [count, LENGTH] each."""
    data = prose()
    last = len(data) - HELD_OUT * LENGTH
    starts = torch.randint(last - LENGTH, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([data[s : s + LENGTH] for s in starts.tolist()]), data[last:].view(HELD_OUT, LENGTH)


def masker(texts_NT: Tensor, kind: str, seed: int) -> Masker:
    """static: the same for each epoch."""
    return lambda epoch: mask_tokens(
        texts_NT, torch.Generator().manual_seed(seed + (epoch + 1) * (kind == "dynamic")), mask=MASK, vocab=BYTES
    )


def trained(spec: Spec, kind: str, size: tuple[int, int], run: Run, seed: int) -> Outcome:
    """Read so many texts so many times, then guess hidden words of others."""
    (texts, epochs), steps = size, size[0] // ROWS
    reading_NT, held_NT = texts_of(texts, seed)
    masked, model = masker(reading_NT, kind, 1000 * seed), fresh(spec, seed)
    batches = (batch for epoch in range(epochs) for batch in shuffled(masked(epoch), seed + epoch))
    fitted = fit(
        model.parameters(), lambda _: loss_of(model, next(batches)), epochs * steps, run, kind, seed=seed, warmup=10
    )
    held = mask_tokens(held_NT, torch.Generator().manual_seed(7), mask=MASK, vocab=BYTES)
    seen = [statistics.mean(fitted.losses[i * steps : (i + 1) * steps]) for i in range(epochs)]
    with torch.no_grad():
        return Outcome(kind, different(masked, epochs), seen, float(loss_of(model, batch_of(held, slice(None)))))


def shuffled(text: Masked, seed: int) -> Iterator[Batch]:
    """All texts once, `ROWS` at a time; the rest of the last ones is left out."""
    order = torch.randperm(len(text.inputs_T), generator=torch.Generator().manual_seed(seed))
    return (batch_of(text, rows) for rows in order[: len(order) // ROWS * ROWS].split(ROWS))


def batch_of(text: Masked, rows: Tensor | slice) -> Batch:
    """Some of the texts."""
    inputs, targets = text.inputs_T[rows], text.targets_T[rows]
    return Batch(inputs.flatten(), targets.flatten(), [LENGTH] * len(inputs))


def different(masked: Masker, epochs: int) -> float:
    """How many different sets of places a text has hidden, the mean over texts."""
    hidden = torch.stack([masked(epoch).targets_T >= 0 for epoch in range(epochs)], 1)
    return statistics.mean(len(torch.unique(rows, dim=0)) for rows in hidden)


# ---- what it comes to


def _table(outcomes: list[Outcome]) -> Table:
    columns = {
        "masks": "",
        "different masks per text": "",
        "loss on what is read, last epoch": "nats",
        "loss on other text": "nats",
    }
    rows: list[list[Cell]] = [[o.kind, o.masks, o.seen[-1], o.other] for o in outcomes]
    return table(columns, rows)


def _plot(outcomes: list[Outcome], epochs: int) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="epoch"),
        y=Axis(label="loss on what is read (nats)"),
        series=[
            Series(name=f"{o.kind}, run {i // len(KINDS) + 1}", x=[float(e + 1) for e in range(epochs)], y=o.seen)
            for i, o in enumerate(outcomes)
        ],
    )


def _of(outcomes: list[Outcome], kind: str, value: Callable[[Outcome], float]) -> float:
    return statistics.mean(value(o) for o in outcomes if o.kind == kind)


def _checks(outcomes: list[Outcome], epochs: int) -> list[Check]:
    return [
        check(
            _of(outcomes, "static", lambda o: o.masks) == 1,
            "masks drawn once are the same in every epoch",
            "只抽一次的掩码在每一轮都相同",
        ),
        check(
            _of(outcomes, "dynamic", lambda o: o.masks) == epochs,
            f"masks drawn anew are different in all {epochs} epochs",
            f"重新抽取的掩码在 {epochs} 轮中各不相同",
        ),
        check(
            all(o.seen[-1] < o.seen[0] and o.other < math.log(BYTES) for o in outcomes),
            "both learn: losses fall, and other text is guessed better than by chance",
            "两者都在学习：损失下降，对其他文本也猜得比瞎猜好",
        ),
    ]


def _verdict(outcomes: list[Outcome], parameters: int, epochs: int) -> Words:
    seen = [_of(outcomes, kind, lambda o: o.seen[-1]) for kind in KINDS]
    other = [_of(outcomes, kind, lambda o: o.other) for kind in KINDS]
    gains = [s.other - d.other for s, d in zip(outcomes[::2], outcomes[1::2], strict=True)]
    spread = ", ".join(f"{gain:+.3f}" for gain in gains)
    return both(
        f"In {epochs} epochs a text shows 1 mask if masks are drawn once and {epochs} if they are drawn anew. A model "
        f"of {parameters:,} parameters then guesses hidden bytes of other text at {other[0]:.3f} nats with static "
        f"and {other[1]:.3f} with dynamic masks (static minus dynamic, by seed: {spread}). On what it reads, in the "
        f"last epoch, it is at {seen[0]:.3f} and {seen[1]:.3f} (other text minus that: {other[0] - seen[0]:+.3f} and "
        f"{other[1] - seen[1]:+.3f}).",
        f"{epochs} 轮中，掩码只抽一次时一段文本有 1 种，重新抽取时有 {epochs} 种。{parameters:,} 个参数的模型随后"
        f"猜其他文本中被遮的字节：静态 {other[0]:.3f} nats，动态 {other[1]:.3f}（各种子的静态减动态：{spread}）。"
        f"对所读文本，末轮损失为 {seen[0]:.3f} 与 {seen[1]:.3f}（其他文本减所读文本：{other[0] - seen[0]:+.3f} 和 "
        f"{other[1] - seen[1]:+.3f}）。",
    )
