"""Constraints in the engine: whatever a random model wants to say, what it says is allowed."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.engine import Engine
from cutaway.engine.labels import score
from cutaway.engine.params import SamplingParams
from cutaway.labs.statistics import chi_square
from engine.test_engine import ids, whole
from engine.tiny import VOCAB, decoder, tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Alan"]}, "born": {"type": "integer", "minimum": 1800, "maximum": 1999}},
    "required": ["name", "born"],
    "additionalProperties": False,
}


def said(constraint: ConstraintSpec, seed: int, temperature: float = 1.5) -> tuple[str, str | None, int]:
    """Text, finish and number of steps."""
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=120, constraint=constraint)
    engine = Engine(decoder(), tokenizer())
    sequence = engine.add(ids(5), params)
    while engine.busy:
        engine.step()
    return sequence.text, sequence.finish, engine.stats.steps


@pytest.mark.parametrize("seed", range(4))
def test_what_a_random_model_says_is_in_the_language(seed):
    text, finish, steps = said(ConstraintSpec.schema(SCHEMA), seed)
    told = json.loads(text)
    assert finish == "stop"
    assert told["name"] in ("Ada", "Alan")
    assert 1800 <= told["born"] <= 1999
    assert steps < len(text), "what leaves no choice is not computed token by token"
    assert said(ConstraintSpec.choices(["yes", "yesterday"]), seed)[0] in ("yes", "yesterday")


def test_a_constraint_that_cannot_go_on_ends_its_own_reply_only(monkeypatch):
    from cutaway.engine.constraints.constraint import Grammar
    from cutaway.errors import CutawayError

    def spent(self: Grammar, row_W: object = None) -> object:
        raise CutawayError("is spent", "constraint")

    engine = Engine(decoder(), tokenizer())
    other = engine.add(ids(4), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    one = engine.add(ids(3), SamplingParams(max_tokens=6, constraint=ConstraintSpec.regex("a+")))
    monkeypatch.setattr(Grammar, "mask", spent)
    told = []
    while engine.busy:
        told += engine.step()
    assert [str(event) for who, event in told if who is one] == ["constraint: is spent"]
    assert (one.finish, other.finish, len(other.reply)) == ("error", "length", 6)
    engine.scheduler.pages.check([])


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (ConstraintSpec.regex("(red|green), [0-9]{2} (apples|pears)"), "(red|green), [0-9]{2} (apples|pears)"),
        (ConstraintSpec.choices(["yes", "yesterday", "no way"]), "yes|yesterday|no way"),
        (
            ConstraintSpec.words(["sun", "moon"], between=" "),
            " {0,4}([sS]un|[mM]oon)( {1,4}([sS]un|[mM]oon))* {0,4}",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, ConstraintSpec) else "",
)
def test_forced_tokens_are_drafts_that_change_nothing(constraint, pattern, temperature, monkeypatch):
    drafted = said(constraint, 3, temperature)
    for who in ("constraint.Grammar", "choices.Choices"):
        monkeypatch.setattr(f"cutaway.engine.constraints.{who}.forced", lambda self: [])
    text, finish, steps = said(constraint, 3, temperature)
    assert (text, finish) == drafted[:2]
    assert drafted[2] < steps or constraint.kind == "words"
    whole = re.fullmatch(pattern, text)
    assert whole or (constraint.kind == "words" and finish == "length")


def test_a_setting_that_does_not_suit_the_model_ends_its_own_reply_only():
    engine = Engine(decoder(), tokenizer())
    other = engine.add(ids(4), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    one = engine.add(ids(3), SamplingParams(min_tokens=9, stop_token_ids=tuple(range(VOCAB))))
    least = engine.add(ids(3), SamplingParams(min_tokens=90, max_tokens=99, constraint=ConstraintSpec.choices(["ab"])))
    while engine.busy:
        engine.step()
    assert (one.finish, other.finish, least.finish, least.text) == ("error", "length", "stop", "ab")


LABELS = ("yes.", "yesterday.", "no.", "not now.", "never.", "日本.")


@pytest.mark.parametrize("seed", range(2))
def test_choices_are_drawn_with_the_probabilities_of_a_walk(seed):
    model, prompt = decoder(seed=seed), ids(5, seed)
    labels = [tuple(tokenizer().encode(label, add_special=False)) for label in LABELS]
    found = score(labels, lambda said: whole(model, [*prompt, *said])[-1])
    engine = Engine(model, tokenizer(), running=64)
    params = SamplingParams(temperature=1, max_tokens=20, constraint=ConstraintSpec.choices(LABELS))
    replies = [engine.add(prompt, replace(params, seed=1000 * seed + i)) for i in range(600)]
    while engine.busy:
        engine.step()
    counts_L = torch.tensor([labels.index(tuple(reply.reply[:-1])) for reply in replies]).bincount(
        minlength=len(LABELS)
    )
    assert chi_square(counts_L, found.walked) > 1e-3
    assert chi_square(counts_L, found.walked.flip(0)) < 1e-9


@pytest.mark.parametrize("cost", [0.5, 1.5])
def test_what_is_certain_waits_where_a_further_token_costs_more_than_its_turn(cost, monkeypatch):
    """Among others; the replies are the same."""
    monkeypatch.setattr("cutaway.engine.drafter.Pass.checking", lambda *_: cost)
    engine = Engine(decoder(), tokenizer())
    params = SamplingParams(temperature=1, max_tokens=60, constraint=ConstraintSpec.regex("the (red|green) apples?"))
    both = [engine.add(ids(5), replace(params, seed=seed)) for seed in range(2)]
    while not any(one.finish for one in both):
        engine.step()
    assert (engine.stats.drafted.total() > 0) == (cost < 1)
    while engine.busy:
        engine.step()
    assert [one.text for one in both] == [said(params.constraint, seed, 1)[0] for seed in range(2)]
