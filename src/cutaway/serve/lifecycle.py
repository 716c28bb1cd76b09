"""From the first proof of work to the last answer: starting, ready, draining. And the addresses that tell of it.

A server that is told to end stops accepting work, finishes what runs, and ends when that is done or takes too long.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cutaway import __version__
from cutaway.serve.errors import ApiError
from cutaway.serve.guard import PROBES

router = APIRouter()


class Lifecycle:
    """inside: requests that are being answered, beside those that only watch. Its clock is the monotonic one."""

    def __init__(self) -> None:
        self.phase, self.inside, self.deadline = "starting", 0, float("inf")

    def proven(self) -> None:
        """Every model has given an answer."""
        self.phase = "ready"

    def drain(self, seconds: float) -> None:
        """Accept no more work; what runs has so long."""
        self.phase, self.deadline = "draining", time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether nothing is left to wait for."""
        return self.phase == "draining" and (not self.inside or time.monotonic() >= self.deadline)


class Drain:
    """ASGI middleware that counts who is inside, and refuses work while the server ends."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app, self.lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self.app(scope, receive, send)
        if self.lifecycle.phase == "draining" and scope["method"] == "POST":
            headers = {"Retry-After": "1", "Connection": "close"}
            refusal = ApiError(503, "the server is shutting down", code="shutting_down", headers=headers)
            return await refusal.response()(scope, receive, send)
        self.lifecycle.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.inside -= 1


@router.get("/ping")
async def ping() -> Response:
    """200: the process answers."""
    return Response()


@router.get("/version")
async def version() -> dict[str, str]:
    """Of Cutaway."""
    return {"version": __version__}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 if work is welcome; 503 before every model has shown that it works, after one stopped, and while draining."""
    state, models = request.app.state, request.app.state.models.values()
    phase = state.lifecycle.phase if all(served.alive for served in models) else "stopped"
    return JSONResponse({"status": phase}, 200 if phase == "ready" else 503)
