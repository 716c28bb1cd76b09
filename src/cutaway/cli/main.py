"""`cutaway`: the table of contents of the command line."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from cutaway import __version__
from cutaway.cli import budget, chat, diff, families, inside, lab, models, serve, top
from cutaway.errors import CutawayError

app = typer.Typer(
    name="cutaway",
    help="A complete large-language-model system whose every part can be seen, changed and measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("pull")(models.pull)
app.command("models")(models.models)
app.command("families")(families.families)
app.command("inspect")(models.inspect)
app.command("convert")(models.convert)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("top")(top.top)
app.command("diff")(diff.diff)
app.add_typer(budget.app, name="budget")
app.add_typer(inside.app, name="inside")
app.add_typer(lab.app, name="lab")


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Hold the options that belong to no subcommand."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


def run() -> None:
    """Entry point: a `CutawayError` becomes one line and exit status 1, an interruption status 130."""
    try:
        app()
    except CutawayError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
