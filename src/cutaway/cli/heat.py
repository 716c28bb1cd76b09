"""Numbers between tokens as a text: a table whose cells are shaded, and words in a plane."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

SHADES = " ░▒▓█"
COLORS = ("grey50", "steel_blue", "deep_sky_blue3", "gold3", "bold orange3")
NEGATIVE = ("grey50", "plum4", "medium_orchid3", "magenta3", "bold red")
WIDE = 14  # columns beyond which cells hold a shade instead of a number
FIELD = (72, 22)


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    most: float | None = None,
) -> Table:
    """A cell per value, brighter the closer it is to `most` (default: the largest), in other colors below zero.

    Above `WIDE` columns they are numbered, and a cell is a shade.
    """
    most = most or max((abs(v) for row in values for v in row), default=0.0) or 1.0
    wide = len(columns) <= WIDE
    table = Table(box=None, header_style="dim", padding=(0, wide, 0, 0))
    table.add_column("")
    for i, name in enumerate(columns):
        table.add_column(escape(name[:9]) if wide else str(i % 10), justify="right", no_wrap=True)
    for name, row in zip(rows, values, strict=True):
        table.add_row(Text(name, "dim"), *(_cell(value, value / most, wide) for value in row))
    return table


def _cell(value: float, share: float, wide: bool) -> Text:
    level = min(int(abs(share) * len(SHADES)), len(SHADES) - 1)
    color = (COLORS if share >= 0 else NEGATIVE)[level]
    return Text(f"{value:.2f}" if wide else SHADES[level] if level or not value else "·", color)


def field(points: Sequence[tuple[str, float, float]]) -> Text:
    """Words at their places (x, y); where two meet, the later one is cut short."""
    width, height = FIELD
    (left, right), (low, high) = _span([x for _, x, _ in points]), _span([y for _, _, y in points])
    lines = [[" "] * (width + 16) for _ in range(height)]
    for word, x, y in points:
        row, column = round((high - y) / (high - low) * (height - 1)), round((x - left) / (right - left) * (width - 1))
        for i, letter in enumerate(f"•{word}"[: len(lines[row]) - column]):
            if lines[row][column + i] != " ":
                break
            lines[row][column + i] = letter
    return Text("\n".join("".join(line).rstrip() for line in lines))


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
