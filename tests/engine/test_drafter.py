"""Guesses: where they come from, and how many of them a sequence is worth."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cutaway.engine.drafter import SPARE, Drafter, InTurn, Pass, Predicted, PromptLookup, best_length
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import Sequence
from engine.tiny import decoder, tokenizer


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
        assert drafter.find(tokens, 3) == found(tokens, drafter.longest, drafter.shortest, 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_prediction_is_followed_through_edits(seed):
    """Words changed, put in and left out: behind each the guesses find their place again, also among equal lines."""
    numbers = random.Random(seed)
    prediction = tuple(token for _ in range(30) for token in (1, 2, 3, numbers.randrange(10, 40), 4))
    reply = [*prediction]
    for at, edit in ((120, [50, 51, 52]), (90, []), (33, [53])):
        reply[at : at + 1] = edit
    drafter, written, steps = Predicted(), [], 0
    while len(written) < len(reply):
        drafts, coming = drafter.follow(prediction, written, drafter.most), reply[len(written) :]
        right = next((i for i, (a, b) in enumerate(zip(drafts, coming, strict=False)) if a != b), len(drafts))
        written += coming[: right + 1]
        steps += 1
    assert written == reply
    assert steps <= len(reply) / drafter.most + 3 * 5
    assert not drafter.follow(prediction, [60], 5)
    assert not drafter.follow((), [], 5)
    long = (*range(100, 5000), 7, 8, 9)
    assert drafter.follow(long, [*range(4880), 8], 1) == [9]
    assert not drafter.follow(long, [8], 1), "too far off to be looked for: a step must not take longer for a long text"


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_what_was_predicted_comes_sooner_and_nothing_else_changes(temperature):
    prompt, params = [5, 6, 7], SamplingParams(temperature=temperature, seed=3, max_tokens=48, ignore_eos=True)
    plain = Engine(decoder(), tokenizer()).generate(prompt, params)
    reply = [event.choice.token for event in plain]
    wrong = [*reply[:20], 0, 0, 0, *reply[24:]]
    for prediction, most in ((reply, 8), (wrong, 20), ([0] * 48, 48)):
        engine = Engine(decoder(), tokenizer(), drafter=InTurn(Predicted()))
        sequence = engine.add(prompt, replace(params, prediction=tuple(prediction)))
        while engine.busy:
            engine.step()
        assert sequence.reply == reply
        assert engine.stats.steps <= most
        assert sequence.predicted[0] == engine.stats.accepted.total() == 48 - engine.stats.steps
        assert sum(sequence.predicted) == engine.stats.drafted.total()


class Silent(Drafter):
    """Has nothing to say."""

    def propose(self, asked):
        return [[] for _ in asked]


def fresh() -> Sequence:
    return Sequence([0], SamplingParams(), tokenizer())


def test_who_guesses_wrong_guesses_less_and_tries_again():
    drafter, sequence = Silent(), fresh()
    assert 0 < drafter.worth(sequence, 1) < drafter.most
    for _ in range(20):
        drafter.learn(sequence, 4, 0)
    assert drafter.worth(sequence, 1) == 0
    assert drafter.worth(fresh(), 1) == 0, "who comes next begins with what is known of those before"
    for _ in range(20):
        drafter.learn(sequence, 1, 1)
    assert drafter.worth(sequence, 1) == drafter.most
    drafter.learn(sequence, 0, 0)
    assert drafter.worth(sequence, 1) == drafter.most


@pytest.mark.parametrize(("cost", "company"), [(0.0, 1), (0.5, 1), (0.5, 7)])
def test_tries_take_a_small_share_of_the_time(cost, company):
    drafter, sequences = Silent(), [fresh() for _ in range(company)]
    drafter.cost, drafter.right, drafter.wrong = cost, 0, 100
    asked = []
    drafter.propose = lambda some: asked.extend(some) or [[] for _ in some]
    for _ in range(700):
        drafter.draft(sequences)
    assert {most for _, most in asked} == {1}
    assert len(asked) * (cost + Pass().checking(company)) == pytest.approx(SPARE * 700 * company, rel=0.1)


def test_only_guesses_that_were_checked_teach():
    """Two right, one wrong; of the five behind it nothing is known."""
    few, many, sequences = Silent(), Silent(), [fresh() for _ in range(2)]
    few.learn(sequences[0], 3, 2)
    many.learn(sequences[1], 8, 2)
    assert [*sequences[0].trust.values()] == [*sequences[1].trust.values()]
    assert (few.right, few.wrong) == (many.right, many.wrong) == (6, 2)
    assert many.drafted == dict.fromkeys(range(8), 1)
    assert many.accepted == {0: 1, 1: 1}


def test_the_more_company_the_fewer_guesses():
    """A step of one reads weights for whoever comes along; a full one has work for the processor already."""
    found = [Silent().worth(fresh(), n) for n in (1, 2, 4, 8, 32)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 > found[-1]


@pytest.mark.parametrize("right", [0.0, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("cost", [0.05, 0.3, 1.0])
def test_the_best_length_is_the_formula_s(right, cost):
    def speed(g: int) -> float:
        return (g + 1 if right == 1 else (1 - right ** (g + 1)) / (1 - right)) / (1 + cost * g)

    best = best_length(right, cost, 12)
    assert speed(best) == pytest.approx(max(map(speed, range(13))))
    assert best == 0 or right > cost, "a guess that costs more than it brings"
