"""Evidence as a card for the terminal: table, plot, checks, verdict, and where the numbers come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cutaway.labs.drawing import drawing
from cutaway.labs.evidence import Cell, Check, Evidence, Words
from cutaway.labs.evidence import Table as Data

Language = Literal["en", "zh"]
FRAME, GAP, NAME = 6, 3, 24  # characters of the panel's frame, between columns, and of a name before it wraps


@dataclass(frozen=True)
class Card:
    """Evidence, ready for rich to print at whatever width there is."""

    evidence: Evidence
    language: Language = "en"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        e = self.evidence
        parts: list[RenderableType] = grids(e.table, options.max_width - FRAME)
        if e.plot:
            parts += [drawing(e.plot, number), Text()]
        parts += [_line(check, self.language) for check in e.checks]
        yield Panel(
            Group(*parts, Text("\n" + _say(e.verdict, self.language))),
            title=Text(_say(e.title, self.language), "bold"),
            subtitle=Text(provenance(e), "dim"),
            border_style="green" if e.holds else "red",
        )


def provenance(e: Evidence) -> str:
    """Where the numbers come from, in one line."""
    cores = f"{e.machine.cores} cores, load {e.machine.load:g}"
    machine = [e.machine.cpu, cores, *([e.machine.gpu] if e.machine.gpu else [])]
    run = f"{e.profile}, seed {e.seed}, {e.seconds:.1f} s"
    return f"{run} · {', '.join(machine)} · torch {e.versions.get('torch')} · {e.commit[:12]}"


def grids(data: Data, width: int) -> list[RenderableType]:
    """The table in as many pieces as its columns need, the first column before each."""
    needs, wishes = zip(*(_widths(data, i) for i in range(len(data.columns))), strict=True)
    pieces: list[list[int]] = [[0]]
    for i in range(1, len(needs)):
        if len(pieces[-1]) > 1 and sum(needs[j] + GAP for j in (*pieces[-1], i)) > width:
            pieces.append([0])
        pieces[-1].append(i)
    return [_grid(data, {i: (needs[i], wishes[i]) for i in piece}, width) for piece in pieces]


def _widths(data: Data, i: int) -> tuple[int, int]:
    """Characters that a column takes at least, its longest number or word, and those it takes unbroken."""
    column, cells = data.columns[i], [number(row[i]) for row in data.rows]
    words = f"{column.name} {column.unit}".split()
    need = max(len(text) for text in (*words, *(cell[:NAME] for cell in cells)))
    return need, max(len(text) for text in (column.name, column.unit, *cells))


def _grid(data: Data, piece: dict[int, tuple[int, int]], width: int) -> Table:
    """Some columns, numbers to the right, names to the left; room that nobody needs goes to who wishes it."""
    spare = width - sum(need + GAP for need, _ in piece.values())
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for i, (need, wish) in piece.items():
        column, named = data.columns[i], any(isinstance(row[i], str) for row in data.rows)
        more = max(0, min(wish - need, spare))
        spare -= more
        head = Text(column.name).append(f"\n{column.unit}" if column.unit else "", "dim")
        grid.add_column(head, justify="left" if named else "right", width=need + more)
    for row in data.rows:
        grid.add_row(*(Text(number(row[i])) for i in piece))
    return grid


def number(cell: Cell) -> str:
    """Thousands separated, four significant digits; nothing for None."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int) or cell == 0:
        return f"{cell:,}" if isinstance(cell, int) else "0"
    if not 1e-3 <= abs(cell) < 1e9:
        return f"{cell:.2e}"
    return f"{cell:,.{max(0, 3 - math.floor(math.log10(abs(cell))))}f}"


def _line(check: Check, language: Language) -> Text:
    mark, style = ("✓ ", "green") if check.holds else ("✗ ", "bold red")
    return Text(mark + _say(check.claim, language), style)


def _say(words: Words, language: Language) -> str:
    return words.zh if language == "zh" else words.en
