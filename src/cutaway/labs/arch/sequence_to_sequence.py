"""Where a recurrent translator breaks down: an encoder and a decoder with one vector between them (Sutskever et al.
2014, arXiv:1409.3215), with attention (Bahdanau et al. 2015, arXiv:1409.0473), without recurrence (Vaswani et al. 2017,
arXiv:1706.03762). Two things to transduce:

    fbaac                          ->  caabf                    letters in reverse
    3 march 1987, 12 may 2001      ->  1987-03-03 2001-05-12    dates in another format

All three have as many parameters, see the same examples, and begin with short ones.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.classics.seq2seq import Seq2Seq
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.older_models import seeded, size_of, widest
from cutaway.labs.training import fit, fresh, small_spec, with_layers
from cutaway.models.block import positions_of
from cutaway.models.decoder import EncoderDecoder
from cutaway.models.spec import LayerSpec, PoolingSpec, Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal
from cutaway.nn.embedding import EmbeddingSpec

MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-, "
BEGIN, END = len(CHARACTERS), len(CHARACTERS) + 1
VOCAB = len(CHARACTERS) + 2
ROWS, TESTED, ROOM = 32, 100, 96  # examples per step and per tested length; places a position table has
NAMES = LSTM, ATTENDED, TRANSFORMER = "LSTM", "LSTM + attention", "transformer"

Example = tuple[str, str]


class Task(NamedTuple):
    """draw: a size and chance -> source and target. sizes: those that are tested; all up to the last are learned."""

    name: str
    draw: Callable[[int, torch.Generator], Example]
    sizes: list[int]


class Translator(NamedTuple):
    """logits: sources and targets, one tensor of tokens each -> logits_TV of what follows each token of the targets."""

    name: str
    module: nn.Module
    rate: float
    logits: Callable[[list[Tensor], list[Tensor]], Tensor]


class Found(NamedTuple):
    """length: of the sources, characters on average. exact: share of targets without a mistake."""

    task: str
    name: str
    length: float
    exact: float


@lab(
    "sequence-to-sequence",
    title=both("One vector between encoder and decoder", "编码器与解码器之间的那一个向量"),
    question=both(
        "Where does a recurrent translator break down, and how do attention-based encoder-decoder pairs avoid it?",
        "循环翻译模型在哪里崩溃？基于注意力的编码器—解码器如何避免？",
    ),
    seconds={"quick": 9, "full": 290},
)
def sequence_to_sequence(
    run: Run,
    *,
    longest: Annotated[int, Knob("letters to reverse", "要反转的字母数", quick=10, min=10, max=80)] = 60,
    letters: Annotated[int, Knob("different letters", "不同字母的个数", quick=8, min=2, max=26)] = 16,
    dates: Annotated[int, Knob("dates in a source", "源文中的日期数", quick=1, min=1, max=5)] = 4,
    steps: Annotated[int, Knob("training steps on reversal", "反转任务的训练步数", quick=220, min=8, max=10**5)] = 1000,
    date_steps: Annotated[int, Knob("training steps on dates", "日期任务的训练步数", quick=8, min=8, max=10**5)] = 500,
    width: Annotated[int, Knob("of the transformer", "Transformer 的宽度", quick=48, min=8, max=512)] = 48,
    layers: Annotated[int, Knob("its layers, on either side", "它每侧的层数", quick=1, min=1, max=6)] = 2,
) -> Finding:
    lengths = [*(n for n in (5, 10, 20, 30, 40, 50, 60, 70) if n < longest), longest]
    plans = [
        (Task("reversal", partial(reversal, letters), lengths), steps),
        (Task("dates", date_list, [*range(1, dates + 1)]), date_steps),
    ]
    found: list[Found] = []
    for task, count in plans:
        for make in (transformer, lstm, attended):
            translator = make(width, layers, run.seed)
            train(translator, task, count, run)
            found += [Found(task.name, translator.name, *tested(translator, task, size)) for size in task.sizes]
    return Finding(
        table=table({"task": "", "model": "", "source": "characters", "exact": "share"}, ([*f] for f in found)),
        plot=_plot(found),
        verdict=_verdict(found, size_of(translator.module)),
        checks=_checks(found),
    )


# ---- tasks


def reversal(letters: int, size: int, generator: torch.Generator) -> Example:
    """`size` of the first `letters` letters."""
    source = "".join(CHARACTERS[i] for i in torch.randint(letters, (size,), generator=generator).tolist())
    return source, source[::-1]


def date_list(size: int, generator: torch.Generator) -> Example:
    """`size` dates."""

    def upto(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    drawn = [(1900 + upto(200), upto(12), 1 + upto(28)) for _ in range(size)]
    source = ", ".join(f"{day} {MONTHS[month]} {year}" for year, month, day in drawn)
    return source, " ".join(f"{year}-{month + 1:02}-{day:02}" for year, month, day in drawn)


def encoded(text: str) -> Tensor:
    """tokens_T of characters."""
    return torch.tensor([CHARACTERS.index(c) for c in text])


# ---- models


def positioned(vocab: int, width: int, layers: int) -> Spec:
    """A decoder with rotations and, for looks at another text, learned positions too."""
    return replace(small_spec(vocab=vocab, width=width, layers=layers, context=ROOM), embedding=EmbeddingSpec(ROOM))


def seeing(spec: Spec) -> Spec:
    """The same blocks blind to nothing: an encoder."""
    return replace(with_layers(spec, lambda layer: replace(layer, attention=_open(layer))), pooling=PoolingSpec())


def pair_spec(vocab: int, width: int, layers: int, start: int) -> Spec:
    """A transformer pair, `layers` on either side."""
    base = positioned(vocab, width, layers)
    crossed = tuple(replace(layer, cross=replace(_open(layer), rope=None)) for layer in base.layers)
    return replace(base, layers=crossed, encoder=replace(seeing(base), head=None), start=start)


def _open(layer: LayerSpec) -> AttentionSpec:
    assert isinstance(layer.attention, AttentionSpec)
    return replace(layer.attention, causal=False)


def transformer(width: int, layers: int, seed: int) -> Translator:
    """Encoder and decoder of `layers` blocks each."""
    model = fresh(pair_spec(VOCAB, width, layers, BEGIN), seed)
    assert isinstance(model, EncoderDecoder)
    return Translator(TRANSFORMER, model, 4e-3, lambda *texts: across(model, *texts))


def across(model: EncoderDecoder, sources: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Logits_TV of a transformer pair at every token of the targets."""
    read, write = ([len(text) for text in texts] for texts in (sources, targets))
    memory_MD = model.encode(torch.cat(sources), read)
    context = BlockDiagonal(write, memory_MD=memory_MD, sources=read)
    return model.logits(model(torch.cat(targets), positions_of(write), context))


def lstm(width: int, layers: int, seed: int) -> Translator:
    """One vector between encoder and decoder; as many parameters as the transformer."""
    return _recurrent(LSTM, False, width, layers, seed)


def attended(width: int, layers: int, seed: int) -> Translator:
    """With a look at every hidden state of the encoder."""
    return _recurrent(ATTENDED, True, width, layers, seed)


def _recurrent(name: str, attention: bool, width: int, layers: int, seed: int) -> Translator:
    size = size_of(transformer(width, layers, seed).module)
    fitting = widest(lambda w: Seq2Seq(VOCAB, w, attention), size)
    model = seeded(lambda: Seq2Seq(VOCAB, fitting, attention), seed)

    def logits(sources: list[Tensor], targets: list[Tensor]) -> Tensor:
        read, write = ([len(text) for text in texts] for texts in (sources, targets))
        return model.logits(model(model.read(torch.cat(sources), read), torch.cat(targets), write))

    return Translator(name, model, 1e-2, logits)


# ---- training and testing


def batch(examples: Sequence[Example]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Sources with an end, targets with a beginning, and what each token of the targets should say next."""
    end, begin = torch.tensor([END]), torch.tensor([BEGIN])
    sources, targets = ([encoded(text) for text in texts] for texts in zip(*examples, strict=True))
    wanted_T = torch.cat([part for target in targets for part in (target, end)])
    return [torch.cat([s, end]) for s in sources], [torch.cat([begin, t]) for t in targets], wanted_T


def train(translator: Translator, task: Task, steps: int, run: Run) -> None:
    """Sizes grow to the largest over the first half; the last quarter of the steps is taken slowly."""
    step, sizes = itertools.count(), task.sizes

    def loss(generator: torch.Generator) -> Tensor:
        largest = sizes[0] + (sizes[-1] - sizes[0]) * min(1.0, 2 * next(step) / steps)
        drawn = torch.randint(sizes[0], int(largest) + 1, (ROWS,), generator=generator).tolist()
        sources, targets, wanted_T = batch([task.draw(size, generator) for size in drawn])
        return F.cross_entropy(translator.logits(sources, targets), wanted_T)

    note, parameters = f"{task.name}: {translator.name}", [*translator.module.parameters()]
    fit(parameters, loss, steps - steps // 4, run, note, seed=run.seed, lr=translator.rate, warmup=20)
    fit(parameters, loss, steps // 4, run, note, seed=run.seed + 10**6, lr=translator.rate / 7)


@torch.no_grad()
def tested(translator: Translator, task: Task, size: int) -> tuple[float, float]:
    """Mean length of fresh sources, and the share of targets that greedy decoding writes without a mistake.

    Greedy decoding is right if and only if, with the right beginning given, every next token is the likeliest.
    """
    generator = torch.Generator().manual_seed(size)
    examples = [task.draw(size, generator) for _ in range(TESTED)]
    sources, targets, wanted_T = batch(examples)
    right_T = translator.logits(sources, targets).argmax(-1) == wanted_T
    exact = [bool(part.all()) for part in right_T.split([len(target) for target in targets])]
    return statistics.mean(len(source) for source, _ in examples), statistics.mean(exact)


# ---- what it comes to


def _of(found: Sequence[Found], task: str, name: str) -> list[Found]:
    return [f for f in found if (f.task, f.name) == (task, name)]


def fall(found: Sequence[Found]) -> float | None:
    """The first length at which less than half of the targets are right, None if there is none."""
    return next((f.length for f in found if f.exact < 0.5), None)


def _plot(found: Sequence[Found]) -> Plot:
    rows = {name: _of(found, "reversal", name) for name in NAMES}
    return Plot(
        kind="line",
        x=Axis(label="letters to reverse"),
        y=Axis(label="reversed without a mistake, %"),
        series=[
            Series(name=n, x=[f.length for f in part], y=[100 * f.exact for f in part]) for n, part in rows.items()
        ],
    )


def _checks(found: Sequence[Found]) -> list[Check]:
    plain, *others = ([f.exact for f in _of(found, "reversal", name)] for name in NAMES)
    means = [statistics.mean(exact) for exact in (plain, *others)]
    behind = [all(a <= b + 0.1 for a, b in zip(plain, other, strict=True)) for other in others]
    falls = [fall(_of(found, "reversal", name)) for name in NAMES]
    first = falls[0] is not None and all(f is None or f > falls[0] for f in falls[1:])
    return [
        check(
            first and all(behind) and means[0] < min(means[1:]),
            f"the fixed vector falls first: reversing, the plain LSTM is right in {means[0]:.0%} over all lengths, "
            f"with attention in {means[1]:.0%}, the transformer in {means[2]:.0%}",
            f"固定向量最先崩溃：反转任务各长度平均，单纯的 LSTM 对 {means[0]:.0%}，加注意力 {means[1]:.0%}，"
            f"Transformer {means[2]:.0%}",
        )
    ]


def _verdict(found: Sequence[Found], size: int) -> Words:
    lengths = {task: ", ".join(f"{f.length:.0f}" for f in _of(found, task, LSTM)) for task in ("reversal", "dates")}

    def said(task: str) -> str:
        rows = {name: ", ".join(f"{f.exact:.0%}" for f in _of(found, task, name)) for name in NAMES}
        return "; ".join(f"{name} {exact}" for name, exact in rows.items())

    return both(
        f"Targets without a mistake, by length of the source ({size:,} parameters each). Reversal of "
        f"{lengths['reversal']} letters: {said('reversal')}. Dates in {lengths['dates']} characters: {said('dates')}. "
        "What the plain LSTM knows of the source has to pass through one vector of fixed size; the other two look up "
        "the place that they need.",
        f"按源文长度，目标序列全对的比例（各 {size:,} 个参数）。反转 {lengths['reversal']} 个字母：{said('reversal')}。"
        f"{lengths['dates']} 个字符的日期：{said('dates')}。单纯的 LSTM 对源文的全部了解都要挤过一个固定大小的向量；另"
        "外两个则去查它们需要的位置。",
    )
