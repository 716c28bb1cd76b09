"""`cutaway families`: which model families are read and written, and what is proven of each."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.markup import escape

from cutaway.cli.models import Json

COLUMNS = ("family", "kind", "variants", "values", "gradients", "cache", "replies", "GGUF")


def families(as_json: Json = False) -> None:
    """List the model families, and how far each agrees with transformers: largest relative errors in float64.

    Example: cutaway families
    """
    from rich.table import Table

    from cutaway.models.families.proven import proven, versions

    found, against = proven(), versions()
    if as_json:
        typer.echo(json.dumps({"versions": against, "families": [f.to_dict() for f in found]}, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in COLUMNS:
        number = title in ("variants", "values", "gradients", "cache")
        table.add_column(title, justify="right" if number else "left", no_wrap=title == "family")
    for f in found:
        cache = "" if f.cache is None else f"{f.cache:.0e}"
        errors = f"{f.values:.0e}", f"{f.gradients:.0e}", cache
        row = f.name, f.kind, str(f.variants), *errors, "the same" if f.replies else "", f.gguf
        table.add_row(*map(escape, row))
    how = "tiny models whose every tensor is random: values, gradients, cached values, greedy replies, files both ways"
    Console().print(table)
    Console().print(f"\n[dim]{len(found)} families, held against transformers {against['transformers']} on {how}.[/]")
