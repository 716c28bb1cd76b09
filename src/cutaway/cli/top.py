"""`cutaway top URL`: what a server's engine does, on one screen."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cutaway.errors import CutawayError

Json = dict[str, Any]

Url = Annotated[str, typer.Argument(help="Of a server that `cutaway serve` started.")]
Model = Annotated[str | None, typer.Option(help="Which of its models; the first, unless named.")]
Every = Annotated[float, typer.Option(help="Seconds from one look to the next.", min=0.1)]
Once = Annotated[bool, typer.Option("--json", help="Print one look as JSON and end.")]
Key = Annotated[str | None, typer.Option(help="The server's key.", envvar="CUTAWAY_API_KEY")]

BLOCKS = " ▁▂▃▄▅▆▇█"
STATES = {"held": ("█", "cyan"), "shared": ("█", "magenta"), "cached": ("▒", "yellow"), "free": ("·", "dim")}


def top(
    url: Url = "http://127.0.0.1:8000",
    *,
    model: Model = None,
    every: Every = 0.5,
    once: Once = False,
    api_key: Key = None,
) -> None:
    """Watch an engine at work: batch, queue, pages, speed. Example: cutaway top http://127.0.0.1:8000"""
    if once:
        typer.echo(json.dumps(look(url, model, api_key)))
        return
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(look(url, model, api_key), console.width, console.height), refresh=True)
            time.sleep(every)


def look(url: str, model: str | None, api_key: str | None) -> Json:
    """One look at the engine. Errors: no such server, or it refuses."""
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    asked = {"model": model} if model else {}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/studio/api/engine", params=asked, headers=headers, timeout=10)
        found = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise CutawayError(f"no Cutaway answers there: {error}", url, "is `cutaway serve` running?") from None
    if answer.status_code != 200:
        raise CutawayError(found.get("error", {}).get("message", f"status {answer.status_code}"), url)
    return found


def screen(found: Json, width: int = 100, height: int = 40) -> RenderableType:
    """All of it, fitted to the terminal: figures, the last steps, pages, as many sequences as there is room for."""
    head = Text.from_markup(f"[bold]{escape(found['model'])}[/]  " + "  ".join(figures(found)))
    steps = Text(f"steps  {bars([sum(s[2] for s in step['spans']) for step in found['steps']], width - 8)}", "green")
    texts = [head, steps, legend(found["pages"]), page_map(found["pages"]["holders"], width, max(1, height // 3))]
    used = sum(1 + -(-len(text.plain) // width) for text in texts) + 2
    return Group(*texts, table(found["sequences"][: max(1, height - used)]))


def figures(found: Json) -> list[str]:
    """The numbers of the first lines."""
    rates, counted = found["rates"], found["counted"]
    hits = counted["hits"] / counted["lookups"] if counted["lookups"] else 0.0
    accepted = rates["acceptance"]
    return [
        f"running {found['running']}/{found['places']}",
        f"waiting {found['waiting']}",
        f"{rates['replied_per_s']:,.0f} tok/s out",
        f"{rates['tokens_per_s']:,.0f} tok/s computed",
        f"{rates['weights_per_s'] / 1e9:.1f} GB/s of weights",
        f"busy {rates['busy']:.0%}",
        f"overhead {rates['overhead']:.1%}",
        f"prefix hits {hits:.0%}",
        f"accepted {accepted:.0%}" if accepted is not None else "no drafts",
        f"preempted {counted['preemptions']}",
    ]


def bars(values: list[int], width: int) -> str:
    """The last values as blocks, the highest as tall as a line."""
    last = values[-max(1, width) :]
    highest = max(last, default=0) or 1
    return "".join(BLOCKS[-(-v * (len(BLOCKS) - 1) // highest)] for v in last)


def state(holders: int) -> str:
    """What a page is, by how many hold it."""
    return "cached" if holders < 0 else "shared" if holders > 1 else "held" if holders else "free"


def page_map(holders: list[int], width: int, lines: int) -> Text:
    """A mark for each page; where there are more than fit, for each run of pages, by the most held of them."""
    each = max(1, -(-len(holders) // (width * lines)))
    text = Text()
    for i in range(0, len(holders), each):
        text.append(*STATES[state(max(holders[i : i + each], key=lambda n: (n > 0, n < 0, n)))])
    return text


def legend(pages: Json) -> Text:
    """What the marks stand for, and how many there are."""
    shared = sum(holders > 1 for holders in pages["holders"])
    counts = {"held": pages["held"] - shared, "shared": shared, "cached": pages["cached"], "free": pages["free"]}
    text = Text(f"{pages['count']} pages of {pages['size']} tokens, {pages['bytes'] / 1024:,.0f} KiB each   ")
    for name, (mark, style) in STATES.items():
        text.append(mark, style).append(f" {name} {counts[name]}   ")
    return text


def table(sequences: list[Json]) -> Table:
    """The sequences, running ones first."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("id", "state", "prompt", "cached", "computed", "reply", "pages", "priority", "preempted"):
        drawn.add_column(name, justify="left" if name == "state" else "right")
    for s in sequences:
        row = [s["id"], s["state"], s["prompt"], s["cached"], s["computed"], s["reply"], len(s["pages"])]
        drawn.add_row(*map(str, [*row, s["priority"], s["preempted"]]))
    return drawn
