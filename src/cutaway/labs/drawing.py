"""A plot of characters: horizontal bars, or a field of marks with one kind of mark per series."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.text import Text

from cutaway.labs.evidence import Axis, Plot

MARKS = "●○▲△■□◆◇"
COLORS = ("cyan", "magenta", "yellow", "green", "blue", "red", "white", "bright_black")
WIDTH, HEIGHT, BAR = 60, 12, 36

Format = Callable[[float], str]


def drawing(plot: Plot, number: Format) -> Text:
    """`plot` with its legend; `number` spells the values on the axes."""
    text = _bars(plot, number) if plot.kind == "bar" else _field(plot, number)
    for i, series in enumerate(plot.series):
        text.append(f" {_mark(i)} {series.name}", _color(i))
    return text


def _bars(plot: Plot, number: Format) -> Text:
    low, high = _span([0.0, *(y for series in plot.series for y in series.y)])
    names = [str(x) for x in plot.series[0].x]
    text, widest = Text(), max(map(len, names))
    for row, name in enumerate(names):
        for i, series in enumerate(plot.series):
            length = round((series.y[row] - low) / (high - low) * BAR)
            text.append(f"{name if i == 0 else '':>{widest}} ")
            text.append(f"{'█' * length} {number(series.y[row])}\n", _color(i))
    return text


def _field(plot: Plot, number: Format) -> Text:
    points = [
        (i, _place(float(x), plot.x), _place(y, plot.y))
        for i, series in enumerate(plot.series)
        for x, y in zip(series.x, series.y, strict=True)
    ]
    (left, right), (bottom, top) = _span([x for _, x, _ in points]), _span([y for _, _, y in points])
    cells: dict[tuple[int, int], int] = {}
    for i, x, y in reversed(points):  # the first series lies on top
        row, column = (top - y) / (top - bottom) * (HEIGHT - 1), (x - left) / (right - left) * (WIDTH - 1)
        cells[round(row), round(column)] = i
    edges = {0: number(_value(top, plot.y)), HEIGHT - 1: number(_value(bottom, plot.y))}
    text = Text().append(f"{plot.y.label}\n", "dim")
    for row in range(HEIGHT):
        text.append(f"{edges.get(row, ''):>10} │", "dim")
        for column in range(WIDTH):
            i = cells.get((row, column), -1)
            text.append(_mark(i) if i >= 0 else " ", _color(i))
        text.append("\n")
    first, last = number(_value(left, plot.x)), number(_value(right, plot.x))
    text.append(f"{'':>10} └{'─' * WIDTH}\n{'':>12}", "dim")
    text.append(f"{first}{plot.x.label:^{WIDTH - len(first) - len(last)}}{last}\n", "dim")
    return text


def _place(value: float, axis: Axis) -> float:
    return math.log10(value) if axis.log else value


def _value(place: float, axis: Axis) -> float:
    return 10**place if axis.log else place


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _mark(i: int) -> str:
    return MARKS[i % len(MARKS)]


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]
