"""Long work beside the event loop: its progress, what it found, its end; and how it learns that nobody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

Json = dict[str, Any]
Report = Callable[[int, int, str], None]
"""Called with steps done, steps in all and a note. Errors: `Cancelled`, which the work must let pass."""
Work = Callable[[Report], Json]


class Cancelled(Exception):
    """Nobody waits for this work any more."""


async def followed(work: Work, *, at_once: bool = False) -> AsyncGenerator[Json, None]:
    """Progress as `work` reports it in a thread of its own, what it returns, done. Errors: its own.

    at_once: begin with a report of nothing done; else an error before the first report is the iteration's first.
    Leaving the iteration cancels the work at its next report.
    """
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[Json | Exception] = asyncio.Queue()
    cancelled = threading.Event()

    def post(item: Json | Exception) -> None:
        with suppress(RuntimeError):  # a closed loop: nobody listens any more
            loop.call_soon_threadsafe(inbox.put_nowait, item)

    def report(done: int, total: int, note: str) -> None:
        if cancelled.is_set():
            raise Cancelled
        post({"type": "progress", "done": done, "total": total, "note": note})

    def run() -> None:
        try:
            found = work(report)
        except Exception as error:  # whoever waits must hear of it
            post(error)
        else:
            post(found)
            post({"type": "done"})

    if at_once:
        inbox.put_nowait({"type": "progress", "done": 0, "total": 1, "note": ""})
    # A daemon: a server that is told to end must not wait for a measurement.
    threading.Thread(target=run, daemon=True).start()
    try:
        item: Json = {}
        while item.get("type") != "done":
            item = _unless_failed(await inbox.get())
            yield item
    finally:
        cancelled.set()


def _unless_failed(item: Json | Exception) -> Json:
    if isinstance(item, Exception):
        raise item
    return item
