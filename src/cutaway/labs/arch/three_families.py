"""Encoder-only, decoder-only, encoder-decoder: one size, one set of examples, four jobs.

    infilling      the old [mask] sleeps .      ->  dog               a word hidden in a sentence
    labelling      the dogs near the cat sleep . ->  1                how many of its nouns are plural
    continuation   the old dog                  ->  near my cat sleeps .
    transduction   f b a c                      ->  c a b f

An encoder (BERT) writes into marked places that it is given, all at once; a decoder (GPT) goes on after the source,
an encoder-decoder (T5) in a text of its own, both word after word until they say that it is the end.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.labs import grammar
from cutaway.labs.arch.sequence_to_sequence import across, pair_spec, positioned, seeing
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.older_models import size_of, widest
from cutaway.labs.training import fit
from cutaway.models.block import Stack, positions_of
from cutaway.models.build import build
from cutaway.models.decoder import EncoderDecoder
from cutaway.models.spec import Spec
from cutaway.nn.attention import BlockDiagonal

LETTERS, LABELS = 8, 4  # letters to reverse, labels
FIRST_LETTER = len(grammar.WORDS)
FIRST_LABEL = FIRST_LETTER + LETTERS
MASK, GAP, END, FIRST_TASK = range(FIRST_LABEL + LABELS, FIRST_LABEL + LABELS + 4)
VOCAB = FIRST_TASK + 4
FAMILIES = ENCODER, DECODER, PAIR = "encoder-only", "decoder-only", "encoder-decoder"
TESTED, LONGEST = 200, 24  # examples per job; words of a continuation at most


class Example(NamedTuple):
    """job: one of `JOBS`. source, target: tokens."""

    job: str
    source: list[int]
    target: list[int]


class Family(NamedTuple):
    """spec: of a width. logits: of each example, what is said at its target, [len(target), V]; a family that `ends`
    says one thing more, what comes after it."""

    name: str
    spec: Callable[[int], Spec]
    logits: Callable[[Stack, Sequence[Example]], list[Tensor]]
    ends: bool


class Plan(NamedTuple):
    """Of training: steps, examples of each job in one, rate of learning."""

    steps: int
    each: int
    rate: float


class Scores(NamedTuple):
    """Of one model. infilling, continuation: nats per word. labelling, transduction: share of targets without a
    mistake. sentences: share of sampled continuations that make a sentence of the grammar; refilled: of those that an
    encoder fills from left to right, the length being given. hears: by how many nats at most the second word said
    changes with the first. size: parameters. tokens: trained on."""

    infilling: float
    labelling: float
    continuation: float
    transduction: float
    sentences: float
    refilled: float | None
    hears: float
    size: int
    tokens: int


@lab(
    "three-families",
    title=both("Three families at equal size", "三类架构，同样大小"),
    question=both(
        "Encoder-only, decoder-only or encoder-decoder: which suits which job at equal size?",
        "仅编码器、仅解码器、编码器—解码器：同等大小下各自适合什么任务？",
    ),
    seconds={"quick": 8, "full": 290},
)
def three_families(
    run: Run,
    *,
    size: Annotated[int, Knob("parameters of each model", "每个模型的参数量", quick=40_000, min=20_000)] = 1_000_000,
    layers: Annotated[
        int, Knob("blocks on either side of the pair", "编码器—解码器每侧的层数", quick=1, min=1, max=8)
    ] = 2,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=70, min=2, max=10**5)] = 400,
    each: Annotated[int, Knob("examples of each job per step", "每步每个任务的例子数", quick=8, min=1, max=256)] = 16,
    rate: Annotated[float, Knob("of learning", "学习率", quick=0.006, min=1e-5, max=0.1)] = 0.002,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 2,
) -> Finding:
    plan, found = Plan(steps, each, rate), {}
    for family in families(layers):
        width = 4 * widest(lambda w, spec=family.spec: build(spec(4 * w)), size)  # type: ignore[misc]
        found[family.name] = [measured(family, width, plan, run.seed + i, run) for i in range(seeds)]
    return Finding(table=_table(found), plot=_plot(found), verdict=_verdict(found), checks=_checks(found))


# ---- jobs


def infilling(chance: random.Random) -> Example:
    """A word hidden in a sentence."""
    words = grammar.sentence(chance).tokens
    at = chance.randrange(len(words) - 1)
    return Example("infilling", [*words[:at], MASK, *words[at + 1 :]], [words[at]])


def labelling(chance: random.Random) -> Example:
    """How many nouns are plural: 0, 1, 2, or more."""
    words = grammar.sentence(chance).tokens
    return Example("labelling", words, [FIRST_LABEL + min(grammar.plurals(words), LABELS - 1)])


def continuation(chance: random.Random) -> Example:
    """A sentence cut in two."""
    words = grammar.sentence(chance).tokens
    cut = chance.randrange(1, len(words) - 1)
    return Example("continuation", words[:cut], words[cut:])


def transduction(chance: random.Random) -> Example:
    """Letters in reverse."""
    letters = [FIRST_LETTER + chance.randrange(LETTERS) for _ in range(chance.randint(3, 8))]
    return Example("transduction", letters, letters[::-1])


JOBS = (infilling, labelling, continuation, transduction)
MARK = {job.__name__: FIRST_TASK + i for i, job in enumerate(JOBS)}


def examples(each: int, chance: random.Random) -> list[Example]:
    """`each` of every job, job after job."""
    return [job(chance) for job in JOBS for _ in range(each)]


# ---- families


def families(layers: int) -> list[Family]:
    """Encoder, decoder, and a pair with half as many blocks on either side."""
    return [
        Family(ENCODER, lambda width: seeing(positioned(VOCAB, width, 2 * layers)), fill_in, ends=False),
        Family(DECODER, lambda width: positioned(VOCAB, width, 2 * layers), go_on, ends=True),
        Family(PAIR, lambda width: pair_spec(VOCAB, width, layers, END), answer, ends=True),
    ]


def fill_in(model: Stack, asked: Sequence[Example]) -> list[Tensor]:
    """Marked places: where a word is hidden, else behind the source, as many as the target has words."""
    texts = [e.source if MASK in e.source else [*e.source, GAP, *[MASK] * len(e.target)] for e in asked]
    said = _read(model, [[MARK[e.job], *text] for e, text in zip(asked, texts, strict=True)])
    first = [1 + text.index(MASK) for text in texts]
    return [row[at : at + len(e.target)] for row, at, e in zip(said, first, asked, strict=True)]


def go_on(model: Stack, asked: Sequence[Example]) -> list[Tensor]:
    """The target behind the source, each word said by the place before it."""
    rows = [[MARK[e.job], *e.source, GAP, *e.target] for e in asked]
    return [row[-len(e.target) - 1 :] for row, e in zip(_read(model, rows), asked, strict=True)]


def answer(model: Stack, asked: Sequence[Example]) -> list[Tensor]:
    """The source to the encoder, the target to the decoder."""
    sources = [torch.tensor([MARK[e.job], *e.source]) for e in asked]
    targets = [torch.tensor([END, *e.target]) for e in asked]
    logits_TV = across(cast(EncoderDecoder, model), sources, targets)
    return [*logits_TV.split([len(target) for target in targets])]


def _read(model: Stack, rows: list[list[int]]) -> list[Tensor]:
    """Logits at every token of each row."""
    lengths = [len(row) for row in rows]
    tokens_T = torch.tensor([token for row in rows for token in row])
    return [*model.logits(model(tokens_T, positions_of(lengths), BlockDiagonal(lengths))).split(lengths)]


# ---- training


def measured(family: Family, width: int, plan: Plan, seed: int, run: Run) -> Scores:
    """A model that has seen all four jobs, each counting as much as the others."""
    model, chance, seen = drawn(family.spec(width), seed), random.Random(seed), 0

    def loss(generator: torch.Generator) -> Tensor:
        nonlocal seen
        asked = examples(plan.each, chance)
        seen += sum(len(e.source) + len(e.target) for e in asked)
        return torch.stack([cost.mean() for cost in costs_of(family, model, asked)]).mean()

    fit(model.parameters(), loss, plan.steps, run, family.name, seed=seed, lr=plan.rate, warmup=20)
    return scored(family, model, seen)


def drawn(spec: Spec, seed: int) -> Stack:
    """A model of any family, its matrices drawn from a normal distribution."""
    generator, model = torch.Generator().manual_seed(seed), build(spec)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def costs_of(family: Family, model: Stack, asked: Sequence[Example]) -> list[Tensor]:
    """-log p of every word of each target, and of its end where the family says one."""
    wanted = [torch.tensor([*e.target, END] if family.ends else e.target) for e in asked]
    said = family.logits(model, asked)
    return [F.cross_entropy(*pair, reduction="none") for pair in zip(said, wanted, strict=True)]


# ---- testing


@torch.no_grad()
def scored(family: Family, model: Stack, seen: int) -> Scores:
    """On examples that are the same for all."""
    asked = examples(TESTED, random.Random(-1))
    costs = [cost[: len(e.target)] for cost, e in zip(costs_of(family, model, asked), asked, strict=True)]
    said = [rows.argmax(-1)[: len(e.target)] for rows, e in zip(family.logits(model, asked), asked, strict=True)]
    exact = [words.tolist() == e.target for words, e in zip(said, asked, strict=True)]
    of = {job: slice(i * TESTED, (i + 1) * TESTED) for i, job in enumerate(MARK)}
    begun, generator = asked[of["continuation"]], torch.Generator().manual_seed(0)
    return Scores(
        infilling=float(torch.cat(costs[of["infilling"]]).mean()),
        labelling=statistics.mean(exact[of["labelling"]]),
        continuation=float(torch.cat(costs[of["continuation"]]).mean()),
        transduction=statistics.mean(exact[of["transduction"]]),
        sentences=sentences(begun, (written if family.ends else at_once)(family, model, begun, generator)),
        refilled=None if family.ends else sentences(begun, refilled(family, model, begun, generator)),
        hears=hears(family, model, [e for e in begun if len(e.target) > 1]),
        size=size_of(model),
        tokens=seen,
    )


def sentences(begun: Sequence[Example], ends: Sequence[list[int]]) -> float:
    """Share of beginnings that became sentences of the grammar."""
    words = [[*e.source, *end] for e, end in zip(begun, ends, strict=True)]
    return statistics.mean(all(w < FIRST_LETTER for w in row) and grammar.valid(row) for row in words)


def hears(family: Family, model: Stack, begun: Sequence[Example]) -> float:
    """How much the second word's log-probabilities change, at most, if the first word of the target is another."""
    others = [e._replace(target=[(e.target[0] + 1) % FIRST_LETTER, *e.target[1:]]) for e in begun]
    pairs = zip(family.logits(model, begun), family.logits(model, others), strict=True)
    return max(float((a[1].log_softmax(-1) - b[1].log_softmax(-1)).abs().max()) for a, b in pairs)


def at_once(family: Family, model: Stack, begun: Sequence[Example], generator: torch.Generator) -> list[list[int]]:
    """A word drawn for every marked place, none knowing of the others. The true length is given."""
    said = family.logits(model, begun)
    return [_draw(logits_TV, generator) for logits_TV in said]


def refilled(family: Family, model: Stack, begun: Sequence[Example], generator: torch.Generator) -> list[list[int]]:
    """One marked place after the other, each a pass over everything. The true length is given."""
    ends: list[list[int]] = [[] for _ in begun]
    for place in range(max(len(e.target) for e in begun)):
        open_ = [i for i, e in enumerate(begun) if len(e.target) > place]
        left = [Example(begun[i].job, [*begun[i].source, *ends[i]], begun[i].target[place:]) for i in open_]
        for i, logits_TV in zip(open_, family.logits(model, left), strict=True):
            ends[i] += _draw(logits_TV[:1], generator)
    return ends


def written(family: Family, model: Stack, begun: Sequence[Example], generator: torch.Generator) -> list[list[int]]:
    """Word after word, until it says that this is the end."""
    ends: list[list[int]] = [[] for _ in begun]
    open_ = [*range(len(begun))]
    while open_ and len(ends[open_[0]]) < LONGEST:
        said = family.logits(model, [begun[i]._replace(target=ends[i]) for i in open_])
        drawn_words = [_draw(logits_TV[-1:], generator)[0] for logits_TV in said]
        for i, word in zip(open_, drawn_words, strict=True):
            ends[i] += [] if word == END else [word]
        open_ = [i for i, word in zip(open_, drawn_words, strict=True) if word != END]
    return ends


def _draw(logits_TV: Tensor, generator: torch.Generator) -> list[int]:
    return torch.multinomial(logits_TV.softmax(-1), 1, generator=generator)[:, 0].tolist()


# ---- what it comes to

Metric = Callable[[Scores], float]
JUDGED: dict[str, tuple[str, Metric]] = {
    "infilling": ("nats/word", lambda s: s.infilling),
    "labelling": ("%", lambda s: 100 * s.labelling),
    "continuation": ("nats/word", lambda s: s.continuation),
    "transduction": ("%", lambda s: 100 * s.transduction),
    "sentences": ("%", lambda s: 100 * s.sentences),
}


def mean(scores: Sequence[Scores], of: Metric) -> float:
    """Over seeds."""
    return statistics.mean(map(of, scores))


def _table(found: dict[str, list[Scores]]) -> Table:
    def cells(scores: list[Scores]) -> list[Cell]:
        values = [[of(s) for s in scores] for _, of in JUDGED.values()]
        pairs = [(statistics.mean(v), max(v) - min(v)) for v in values]
        refills = None if scores[0].refilled is None else 100 * mean(scores, lambda s: s.refilled or 0.0)
        return [*(x for pair in pairs for x in pair), refills, mean(scores, lambda s: s.hears), scores[0].size]

    columns = {f"{name}{what}": unit for name, (unit, _) in JUDGED.items() for what in ("", ", seeds apart")}
    columns |= {"sentences, refilled": "%", "second word hears first": "nats", "parameters": ""}
    return table({"family": ""} | columns, ([name, *cells(scores)] for name, scores in found.items()))


def _plot(found: dict[str, list[Scores]]) -> Plot:
    shares = {name: of for name, (unit, of) in JUDGED.items() if unit == "%"}
    return Plot(
        kind="bar",
        x=Axis(label="family"),
        y=Axis(label="right, %"),
        series=[Series(name=n, x=[*found], y=[mean(s, of) for s in found.values()]) for n, of in shares.items()],
    )


def _checks(found: dict[str, list[Scores]]) -> list[Check]:
    sizes = [s[0].size for s in found.values()]
    deaf, hearing = found[ENCODER], [*found[DECODER], *found[PAIR]]
    best = mean(found[DECODER], lambda s: s.sentences)
    return [
        check(
            max(sizes) < 1.15 * min(sizes) and len({scores[0].tokens for scores in found.values()}) == 1,
            f"{min(sizes):,} to {max(sizes):,} parameters, and the same {found[ENCODER][0].tokens:,} tokens of "
            "examples",
            f"参数量 {min(sizes):,} 到 {max(sizes):,}，例子相同，共 {found[ENCODER][0].tokens:,} 个词元",
        ),
        check(
            max(s.hears for s in deaf) == 0 and min(s.hears for s in hearing) > 0,
            "what an encoder writes second does not hear what it writes first; in the other two it does",
            "编码器写第二个词时听不到它写的第一个词；另外两类听得到",
        ),
        check(
            best >= mean(deaf, lambda s: s.sentences),
            f"a decoder's continuations make sentences in {best:.0%}, those that an encoder writes at once in "
            f"{mean(deaf, lambda s: s.sentences):.0%}",
            f"解码器的续写有 {best:.0%} 成句，编码器一次写出的有 {mean(deaf, lambda s: s.sentences):.0%}",
        ),
    ]


def _verdict(found: dict[str, list[Scores]]) -> Words:
    def said(of: Metric, how: str) -> str:
        each = {name: [format(of(s), how) for s in scores] for name, scores in found.items()}
        return "; ".join(f"{name} {' / '.join(values)}" for name, values in each.items())

    infilling, going = said(lambda s: s.infilling, ".3f"), said(lambda s: s.continuation, ".3f")
    labels, strings = said(lambda s: s.labelling, ".0%"), said(lambda s: s.transduction, ".0%")
    sampled, refills = said(lambda s: s.sentences, ".0%"), mean(found[ENCODER], lambda s: s.refilled or 0.0)
    return both(
        f"Each seed by itself. Infilling, nats per hidden word: {infilling}. Labels right: {labels}. Continuation, "
        f"nats per word: {going}. Strings reversed without a mistake: {strings}. Sampled continuations that make a "
        f"sentence: {sampled}; an encoder that fills one place after the other reaches {refills:.0%}, but needs a pass "
        "over everything for each word, and to be told the length. Decoder and encoder-decoder end by themselves.",
        f"各种子分别列出。填空，每个被遮词的奈特数：{infilling}。标注正确率：{labels}。续写，每词奈特数：{going}。反转"
        f"全对的字符串：{strings}。采样续写成句的比例：{sampled}；编码器若逐个位置填写可达 {refills:.0%}，但每个词都要"
        "重算全文，而且要预先知道长度。解码器与编码器—解码器会自己结束。",
    )
