"""GET /labs and POST /labs/ID/run: the claims, what was found, and finding out again.

A lab runs in a thread of its own, one at a time: two would disturb each other's measurements.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cutaway.errors import CutawayError, NotFound
from cutaway.labs.catalogue import LABS, find
from cutaway.labs.evidence import latest, store
from cutaway.labs.lab import Lab
from cutaway.serve.connection import EventStream
from cutaway.serve.errors import ApiError
from cutaway.serve.schemas import Body
from cutaway.studio.chat import typed
from cutaway.weights.sources import CATALOGUE, pulled

Json = dict[str, Any]
Post = Callable[[Json | Exception], None]

log = logging.getLogger(__name__)
router = APIRouter()


class RunRequest(Body):
    """knobs: those that differ from the profile's."""

    knobs: dict[str, Any] = Field(default_factory=dict)
    profile: Literal["quick", "full"] = "quick"
    seed: int = Field(0, ge=0, lt=2**63)


class Cancelled(Exception):
    """Nobody waits for this run any more."""


class Laboratory:
    """Room for one run at a time."""

    def __init__(self) -> None:
        self._room = threading.Lock()

    async def run(self, lab: Lab, body: RunRequest) -> AsyncGenerator[Json, None]:
        """Progress, evidence, done. Leaving the iteration cancels the run at its next report.

        Errors: 409 while another run goes on; those of the lab.
        """
        if not self._room.acquire(blocking=False):
            raise ApiError(409, "another lab is running: two would disturb each other", code="lab_running")
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Json | Exception] = asyncio.Queue()
        cancelled = threading.Event()

        def post(item: Json | Exception) -> None:
            with suppress(RuntimeError):  # a closed loop: nobody listens any more
                loop.call_soon_threadsafe(inbox.put_nowait, item)

        # A daemon: a server that is told to end must not wait for a measurement.
        threading.Thread(target=self._work, args=(lab, body, post, cancelled), daemon=True).start()
        try:
            yield {"type": "progress", "done": 0, "total": 1, "note": ""}
            item: Json = {}
            while item.get("type") != "done":
                item = _unless_failed(await inbox.get())
                yield item
        finally:
            cancelled.set()

    def _work(self, lab: Lab, body: RunRequest, post: Post, cancelled: threading.Event) -> None:
        """What the thread does, to the end or to the report at which it learns that it is cancelled."""

        def report(done: int, total: int, note: str) -> None:
            if cancelled.is_set():
                raise Cancelled
            post({"type": "progress", "done": done, "total": total, "note": note})

        try:
            evidence = lab.run(body.knobs, body.profile, body.seed, report)
            store(evidence)
            found: list[Json | Exception] = [
                {"type": "evidence", "evidence": evidence.model_dump(mode="json")},
                {"type": "done"},
            ]
        except Exception as error:  # whoever waits must hear of it
            found = [error]
        finally:
            self._room.release()
        for item in found:  # only now: who hears the end may start the next run
            post(item)


def _unless_failed(item: Json | Exception) -> Json:
    if isinstance(item, Exception):
        raise item
    return item


@router.get("/labs")
def labs() -> Json:
    """Every lab with its latest evidence, if it was ever run."""
    return {"labs": [lab.describe() | {"latest": _latest(lab)} for lab in LABS.values()]}


@router.post("/labs/{name}/run")
async def run(name: str, body: RunRequest, request: Request) -> Response:
    """A stream of progress, evidence, done. Errors: no such lab or knob, a value out of range, 409."""
    lab = find(name)
    check_model(lab.values(body.knobs, body.profile).get("model"))
    laboratory: Laboratory = request.app.state.laboratory
    return EventStream(typed(laboratory.run(lab, body)))


def check_model(name: object) -> None:
    """A page names models that were pulled, never paths: their errors would tell what files there are."""
    if name is None or name in CATALOGUE or any(name in (entry.name, entry.source) for entry in pulled()):
        return
    raise NotFound(f"no pulled model {name!r}", "knob model", "see `cutaway models`")


def _latest(lab: Lab) -> Json | None:
    try:
        evidence = latest(lab.id)
    except CutawayError:  # one damaged file must not hide all labs
        log.exception("evidence that cannot be read")
        return None
    return evidence.model_dump(mode="json") if evidence else None
