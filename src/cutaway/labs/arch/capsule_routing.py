"""Routing by agreement in a sentence classifier, beside attention pooling (Sabour et al. 2017, arXiv:1710.09829).

The same small encoder reads a few lines of text word by word; what differs is how its hidden states become one vector
per text: their mean, a softmax over tokens (attention pooling), or capsules that tokens vote for, in one round (no
agreement) or three. The task is to say which chapter of Python's language reference a text comes from.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit, fresh, small_spec
from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.capsules import AttentionPooling, CapsulePooling, route

CHAPTERS = ("specialnames", "compound", "types", "formatstrings", "string-methods", "debugger")
VOCAB, PARENTS = 800, 6
WORDS = range(6, 15)  # in a text
HELD_OUT = 5  # one text in so many is for testing


class MeanPooling(nn.Module):
    """hidden_TD -> out_ND, all tokens alike."""

    def forward(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        """One vector for each sequence of the ragged batch."""
        return torch.stack([rows_TD.mean(0) for rows_TD in hidden_TD.split(lengths)])


POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mean": lambda width: MeanPooling(),
    "attention": AttentionPooling,
    "capsules, 1 round": lambda width: CapsulePooling(width, PARENTS, width // PARENTS, rounds=1),
    "capsules, 3 rounds": lambda width: CapsulePooling(width, PARENTS, width // PARENTS, rounds=3),
}
ATTENTION, ROUTED = "attention", "capsules, 3 rounds"


class Text(NamedTuple):
    """Word numbers and the chapter they are from."""

    words: list[int]
    chapter: int


@lab(
    "capsule-routing",
    title=both("Routing by agreement against attention pooling", "胶囊路由对注意力池化"),
    question=both(
        "Could capsule networks be combined with a language model, and what would routing by agreement add?",
        "胶囊网络能与语言模型结合吗？协议路由会带来什么？",
    ),
    seconds={"quick": 4, "full": 35},
)
def capsule_routing(
    run: Run,
    *,
    width: Annotated[
        int, Knob("width of the encoder, a multiple of 12", "编码器宽度，12 的倍数", quick=24, min=12, max=384)
    ] = 48,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=120, min=1, max=10**5)] = 400,
    batch: Annotated[int, Knob("texts per step", "每步的文本数", quick=24, min=1, max=1024)] = 32,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
) -> Finding:
    if width % (2 * PARENTS):
        raise CutawayError(
            f"must be a multiple of {2 * PARENTS}, got {width}", "knob width", "capsules share it evenly"
        )
    found: dict[str, list[Trained]] = {name: [] for name in POOLINGS}
    for seed in range(run.seed, run.seed + seeds):
        for name in POOLINGS:
            found[name].append(train(name, width, seed, run, steps=steps, batch=batch))
    rows: list[list[Cell]] = [_row(name, runs) for name, runs in found.items()]
    names = {"pooling": "", "parameters of it": "", "accuracy, mean": "%", "lowest": "%", "highest": "%"}
    return Finding(
        table=table(names | {"training step": "ms"}, rows),
        plot=_plot(found),
        verdict=_verdict(found),
        checks=_checks(found, run.generator()),
    )


# ---- texts


@cache
def texts() -> tuple[list[Text], list[Text]]:
    """For training, for testing: pieces of a few words, in the order of the chapters."""
    from pydoc_data.topics import topics

    words = {chapter: topics[chapter].lower().split() for chapter in CHAPTERS}
    known = [word for word, _ in Counter(w for chapter in CHAPTERS for w in words[chapter]).most_common(VOCAB - 1)]
    number = {word: i + 1 for i, word in enumerate(known)}  # 0 is any other word
    found: tuple[list[Text], list[Text]] = ([], [])
    for label, chapter in enumerate(CHAPTERS):
        numbers, start = [number.get(word, 0) for word in words[chapter]], 0
        for i in range(len(numbers) // WORDS.start):
            length = WORDS[i % len(WORDS)]
            piece, start = numbers[start : start + length], start + length
            if len(piece) == length:
                found[i % HELD_OUT == 0].append(Text(piece, label))
    return found


class Classifier(nn.Module):
    """Embedding and one block, a pooling, a linear layer: texts -> logits over chapters."""

    def __init__(self, name: str, width: int, seed: int) -> None:
        super().__init__()
        self.encoder = fresh(small_spec(vocab=VOCAB, width=width, layers=1), seed, std=0.1)
        self.encoder.head = None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.pooling = POOLINGS[name](width)
            self.out = nn.Linear(width, len(CHAPTERS))

    def forward(self, batch: list[Text]) -> Tensor:
        """Logits_NC."""
        lengths = [len(text.words) for text in batch]
        words_T = torch.tensor([word for text in batch for word in text.words])
        hidden_TD = self.encoder(words_T, positions_of(lengths), BlockDiagonal(lengths))
        return self.out(self.pooling(hidden_TD, lengths).flatten(1))


class Trained(NamedTuple):
    """parameters: of the pooling. accuracy: on texts kept back. seconds: of a training step, median."""

    parameters: int
    accuracy: float
    seconds: float


def train(name: str, width: int, seed: int, run: Run, *, steps: int, batch: int) -> Trained:
    """A classifier, from nothing; every pooling sees the same texts in the same order."""
    learned, test = texts()
    model = Classifier(name, width, seed)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = [learned[i] for i in torch.randint(len(learned), (batch,), generator=generator).tolist()]
        return F.cross_entropy(model(chosen), torch.tensor([text.chapter for text in chosen]))

    fitted = fit(model.parameters(), loss, steps, run, f"pooling by {name}", seed=seed)
    with torch.no_grad():
        right = model(test).argmax(-1) == torch.tensor([text.chapter for text in test])
    return Trained(sum(p.numel() for p in model.pooling.parameters()), float(right.float().mean()), fitted.seconds)


# ---- what it comes to


def _row(name: str, runs: list[Trained]) -> list[Cell]:
    accuracies = [100 * r.accuracy for r in runs]
    milliseconds = 1e3 * statistics.median(r.seconds for r in runs)
    return [name, runs[0].parameters, statistics.mean(accuracies), min(accuracies), max(accuracies), milliseconds]


def _mean(runs: list[Trained]) -> float:
    return statistics.mean(r.accuracy for r in runs)


def chance() -> float:
    """The share of the largest chapter among the texts for testing."""
    return max(Counter(text.chapter for text in texts()[1]).values()) / len(texts()[1])


def _plot(found: dict[str, list[Trained]]) -> Plot:
    return Plot(
        kind="bar",
        x=Axis(label="pooling"),
        y=Axis(label="accuracy on texts kept back, %"),
        series=[Series(name="mean over seeds", x=[*found], y=[100 * _mean(runs) for runs in found.values()])],
    )


def _checks(found: dict[str, list[Trained]], generator: torch.Generator) -> list[Check]:
    votes_TJK = torch.randn(40, PARENTS, 8, generator=generator, dtype=torch.float64)
    out_NJK, weights_TJ = route(votes_TJK, [15, 25])
    off = float((weights_TJ.sum(-1) - 1).abs().max())
    longest = float(out_NJK.norm(dim=-1).max())
    worst = min(_mean(runs) for runs in found.values())
    return [
        check(
            off < 1e-12 and longest < 1,
            f"each token's weights sum to 1 over the parents (to {off:.0e}); no capsule is longer than {longest:.2f} "
            "< 1",
            f"每个词元对各父胶囊的权重之和为 1（相差 {off:.0e}）；最长的胶囊为 {longest:.2f} < 1",
        ),
        check(
            worst > chance() + 0.05,
            f"every pooling learns: {worst:.0%} at least, always naming the largest chapter gives {chance():.0%}",
            f"每种池化都能学会：至少 {worst:.0%}，而总猜最大的一章为 {chance():.0%}",
        ),
    ]


def _verdict(found: dict[str, list[Trained]]) -> Words:
    said = ", ".join(f"{name} {_mean(runs):.1%}" for name, runs in found.items())
    attention, routed = found[ATTENTION], found[ROUTED]
    slower = statistics.median(r.seconds for r in routed) / statistics.median(r.seconds for r in attention)
    apart, seeds = _mean(routed) - _mean(attention), len(attention)
    return both(
        f"It can take the place of a pooling: tokens vote for {PARENTS} capsules. Accuracy over {seeds} seed(s): "
        f"{said}. Three rounds of routing are {100 * apart:+.1f} points from attention pooling, with "
        f"{routed[0].parameters:,} parameters against {attention[0].parameters:,} and a training step of "
        f"{slower:.2f} times the length.",
        f"它可以取代池化：词元为 {PARENTS} 个胶囊投票。{seeds} 个种子的准确率：{said}。三轮路由与注意力池化相差 "
        f"{100 * apart:+.1f} 个百分点，参数 {routed[0].parameters:,} 对 {attention[0].parameters:,}，训练步用时为 "
        f"{slower:.2f} 倍。",
    )
