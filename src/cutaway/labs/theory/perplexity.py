"""Perplexity: what it means, when two values may be compared, and whether a lower one is a better model.

    perplexity = exp(nats per token)          as uncertain as a fair choice between so many tokens
    bits per byte = nats per token * tokens / bytes / ln 2

The first depends on what a token is, the second does not. Four views: the units; two small models that differ in their
tokenizer alone; the same model scored in windows that overlap more or less; the same model after some more training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.labs.training import fit, fresh, loss_of, next_bytes, prose, small_spec
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.losses import cross_entropy
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights import sources
from cutaway.weights.checkpoint import Loaded

BYTES, WORDS = "small model, bytes", "small model, the model's tokens"
LENGTH, ROWS = 96, 8  # tokens per training sequence, sequences per step
PIECE = 128  # rows whose logits are held at once
TUNED_LAYERS, NEAR = 3, 6000  # the model's last layers; tokens right before the text that is scored
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Turkey": "Ankara",
    "Australia": "Canberra",
}
SYMBOLS = {"iron": "Fe", "gold": "Au", "lead": "Pb", "silver": "Ag", "tin": "Sn", "sodium": "Na", "tungsten": "W"}
AUTHORS = {
    "Hamlet": "Shakespeare",
    "Faust": "Goethe",
    "Ulysses": "Joyce",
    "The Trial": "Kafka",
    "Don Quixote": "Cervantes",
    "Moby-Dick": "Melville",
    "War and Peace": "Tolstoy",
    "The Odyssey": "Homer",
}
QUESTIONS = (
    {f"The capital of {country} is": city for country, city in CAPITALS.items()},
    {f"The chemical symbol of {metal} is": symbol for metal, symbol in SYMBOLS.items()},
    {f"{book} was written by": author for book, author in AUTHORS.items()},
)
"""In each group, every answer is a candidate for every question."""


class Score(NamedTuple):
    """A model on a text. size: bytes per token. right: share of the questions, if they were put."""

    name: str
    nats: float
    size: float
    right: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)

    @property
    def bits_per_token(self) -> float:
        return self.nats / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        return self.bits_per_token / self.size


@lab(
    "perplexity",
    title=both("What perplexity says and what it does not", "困惑度说明了什么，没说明什么"),
    question=both(
        "What does perplexity mean, when are two values comparable, and does a better one mean a better task score?",
        "困惑度是什么意思？何时可以比较？更低的困惑度意味着任务做得更好吗？",
    ),
    seconds={"quick": 5, "full": 110},
)
def perplexity(
    run: Run,
    *,
    model: Annotated[str, Knob("the trained model", "训练好的模型")] = MODEL,
    other: Annotated[
        str, Knob("another, with a tokenizer of its own; none to skip", "另一个模型，分词器不同；留空则跳过", quick="")
    ] = "gemma-3-270m",
    learned: Annotated[
        int, Knob("bytes of text to learn from", "学习用文本的字节数", quick=40_000, min=10_000, max=10**7)
    ] = 400_000,
    held_out: Annotated[int, Knob("bytes of text to score", "评分文本的字节数", quick=500, min=500, max=50_000)] = 4000,
    steps: Annotated[
        int, Knob("training steps of the small models", "小模型的训练步数", quick=40, min=1, max=10**5)
    ] = 400,
    width: Annotated[int, Knob("their width", "小模型的宽度", quick=32, min=16, max=512)] = 96,
    tuning: Annotated[
        int, Knob("steps of more training of the model", "大模型继续训练的步数", quick=3, min=1, max=10**4)
    ] = 40,
    window: Annotated[int, Knob("tokens a window holds", "窗口的词元数", quick=32, min=8, max=2048)] = 128,
    finest: Annotated[
        int, Knob("the smallest stride is the window divided by this", "最小步长为窗口除以它", quick=2, min=2, max=64)
    ] = 8,
) -> Finding:
    if other:
        sources.resolve(other)  # found missing at the end of a long run, it would cost the whole of it
    loaded, texts = subject(model), split(learned, held_out)
    ids = torch.tensor(loaded.tokenizer.encode(texts.test, add_special=False))
    check_windows(window, finest, len(ids))
    size = len(texts.test.encode()) / len(ids)
    ways = {BYTES: as_bytes, WORDS: numbered(loaded.tokenizer, texts)}
    small = [trained(name, way, texts, width=width, steps=steps, run=run) for name, way in ways.items()]
    strides = [
        Score(f"{loaded.name}, window {window}, stride {stride}", strided(decoder(loaded), ids, window, stride), size)
        for stride in run.each(halved(window, finest), "stride")
    ]
    before, after = more_training(loaded, texts, tuning, run)
    others = [scored(other, texts.test)] if other else []
    rows = [Score("2.3026 nats, 4 bytes per token", 2.3026, 4.0), *small, *strides, before, after, *others]
    return Finding(
        table=table(
            COLUMNS,
            ([s.name, s.nats, s.perplexity, s.bits_per_token, s.size, s.bits_per_byte, _percent(s)] for s in rows),
        ),
        plot=_plot(rows[1:]),
        verdict=_verdict(small, strides, before, after),
        checks=_checks(rows[0], small, strides, before, after),
    )


# ---- texts and tokens


class Texts(NamedTuple):
    """To learn from, and to be scored on."""

    learned: str
    test: str


def split(learned: int, test: int) -> Texts:
    """So many bytes of the prose before its last tenth, and so many from there."""
    data = prose()
    cut = len(data) * 9 // 10
    parts = data[max(0, cut - learned) : cut], data[cut : cut + test]
    return Texts(*(bytes(part.tolist()).decode("utf-8", "ignore") for part in parts))


def as_bytes(text: str) -> Tensor:
    """Every byte a token."""
    return torch.tensor(list(text.encode()))


def numbered(tokenizer: Tokenizer, texts: Texts) -> Callable[[str], Tensor]:
    """The tokenizer's own ids, numbered anew so that only those of the texts need a row in a table."""
    ids = {text: tokenizer.encode(text, add_special=False) for text in texts}
    number = {id: i for i, id in enumerate(sorted({id for row in ids.values() for id in row}))}
    return lambda text: torch.tensor([number[id] for id in ids[text]])


# ---- scores


@torch.no_grad()
def nats(model: Decoder, windows: list[Tensor], new: list[int]) -> float:
    """Mean loss of the last new[i] tokens of each window."""
    lengths = [len(w) for w in windows]
    hidden_TD = model(torch.cat(windows), positions_of(lengths), BlockDiagonal(lengths))
    rows = zip(hidden_TD.split(lengths), windows, new, strict=True)
    before, said = zip(*((h_TD[-n - 1 : -1], w_T[-n:]) for h_TD, w_T, n in rows), strict=True)
    pieces = zip(torch.cat(before).split(PIECE), torch.cat(said).split(PIECE), strict=True)
    losses = [cross_entropy(model.logits(h_TD), said_T) for h_TD, said_T in pieces]
    return float(torch.cat(losses).mean())


def halved(window: int, finest: int) -> list[int]:
    """window, window / 2, ... window / finest."""
    return [window // 2**i for i in range(int(math.log2(finest)) + 1)]


def check_windows(window: int, finest: int, tokens: int) -> None:
    """Errors: strides that would not score the same tokens, a text with fewer than three windows."""
    if window % 2 ** int(math.log2(finest)):
        raise CutawayError(f"{window} cannot be halved down to a {finest}th", "knob window", "take a power of two")
    if tokens < 3 * window:
        what = f"{tokens} tokens hold fewer than three windows of {window}"
        raise CutawayError(what, "knob held_out", "score more bytes, or take smaller windows")


def strided(model: Decoder, ids: Tensor, window: int, stride: int, batch: int = 8) -> float:
    """Score every token after the first window's once, each with at least window - stride tokens before it.

    The first window is left out everywhere, so that all strides score the same tokens.
    """
    ends = range(window + stride, len(ids) // window * window + 1, stride)
    windows = [ids[end - window : end] if stride < window else ids[end - window - 1 : end] for end in ends]
    parts = [windows[i : i + batch] for i in range(0, len(windows), batch)]
    return sum(nats(model, part, [stride] * len(part)) * len(part) for part in parts) / len(windows)


def trained(name: str, encode: Callable[[str], Tensor], texts: Texts, *, width: int, steps: int, run: Run) -> Score:
    """A small model on its own tokens: equal shape, equal number of tokens seen."""
    train_T, test_T = map(encode, texts)
    model = fresh(small_spec(vocab=int(max(train_T.max(), test_T.max())) + 1, width=width), run.seed)
    task = next_bytes(train_T, LENGTH, ROWS)
    fit(model.parameters(), lambda generator: loss_of(model, task(generator)), steps, run, name, seed=run.seed)
    return Score(name, in_windows(model, test_T), len(texts.test.encode()) / len(test_T))


def in_windows(model: Decoder, ids: Tensor) -> float:
    """Mean loss, the text cut into pieces as long as those of training."""
    windows = [part for part in ids.split(LENGTH) if len(part) > 1]
    return nats(model, windows, [len(w) - 1 for w in windows])


def scored(source: str, text: str) -> Score:
    """Another model on the same text, in one piece."""
    loaded = subject(source)
    ids = torch.tensor(loaded.tokenizer.encode(text))
    plain = len(loaded.tokenizer.encode(text, add_special=False))
    return Score(loaded.name, nats(decoder(loaded), [ids], [len(ids) - 1]), len(text.encode()) / plain)


# ---- more training


def tail_of(model: Decoder, layers: int) -> tuple[Decoder, list[nn.Parameter]]:
    """A twin that shares all weights but those of the last layers, which it may change; and these."""
    own = {id(p) for block in model.layers[-layers:] for p in block.parameters()}
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters() if id(p) not in own}
    twin = copy.deepcopy(model, shared)
    return twin, [p for p in twin.parameters() if p.requires_grad]


def more_training(loaded: Loaded, texts: Texts, steps: int, run: Run) -> tuple[Score, Score]:
    """The model and a twin tuned on the prose: their losses on what was held back, and the questions."""
    tokenizer = loaded.tokenizer
    learned_T, test_T = (torch.tensor(tokenizer.encode(text, add_special=False)) for text in texts)
    (twin, parameters), task = tail_of(decoder(loaded), TUNED_LAYERS), next_bytes(learned_T[-NEAR:], LENGTH, 1)

    def loss(generator: torch.Generator) -> Tensor:
        return loss_of(twin, task(generator))

    fit(parameters, loss, steps, run, "more training", seed=run.seed, lr=3e-4, warmup=3)
    size = len(texts.test.encode()) / len(test_T)
    before, after = (
        Score(f"{loaded.name}, {when}", in_windows(m, test_T), size, answered(m, tokenizer))
        for when, m in (("as trained", decoder(loaded)), (f"after {steps} more steps", twin))
    )
    return before, after


@torch.no_grad()
def answered(model: Decoder, tokenizer: Tokenizer) -> float:
    """Share of the questions whose answer is the likeliest of its group's, by the first token."""
    right = []
    for group in QUESTIONS:
        rows = [torch.tensor(tokenizer.encode(question)) for question in group]
        candidates = [tokenizer.encode(f" {answer}", add_special=False)[0] for answer in group.values()]
        lengths = [len(row_T) for row_T in rows]
        hidden_TD = model(torch.cat(rows), positions_of(lengths), BlockDiagonal(lengths))
        logits_RV = model.logits(hidden_TD[torch.tensor(lengths).cumsum(0) - 1])
        right += (logits_RV[:, candidates].argmax(-1) == torch.arange(len(rows))).tolist()
    return sum(right) / len(right)


# ---- what it comes to


COLUMNS = {
    "scored": "",
    "loss": "nats/token",
    "perplexity": "per token",
    "bits": "per token",
    "bytes": "per token",
    "bits per byte": "",
    "questions right": "%",
}


def _percent(score: Score) -> float | None:
    return None if score.right is None else 100 * score.right


def _plot(rows: list[Score]) -> Plot:
    return Plot(
        kind="scatter",
        x=Axis(label="perplexity per token", log=True),
        y=Axis(label="bits per byte"),
        series=[Series(name=score.name, x=[score.perplexity], y=[score.bits_per_byte]) for score in rows],
    )


def _checks(units: Score, small: list[Score], strides: list[Score], before: Score, after: Score) -> list[Check]:
    letters, words = small
    moved = (after.right or 0) - (before.right or 0)
    return [
        check(
            [round(v, d) for v, d in ((units.perplexity, 3), (units.bits_per_token, 2), (units.bits_per_byte, 3))]
            == [10.0, 3.32, 0.830],
            "2.3026 nats are perplexity 10, 3.32 bits a token and, at 4 bytes per token, 0.830 bits a byte",
            "2.3026 奈特即困惑度 10、每词元 3.32 比特；每词元 4 字节时为每字节 0.830 比特",
        ),
        check(
            letters.perplexity < words.perplexity and letters.bits_per_byte > words.bits_per_byte,
            f"two tokenizers, two orders: bytes have the lower perplexity ({letters.perplexity:.1f} against "
            f"{words.perplexity:.1f}) and the worse bits per byte ({letters.bits_per_byte:.2f} against "
            f"{words.bits_per_byte:.2f})",
            f"两种分词，两个次序：按字节的困惑度更低（{letters.perplexity:.1f} 对 {words.perplexity:.1f}），每字节比"
            f"特却更差（{letters.bits_per_byte:.2f} 对 {words.bits_per_byte:.2f}）",
        ),
        check(
            all(a.nats > b.nats for a, b in pairwise(strides)),
            "the same model on the same tokens: the smaller the stride, the lower the perplexity: "
            + ", ".join(f"{s.perplexity:.1f}" for s in strides),
            "同一模型、同样的词元：步长越小困惑度越低：" + "、".join(f"{s.perplexity:.1f}" for s in strides),
        ),
        check(
            after.nats < before.nats and abs(moved) <= 0.15,
            f"more training lowers the perplexity from {before.perplexity:.1f} to {after.perplexity:.1f}, and the "
            f"share of questions answered hardly moves ({before.right:.0%} to {after.right:.0%})",
            f"继续训练把困惑度从 {before.perplexity:.1f} 降到 {after.perplexity:.1f}，答对的题目几乎不变"
            f"（{before.right:.0%} 到 {after.right:.0%}）",
        ),
    ]


def _verdict(small: list[Score], strides: list[Score], before: Score, after: Score) -> Words:
    letters, words = small
    return both(
        "Perplexity is how many equally likely tokens the model hesitates between, and so depends on what a token "
        f"is: {letters.perplexity:.1f} per byte and {words.perplexity:.1f} per token of {words.size:.1f} bytes, yet "
        f"the second model needs {words.bits_per_byte:.2f} bits a byte and the first {letters.bits_per_byte:.2f}. It "
        f"depends on the windows too: {strides[0].perplexity:.1f} without overlap, {strides[-1].perplexity:.1f} with "
        "most. And it is no task score: tuned on the kind of text that is scored, the model goes from "
        f"{before.perplexity:.1f} to {after.perplexity:.1f} and from {before.right:.0%} to {after.right:.0%} of "
        f"{sum(map(len, QUESTIONS))} questions.",
        f"困惑度是模型在多少个同样可能的词元间犹豫，所以取决于什么算一个词元：按字节为 {letters.perplexity:.1f}，按平"
        f"均 {words.size:.1f} 字节的词元为 {words.perplexity:.1f}，可后者每字节只要 {words.bits_per_byte:.2f} 比特，"
        f"前者要 {letters.bits_per_byte:.2f}。它也取决于窗口：不重叠时为 {strides[0].perplexity:.1f}，重叠最多时为 "
        f"{strides[-1].perplexity:.1f}。它也不是任务成绩：在同类文本上继续训练后，困惑度从 {before.perplexity:.1f} "
        f"到 {after.perplexity:.1f}，{sum(map(len, QUESTIONS))} 道题的正确率从 {before.right:.0%} 到 "
        f"{after.right:.0%}。",
    )
