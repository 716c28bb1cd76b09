"""`cutaway diff`: two checkpoints, or one of ours and the same one in transformers, compared module by module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from cutaway.errors import CutawayError

if TYPE_CHECKING:
    from rich.table import Table

    from cutaway.models.compare import Difference
    from cutaway.weights.diff import Report

TENSORS_SHOWN = 8
LANDMARK = re.compile(r"embedding|layers\.\d+|final_norm|head")
LANDMARK_OF_OTHERS = re.compile(r"embedding|layers\.\d+\.ffn\.down|final_norm|head")  # where blocks are not seen


def diff(
    a: Annotated[str, typer.Argument(help="A model: a path, a name, hf:org/name or pypi:package.")],
    b: Annotated[str, typer.Argument(help="What to compare it with, in any format.")],
    *,
    prompt: Annotated[str | None, typer.Option(help="The text that both compute.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference that passes as the same.")] = 1e-4,
    reference: Annotated[
        Literal["cutaway", "transformers"], typer.Option(help="Who runs B; transformers is an independent witness.")
    ] = "cutaway",
    everything: Annotated[bool, typer.Option("--all", help="List every module, not one line per block.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two checkpoints: settings, tensors, what each module makes of a prompt, and where they first part.

    Exit status 0: the same within the tolerance. 1: different. 2: they could not be compared.
    """
    try:
        report = _compare(a, b, prompt, tolerance, reference)
    except CutawayError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(2) from None
    if json:
        import json as encoder

        typer.echo(encoder.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _show(report, everything)
    raise typer.Exit(0 if report.same else 1)


def _compare(a: str, b: str, prompt: str | None, tolerance: float, reference: str) -> Report:
    from cutaway.weights import sides
    from cutaway.weights.diff import PROMPT, diff

    left, tokenizer = sides.ours(a)
    right = sides.witness(b) if reference == "transformers" else sides.ours(b)[0]
    ids = tokenizer.encode(PROMPT if prompt is None else prompt)
    room, vocab = (min(getattr(s.spec, field) for s in (left, right)) for field in ("context", "vocab"))
    if not 0 < len(ids) <= room:
        raise CutawayError(f"has {len(ids)} tokens, both models take 1 to {room}", "prompt")
    if max(ids) >= vocab:
        raise CutawayError(f"has the token {max(ids)}, the smaller vocabulary ends at {vocab - 1}", "prompt")
    return diff(left, right, ids, tolerance)


def _show(report: Report, everything: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"[bold]A[/] {escape(report.a)}\n[bold]B[/] {escape(report.b)}")
    console.print(f"{report.tokens} tokens, tolerance {report.tolerance:g}")
    for table in (_settings(report), _tensors(report), _modules(report, everything)):
        if table.row_count:
            console.print(table)
    console.print("\n".join(_verdict(report)))


def _settings(report: Report) -> Table:
    table = _table("Settings that differ", "field", "A", "B")
    for setting in report.settings:
        table.add_row(*map(str, setting))
    return table


def _tensors(report: Report) -> Table:
    hidden = len(report.tensors) - TENSORS_SHOWN
    more = f", the {TENSORS_SHOWN} furthest apart" if hidden > 0 else ""
    table = _table(f"Tensors that differ: {len(report.tensors)}{more}", "tensor", "A", "B", "absolute", "relative")
    for t in sorted(report.tensors, key=lambda t: -t.gap.relative)[:TENSORS_SHOWN]:
        table.add_row(t.name, t.a or "none", t.b or "none", *_numbers(t.gap))
    return table


def _modules(report: Report, everything: bool) -> Table:
    table = _table("What modules give", "module", "absolute", "relative", "", "what enters: relative")
    blocks = any(LANDMARK.fullmatch(d.module) and d.module.startswith("layers") for d in report.modules)
    landmark = LANDMARK if blocks else LANDMARK_OF_OTHERS
    for d in report.modules:
        parted = d == report.first
        if everything or parted or landmark.fullmatch(d.module):
            mark = "[bold red]first to differ[/]" if parted else ""
            table.add_row(d.module, *_numbers(d.left), mark, f"{d.entered.relative:.1e}")
    return table


def _verdict(report: Report) -> Iterator[str]:
    found, outcome = report.first, report.outcome
    if found is None:
        yield f"Every one of {len(report.modules)} modules agrees."
    else:
        yield f"They part [bold]{found.where(report.tolerance)}[/]."
    if outcome.kl_mean is not None:
        yield f"Next token: KL(A‖B) {outcome.kl_mean:.1e} nats on average, {outcome.kl_max:.1e} at most;"
        yield f"the best token is the same at {outcome.agreement:.1%} of positions."
    if outcome.cosine is not None:
        yield f"Hidden states: cosine at least {outcome.cosine:.6f}."
    yield "[bold green]The same within the tolerance.[/]" if report.same else "[bold yellow]Different.[/]"


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in ("absolute", "relative") else "left")
    return table


def _numbers(gap: Difference) -> tuple[str, str]:
    return f"{gap.absolute:.1e}", f"{gap.relative:.1e}"
