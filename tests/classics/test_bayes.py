"""Naive Bayes in fractions, logistic regression by Newton's method, and what only the first can do."""

from __future__ import annotations

import pytest
import torch

from cutaway.classics.bayes import fit_logistic, fit_naive_bayes
from cutaway.errors import CutawayError
from kit.proofs import classics
from kit.proofs.classics import BAGS, LABELS


def test_naive_bayes_in_fractions():
    classics.bayes_fractions()


def test_logistic_regression_is_the_minimum():
    classics.bayes_newton()


def test_documents_are_drawn_from_their_class():
    model = fit_naive_bayes(BAGS, LABELS, 3)
    drawn = model.sample(1, 5000, torch.Generator().manual_seed(0))
    expected = model.words_CV[1].exp() * 5000
    assert float(((torch.bincount(drawn, minlength=4) - expected) ** 2 / expected).sum()) < 16.3  # p = 0.001


@pytest.mark.parametrize("fit", [fit_naive_bayes, fit_logistic])
def test_refusals(fit):
    for counts, labels, strength, names in [
        (BAGS[0], LABELS, 1.0, "counts"),
        (-BAGS, LABELS, 1.0, "counts"),
        (BAGS, LABELS + 1, 1.0, "labels"),
        (BAGS, LABELS, 0.0, "smoothing"),
    ]:
        with pytest.raises(CutawayError, match=names):
            fit(counts, labels, 3, strength)
