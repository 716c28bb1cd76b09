"""Blocks ahead that guess: replies stay the same, whatever happens to their sequences. What they say: see proofs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutaway.engine.drafter import Predicted, PromptLookup
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.look_ahead import LookAhead
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Modules
from cutaway.engine.sequence import Sequence
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.nn.linear_attention import LinearSpec
from engine.tiny import decoder, spec, tokenizer
from serve.servers import loaded

PROMPTS = [[(i * 37 + j * 11) % 256 for j in range(n)] for i, n in enumerate((70, 3, 33))]


class Eager(LookAhead):
    """Always guesses."""

    def worth(self, sequence: Sequence, company: int) -> int:
        return self.most


class Looked(PromptLookup):
    """Always guesses."""

    def worth(self, sequence: Sequence, company: int) -> int:
        return self.most


def drawn(like: Decoder) -> Decoder:
    generator = torch.Generator().manual_seed(1)
    for parameter in like.parameters():
        with torch.no_grad():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2 / fan_in**0.5)
    return like.eval()


@pytest.fixture(scope="module")
def model() -> Decoder:
    return drawn(Decoder(replace(spec(), ahead=spec().layers[:1])))


def replies(made: Engine) -> list[list[int]]:
    sequences = [
        made.add(prompt, SamplingParams(temperature=t, seed=7, max_tokens=36, ignore_eos=True))
        for prompt, t in zip(PROMPTS, (0, 0.8, 0), strict=True)
    ]
    for _ in range(300):
        made.step()
        made.scheduler.pages.check([s.table for s in sequences])
    assert not made.busy
    return [s.reply for s in sequences]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("limits", [{}, {"budget": 9}, {"pages": 5}, {"budget": 5, "pages": 6}])
def test_replies_stay_the_same(model, most, limits):
    limits = dict(limits)
    if pages := limits.pop("pages", 0):
        limits["cache"] = pages * Modules(model).page_bytes
    drafter = Eager(most)
    made = Engine(model, tokenizer(), drafter=drafter, **limits)
    assert replies(made) == replies(Engine(model, tokenizer()))
    assert made.stats.drafted[0] > 80
    assert not drafter.waiting, "who ended is forgotten"


def test_hidden_states_do_not_pile_up(model):
    """Of a text that nobody guesses about a page's worth waits at most, and what a step brings."""
    drafter = Eager()
    drafter.worth = lambda sequence, company: 0
    made = Engine(model, tokenizer(), drafter=drafter, budget=8)
    sequence = made.add(PROMPTS[0], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    most = 0
    while made.busy:
        made.step()
        most = max(most, len(drafter.waiting[sequence][1]) if sequence in drafter.waiting else 0)
    assert 8 < most <= Modules.size + 8


def test_a_model_without_blocks_ahead_is_refused():
    with pytest.raises(CutawayError, match="no blocks"):
        Engine(decoder(), tokenizer(), drafter=LookAhead())


def test_who_has_blocks_ahead_guesses_with_them(model):
    made = engine_of(loaded("ahead", model, tokenizer()), speculate=True)
    assert [type(d) for d in made.drafter.drafters] == [Predicted, PromptLookup, LookAhead]
    plain = engine_of(loaded("plain", decoder(), tokenizer()), speculate=True)
    assert [type(d) for d in plain.drafter.drafters] == [Predicted, PromptLookup]


def test_a_state_is_never_given_a_guess():
    """Nothing could take a wrong one out of it again."""
    layers = tuple(replace(layer, attention=LinearSpec(heads=2, head_dim=16)) for layer in spec().layers)
    made = drawn(Decoder(replace(spec(), layers=layers)))
    guessing = Engine(made, tokenizer(), drafter=Looked(shortest=1))
    assert replies(guessing) == replies(Engine(made, tokenizer()))
    assert guessing.stats.drafted.total() == 0
