"""Parts of the labs on deployments that have known values: the ladder, the diagnosis, the targets."""

from __future__ import annotations

import mmap

import pytest
import torch

from cutaway.engine.drafter import PromptLookup
from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfModel
from cutaway.engine.runner import Native
from cutaway.errors import CutawayError
from cutaway.labs.engine import bottleneck_diagnosis as diagnosis
from cutaway.labs.engine import optimization_ladder as ladder
from cutaway.labs.engine import targets_by_application as targets
from cutaway.labs.engine.bottleneck_diagnosis import HEALTHY, PLANTED, RULES, SWAPPED, Signs, Sorting
from cutaway.labs.engine.optimization_ladder import BATCHING, CACHE, NATIVE, PREFIX, RUNGS, SPECULATION, STORED, Load
from cutaway.labs.engine.targets_by_application import Answer, Ask, Met, Pace, Pretended, Shape
from cutaway.labs.subject import logits_of
from cutaway.native.build import library
from engine.test_equality import Looked, model, prompt
from engine.tiny import decoder, spec, tokenizer
from kit.threads import one_thread

__all__ = ["one_thread"]

# ---- bottleneck-diagnosis


def test_tokens_computed_again_by_hand() -> None:
    a, b = [1, 2, 3, 4], [1, 2, 3, 9]
    assert diagnosis.repeated([a, b], [(0, 0, 4), (1, 0, 4)]) == 3
    assert diagnosis.repeated([a, b], [(0, 0, 4), (1, 2, 2)]) == 1
    assert diagnosis.repeated([a, b], [(0, 0, 2), (1, 0, 4)]) == 2
    assert diagnosis.repeated([a, b], [(0, 0, 2), (0, 2, 2), (0, 4, 1)]) == 0
    assert diagnosis.repeated([a, b], [(0, 0, 4), (0, 0, 2)]) == 2


def test_every_sign_has_its_cause_and_none_has_none() -> None:
    nothing = Signs(0, 0, 0, 0, 0)
    signs = {
        "swapped weights": nothing._replace(fetched=0.4),
        "tiny batch": nothing._replace(queued=0.9),
        "recomputed prefix": nothing._replace(repeated=0.5),
        "padding": nothing._replace(padded=0.5),
        "vocabulary sort": nothing._replace(ordered=49152),
    }
    assert {cause: diagnosis.named(sign) for cause, sign in signs.items()} == {cause: [cause] for cause in PLANTED}
    assert diagnosis.named(nothing) == []
    assert diagnosis.named(Signs(1, 1, 1, 1, 1e6)) == [rule.cause for rule in RULES]
    assert HEALTHY not in PLANTED


def test_numbers_sorted_are_counted() -> None:
    with Sorting() as counting:
        torch.zeros(5).sort()
        torch.zeros(2, 3).argsort(descending=True)
        torch.zeros(7).max()
    assert counting.numbers == 11


@pytest.mark.skipif(library() is None, reason="no native kernels")
def test_weights_that_are_put_out_of_memory_are_the_same_weights() -> None:
    made = model()
    engine = Engine(Native(made.spec, OfModel(made), 1), tokenizer())
    before = [(m.blocks, diagnosis.size_of(m)) for m in diagnosis.matrices_of(engine)]
    load = Load([prompt(20)], 3)
    usual = ladder.answer(engine, load, sharing=False)[0][0].reply
    with diagnosis.PLANT[SWAPPED](engine) as evict:
        evict()
        moved = [m.blocks for m in diagnosis.matrices_of(engine)]
        assert ladder.answer(engine, load, sharing=False)[0][0].reply == usual
    assert not {*moved} & {address for address, _ in before}
    assert all(address % mmap.PAGESIZE == 0 for address in moved)
    assert [(m.blocks, diagnosis.size_of(m)) for m in diagnosis.matrices_of(engine)] == before


# ---- optimization-ladder


def stands(rungs: str) -> bool:
    try:
        ladder.switched(rungs)
    except CutawayError:
        return False
    return True


def test_rungs_can_be_left_out_as_long_as_nothing_stands_on_them() -> None:
    assert ladder.switched(",".join(RUNGS)) == RUNGS
    assert ladder.switched("") == ()
    assert ladder.switched("cache,batching") == (CACHE, BATCHING)
    assert not any(map(stands, ("native", "cache,stored", "batching,cache", "cache,cache", "cache,magic")))
    assert ladder.removable(RUNGS) == (STORED, BATCHING, PREFIX, SPECULATION)
    assert ladder.removable((CACHE, NATIVE)) == (NATIVE,)


class Wrong(Looked):
    """Always guesses, and hardly ever what comes."""

    def find(self, tokens: list[int], most: int) -> list[int]:
        return [7] * most


@pytest.mark.parametrize("drafter", [None, Looked(), Wrong()])
def test_logits_that_are_heard_are_those_of_the_whole_text(drafter: PromptLookup | None) -> None:
    plain = decoder()
    engine = Engine(plain, tokenizer(), drafter=drafter)
    (first, _), heard, _ = ladder.answer(engine, Load([prompt(50), prompt(30)], 12), sharing=True)
    with torch.inference_mode():
        whole_TV = logits_of(plain, torch.tensor(first.tokens))
    for at in range(len(first.prompt) - 1, len(first.tokens) - 1):
        torch.testing.assert_close(heard[at], whole_TV[at], atol=1e-4, rtol=1e-4)


def test_work_is_counted_per_token_of_the_replies() -> None:
    engine = Engine(decoder(), tokenizer(), running=1)
    mine, _, _ = ladder.answer(engine, Load([prompt(10), prompt(20)], 4), sharing=False)
    work = ladder.counted(engine, mine)
    assert (work.computed, work.steps) == ((10 + 20 + 3 + 3) / 8, 1)
    assert work.weights == work.read == 4 * sum(p.numel() for p in decoder().parameters())
    assert work.kept == engine.runner.page_bytes  # of the longer one: a page


# ---- targets-by-application

SHAPE = Shape("test", "试", 3, 2, first=1.0, gap=0.5)


def test_requests_in_flight_are_counted_by_looking() -> None:
    answers = [Answer(0, [1, 4]), Answer(2, [3, 6])]
    assert targets.in_flight(answers, 6) == pytest.approx(8 / 6, rel=1e-3)
    assert targets.met(SHAPE, answers, 1).expected == pytest.approx(8 / 6)


def test_a_target_is_met_by_first_tokens_or_gaps_or_both() -> None:
    answers = [Answer(0, [1.0, 1.4]), Answer(1, [2.5, 2.6]), Answer(2, [2.5, 3.5]), Answer(3, [5.0, 6.0])]
    met = targets.met(SHAPE, answers, 7)
    assert (met.rate, met.first, met.gap, met.whole, met.all) == (7, 0.5, 0.5, None, 0.25)


def at(rate: float, share: float) -> Met:
    return Met(rate, None, None, None, share, 0, 0)


def test_the_knee_lies_between_two_rates() -> None:
    assert targets.knee([at(1, 1), at(2, 0.8), at(3, 0.95)]) == pytest.approx(1.5)
    assert targets.knee([at(1, 0.5)]) == pytest.approx(0.2)
    assert targets.knee([at(1, 1), at(4, 0.9)]) == 4
    assert targets.recommended({1: 5, 4: 9.9, 8: 10}) == 4


def test_the_virtual_clock_goes_on_by_what_steps_last() -> None:
    pace, engine = Pace(1.0, 0.1), Engine(Pretended(spec()), tokenizer(), running=1)
    asks = [Ask(1.0, [1, 2, 3], 2), Ask(2.0, [4, 5], 1), Ask(20.0, [6], 1)]
    answers = targets.serve(engine, asks, 2.0, pace.of)
    assert [a.at for a in answers] == [0.5, 1.0, 10.0]
    times = [[0.5 + 1.3, 0.5 + 1.3 + 1.1], [2.9 + 1.2], [10 + 1.1]]
    assert all(a.times == pytest.approx(some) for a, some in zip(answers, times, strict=True))
    assert pace.rate(SHAPE, 2) == pytest.approx(1 / (0.5 + 1))
