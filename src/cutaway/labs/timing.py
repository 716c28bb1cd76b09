"""Timing two ways of doing the same, side by side, and what grows how fast."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np


def interleaved(ways: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each way, run A, B, A, B ... so that a busy moment meets both; one round untimed."""
    for way in ways:
        way()
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, record in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way()
            record.append(time.perf_counter() - began)
    return [statistics.median(record) for record in seconds]


def growth(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent e of the power law y ~ x^e that fits best: the slope in log-log coordinates."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def summed(x: Sequence[float], y: Sequence[float], first: int, last: int) -> float:
    """Sum over the whole numbers first ... last of the straight lines through (x[i], y[i])."""
    return float(np.interp(np.arange(first, last + 1), x, y).sum())
