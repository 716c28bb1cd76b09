"""One line of JSON per request: who asked for what, how long it took, how it ended; what was said only if wanted.

A record is made before anything else sees the request. Whoever serves it adds what it knows to `current()`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.serve.guard import PROBES

log = logging.getLogger("cutaway.requests")

HEADER = "x-request-id"
SANE = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)  # of clients' own ids; they end up in a log
KEPT = 1 << 20  # bytes of a body that are logged, if any


@dataclass
class Record:
    """queue_s: until the first sequence began. first_token_s, total_s: from the request on. finish: of each sequence.

    body: what was asked, None unless it is wanted.
    """

    id: str
    time: str
    method: str
    path: str
    status: int = 0
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    finish: list[str] | None = None
    body: Any = None

    def line(self) -> str:
        """It as JSON, times to the microsecond."""
        told = {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return json.dumps({k: v for k, v in told.items() if k != "body" or v is not None}, ensure_ascii=False)


_CURRENT: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record:
    """The record of the request that is being served; one that nobody reads where there is none."""
    return _CURRENT.get() or Record("", "", "", "")


class RequestLog:
    """ASGI middleware, the outermost: names each request, answers with the name in `x-request-id`, logs its end.

    prompts: log what was asked too.
    """

    def __init__(self, app: ASGIApp, prompts: bool = False) -> None:
        self.app, self.prompts = app, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given, began = Headers(scope=scope).get(HEADER, ""), time.monotonic()
        name = given if SANE.fullmatch(given) else uuid4().hex
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = Record(name, now, scope["method"], scope["path"])
        asked = bytearray()

        async def read() -> Message:
            message = await receive()
            asked.extend(message.get("body", b"")[: KEPT - len(asked)] if self.prompts else b"")
            return message

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        token = _CURRENT.set(record)
        try:
            await self.app(scope, read, named)
        finally:
            _CURRENT.reset(token)
            record.total_s = time.monotonic() - began
            record.body = _readable(asked) if asked else None
            if worth(record):
                log.info(record.line())


def worth(record: Record) -> bool:
    """Not the reading of pages, models and figures, as long as that works; nor probes."""
    read = record.method in ("GET", "HEAD") and 200 <= record.status < 400
    return not read and record.path not in PROBES


def _readable(body: bytearray) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
