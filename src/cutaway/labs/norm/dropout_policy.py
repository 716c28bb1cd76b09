"""Dropout while pretraining, and while fine-tuning: one pass over fresh text, or many over a little.

Dropout is noise against memorizing (Srivastava et al. 2014, JMLR 15:1929). Where no text is seen twice there is
nothing to memorize, and the noise only costs: one-epoch language models are trained without it (PaLM, Chowdhery et
al. 2022, arXiv:2204.02311; Llama). A small text read again and again is another matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.labs.training import Batch, fit, fresh, loss_of, prose, small_spec, with_layers
from cutaway.models.cost import Cost
from cutaway.models.spec import Spec

ROWS, UNSEEN = 8, 256  # sequences per step, sequences for held-out losses


class Trained(NamedTuple):
    """Losses after training, nats per byte, without dropping anything: on the text learned, and held out."""

    p: float
    learned: float
    held_out: float


@lab(
    "dropout-policy",
    title=both("Dropout when pretraining and when fine-tuning", "预训练与微调的丢弃率"),
    question=both(
        "Should I keep dropout on when pretraining, and when fine-tuning?",
        "预训练时该不该开 dropout？微调时呢？",
    ),
    seconds={"quick": 5, "full": 200},
)
def dropout_policy(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the models", "模型宽度", quick=64, min=16, max=512)] = 128,
    layers: Annotated[int, Knob("their blocks", "层数", quick=2, min=1, max=32)] = 5,
    length: Annotated[int, Knob("bytes per sequence", "每个序列的字节数", quick=32, min=8, max=512)] = 48,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=100, min=20, max=10**5)] = 500,
    passes: Annotated[int, Knob("passes over the small text", "小文本的遍数", min=2, max=1000)] = 20,
    rates: Annotated[
        Literal["0 0.1 0.3", "0 0.3"], Knob("dropout probabilities", "丢弃概率", quick="0 0.3")
    ] = "0 0.1 0.3",
    model: Annotated[str, Knob("the model whose configuration is shown", "展示其配置的模型")] = MODEL,
) -> Finding:
    spec = small_spec(width=width, layers=layers)
    sequences, unseen = shuffled(length, steps * ROWS, run.generator())
    texts = {"one pass": sequences, f"{passes} passes": sequences[: max(1, len(sequences) // passes)]}
    found = {
        name: [train(spec, float(p), text, unseen, steps=steps, run=run) for p in rates.split()]
        for name, text in texts.items()
    }
    theirs = max(layer.dropout for layer in decoder(subject(model)).spec.layers)
    sizes = [length * len(text) for text in texts.values()]
    return Finding(
        table=_table(found, sizes, theirs),
        plot=_plot(found),
        verdict=_verdict(found, sizes, theirs, Cost(spec).parameters),
        checks=_checks(found),
    )


def spec_at(spec: Spec, p: float) -> Spec:
    """The same architecture with dropout behind every sublayer."""
    return with_layers(spec, lambda layer: replace(layer, dropout=p))


def shuffled(length: int, count: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Sequences of the text that do not overlap: `count` to learn from, `UNSEEN` others. Errors: it has fewer."""
    text, wanted = prose(), count + UNSEEN
    starts = torch.randperm((len(text) - 1) // length, generator=generator)[:wanted] * length
    if len(starts) < wanted:
        raise CutawayError(
            f"the text has {len(starts)} sequences of {length}, not {wanted}", "knob steps", "take fewer"
        )
    sequences = [text[s : s + length + 1] for s in starts.tolist()]
    return sequences[:count], sequences[count:]


def together(sequences: list[Tensor]) -> Batch:
    """A batch that asks for the byte after each."""
    inputs_T, targets_T = (torch.cat([s[part] for s in sequences]) for part in (slice(-1), slice(1, None)))
    return Batch(inputs_T, targets_T, [len(s) - 1 for s in sequences])


def read(sequences: list[Tensor], generator: torch.Generator) -> Iterator[Batch]:
    """Passes without end, each in another order."""
    while True:
        order = torch.randperm(len(sequences), generator=generator).tolist()
        for i in range(0, len(order), ROWS):
            yield together([sequences[k] for k in order[i : i + ROWS]])


def train(spec: Spec, p: float, sequences: list[Tensor], unseen: list[Tensor], *, steps: int, run: Run) -> Trained:
    """Every p starts from the same weights and reads the same batches."""
    model, batches = fresh(spec_at(spec, p), run.seed), read(sequences, run.generator())
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        fit(model.parameters(), lambda _: loss_of(model, next(batches)), steps, run, f"p = {p}", seed=run.seed, lr=1e-3)
    model.eval()
    with torch.no_grad():
        return Trained(p, *(float(loss_of(model, together(part))) for part in (sequences[:UNSEEN], unseen)))


def best(found: list[Trained]) -> Trained:
    """The arm with the lowest held-out loss."""
    return min(found, key=lambda t: t.held_out)


def _table(found: dict[str, list[Trained]], sizes: list[int], theirs: float) -> Table:
    rows: list[list[Cell]] = [
        [regime, size, t.p, t.learned, t.held_out]
        for (regime, arms), size in zip(found.items(), sizes, strict=True)
        for t in arms
    ]
    columns = {"regime": "", "text": "bytes", "p": "", "loss on it": "nats/byte", "held-out loss": "nats/byte"}
    return table(columns, [*rows, ["the trained model, as loaded", None, theirs, None, None]])


def _plot(found: dict[str, list[Trained]]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="p"),
        y=Axis(label="held-out loss, nats/byte"),
        series=[
            Series(name=regime, x=[t.p for t in arms], y=[t.held_out for t in arms]) for regime, arms in found.items()
        ],
    )


def _checks(found: dict[str, list[Trained]]) -> list[Check]:
    once, often = found.values()
    return [
        check(
            best(once).p == 0,
            "where no text is seen twice, p = 0 has the lowest held-out loss",
            "文本只过一遍时，p = 0 的留出损失最低",
        ),
        check(
            best(often).p > 0,
            f"where a little text is read again and again, p = {best(often).p:g} has",
            f"小文本反复读时，p = {best(often).p:g} 最低",
        ),
    ]


def _verdict(found: dict[str, list[Trained]], sizes: list[int], theirs: float, size: int) -> Words:
    (once, often), (much, little) = found.values(), sizes
    rates = [t.p for t in once]
    at = [", ".join(f"{t.held_out:.3f}" for t in arms) for arms in (once, often)]
    memorized = often[0]
    return both(
        f"A model of {size:,} parameters, p = {', '.join(f'{p:g}' for p in rates)}: after one pass over "
        f"{much:,} bytes the held-out losses are {at[0]}, after as many steps on {little:,} bytes "
        f"{at[1]}. So p = {best(once).p:g} wins the first and p = {best(often).p:g} the second, where without dropout "
        f"the loss is {memorized.learned:.2f} on the text and {memorized.held_out:.2f} off it. The trained model's "
        f"layers, as loaded, have p = {theirs:g}.",
        f"{size:,} 参数的模型，p = {'、'.join(f'{p:g}' for p in rates)}：{much:,} 字节过一遍后，留出损失为 "
        f"{at[0]}；同样步数用在 {little:,} 字节上则为 {at[1]}。前者 p = {best(once).p:g} 最好，后者 p = "
        f"{best(often).p:g} 最好；不用 dropout 时，后者在该文本上的损失为 {memorized.learned:.2f}，在别处为 "
        f"{memorized.held_out:.2f}。训练好的模型载入后各层 p = {theirs:g}。",
    )
