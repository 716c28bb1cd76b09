"""What grows how fast, what lies between samples, and whether counts follow probabilities."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def growth(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent e of the power law y ~ x^e that fits best: the slope in log-log coordinates."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def summed(x: Sequence[float], y: Sequence[float], first: int, last: int) -> float:
    """Sum over the whole numbers first ... last of the straight lines through (x[i], y[i])."""
    return float(np.interp(np.arange(first, last + 1), x, y).sum())


def chi_square(counts_V: Tensor, p_V: Tensor) -> float:
    """Probability of counts as far from p as these, or further. Tokens expected under 5 times share a bin."""
    if counts_V[p_V == 0].any():
        return 0.0
    expected_V = p_V * counts_V.sum()
    common_V = expected_V >= 5
    expected, counts = ([*column[common_V], column[~common_V].sum()] for column in (expected_V, counts_V))
    if expected[-1] < 5 and len(expected) > 1:  # too rare even together: they join the last of the others
        expected[-2:], counts[-2:] = [expected[-2] + expected[-1]], [counts[-2] + counts[-1]]
    if len(expected) == 1:
        return 1.0
    statistic = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))
    return float(
        torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), torch.as_tensor(statistic) / 2)
    )
