"""A small grammar with agreement at a distance: text whose every probability is known.

    the small dog near the cats of my friend sleeps often .
              ---                            ------
              subject                        verb: agrees with the subject, whatever stands in between

Each phrase of three words between subject and verb is another chance to agree with the wrong noun (Linzen et al.
2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies", arXiv:1611.01368).
"""

from __future__ import annotations

import math
import random
import re
from typing import NamedTuple

import torch
from torch import Tensor

DETERMINERS = ("the", "my")
ADJECTIVES = ("small", "old", "quiet", "green", "tired", "clever", "heavy", "bright")
NOUNS = (
    "dog", "cat", "friend", "pupil", "teacher", "boat", "house", "tree", "river", "stone", "bird", "painter",
    "guest", "lamp", "garden", "letter", "king", "farmer", "window", "song",
)  # fmt: skip
PREPOSITIONS = ("near", "of", "behind", "with", "above")
VERBS = ("sleep", "sing", "wait", "fall", "shine", "rest", "move", "speak", "appear", "return")
ADVERBS = ("often", "today", "again", "slowly", "alone", "here")
END = "."

WORDS = (
    END, *DETERMINERS, *ADJECTIVES, *PREPOSITIONS, *ADVERBS, *NOUNS, *(n + "s" for n in NOUNS),
    *(v + "s" for v in VERBS), *VERBS,
)  # fmt: skip
ID = {word: i for i, word in enumerate(WORDS)}
ADJECTIVE, PHRASE, ADVERB = 0.4, 0.55, 0.3  # how likely each optional part is; a further phrase as likely as the first
MOST_PHRASES = 5


class Sentence(NamedTuple):
    """tokens, the last of them the end. verb: its place. distance: from the subject to it. nats: -log p of it all."""

    tokens: list[int]
    verb: int
    distance: int
    nats: float


class Dice:
    """Choices, with the logarithm of their probabilities added up."""

    def __init__(self, source: random.Random) -> None:
        self.random, self.nats = source, 0.0

    def often(self, p: float) -> bool:
        """True with probability p."""
        hit = self.random.random() < p
        self.nats -= math.log(p if hit else 1 - p)
        return hit

    def one(self, words: tuple[str, ...]) -> str:
        """One of the words, the i-th with a probability that falls as 1 / (i + 2)."""
        weights = [1 / (i + 2) for i in range(len(words))]
        (i,) = self.random.choices(range(len(words)), weights)
        self.nats -= math.log(weights[i] / sum(weights))
        return words[i]


def sentence(source: random.Random) -> Sentence:
    """One sentence of the grammar."""
    dice = Dice(source)

    def noun() -> str:
        return dice.one(NOUNS) + ("s" if dice.often(0.5) else "")

    words = [dice.one(DETERMINERS), *([dice.one(ADJECTIVES)] if dice.often(ADJECTIVE) else []), noun()]
    subject = len(words) - 1
    for _ in range(MOST_PHRASES):
        if not dice.often(PHRASE):
            break
        words += [dice.one(PREPOSITIONS), dice.one(DETERMINERS), noun()]
    verb = dice.one(VERBS) + ("" if words[subject].endswith("s") else "s")
    rest = [dice.one(ADVERBS)] if dice.often(ADVERB) else []
    place = len(words)
    return Sentence([ID[word] for word in (*words, verb, *rest, END)], place, place - subject, dice.nats)


def sentences(tokens: int, seed: int) -> list[Sentence]:
    """As many as it takes to have that many tokens."""
    made, count, source = [], 0, random.Random(seed)
    while count < tokens:
        made.append(sentence(source))
        count += len(made[-1].tokens)
    return made


def disagreeing(sentence: Sentence) -> list[int]:
    """The same sentence, its verb in the other number."""
    word, at = WORDS[sentence.tokens[sentence.verb]], sentence.verb
    other = word[:-1] if word.endswith("s") else word + "s"
    return [*sentence.tokens[:at], ID[other], *sentence.tokens[at + 1 :]]


def bytes_of_words() -> Tensor:
    """How many bytes each word takes in a text, with the space before it: [V]."""
    return torch.tensor([len(word) + 1 for word in WORDS])


def plurals(tokens: list[int]) -> int:
    """How many nouns of a sentence are plural."""
    return sum(WORDS[token].endswith("s") and WORDS[token][:-1] in NOUNS for token in tokens)


def valid(tokens: list[int]) -> bool:
    """Is this a sentence of the grammar, agreement included?"""
    match = re.fullmatch(SENTENCE, " ".join(WORDS[token] for token in tokens))
    return match is not None and match["subject"].endswith("s") != match["verb"].endswith("s")


def _any(words: tuple[str, ...], suffix: str = "") -> str:
    return f"(?:{'|'.join(words)}){suffix}"


SENTENCE = re.compile(
    f"{_any(DETERMINERS)} (?:{_any(ADJECTIVES)} )?(?P<subject>{_any(NOUNS, 's?')})"
    f"(?: {_any(PREPOSITIONS)} {_any(DETERMINERS)} {_any(NOUNS, 's?')}){{0,{MOST_PHRASES}}}"
    f" (?P<verb>{_any(VERBS, 's?')})(?: {_any(ADVERBS)})? {re.escape(END)}"
)
