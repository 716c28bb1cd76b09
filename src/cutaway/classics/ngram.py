"""An n-gram language model with interpolated Kneser-Ney smoothing (Kneser & Ney, ICASSP 1995; Chen & Goodman 1999).

How likely a token is after the last n - 1 tokens is counted, a discount D is taken from every count, and what was
taken is handed to the model of the last n - 2 tokens:

    p(w | h) = ( max(c(h w) - D, 0) + taken(h) p(w | h without its first token) ) / c(h)

The top level counts occurrences. All levels below count *continuations*, in how many different contexts something
was seen: "Francisco" is frequent, but follows hardly anything but "San", and is unlikely anywhere else.

An n-gram is one number, its tokens the digits: a table of counts is two sorted arrays and looking up is bisection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import CutawayError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Discounts = Literal["absolute", "modified"]


class Level(NamedTuple):
    """All n-grams of one length. grams, contexts: sorted keys, a context being a gram without its last token.

    kept: count of each gram after the discount. total, taken: of each context, what its counts and discounts sum to.
    """

    grams: Ints
    kept: Floats
    contexts: Ints
    total: Floats
    taken: Floats


class KneserNey:
    """p(token | the order - 1 tokens before it). Before a text's first token stands a mark that nothing predicts.

    vocab: tokens are 0 ... vocab - 1. order: n, at least 1. discounts: one for all counts (Kneser & Ney) or one each
    for counts of 1, 2 and more ("modified", Chen & Goodman). Errors: tokens outside the vocabulary, no text, an order
    whose n-grams do not fit 63 bits.
    """

    def __init__(
        self, texts: Iterable[Sequence[int]], vocab: int, order: int, discounts: Discounts = "modified"
    ) -> None:
        if order < 1 or (vocab + 1) ** order >= 2**63:
            raise CutawayError(f"{order} does not suit a vocabulary of {vocab}", "order", "from 1 to 63 bits an n-gram")
        self.vocab, self.order, self.base = vocab, order, vocab + 1
        keys = [self._keys(text) for text in texts]
        if not sum(map(len, keys)):
            raise CutawayError("hold no token", "texts")
        grams, counts = np.unique(np.concatenate(keys), return_counts=True)
        levels = [_level(grams, counts, self.base, discounts)]
        for length in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % self.base**length, return_counts=True)  # how many tokens came before it
            levels.append(_level(grams, counts, self.base, discounts))
        self.levels = levels[::-1]

    @property
    def entries(self) -> int:
        """How many n-grams and contexts are stored."""
        return sum(len(level.grams) + len(level.contexts) for level in self.levels)

    @property
    def bytes(self) -> int:
        """How much memory they take."""
        return sum(array.nbytes for level in self.levels for array in level)

    def probabilities(self, tokens: Sequence[int]) -> Floats:
        """p of each token of a text, given those before it: [T]. Errors: tokens outside the vocabulary."""
        return self._interpolate(self._keys(tokens))

    def distribution(self, context: Sequence[int]) -> Floats:
        """p of every token after `context`: [V]."""
        history = self._keys([*context, 0][-self.order :])[-1]
        return self._interpolate(history + np.arange(self.vocab))

    def seen(self, tokens: Sequence[int]) -> NDArray[np.bool_]:
        """For each token of a text: did its whole context of order - 1 tokens occur in training? [T]."""
        return _find(self.levels[-1].contexts, self._keys(tokens) // self.base)[1]

    def sample(self, context: Sequence[int], length: int, seed: int) -> list[int]:
        """`length` tokens, each drawn from its distribution after `context` and those before it."""
        rng, text = np.random.default_rng(seed), [*context]
        for _ in range(length):
            p_V = self.distribution(text)
            text.append(int(rng.choice(self.vocab, p=p_V / p_V.sum())))
        return text[len(context) :]

    def _keys(self, tokens: Sequence[int]) -> Ints:
        """The n-gram that ends at each token, as one number [T]; vocab, the last digit, marks the beginning."""
        text = np.asarray(tokens, dtype=np.int64)
        if text.ndim != 1 or (text.size and not 0 <= text.min() <= text.max() < self.vocab):
            raise CutawayError(f"must be token ids from 0 to {self.vocab - 1}", "tokens")
        padded = np.concatenate([np.full(self.order - 1, self.vocab), text])
        keys = np.zeros_like(text)
        for i in range(self.order):
            keys = keys * self.base + padded[i : i + len(text)]
        return keys

    def _interpolate(self, keys: Ints) -> Floats:
        p = np.full(len(keys), 1 / self.vocab)
        for length, level in enumerate(self.levels, 1):
            gram = keys % self.base**length
            at, known = _find(level.grams, gram)
            where, met = _find(level.contexts, gram // self.base)
            kept, taken = level.kept[at] * known, level.taken[where]
            p = np.where(met, (kept + taken * p) / level.total[where], p)
        return p


def discounts_of(counts: Ints, kind: Discounts) -> Floats:
    """What to take from counts of 1, of 2 and of more: [3], from how many n-grams have the counts 1 to 4.

    A text too small to tell gets 0.5, 1 and 1.5; or 0.5 for all.
    """
    n1, n2, n3, n4 = (float((counts == i).sum()) for i in range(1, 5))
    if not n1 or not n2 or (kind == "modified" and not (n3 and n4)):
        return np.array([0.5, 0.5, 0.5]) if kind == "absolute" else np.array([0.5, 1.0, 1.5])
    share = n1 / (n1 + 2 * n2)
    if kind == "absolute":
        return np.full(3, share)
    wanted = np.array([1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
    return wanted.clip(0, [1, 2, 3])


def _level(grams: Ints, counts: Ints, base: int, kind: Discounts) -> Level:
    discount = discounts_of(counts, kind)[counts.clip(max=3) - 1]
    contexts, owner = np.unique(grams // base, return_inverse=True)
    total, taken = (np.bincount(owner, weights).astype(float) for weights in (counts, discount))
    return Level(grams, counts - discount, contexts, total, taken)


def _find(table: Ints, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each key stands in a sorted table (anywhere if it does not), and whether it does."""
    at = table.searchsorted(keys).clip(max=len(table) - 1)
    return at, table[at] == keys
