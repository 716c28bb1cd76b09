"""The number of threads follows what was fastest lately."""

from __future__ import annotations

from cutaway.engine.runner import Pace


def busy(pace: Pace, cost: dict[int, float], steps: int, tokens: int = 3) -> list[int]:
    """The choices of so many steps, each of which takes what `cost` says of its threads."""
    chosen = []
    for _ in range(steps):
        chosen.append(pace.choose(tokens))
        pace.note(tokens, chosen[-1], cost[chosen[-1]])
    return chosen


def test_the_fastest_is_chosen_and_the_other_tried_again_now_and_then():
    chosen = busy(Pace(4), {1: 2.0, 4: 1.0}, 320)
    assert set(chosen[:2]) == {1, 4}
    assert chosen.count(4) > 300
    assert 5 <= chosen.count(1) <= 12


def test_it_follows_when_others_take_the_processor():
    pace = Pace(4)
    busy(pace, {1: 2.0, 4: 1.0}, 100)
    assert busy(pace, {1: 2.0, 4: 9.0}, 100).count(1) > 90
    assert busy(pace, {1: 2.0, 4: 1.0}, 1000)[-20:].count(4) >= 19


def test_small_and_large_steps_are_told_apart():
    pace = Pace(2)
    busy(pace, {1: 1.0, 2: 2.0}, 50, tokens=1)
    assert busy(pace, {1: 9.0, 2: 5.0}, 50, tokens=512).count(2) > 45
    assert busy(pace, {1: 1.0, 2: 2.0}, 50, tokens=1).count(1) > 45
