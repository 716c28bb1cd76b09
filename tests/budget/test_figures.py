"""Formulas: what is shown is what is computed."""

from __future__ import annotations

import math

import pytest

from cutaway.budget.figures import evaluate, figure
from cutaway.errors import CutawayError


def test_a_figure_says_its_formula_in_symbols_and_in_numbers() -> None:
    found = figure("KV per token", "bytes", "2·L·G·K·b", L=32, G=8, K=128, b=2)
    assert found == ("KV per token", 131072, "bytes", "2·L·G·K·b", "2 × 32 × 8 × 128 × 2")


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("2 + 3·4", 14),
        ("(2 + 3)·4", 20),
        ("2·3^2", 18),
        ("−2^2 + 1", -3),
        ("1 − (1 − 2/8)^8", 1 - 0.75**8),
        ("0.1·ln(4) + 1", 0.1 * math.log(4) + 1),
        ("max(floor(7.9), 0) + ceil(1.1) + min(1,000, 5)", 14),
        ("sqrt(16) + choose(8, 2)", 32),
        ("1,234,567 × 2", 2469134),
    ],
)
def test_formulas_follow_the_rules_of_arithmetic(formula: str, value: float) -> None:
    assert evaluate(formula) == pytest.approx(value, rel=1e-15)


def test_a_symbol_within_another_is_left_alone() -> None:
    assert figure("x", "", "N·NN + ln(N)", N=1, NN=5).numbers == "1 × 5 + ln(1)"


@pytest.mark.parametrize("formula", ["2·x", "__import__('os')", "open(1)", "[1]", "1 if 1 else 2", "'a'", "(1).real"])
def test_whatever_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(ValueError, match=r"no part of a formula|could not"):
        evaluate(formula)


def test_a_quotient_that_does_not_exist_is_named() -> None:
    with pytest.raises(CutawayError, match="share: a/b does not exist for 1/0"):
        figure("share", "", "a/b", a=1, b=0)
