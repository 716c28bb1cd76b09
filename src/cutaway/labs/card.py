"""Evidence as a card for the terminal: table, a small plot of characters, the checks and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cutaway.labs.evidence import Axis, Cell, Evidence, Plot, Words
from cutaway.labs.evidence import Table as Data

Language = Literal["en", "zh"]
MARKS, COLORS = "●○▲△■□◆◇", ("cyan", "magenta", "yellow", "green", "blue", "red", "white", "bright_black")
WIDTH, HEIGHT = 60, 12


def card(evidence: Evidence, language: Language = "en") -> RenderableType:
    """The whole of it, ready to print."""
    plot = [drawing(evidence.plot), Text()] if evidence.plot else []
    return Panel(
        Group(
            grid(evidence.table),
            *plot,
            *_checks(evidence, language),
            Text(),
            _say(evidence.verdict, language),
        ),
        title=f"[bold]{_say(evidence.title, language)}[/]",
        subtitle=f"[dim]{provenance(evidence)}[/]",
        border_style="green" if evidence.holds else "red",
    )


def provenance(e: Evidence) -> str:
    """Where the numbers come from, in one line."""
    where = f"{e.machine.cpu}, {e.machine.cores} cores" + (f", {e.machine.gpu}" if e.machine.gpu else "")
    return f"{e.profile}, seed {e.seed}, {e.seconds:.1f} s · {where} · torch {e.versions.get('torch')} · {e.commit[:12]}"


def grid(data: Data) -> Table:
    """Numbers to the right, names to the left."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for i, column in enumerate(data.columns):
        numeric = all(not isinstance(row[i], str) for row in data.rows)
        unit = f"\n[dim]{column.unit}[/]" if column.unit else ""
        table.add_column(column.name + unit, justify="right" if numeric else "left", overflow="fold")
    for row in data.rows:
        table.add_row(*(number(cell) for cell in row))
    return table


def number(cell: Cell) -> str:
    """Thousands separated, four significant digits; nothing for None."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if cell and not 1e-3 <= abs(cell) < 1e9:
        return f"{cell:.2e}"
    return f"{cell:,.{max(0, 3 - math.floor(math.log10(abs(cell))))}f}" if cell else "0"


def drawing(plot: Plot) -> Text:
    """The plot in characters: horizontal bars, or a field of marks, one kind of mark per series."""
    lines = _bars(plot) if plot.kind == "bar" else _marks(plot)
    for i, series in enumerate(plot.series):
        lines.append(f" {MARKS[i % len(MARKS)]} {series.name}", COLORS[i % len(COLORS)])
    return lines


def _bars(plot: Plot) -> Text:
    top = max((_scaled(y, plot.y) for s in plot.series for y in s.y), default=0.0)
    floor = min(0.0, min((_scaled(y, plot.y) for s in plot.series for y in s.y), default=0.0))
    lines = Text()
    for row, name in enumerate(plot.series[0].x):
        for i, series in enumerate(plot.series):
            share = (_scaled(series.y[row], plot.y) - floor) / ((top - floor) or 1)
            lines.append(f"{name if i == 0 else '':>28.28} ")
            lines.append("█" * round(share * 40) + f" {number(series.y[row])}\n", COLORS[i % len(COLORS)])
    return lines


def _marks(plot: Plot) -> Text:
    points = [
        (i, _scaled(float(x), plot.x), _scaled(y, plot.y))
        for i, s in enumerate(plot.series)
        for x, y in zip(s.x, s.y, strict=True)
    ]
    left, right = _span([x for _, x, _ in points])
    bottom, top = _span([y for _, _, y in points])
    field: list[list[int | None]] = [[None] * WIDTH for _ in range(HEIGHT)]
    for i, x, y in reversed(points):  # the first series lies on top
        row, column = (
            round((top - y) / (top - bottom) * (HEIGHT - 1)),
            round((x - left) / (right - left) * (WIDTH - 1)),
        )
        field[row][column] = i
    lines = Text(f"{plot.y.label}\n", "dim")
    for r, cells in enumerate(field):
        edge = (
            number(_unscaled(top, plot.y))
            if r == 0
            else number(_unscaled(bottom, plot.y))
            if r == HEIGHT - 1
            else ""
        )
        lines.append(f"{edge:>10} │", "dim")
        for cell in cells:
            lines.append(
                " " if cell is None else MARKS[cell % len(MARKS)],
                "" if cell is None else COLORS[cell % len(COLORS)],
            )
        lines.append("\n")
    first, last = number(_unscaled(left, plot.x)), number(_unscaled(right, plot.x))
    lines.append(
        f"{'':>10} └{'─' * WIDTH}\n{'':>12}{first}{plot.x.label:^{WIDTH - len(first) - len(last)}}{last}\n",
        "dim",
    )
    return lines


def _scaled(value: float, axis: Axis) -> float:
    return math.log10(max(value, 1e-300)) if axis.log else value


def _unscaled(value: float, axis: Axis) -> float:
    return 10**value if axis.log else value


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _checks(evidence: Evidence, language: Language) -> list[Text]:
    def line(claim: Words, holds: bool) -> Text:
        return Text(("✓ " if holds else "✗ ") + _say(claim, language), "green" if holds else "bold red")

    return [line(check.claim, check.holds) for check in evidence.checks]


def _say(words: Words, language: Language) -> str:
    return words.zh if language == "zh" else words.en
