"""`cutaway lab`: claims about language models, measured on this machine."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cutaway.errors import CutawayError, NotFound

if TYPE_CHECKING:  # PyTorch takes a second to import, `cutaway --help` should not
    from cutaway.labs.evidence import Evidence
    from cutaway.labs.lab import Report

app = typer.Typer(help="Run the labs: claims about models, measured on this machine.", no_args_is_help=True)

DISPROVED = 3
"""Exit status of a run whose claim did not hold."""


class Language(StrEnum):
    en = "en"
    zh = "zh"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, the card on stderr.")]
InLanguage = Annotated[Language, typer.Option("--language", "-l", help="Language of the card.")]
Id = Annotated[str, typer.Argument(help="Which lab; see `cutaway lab list`.", metavar="ID")]


@app.command("list")
def list_labs(as_json: Json = False, language: InLanguage = Language.en) -> None:
    """What can be asked. Example: cutaway lab list"""
    from rich.table import Table

    from cutaway.labs.catalogue import LABS

    if as_json:
        typer.echo(json.dumps({"labs": [lab.describe() for lab in LABS.values()]}, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("id", "question", "knobs", "quick", "full"):
        table.add_column(title, no_wrap=title in ("id", "quick", "full"))
    for lab in LABS.values():
        times = (f"{lab.seconds[profile]:,.0f} s" for profile in ("quick", "full"))
        table.add_row(lab.id, lab.question.model_dump()[language], ", ".join(lab.settings), *times)
    Console().print(table)


@app.command()
def run(
    id: Id,
    *,
    knob: Annotated[
        list[str] | None, typer.Option("--knob", "-k", help="Set a knob; repeatable.", metavar="NAME=VALUE")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick/--full", help="Seconds instead of minutes, with smaller numbers.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of everything random.")] = 0,
    as_json: Json = False,
    language: InLanguage = Language.en,
) -> None:
    """Run a lab, store its evidence under results/ and show it. Exit status 3: a claim did not hold.

    Example: cutaway lab run kv-cache --quick --knob longest=128
    """
    from cutaway.labs.catalogue import find
    from cutaway.labs.evidence import make_room, store

    lab, given = find(id), dict(_pair(text) for text in knob or [])
    make_room()
    with _Progress() as report:
        evidence = lab.run(given, "quick" if quick else "full", seed, report)
    path = store(evidence)
    _show(evidence, as_json, language)
    Console(stderr=True).print(f"[dim]stored in {path}[/]", highlight=False, soft_wrap=True)
    if not evidence.holds:
        raise typer.Exit(DISPROVED)


@app.command()
def show(id: Id, as_json: Json = False, language: InLanguage = Language.en) -> None:
    """Show a lab's latest evidence. Example: cutaway lab show sqrt-d"""
    from cutaway.labs.catalogue import find
    from cutaway.labs.evidence import latest, results_dir

    evidence = latest(find(id).id)
    if evidence is None:
        raise NotFound("has no evidence yet", f"lab {id} in {results_dir()}", f"run `cutaway lab run {id} --quick`")
    _show(evidence, as_json, language)


def _show(evidence: Evidence, as_json: bool, language: Language) -> None:
    from cutaway.labs.card import Card

    Console(stderr=as_json).print(Card(evidence, language.value))
    if as_json:
        typer.echo(evidence.to_json())


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CutawayError(f"expected NAME=VALUE, got {text!r}", "--knob", "for example --knob longest=128")
    return name.strip(), value


class _Progress:
    """A bar on stderr with the time that is left; each phase of a lab starts it afresh."""

    def __enter__(self) -> Report:
        from rich import progress

        columns = progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn()
        text = progress.TextColumn("{task.description}")
        self.bar = progress.Progress(*columns, text, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("starting", total=None)
        self.bar.start()
        return self.report

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, done: int, total: int, note: str) -> None:
        if done == 0:
            self.bar.reset(self.task, total=total)
        self.bar.update(self.task, completed=done, total=total, description=note)
