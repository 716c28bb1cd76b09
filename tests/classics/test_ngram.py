"""Kneser-Ney against its definition, and what it promises: sums, storage, drawing, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cutaway.classics.ngram import KneserNey, discounts_of
from cutaway.errors import CutawayError
from kit.proofs import classics

TEXT = "the cat in the mat of san francisco to a dog in san francisco of a cat to the dog in san francisco"
WORDS = sorted(set(TEXT.split()))


def test_is_the_definition():
    classics.ngram_definition()


def test_sums_to_one_after_any_context():
    classics.ngram_sums()


@pytest.mark.parametrize("discounts", ["absolute", "modified"])
def test_sums_to_one_after_every_context_of_a_small_vocabulary(discounts):
    model = KneserNey([[0, 1, 1, 2, 0, 2, 2, 2, 1]], 4, 3, discounts)
    for length in range(4):
        for context in itertools.product(range(4), repeat=length):
            assert abs(model.distribution(context).sum() - 1) < 1e-12


def test_what_follows_few_contexts_is_unlikely_in_a_new_one():
    """Francisco comes three times, always after San; the cat only twice, but after different words."""
    text = [WORDS.index(word) for word in TEXT.split()]
    model = KneserNey([text], len(WORDS), 2, "absolute")
    after_mat = model.distribution([WORDS.index("mat")])
    assert text.count(WORDS.index("francisco")) > text.count(WORDS.index("dog"))
    assert after_mat[WORDS.index("francisco")] < after_mat[WORDS.index("dog")]
    assert model.distribution([WORDS.index("san")]).argmax() == WORDS.index("francisco")


def test_a_bigram_by_hand():
    """Text 0 1 0 1 0. Token 0 continues 2 contexts, the start and 1; token 1 continues one: D = 1 / (1 + 2 * 1).
    Of the bigrams, one comes once and two come twice: D = 1 / (1 + 2 * 2)."""
    model = KneserNey([[0, 1, 0, 1, 0]], 3, 2, "absolute")
    rest = (1 / 3 + 1 / 3) / 3 * 1 / 3
    unigram = np.array([(2 - 1 / 3) / 3 + rest, (1 - 1 / 3) / 3 + rest, rest])
    after_0 = np.array([0, (2 - 1 / 5) / 2, 0]) + 1 / 5 / 2 * unigram
    np.testing.assert_allclose(model.distribution([0]), after_0, rtol=1e-14)
    np.testing.assert_allclose(model.distribution([2]), unigram, rtol=1e-14)


def test_discounts_of_known_counts_of_counts():
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 7])
    share = 10 / 20
    assert discounts_of(counts, "absolute").tolist() == [share] * 3
    assert discounts_of(counts, "modified") == pytest.approx(
        [1 - 2 * share * 0.5, 2 - 3 * share * 0.6, 3 - 4 * share * 2 / 3]
    )
    assert discounts_of(counts[:10], "modified").tolist() == [0.5, 1, 1.5]


def test_storage_is_counted():
    model = KneserNey([[0, 1, 0, 1, 2]], 3, 2)
    grams, contexts = {(3, 0), (0, 1), (1, 0), (1, 2)}, {3, 0, 1}
    assert model.entries == len(grams) + len(contexts) + 3 + 1  # three tokens, and the empty context
    assert model.bytes == 8 * (2 * 4 + 3 * 3 + 2 * 3 + 3 * 1)


def test_seen_contexts():
    model = KneserNey([[0, 1, 0, 1, 2]], 3, 3)
    assert model.seen([0, 1, 1, 0]).tolist() == [True, True, True, False]


def test_samples_follow_the_distribution():
    model = KneserNey([[0, 1, 1, 2, 0, 2, 2, 2, 1, 0, 1]], 3, 2)
    drawn = model.sample([1], 2000, seed=7)
    assert drawn == model.sample([1], 2000, seed=7) != model.sample([1], 2000, seed=8)
    after = np.array([b for a, b in itertools.pairwise([1, *drawn]) if a == 0])
    expected = model.distribution([0]) * len(after)
    assert ((np.bincount(after, minlength=3) - expected) ** 2 / expected).sum() < 13.8  # p = 0.001


@pytest.mark.parametrize(
    ("texts", "vocab", "order", "names"),
    [
        ([[0, 5]], 5, 2, "tokens"),
        ([[-1]], 5, 2, "tokens"),
        ([[]], 5, 2, "texts"),
        ([[0]], 5, 0, "order"),
        ([[0]], 256, 8, "order"),
    ],
)
def test_refusals(texts, vocab, order, names):
    with pytest.raises(CutawayError, match=names):
        KneserNey(texts, vocab, order)
