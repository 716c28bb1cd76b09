"""A model that guesses for another: what it computes, what it keeps, and what it may take."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from cutaway.engine.draft_model import DraftModel
from cutaway.engine.drafter import ROW, Asked, Drafter, InTurn
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Modules
from cutaway.engine.sequence import Sequence
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.nn.linear_attention import LinearSpec
from engine.tiny import decoder, spec, tokenizer
from serve.servers import loaded

PROMPTS = [[(i * 37 + j * 11) % 256 for j in range(n)] for i, n in enumerate((70, 3, 33))]
PARAMS = [SamplingParams(temperature=t, seed=7, max_tokens=36, ignore_eos=True) for t in (0, 0.8, 0)]


class Eager(DraftModel):
    """Always guesses. tokens: that its model computes. behind: how many of these were guesses."""

    def __init__(self, seed: int, most: int = 4, context: int = 256, noise: float = 0.0, **limits: int) -> None:
        model, generator = decoder(context, seed=seed), torch.Generator().manual_seed(9)
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
        super().__init__(runner := Modules(model), most=most, **limits)
        self.tokens, self.behind, run = 0, 0, runner.run

        def counted(spans, wanted):
            self.tokens += sum(span.count for span in spans)
            self.behind += sum(span.start >= len(span.sequence.tokens) for span in spans)
            return run(spans, wanted)

        runner.run = counted

    def worth(self, sequence: Sequence, company: int) -> int:
        return self.most


class Guesser(Drafter):
    """Guesses anything, in any number, sometimes what is right: `known` are whole texts."""

    def __init__(self, seed: int, known: list[list[int]]) -> None:
        super().__init__()
        self.numbers, self.known = random.Random(seed), known

    def worth(self, sequence: Sequence, company: int) -> int:
        return max(0, self.numbers.randrange(-8, 9))

    def propose(self, asked: Asked) -> list[list[int]]:
        """Of the text that begins like the sequence, some tokens changed."""
        found = []
        for sequence, most in asked:
            text = next(
                t for t in self.known if t[: len(sequence.prompt) + 1] == sequence.tokens[: len(sequence.prompt) + 1]
            )
            coming = text[len(sequence.tokens) :][:most]
            found.append([t if self.numbers.random() < 0.8 else self.numbers.randrange(256) for t in coming])
        return found


def engine(drafter: Drafter | None = None, **limits: int) -> Engine:
    return Engine(decoder(seed=1), tokenizer(), drafter=drafter, **limits)


def replies(made: Engine, which: tuple[int, ...] = (0, 1, 2)) -> list[list[int]]:
    sequences = [made.add(PROMPTS[i], PARAMS[i]) for i in which]
    for _ in range(400):
        made.step()
        made.scheduler.pages.check([s.table for s in sequences])
        if isinstance(made.drafter, DraftModel):
            made.drafter.pages.check([s.table for s in made.drafter.shadows.values()])
    assert not made.busy
    return [s.reply for s in sequences]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return replies(engine())


@pytest.mark.parametrize("most", [1, 4, 7])
def test_the_model_itself_is_always_right(most, expected):
    """At any temperature, for it draws with the same noise; and nothing that came true is computed again.

    The last guess of a draft is computed only when it came true, with the token after it. The very last guesses may
    come true when there is nothing to follow them.
    """
    drafter = Eager(1, most)
    made = engine(drafter)
    assert replies(made) == expected
    assert made.stats.accepted == made.stats.drafted != Counter()
    assert made.stats.steps == 1 + -(-35 // (most + 1)), "a step reads the prompts"
    assert drafter.tokens <= sum(map(len, PROMPTS)) + 3 * 36 + 3 * most


def test_only_what_was_rejected_is_computed_again(expected):
    """Each token once, and each wrong guess but for the last of a draft, of which nothing was computed."""
    drafter = Eager(1, noise=0.01)
    made = engine(drafter)
    assert replies(made) == expected
    right = sum(made.stats.accepted[place] for place in range(drafter.most - 1))
    assert 10 < right < made.stats.drafted.total() / 2
    assert drafter.tokens <= sum(map(len, PROMPTS)) + 3 * 36 + drafter.behind - right


@pytest.mark.parametrize("limits", [{"budget": 5}, {"cache": 1}, {"cache": 3 << 14}, {"context": 64}])
def test_who_has_no_room_or_time_guesses_less(limits, expected):
    """A small budget, one page, a few pages, a short context: the same replies and fewer guesses."""
    plenty, few = engine(Eager(1)), engine(Eager(1, **limits))
    assert replies(plenty) == replies(few) == expected
    assert few.stats.accepted == few.stats.drafted
    assert few.stats.drafted.total() < plenty.stats.drafted.total()


def test_who_was_preempted_is_guessed_for_again(expected):
    made = engine(Eager(1, most=2), cache=4 * engine().runner.page_bytes)
    assert replies(made, (1, 2)) == expected[1:]
    assert made.scheduler.preemptions > 0
    assert made.stats.accepted == made.stats.drafted


def test_who_ended_or_left_is_forgotten():
    drafter = Eager(1)
    made = engine(drafter)
    replies(made)
    left = made.add(PROMPTS[0], PARAMS[0])
    made.step()
    made.step()
    assert [*drafter.shadows] == [left]
    made.abort(left)
    assert drafter.pages.held == 0
    assert not drafter.shadows
    assert not cast(Modules, drafter.runner).memories


def test_what_begins_alike_is_read_once():
    drafter = Eager(1)
    made = engine(drafter)
    replies(made, (0,))
    before = drafter.tokens
    replies(made, (0,))
    assert drafter.tokens - before <= before - 64


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_guessed_the_replies_are_the_same(seed, expected):
    """Guesses from two sources in turn, in too small a memory, in pieces."""
    known = [p + r for p, r in zip(PROMPTS, expected, strict=True)]
    made = engine(
        InTurn(Guesser(seed, known), Eager(seed)), budget=7 + seed, cache=(4 + seed) * engine().runner.page_bytes
    )
    assert replies(made) == expected
    guesser, model = cast(InTurn, made.drafter).drafters
    assert made.stats.drafted == guesser.drafted + model.drafted
    assert made.stats.accepted == guesser.accepted + model.accepted
    assert min(guesser.accepted.total(), model.drafted.total()) > 5


@pytest.mark.parametrize("cost", [0.05, 0.4, 1.0])
def test_a_hopeless_model_takes_little_time(cost, expected):
    """One that hardly ever agrees: what it computes, and what is checked, in steps of one token, over five rounds."""
    drafter = Eager(2)
    drafter.worth = partial(Drafter.worth, drafter)
    made = engine(drafter)
    drafter.cost = cost
    for _ in range(5):
        assert replies(made) == expected
    alone = made.stats.replied * (1 - ROW + 3 * ROW) / 3  # three at a time
    guessed = made.stats.drafted.total()
    lost = cost * (ROW * drafter.tokens + (1 - ROW) * guessed) + ROW * guessed - made.stats.accepted.total()
    assert lost < 0.05 * alone


def test_who_cannot_guess_is_refused():
    other = decoder()
    other.spec = replace(other.spec, vocab=100)
    with pytest.raises(CutawayError, match="100 tokens"):
        engine(DraftModel(Modules(other)))
    strange = loaded("strange", decoder(), SimpleNamespace(recipe=SimpleNamespace(vocab={"a": 0})))
    with pytest.raises(CutawayError, match="strange has other tokens than plain"):
        engine_of(loaded("plain", decoder(), tokenizer()), draft=strange)
    mixer = LinearSpec(heads=2, head_dim=16)
    layers = tuple(replace(layer, attention=mixer) for layer in spec().layers)
    with pytest.raises(CutawayError, match="states"):
        engine(DraftModel(Modules(Decoder(replace(spec(), layers=layers)))))
