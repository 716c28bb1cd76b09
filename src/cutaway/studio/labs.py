"""GET /labs and POST /labs/ID/run: the claims, what was found, and finding out again.

A lab runs in a thread of its own, one at a time: two would disturb each other's measurements.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import ModuleType
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cutaway.errors import CutawayError, NotFound
from cutaway.labs.evidence import latest, store
from cutaway.labs.lab import Lab
from cutaway.serve.connection import EventStream
from cutaway.serve.errors import ApiError
from cutaway.serve.schemas import Body
from cutaway.studio.background import Report, followed
from cutaway.studio.chat import typed
from cutaway.weights.sources import CATALOGUE, pulled

Json = dict[str, Any]

log = logging.getLogger(__name__)
router = APIRouter()


class RunRequest(Body):
    """knobs: those that differ from the profile's."""

    knobs: dict[str, Any] = Field(default_factory=dict)
    profile: Literal["quick", "full"] = "quick"
    seed: int = Field(0, ge=0, lt=2**63)


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

        def work(report: Report) -> Json:
            try:
                evidence = lab.run(body.knobs, body.profile, body.seed, report)
                store(evidence)
            finally:
                self._room.release()  # before the end is told: who hears it may start the next run
            return {"type": "evidence", "evidence": evidence.model_dump(mode="json")}

        async with aclosing(followed(work, at_once=True)) as items:
            async for item in items:
                yield item


def catalogue() -> ModuleType:
    """The labs, imported when somebody wants to see them: they take most of a second and 90 MB."""
    from cutaway.labs import catalogue

    return catalogue


@router.get("/labs")
def labs() -> Json:
    """Every lab with its latest evidence, if it was ever run."""
    return {"labs": [lab.describe() | {"latest": _latest(lab)} for lab in catalogue().LABS.values()]}


@router.post("/labs/{name}/run")
async def run(name: str, body: RunRequest, request: Request) -> Response:
    """A stream of progress, evidence, done. Errors: no such lab or knob, a value out of range, 409."""
    lab: Lab = (await asyncio.to_thread(catalogue)).find(name)
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
