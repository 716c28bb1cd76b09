"""Every task as text in, text out: one encoder-decoder, three tasks, a word in front that says which (Raffel et al.
2019, T5, arXiv:1910.10683), begun with or without the noise of T5 or BART (Lewis et al. 2019, arXiv:1910.13461).

    translate   the dogs near the cat sleep .             ->  sleep' the' dogs' near' the' cat' .'   the verb first
    count       the dogs near the cat sleep .             ->  one             plural nouns: a number, said as a word
    summarize   the old dog sleeps . my king waits . ...  ->  dog sleeps . king waits . ...   who does what, extracted

Sentences are those of `cutaway.labs.grammar`, of at most eight words; a document has one to three.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs import grammar
from cutaway.labs.arch.sequence_to_sequence import across, pair_spec
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.older_models import size_of, widest
from cutaway.labs.training import fit, fresh
from cutaway.models.build import build
from cutaway.models.decoder import EncoderDecoder
from cutaway.nn.denoising import Noised, corrupt_spans, denoise, fill_spans

FOREIGN = len(grammar.WORDS)  # of each word, the one with the same meaning
NUMBERS = range(2 * FOREIGN, 2 * FOREIGN + 3)
MASK, END, FIRST_TASK = range(NUMBERS[-1] + 1, NUMBERS[-1] + 4)
TASKS = ("translate", "count", "summarize")
SENTINELS = range(FIRST_TASK + len(TASKS), FIRST_TASK + len(TASKS) + 12)
VOCAB = SENTINELS[-1] + 1
STD = 0.1  # of the weights to begin with; with 0.02 it learns to copy far later
TESTED, SENTENCES, LONGEST = 150, 3, 8  # examples of each task; sentences of a document; words of one


class Example(NamedTuple):
    """Both texts, without the prefix."""

    source: list[int]
    target: list[int]


class Noise(NamedTuple):
    """What a model restores before it learns tasks. make: a document made worse. rebuild: the text, of that alone."""

    name: str
    make: Callable[[Tensor, torch.Generator], Noised]
    rebuild: Callable[[Noised], Tensor]


class Plan(NamedTuple):
    """Of training: steps on noise, steps on tasks, examples of each task in one, rate of learning."""

    before: int
    steps: int
    each: int
    rate: float


class Scores(NamedTuple):
    """begun: the name of a noise, or of none. exact, nats: by task, the share of targets without a mistake, and the
    cost of a word. kinds: by prefix, the share of answers to the same sentences that begin as that task's do."""

    begun: str
    exact: dict[str, float]
    nats: dict[str, float]
    kinds: dict[str, float]


class Restored(NamedTuple):
    """Of a noise, over documents: share rebuilt exactly, tokens read and said for each of the text."""

    share: float
    read: float
    said: float


T5 = Noise(
    "T5 spans",
    lambda tokens_T, generator: corrupt_spans(tokens_T, generator, sentinels=SENTINELS),
    lambda noised: fill_spans(*noised, SENTINELS),
)
BART = Noise(
    "BART",
    lambda tokens_T, generator: denoise(tokens_T, generator, mask=MASK, ends={grammar.ID[grammar.END]}),
    lambda noised: noised.target_T,
)
NOISES, NONE = (T5, BART), "nothing"


@lab(
    "denoising",
    title=both("Text in, text out", "文本进，文本出"),
    question=both(
        "What do T5 and BART gain from treating every task as text in, text out?",
        "T5 与 BART 把所有任务都当作“文本进、文本出”，得到了什么？",
    ),
    seconds={"quick": 5, "full": 125},
)
def denoising(
    run: Run,
    *,
    size: Annotated[int, Knob("parameters", "参数量", quick=60_000, min=30_000)] = 1_000_000,
    layers: Annotated[int, Knob("blocks on either side", "每侧的层数", quick=1, min=1, max=8)] = 2,
    before: Annotated[int, Knob("steps of denoising", "去噪训练步数", quick=12, min=1, max=10**5)] = 150,
    steps: Annotated[int, Knob("steps on tasks", "任务训练步数", quick=90, min=4, max=10**5)] = 450,
    each: Annotated[int, Knob("examples of each task per step", "每步每个任务的例子数", quick=8, min=1, max=256)] = 16,
    rate: Annotated[float, Knob("of learning", "学习率", quick=0.006, min=1e-5, max=0.1)] = 0.003,
) -> Finding:
    width = 4 * widest(lambda w: build(pair_spec(VOCAB, 4 * w, layers, END)), size)
    plan = Plan(before, steps, each, rate)
    found = [trained(noise, width, layers, plan, run) for noise in (None, *NOISES)]
    restored = {noise.name: rebuilt(noise) for noise in NOISES}
    parameters = size_of(build(pair_spec(VOCAB, width, layers, END)))
    return Finding(
        table=_table(found, restored),
        plot=_plot(found),
        verdict=_verdict(found, restored, parameters),
        checks=_checks(found, restored),
    )


# ---- texts


def short(chance: random.Random) -> grammar.Sentence:
    """A sentence of a few words."""
    while len((sentence := grammar.sentence(chance)).tokens) > LONGEST:
        pass
    return sentence


def translate(chance: random.Random) -> Example:
    """Every word in another language, where the verb comes first."""
    words, verb = (sentence := short(chance)).tokens, sentence.verb
    return Example(words, [FOREIGN + word for word in (words[verb], *words[:verb], *words[verb + 1 :])])


def count(chance: random.Random) -> Example:
    """How many nouns are plural: a number, as a word."""
    words = short(chance).tokens
    return Example(words, [NUMBERS[grammar.plurals(words)]])


def summarize(chance: random.Random) -> Example:
    """Of every sentence its subject, its verb and its end: words of the document, in their order.

    There may be one sentence only, so that a source does not give its task away by its length.
    """
    told = [short(chance) for _ in range(chance.randint(1, SENTENCES))]
    words = [(s.tokens[s.verb - s.distance], s.tokens[s.verb], s.tokens[-1]) for s in told]
    return Example([word for s in told for word in s.tokens], [word for kept in words for word in kept])


def document(chance: random.Random) -> Tensor:
    """A text to restore."""
    return torch.tensor([word for _ in range(SENTENCES) for word in short(chance).tokens])


DRAWN: dict[str, Callable[[random.Random], Example]] = {"translate": translate, "count": count, "summarize": summarize}
BEGINNINGS: dict[str, range] = {
    "translate": range(FOREIGN, 2 * FOREIGN),
    "count": NUMBERS,
    "summarize": range(FOREIGN),
}


def asked(task: str, example: Example) -> Noised:
    """What the model reads, the prefix first, and what it should say."""
    prefix = FIRST_TASK + TASKS.index(task)
    return Noised(torch.tensor([prefix, *example.source]), torch.tensor(example.target, dtype=torch.long))


def batches(each: int, chance: random.Random) -> Iterator[list[Noised]]:
    """Examples of all tasks, forever."""
    while True:
        yield [asked(task, DRAWN[task](chance)) for task in TASKS for _ in range(each)]


def noisy(noise: Noise, each: int, chance: random.Random) -> Iterator[list[Noised]]:
    """As many documents to restore."""
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    while True:
        yield [noise.make(document(chance), generator) for _ in range(len(TASKS) * each)]


# ---- training and testing


def trained(noise: Noise | None, width: int, layers: int, plan: Plan, run: Run) -> Scores:
    """Noise first if any, then tasks, each task counting as much as the others."""
    model = cast(EncoderDecoder, fresh(pair_spec(VOCAB, width, layers, END), run.seed, STD))
    chance, name = random.Random(run.seed), noise.name if noise else NONE
    stages = [(noisy(noise, plan.each, chance), plan.before)] if noise else []
    for texts, steps in (*stages, (batches(plan.each, chance), plan.steps)):

        def loss(generator: torch.Generator, texts: Iterator[list[Noised]] = texts) -> Tensor:
            costs, n = costs_of(model, next(texts)), plan.each
            return torch.stack([torch.cat(costs[i : i + n]).mean() for i in range(0, len(costs), n)]).mean()

        fit(model.parameters(), loss, steps - steps // 4, run, name, seed=run.seed, lr=plan.rate, warmup=20)
        fit(model.parameters(), loss, steps // 4, run, name, seed=run.seed, lr=plan.rate / 7)
    return scored(model, name)


def said(model: EncoderDecoder, texts: Sequence[Noised]) -> list[Tensor]:
    """Logits of every word of each target and of what comes after it, [len(target) + 1, V]."""
    targets = [torch.cat([torch.tensor([END]), text.target_T]) for text in texts]
    logits_TV = across(model, [text.source_S for text in texts], targets)
    return [*logits_TV.split([len(target) for target in targets])]


def costs_of(model: EncoderDecoder, texts: Sequence[Noised]) -> list[Tensor]:
    """-log p of each of those."""
    wanted = [torch.cat([text.target_T, torch.tensor([END])]) for text in texts]
    return [F.cross_entropy(*pair, reduction="none") for pair in zip(said(model, texts), wanted, strict=True)]


@torch.no_grad()
def scored(model: EncoderDecoder, name: str) -> Scores:
    """On examples that are the same for all. A greedy answer is right if every next word is the likeliest."""
    exact, nats, kinds, chance = {}, {}, {}, random.Random(-1)
    sentences = [Example(short(chance).tokens, []) for _ in range(TESTED)]
    for task in TASKS:
        texts = [asked(task, DRAWN[task](chance)) for _ in range(TESTED)]
        answers = [logits_TV.argmax(-1).tolist() for logits_TV in said(model, texts)]
        exact[task] = statistics.mean(a == [*t.target_T.tolist(), END] for a, t in zip(answers, texts, strict=True))
        nats[task] = float(torch.cat(costs_of(model, texts)).mean())
        begun = [int(rows[0].argmax()) for rows in said(model, [asked(task, s) for s in sentences])]
        kinds[task] = statistics.mean(word in BEGINNINGS[task] for word in begun)
    return Scores(name, exact, nats, kinds)


def rebuilt(noise: Noise) -> Restored:
    """Does the text come back, and what does the noise cost in tokens?"""
    chance, generator = random.Random(-2), torch.Generator().manual_seed(0)
    texts = [document(chance) for _ in range(TESTED)]
    pairs = [noise.make(text, generator) for text in texts]
    count = sum(map(len, texts))
    return Restored(
        statistics.mean(torch.equal(noise.rebuild(pair), text) for pair, text in zip(pairs, texts, strict=True)),
        sum(len(pair.source_S) for pair in pairs) / count,
        sum(len(pair.target_T) for pair in pairs) / count,
    )


# ---- what it comes to


def _table(found: list[Scores], restored: dict[str, Restored]) -> Table:
    columns = {"begun with": ""}
    columns |= {f"{task}{what}": unit for task in TASKS for what, unit in ((" right", "%"), (" cost", "nats per word"))}
    columns |= {"texts rebuilt": "%", "read per token of text": "", "said per token of text": ""}
    rows: list[list[Cell]] = []
    for scores in found:
        cells: list[Cell] = [x for task in TASKS for x in (100 * scores.exact[task], scores.nats[task])]
        noise = restored.get(scores.begun)
        rows.append([scores.begun, *cells, *((100 * noise.share, *noise[1:]) if noise else (None, None, None))])
    return table(columns, rows)


def _plot(found: list[Scores]) -> Plot:
    return Plot(
        kind="bar",
        x=Axis(label="task"),
        y=Axis(label="answers without a mistake, %"),
        series=[Series(name=s.begun, x=[*TASKS], y=[100 * s.exact[task] for task in TASKS]) for s in found],
    )


def _checks(found: list[Scores], restored: dict[str, Restored]) -> list[Check]:
    kinds = min(share for scores in found for share in scores.kinds.values())
    plain, fair = found[0], math.log(VOCAB)
    costs = ", ".join(f"{task} {plain.nats[task]:.2f}" for task in TASKS)
    brief, whole = restored[T5.name].said, restored[BART.name].said
    return [
        check(
            all(noise.share == 1 for noise in restored.values()),
            f"what T5's and BART's noise did to {TESTED} documents can be undone exactly, from source and target",
            f"T5 与 BART 的噪声作用于 {TESTED} 篇文本后，只凭源与目标就能逐词还原",
        ),
        check(
            brief < 0.5 and whole == 1,
            f"T5's noise has {brief:.2f} tokens said for each of the text, BART's {whole:.2f}",
            f"文本每个词元，T5 的噪声要说 {brief:.2f} 个词元，BART 的要说 {whole:.2f} 个",
        ),
        check(
            kinds > 0.8,
            f"the prefix chooses: put before the same sentences, it decides the kind of answer in {kinds:.0%} or more",
            f"任务由前缀决定：同样的句子换前缀，至少 {kinds:.0%} 的回答属于该任务",
        ),
        check(
            all(2 * nats < fair for nats in plain.nats.values()),
            f"one model learns all three tasks, nats per word: {costs}; a fair choice of words costs {fair:.2f}",
            f"一个模型学了全部三个任务，每词奈特数：{costs}；均匀乱猜要 {fair:.2f}",
        ),
    ]


def _verdict(found: list[Scores], restored: dict[str, Restored], size: int) -> Words:
    right = "; ".join(f"{s.begun} {' / '.join(f'{s.exact[task]:.0%}' for task in TASKS)}" for s in found)
    costs = "; ".join(f"{s.begun} {' / '.join(f'{s.nats[task]:.3f}' for task in TASKS)}" for s in found)
    tokens = ", ".join(f"{name} {noise.read:.2f} / {noise.said:.2f}" for name, noise in restored.items())
    return both(
        f"One model of {size:,} parameters does three tasks, told which by the first word of its source; no part of it "
        f"is made for one of them. Answers without a mistake ({' / '.join(TASKS)}), by what it was begun with: "
        f"{right}. Nats per word: {costs}. All had as many steps on tasks; those on noise came on top. Noise, tokens "
        f"read / said for each of the text: {tokens}.",
        f"一个 {size:,} 参数的模型做三个任务，由源文的第一个词决定做哪个，没有任何部件专为某个任务而设。按开头所受"
        f"训练，全对的回答（{' / '.join(TASKS)}）：{right}。每词奈特数：{costs}。任务训练的步数相同，去噪的步数"
        f"另加。噪声：文本每个词元，读 / 说的词元数：{tokens}。",
    )
