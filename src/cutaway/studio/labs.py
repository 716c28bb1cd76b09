"""The Labs page: what can be asked, the latest evidence, and running a lab with its progress."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter
from starlette.responses import Response

from cutaway.labs.catalogue import LABS, find
from cutaway.labs.evidence import Evidence, latest, store
from cutaway.labs.lab import Lab
from cutaway.serve.connection import EventStream
from cutaway.serve.errors import ApiError, as_api_error
from cutaway.serve.schemas import Body

router = APIRouter()

Json = dict[str, Any]

_bench = threading.Lock()  # labs measure: two at once would measure each other


class RunRequest(Body):
    """Knobs that are not named keep the profile's value."""

    knobs: dict[str, int | float | bool | str] = {}
    profile: Literal["quick", "full"] = "quick"
    seed: int = 0


class Cancelled(Exception):
    """Whoever watched the run has left."""


@router.get("/labs")
def labs() -> Json:
    """Every lab, with its newest evidence."""
    return {"labs": [lab.describe() | {"latest": _shown(latest(lab.id))} for lab in LABS.values()]}


def _shown(evidence: Evidence | None) -> Json | None:
    return None if evidence is None else evidence.model_dump(mode="json")


@router.post("/labs/{id}/run")
async def run(id: str, body: RunRequest) -> Response:
    """A stream: progress, then the evidence, which is stored. Errors: unknown lab or knob; 409 while another runs."""
    lab = find(id)
    lab.values(body.knobs, body.profile)
    return EventStream(_events(lab, body))


async def _events(lab: Lab, body: RunRequest) -> AsyncGenerator[Json, None]:
    """The lab runs in a thread; it learns at its next report that nobody listens any more."""
    if not _bench.acquire(blocking=False):
        raise ApiError(409, "another lab is running; two at once would measure each other", code="busy")
    loop, left = asyncio.get_running_loop(), threading.Event()
    inbox: asyncio.Queue[Json] = asyncio.Queue()

    def post(item: Json) -> None:
        if not left.is_set():
            loop.call_soon_threadsafe(inbox.put_nowait, item)

    def report(done: int, total: int, note: str) -> None:
        if left.is_set():
            raise Cancelled
        post({"type": "progress", "done": done, "total": total, "note": note})

    def work() -> None:
        try:
            evidence = lab.run(body.knobs, body.profile, body.seed, report)
            store(evidence)
            post({"type": "evidence", "evidence": _shown(evidence)})
            post({"type": "done"})
        except Cancelled:
            pass
        except Exception as error:  # the page must hear of it, whatever it is
            post({"type": "error", **as_api_error(error).body()})
        finally:
            _bench.release()

    threading.Thread(target=work, name=f"cutaway-lab-{lab.id}", daemon=True).start()
    try:
        while True:
            item = await inbox.get()
            yield item
            if item["type"] in ("done", "error"):
                return
    finally:
        left.set()
