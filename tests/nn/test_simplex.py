"""Softmax and its alternatives; the proofs compare with rows computed one by one and with small steps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.nn.simplex import WEIGHTINGS, sparsemax, weighted
from kit.proofs.attention_forms import PROOFS, drawn


@pytest.mark.parametrize("name", [name for name in PROOFS if name.split()[0] == "simplex"])
def test_every_weighting_is_its_definition(name):
    PROOFS[name]()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_row_that_sees_nothing_is_zero_with_finite_gradients(name):
    scores_QS = torch.tensor([[1e30, -1e30, 5.0], [0.0, 1.0, 2.0]], requires_grad=True)
    seen_QS = torch.tensor([[False] * 3, [True, True, False]])
    weights_QS = weighted(name, scores_QS, seen_QS)
    assert (weights_QS[0] == 0).all()
    assert weights_QS[1, 2] == 0
    weights_QS.square().sum().backward()
    assert (scores_QS.grad[0] == 0).all()
    assert torch.isfinite(scores_QS.grad).all()


def test_sparsemax_known_values():
    """Two scores apart by 1 or more: the winner takes all; closer, they share linearly."""
    seen = torch.ones(2, dtype=torch.bool)
    for gap in (0.0, 0.3, 0.9, 1.0, 4.0):
        found = sparsemax(torch.tensor([[gap, 0.0]]), seen)[0]
        torch.testing.assert_close(found, torch.tensor([min(1.0, (1 + gap) / 2), max(0.0, (1 - gap) / 2)]))


def test_sparsemax_does_not_mind_ties_shifts_or_size():
    seen, row = torch.ones(5, dtype=torch.bool), torch.tensor([[2.0, 2.0, 2.0, -1.0, 0.0]]).double()
    torch.testing.assert_close(sparsemax(row, seen), torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]).double() / 3)
    torch.testing.assert_close(sparsemax(row + 1e6, seen), sparsemax(row, seen), rtol=0, atol=1e-9)


def test_entropy_rises_with_temperature_up_to_that_of_equal_shares():
    scores_QS, seen_S = drawn(4, 20).detach(), torch.ones(20, dtype=torch.bool)
    for name in ("softmax", "sparsemax"):
        entropies = [
            torch.special.entr(weighted(name, scores_QS, seen_S, t)).sum(-1) for t in (0.1, 0.5, 1.0, 3.0, 1e4)
        ]
        assert all((b >= a).all() for a, b in pairwise(entropies)), name
        torch.testing.assert_close(entropies[-1], torch.full((4,), math.log(20)).double(), rtol=1e-5, atol=0)


def test_fresh_sigmoid_weights_sum_to_about_one():
    for n in (4, 64, 4096):
        total = weighted("sigmoid", torch.zeros(1, n).double(), torch.ones(n, dtype=torch.bool)).sum()
        assert total == pytest.approx(n / (n + 1))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperatures_that_make_no_sense_are_refused(temperature):
    with pytest.raises(CutawayError, match="temperature: must be above 0"):
        weighted("softmax", torch.zeros(1, 2), torch.ones(2, dtype=torch.bool), temperature)


def test_unknown_weightings_are_refused():
    with pytest.raises(CutawayError, match="there are softmax, sigmoid"):
        weighted("softmin", torch.zeros(1, 2), torch.ones(2, dtype=torch.bool))
