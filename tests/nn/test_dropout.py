"""Dropout against the definition: which numbers survive, at what scale, and what the gradient does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cutaway.errors import CutawayError
from cutaway.nn.dropout import Dropout, dropout
from kit.proofs.norms import PROOFS


@pytest.mark.parametrize("name", [name for name in PROOFS if name.startswith("dropout")])
def test_proofs(name):
    PROOFS[name]()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_means_and_second_moments_are_those_of_pytorch(p):
    ones = torch.ones(1_000_000, dtype=torch.float64)
    torch.manual_seed(0)
    ours, theirs = Dropout(p).train()(ones), F.dropout(ones, p)
    for power in (1, 2):
        assert float(ours.pow(power).mean()) == pytest.approx(float(theirs.pow(power).mean()), rel=0.005)
    assert set(ours.unique().tolist()) == set(theirs.unique().tolist())


def test_a_generator_decides_the_mask():
    x = torch.ones(64)
    masks = [dropout(x, 0.5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_no_dropout_draws_no_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x = torch.ones(8)
    assert Dropout(0.0).train()(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_probability_that_is_none_is_refused(p):
    with pytest.raises(CutawayError, match="below 1"):
        Dropout(p)
