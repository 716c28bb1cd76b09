"""Errors in Anthropic's shape, {"type": "error", "error": {"type", "message"}}, where its clients call."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.serve.errors import as_api_error

PATHS = "/v1/messages"
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def shaped(status: int, message: str) -> dict[str, Any]:
    """The error that is sent."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


async def in_stream(items: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
    """The items; an error after the first becomes the last one."""
    begun = False
    async with aclosing(items):
        try:
            async for item in items:
                yield item
                begun = True
        except Exception as error:
            if not begun:
                raise
            told = as_api_error(error)
            yield shaped(told.status_code, str(told.detail))


class AnthropicErrors:
    """ASGI middleware: whoever refuses a request to Anthropic's paths, it is refused in Anthropic's words."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            return await self.app(scope, receive, send)
        start: Message | None = None
        body = b""

        async def rewritten(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await _send_error(start, body, send)

        await self.app(scope, receive, rewritten)


async def _send_error(start: Message, body: bytes, send: Send) -> None:
    message = json.loads(body)["error"]["message"]
    said = json.dumps(shaped(start["status"], message), ensure_ascii=False).encode()
    headers = MutableHeaders(raw=[*start["headers"]])
    headers["content-length"] = str(len(said))
    await send({"type": "http.response.start", "status": start["status"], "headers": headers.raw})
    await send({"type": "http.response.body", "body": said})
