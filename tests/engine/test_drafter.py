"""Guesses: where they come from, and how many of them a sequence is worth."""

from __future__ import annotations

import random

import pytest

from cutaway.engine.drafter import AGAIN, MOST, PromptLookup, learn, worth
from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import Sequence
from engine.tiny import tokenizer


def found(tokens: list[int], longest: int, shortest: int, most: int) -> list[int]:
    """The same by looking everywhere."""
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for at in reversed(range(len(tokens) - length)):
            if tokens[at : at + length] == tokens[-length:]:
                return tokens[at + length :][:most]
    return []


@pytest.mark.parametrize("seed", range(5))
def test_the_latest_place_of_the_longest_run(seed):
    numbers = random.Random(seed)
    for _ in range(200):
        tokens = [numbers.choice((0, 1, 256, 65536, 2**32)) for _ in range(numbers.randrange(1, 40))]
        longest = numbers.randrange(1, 5)
        drafter = PromptLookup(longest, numbers.randrange(1, longest + 1))
        assert drafter.propose(tokens, 3) == found(tokens, drafter.longest, drafter.shortest, 3)


def test_who_guesses_wrong_guesses_less_and_tries_again():
    sequence = Sequence([*range(AGAIN + 1)], SamplingParams(), tokenizer())
    assert worth(sequence) == MOST
    for _ in range(20):
        learn(sequence, 4, 0)
    assert worth(sequence) == 0
    sequence.tokens = [0] * (3 * AGAIN)
    assert worth(sequence) == 1
    for _ in range(20):
        learn(sequence, 1, 1)
    assert worth(sequence) == MOST
    learn(sequence, 0, 0)
    assert worth(sequence) == MOST
