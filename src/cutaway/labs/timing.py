"""Timing two ways of doing the same, side by side, and what grows how fast."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence


def interleaved(ways: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each way, run A, B, A, B ... so that a busy moment meets both. One round first, untimed."""
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


def integral(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Area under the straight lines through (x[i], y[i]), from x[0] to each x[i]."""
    areas = [0.0]
    for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), list(zip(x, y, strict=True))[1:], strict=False):
        areas.append(areas[-1] + (x1 - x0) * (y0 + y1) / 2)
    return areas
