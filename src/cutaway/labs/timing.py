"""Timing several ways of doing the same, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


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
