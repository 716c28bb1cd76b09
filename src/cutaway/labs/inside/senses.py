"""The same word in two senses: where inside a model do the two part?

Each sentence ends in an ambiguous word, so that a model that only looks back has seen what decides the sense. The
word's vector is read off the residual stream after every block. Senses are parted as far as vectors of one sense are
closer to each other than to those of the other:

    gap = mean cosine of pairs of the same sense - mean cosine of pairs of different senses

At the embedding all vectors are the same row of a table, and the gap of any such static table is exactly zero.
A control asks whether any other way to split the sentences into two halves gives as large a gap.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import combinations
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.inside.geometry import word_id
from cutaway.inside.sites import states
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.models.decoder import Decoder
from cutaway.weights.checkpoint import Loaded

Sentences = tuple[str, str, str, str]

WORDS: Mapping[str, tuple[Sentences, Sentences]] = {
    "bank": (
        (
            "The river had risen overnight and flooded its bank",
            "They pulled the canoe out of the water onto the muddy bank",
            "Willows grew along the stream, and we sat down on the grassy bank",
            "The fisherman cast his line from the left bank",
        ),
        (
            "She deposited her salary at the bank",
            "The loan was approved by the manager of the bank",
            "He withdrew the cash from his account at the bank",
            "Interest rates were raised, and so did every other bank",
        ),
    ),
    "spring": (
        (
            "The snow melted and the flowers came out in early spring",
            "The birds come back from the south every spring",
            "After a long winter, everyone was glad of the spring",
            "We plant the tomatoes late in the spring",
        ),
        (
            "The mattress was worn out, down to its last metal spring",
            "The clock stopped because of a broken coiled spring",
            "He compressed the steel spring",
            "The mechanic replaced the suspension and its spring",
        ),
    ),
    "match": (
        (
            "The two teams met again for the final match",
            "She won the tennis match",
            "The football fans filled the stadium for the match",
            "The referee was injured during the match",
        ),
        (
            "He lit the candle with a wooden match",
            "The campfire would not start, and there was only one dry match",
            "She lit her cigarette with a match",
            "The box of kindling was there, but he had no match",
        ),
    ),
    "bat": (
        (
            "Out of the dark cave, hanging upside down, came a bat",
            "The owl and other animals of the night, such as the bat",
            "The only mammal with wings that flies is the bat",
            "At dusk we saw the wings of a small furry bat",
        ),
        (
            "The baseball player swung his bat",
            "He hit the ball hard with the wooden bat",
            "The coach handed the boy a glove, a ball and a bat",
            "The cricketer walked to the wicket with his bat",
        ),
    ),
    "palm": (
        (
            "The island had white sand and a single coconut palm",
            "In the desert oasis grew a tall date palm",
            "A monkey climbed the trunk of the palm",
            "The hurricane bent the trees on the beach, every palm",
        ),
        (
            "She read his fortune from the lines of his palm",
            "He held the coin in the middle of his palm",
            "The nurse looked at the cut on her fingers and her palm",
            "He wiped the sweat from his forehead with his palm",
        ),
    ),
    "seal": (
        (
            "On the ice the polar bear was hunting a seal",
            "The zoo keeper threw a fish to the seal",
            "The whale, the walrus and the seal",
            "On the rocks by the sea barked a grey seal",
        ),
        (
            "The king signed the letter and pressed his ring into the wax seal",
            "The document bears the official stamp and seal",
            "The envelope was closed with the royal seal",
            "The notary put his signature next to his seal",
        ),
    ),
    "pitch": (
        (
            "The singer could not hold the note at the right pitch",
            "The violin was tuned to a higher pitch",
            "The sound of the siren rose in pitch",
            "The choir lost the melody and its pitch",
        ),
        (
            "The footballers ran onto the pitch",
            "The groundsman mowed the grass of the pitch",
            "Fans invaded the football pitch",
            "The players trained in the rain on a muddy pitch",
        ),
    ),
    "plant": (
        (
            "She watered the green leaves of the plant",
            "The gardener put the seed in a pot and grew a plant",
            "The roots, the stem and the flowers of the plant",
            "Bees visit the blossoms of this plant",
        ),
        (
            "The workers went on strike at the car plant",
            "Electricity comes from the nuclear power plant",
            "The company closed its factory, a chemical plant",
            "Engineers built a new manufacturing plant",
        ),
    ),
    "letter": (
        (
            "The postman brought an envelope with a stamp, and in it a letter",
            "She wrote to her mother a long letter",
            "He signed and mailed the letter",
            "The lawyer answered in a formal letter",
        ),
        (
            "The alphabet begins with the first letter",
            "The word is spelled with a capital letter",
            "Children learn to write each vowel and each letter",
            "The name ends with a silent letter",
        ),
    ),
    "mouse": (
        (
            "The cat chased the little grey mouse",
            "In the barn a trap had caught a mouse",
            "The owl carried away a field mouse",
            "Cheese had been eaten by a mouse",
        ),
        (
            "Click on the icon with the left button of the mouse",
            "The computer came with a keyboard and a mouse",
            "Move the cursor on the screen with the mouse",
            "He plugged the cable of the wireless mouse",
        ),
    ),
}
EACH = 4  # sentences per sense


class Parted(NamedTuple):
    """gaps, same: per depth, 0 blocks first; same is the mean cosine within a sense. rank: how many of the other
    splits into halves give as large a gap at the best depth."""

    gaps: list[float]
    same: list[float]
    rank: int

    @property
    def best(self) -> int:
        """The depth with the largest gap."""
        return max(range(len(self.gaps)), key=lambda i: self.gaps[i])


@lab(
    "senses",
    title=both("One word, two senses", "一词两义"),
    question=both(
        "The same word means different things in two sentences: at which layer does the model separate them?",
        "同一个词在两句话里意思不同，模型在哪一层把它们分开？",
    ),
    seconds={"quick": 4, "full": 10},
)
def senses(
    run: Run,
    *,
    words: Annotated[int, Knob("ambiguous words, 10 at most", "多义词个数，最多 10", quick=3, min=1, max=10)] = 10,
    model: Annotated[str, Knob("the model", "模型")] = MODEL,
) -> Finding:
    loaded, chosen = subject(model), list(WORDS)[:words]
    parted = {word: part(loaded, word) for word in run.each(chosen, "two senses of")}
    return Finding(table=_table(parted), plot=_plot(parted), verdict=_verdict(parted), checks=_checks(parted))


def part(loaded: Loaded, word: str) -> Parted:
    """How far the senses of a word are parted, by depth."""
    vectors_LND = torch.stack([vectors(loaded, word, text) for sense in WORDS[word] for text in sense], 1)
    cosines = cosine(vectors_LND)
    first = tuple(range(EACH))
    gaps = gap(cosines, first)
    best = int(gaps.argmax())
    others = [rest for rest in combinations(range(2 * EACH), EACH) if 0 in rest and rest != first]
    rank = sum(bool(gap(cosines[best : best + 1], split)[0] >= gaps[best]) for split in others)
    return Parted(gaps.tolist(), within(cosines, first).tolist(), rank)


@torch.inference_mode()
def vectors(loaded: Loaded, word: str, text: str) -> Tensor:
    """The last word's vector after each number of blocks, [L + 1, D]. Errors: the text does not end in that token."""
    model: Decoder = decoder(loaded)
    ids = loaded.tokenizer.encode(text)
    if ids[-1] != word_id(loaded.tokenizer, word):
        raise CutawayError(f"{text!r} does not end in one token for {word!r}", loaded.name, "name another model")
    return torch.stack([x_TD[-1] for x_TD in states(model, torch.tensor(ids))])


def cosine(vectors_LND: Tensor) -> Tensor:
    """Cosine of every pair of vectors at every depth, [L + 1, N, N]."""
    unit_LND = F.normalize(vectors_LND.double(), dim=-1)
    return unit_LND @ unit_LND.transpose(-1, -2)


def within(cosine_LNN: Tensor, half: tuple[int, ...]) -> Tensor:
    """Mean cosine of pairs on the same side of a split, a vector and itself left out, [L + 1]."""
    n = cosine_LNN.shape[-1]
    side_N = torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(half), True)
    same_NN = (side_N[:, None] == side_N) & ~torch.eye(n, dtype=torch.bool)
    return cosine_LNN[:, same_NN].mean(-1)


def gap(cosine_LNN: Tensor, half: tuple[int, ...]) -> Tensor:
    """The mean cosine within the sides of a split minus that across it, [L + 1]."""
    n = cosine_LNN.shape[-1]
    side_N = torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(half), True)
    return within(cosine_LNN, half) - cosine_LNN[:, side_N[:, None] != side_N].mean(-1)


# ---- what it comes to


def mean_gaps(parted: Mapping[str, Parted]) -> list[float]:
    """Over words, by depth."""
    return [statistics.mean(gaps) for gaps in zip(*(p.gaps for p in parted.values()), strict=True)]


def _table(parted: Mapping[str, Parted]) -> Table:
    columns = {"word": "", "gap at the embedding": "", "largest gap": "", "after blocks": "", "gap at the end": ""}
    columns |= {"cosine within a sense there": "", "other splits as good": "of 34"}
    rows: list[list[Cell]] = [
        [word, p.gaps[0], p.gaps[p.best], p.best, p.gaps[-1], p.same[p.best], p.rank] for word, p in parted.items()
    ]
    return table(columns, rows)


def _plot(parted: Mapping[str, Parted]) -> Plot:
    depths = [float(i) for i in range(len(next(iter(parted.values())).gaps))]
    curves = {**{word: p.gaps for word, p in parted.items()}, "mean": mean_gaps(parted)}
    return Plot(
        kind="line",
        x=Axis(label="blocks passed"),
        y=Axis(label="cosine within a sense minus across"),
        series=[Series(name=name, x=depths, y=gaps) for name, gaps in curves.items()],
    )


def _checks(parted: Mapping[str, Parted]) -> list[Check]:
    bank, middle = parted["bank"], range(1, len(parted["bank"].gaps) - 1)
    most = max(bank.gaps[i] for i in middle)
    start = max(abs(p.gaps[0]) for p in parted.values())
    alone = sum(p.rank == 0 for p in parted.values())
    return [
        check(
            start < 1e-6,
            f"at the embedding, as in any static table, the gap is 0 (to {start:.0e})",
            f"在嵌入层，差距为 0（误差 {start:.0e}），任何静态词表都如此",
        ),
        check(
            most > 0.1,
            f"“bank”: the gap exceeds 0.1 at some middle layer ({most:.2f})",
            f"“bank”：某个中间层的差距超过 0.1（{most:.2f}）",
        ),
        check(
            alone / len(parted) > 0.5,
            f"for {alone} of {len(parted)} words no other split of the sentences parts them as far",
            f"{len(parted)} 个词里有 {alone} 个，句子的任何其他分法都分不开这么远",
        ),
    ]


def _verdict(parted: Mapping[str, Parted]) -> Words:
    mean, bank = mean_gaps(parted), parted["bank"]
    best = max(range(len(mean)), key=lambda i: mean[i])
    early = next(i for i, value in enumerate(mean) if value > max(mean) / 2)
    depths = sorted(p.best for p in parted.values())
    over = sum(max(p.gaps) > 0.1 for p in parted.values())
    return both(
        f"The gap between same-sense and cross-sense cosine starts at 0, passes half its height after {early} blocks "
        f"and is largest after {best} of {len(mean) - 1} ({mean[best]:.3f}, mean over {len(parted)} words; at the end "
        f"{mean[-1]:.3f}). For single words the best depth is {depths[0]} to {depths[-1]}; {over} of {len(parted)} "
        f"exceed 0.1. “bank”: {max(bank.gaps):.3f} after {bank.best}. Cosines are high: {bank.same[bank.best]:.2f} "
        "within a sense there.",
        f"同义与异义余弦之差从 0 开始，经过 {early} 层到达一半高度，在 {len(mean) - 1} 层中的第 {best} 层后最大"
        f"（{mean[best]:.3f}，{len(parted)} 个词的平均；末层 {mean[-1]:.3f}）。单个词的最佳深度在 {depths[0]} 到 "
        f"{depths[-1]} 之间，{len(parted)} 个中有 {over} 个超过 0.1。“bank”：第 {bank.best} 层后 "
        f"{max(bank.gaps):.3f}。余弦本身很高：该处同义为 {bank.same[bank.best]:.2f}。",
    )
