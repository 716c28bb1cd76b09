"""Parts of the labs on decoding that have known values."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.labs.decode.best_of_n import divergence, selected
from cutaway.labs.decode.greedy_and_beam import TRAP, brute_force, chance
from cutaway.labs.decode.repetition import shifts
from cutaway.labs.decode.restricted_vocabulary import spoken
from cutaway.labs.decode.speaker import repeated
from cutaway.labs.decode.speculative_exactness import P, Q, residual, speculate
from cutaway.labs.decode.valid_json import obeys


def test_the_best_of_two_of_three():
    best = selected(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 2)
    assert best.tolist() == pytest.approx([0.25, 0.39, 0.36])
    assert divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])) == pytest.approx(math.log(4))


def test_the_trap_has_a_best_reply():
    assert brute_force(TRAP) == ((1, 2, 0), pytest.approx(0.4 * 0.9 * 0.9))
    assert chance(TRAP, (0, 0, 1)) == pytest.approx(0.6 / 9)


def test_dividing_a_negative_score_rewards_it():
    """The mistake that the sign rule is there for; done right, all four tokens become rarer."""
    assert (shifts(True, 1.3) < 0).tolist() == [True] * 4
    assert (shifts(False, 1.3) < 0).tolist() == [True, True, False, False]


def test_runs_that_repeat():
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated([1, 2, 3]) == 0


def test_rejection_keeps_what_both_have():
    p, q = torch.tensor(P).double(), torch.tensor(Q).double()
    assert residual(p, q).tolist() == [1, 0, 0]
    tokens = speculate(p, q, 20_000, torch.Generator().manual_seed(0), residual(p, q))
    assert (tokens.bincount() / 20_000).tolist() == pytest.approx(P, abs=0.02)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"name": "Ada", "age": 36, "tags": ["old"]}', True),
        ('{"name": "Ada", "age": 131, "tags": []}', False),
        ('{"name": "Ada", "age": true, "tags": []}', False),
        ('{"name": "Ada", "age": 3, "tags": ["other"]}', False),
        ('{"name": "Adalaide", "age": 3, "tags": []}', False),
        ('{"name": "Ada", "age": 3}', False),
        ("[]", False),
        ("{", False),
    ],
)
def test_what_the_schema_allows(text, valid):
    assert obeys(text) is valid


def test_words_as_they_are_said():
    assert spoken("The cat, a dog-house! Unfin", unfinished=True) == ["the", "cat", "a", "dog", "house"]
    assert spoken("The cat.", unfinished=True) == ["the", "cat"]
    assert spoken("café lighthouse", unfinished=False) == ["café", "lighthouse"]
