"""Parts of the labs on labels and on settings that have known values."""

from __future__ import annotations

import pytest
import torch

from cutaway.engine.labels import Scored
from cutaway.labs.decode.fixed_labels import judge
from cutaway.labs.decode.settings_by_task import (
    Reply,
    best,
    copying,
    distinct,
    exchanged,
    ideas,
    interval,
    named,
    picks,
)


def test_a_token_more_is_a_slope():
    """Wrong labels whose values fall by 2 a token, and a right one that does not count."""
    free = Scored(torch.zeros(4), torch.zeros(4), torch.tensor([2, 3, 4, 2]))
    found = judge("sum", [torch.tensor([-1.0, -3.0, -5.0, -9.0])], [3], free)
    assert (found.right, found.tokens, found.slope) == (0.0, 2.0, pytest.approx(-2))


def test_tasks_score_themselves():
    assert distinct([1, 2, 1, 2]) == pytest.approx(2 / 3)
    members = ["apple", "pear", "plum", "fig"]
    assert named("plums, and pear.\nPEAR, applesauce, a fig", members) == {"plum", "pear"}
    task = ideas(2, 8)
    assert task.prompts[0] == "Animals: dog, cat,"
    assert task.score(0, Reply(" cat, cow, pig, cow, unicorn", [], 1.0)) == 2
    assert copying(1).score(0, Reply(" stone and river\nred", [], 1.0)) == 1
    assert copying(1).score(0, Reply(" river and stone", [], 1.0)) == 0


def test_picked_on_one_half_and_scored_on_the_other():
    """Setting 1 shines on even prompts only, setting 2 on odd ones."""
    scores_SN = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    even, odd = picks("task", scores_SN, torch.Generator().manual_seed(0))
    assert (even.best, even.there, even.here) == (1, 1.0, 0.0)
    assert (odd.best, odd.there, odd.here) == (2, 1.0, 0.0)
    assert best(torch.tensor([[1.0], [1.0]])) == 0


def test_what_another_tasks_setting_costs():
    own, other = torch.tensor([[1.0] * 4, [0.25] * 4]), torch.tensor([[0.0] * 4, [3.0] * 4])
    first, second = exchanged(["own", "other"], [own, other], torch.Generator().manual_seed(0))
    assert first == ("own", "other", 0.75, 0.75, 0.75)
    assert second == ("other", "own", 3.0, 3.0, 3.0)


def test_an_interval_is_about_two_standard_errors_wide():
    values_N = torch.randn(400, generator=torch.Generator().manual_seed(1))
    low, high = interval(values_N, torch.Generator().manual_seed(0))
    assert high - low == pytest.approx(2 * 1.96 * float(values_N.std()) / 20, rel=0.1)
    assert low < float(values_N.mean()) < high
