"""The profile of an engine: clocks that count nothing twice, requests whose parts are known, nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cutaway.engine import profile as profiles
from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfModel
from cutaway.engine.profile import ATTENTION, OPERATIONS, PYTHON, QUEUEING, SAMPLING, WEIGHTS, Profile, Split, profiling
from cutaway.engine.runner import Native
from cutaway.errors import CutawayError
from cutaway.labs.engine.replay import greedy
from cutaway.native.build import library
from cutaway.native.tape import Kind
from engine.test_equality import model, prompt
from engine.tiny import decoder, tokenizer

native_only = pytest.mark.skipif(library() is None, reason="no native kernels")


def test_what_calls_inside_take_is_not_counted_twice() -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    profile = Profile()
    inner = profile.clocked(SAMPLING, lambda: wait(2))

    def outer() -> None:
        wait(1)
        inner()
        wait(4)
        inner()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "monotonic", lambda: now[0])
        profile.clocked(PYTHON, outer)()
        profile.clocked(PYTHON, lambda: wait(8))()
    assert profile.parts == {SAMPLING: 4, PYTHON: 13}


def test_a_request_waits_before_and_between_the_steps_that_it_takes_part_in() -> None:
    class Begun:
        began = 12.0

    profile, sequence = Profile(), cast(Any, Begun())
    profile.steps = [Split(4, {WEIGHTS: 3.0, PYTHON: 1.0})] * 2 + [Split(2, {WEIGHTS: 2.0}), Split(9, {WEIGHTS: 9.0})]
    profile.times = [(0, 4), (12, 16), (17, 19), (20, 29)]
    profile.asked, profile.took = {sequence: 2.0}, {sequence: [1, 2]}
    whole, seconds = profile.request(sequence)
    assert whole == 17
    assert seconds == {WEIGHTS: 5, ATTENTION: 0, SAMPLING: 0, PYTHON: 1, QUEUEING: 11}
    assert profile.request(sequence).accounted == 1


@native_only
def test_an_engine_is_profiled_and_left_as_it_was() -> None:
    made = model()
    engine = Engine(Native(made.spec, OfModel(made), 1), tokenizer(), running=1)
    with profiling(engine) as profile:
        first, second = (engine.add(prompt(20 + i), greedy(3)) for i in range(2))
        for _ in range(6):
            engine.step()
    assert (profile.took[first], profile.took[second]) == ([0, 1, 2], [3, 4, 5])
    assert len(profile.steps) == engine.stats.steps == 6
    assert all({*step.seconds} == {WEIGHTS, ATTENTION, SAMPLING, PYTHON} for step in profile.steps)
    assert all(0 < step.accounted < 1.02 for step in profile.steps)
    assert profile.request(second).seconds[QUEUEING] >= sum(step.whole for step in profile.steps[:3])
    assert not any(callable(v) for v in vars(engine).values())
    assert "run" not in vars(engine.runner) | vars(engine.runner.graph.tape)  # type: ignore[attr-defined]
    assert not {"plan", "commit", "add"} & {*vars(engine.scheduler)}


def test_a_replacement_gives_way_to_what_was_there_before() -> None:
    owner = SimpleNamespace(call=len)
    with profiles.replaced(owner, "call", max):
        assert owner.call is max
    assert owner.call is len


def test_every_operation_belongs_to_a_part() -> None:
    assert {*OPERATIONS} == {*Kind}
    assert (OPERATIONS[Kind.ATTEND], OPERATIONS[Kind.LINEAR], OPERATIONS[Kind.WEIGH]) == (ATTENTION, WEIGHTS, SAMPLING)


def test_modules_have_no_clocks() -> None:
    with pytest.raises(CutawayError, match="native"), profiling(Engine(decoder(), tokenizer())):
        pass
