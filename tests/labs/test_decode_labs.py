"""Parts of the labs on decoding that have known values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import Sequence
from cutaway.labs.decode.best_of_n import divergence, selected
from cutaway.labs.decode.greedy_and_beam import TRAP, brute_force, chance
from cutaway.labs.decode.multi_token_prediction import apart, losses, read
from cutaway.labs.decode.repetition import shifts
from cutaway.labs.decode.restricted_vocabulary import spoken
from cutaway.labs.decode.speaker import repeated
from cutaway.labs.decode.speculative_exactness import P, Q, residual, speculate
from cutaway.labs.decode.speculative_speed import Planted, speed_up, tokens_of_a_pass
from cutaway.labs.decode.valid_json import obeys
from cutaway.labs.training import fresh, next_bytes, prose, small_spec
from engine.tiny import tokenizer


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


def test_tokens_of_a_pass():
    assert tokens_of_a_pass(1.0, 4) == 5
    assert tokens_of_a_pass(0.8, 4) == pytest.approx((1 - 0.8**5) / 0.2)
    assert speed_up(0.6, 4, 0.05) == pytest.approx(2.3056 / 1.2)


def test_planted_guesses_are_right_as_often_as_they_should_be():
    text = Sequence([*range(100, 3100)], SamplingParams(), tokenizer())
    planted, whole = Planted([text.tokens], 0.7, 4, seed=1), list(text.tokens)
    right = 0
    for at in range(1, 2990, 4):
        text.tokens = whole[:at]
        (guesses,) = planted.propose([(text, 4)])
        assert guesses == planted.propose([(text, 4)])[0], "a place's luck is fixed"
        right += sum(g == t for g, t in zip(guesses, whole[at:], strict=False))
    assert right / 2990 == pytest.approx(0.7, abs=0.03)


def test_the_share_of_right_guesses_leaves_out_those_behind_a_wrong_one():
    """Five passes of two guesses: all right, one right, none right, all right; one cut short does not count."""
    planted, text = Planted([], 0.7, 2, seed=0), Sequence([0], SamplingParams(), tokenizer())
    for drafted, accepted in ((2, 2), (2, 1), (2, 0), (2, 2), (1, 0)):
        planted.learn(text, drafted, accepted)
    assert planted.whole == [3, 2, 1, 3]
    assert planted.share() == pytest.approx(5 / 7)


def test_the_token_after_next_is_two_further():
    """By another formula, each text alone. One that crosses into the next text is another loss."""
    spec = small_spec(vocab=256, width=16, layers=1)
    model = fresh(replace(spec, ahead=spec.layers), seed=0, std=0.3)
    batch = next_bytes(prose(), 9, 3)(torch.Generator().manual_seed(0))
    assert apart(model, batch) < 1e-6
    with torch.no_grad():
        packed, alone = (losses(read(model, some), some)[1] for some in (batch, batch._replace(lengths=[27])))
    assert abs(packed - alone) > 1e-3


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
