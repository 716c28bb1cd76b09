"""A client's presence: work for a client that has left is stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cutaway.serve.errors import ApiError, as_api_error

T = TypeVar("T")
JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)


class Gone(ApiError):
    """The client left before it had its answer. (The status is nginx's, for the metrics.)"""

    def __init__(self) -> None:
        super().__init__(499, "the client left")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Errors: its own; `Gone`, after cancelling it, if the client disconnects first.

    receive: the request's ASGI channel, its body read already.
    """
    tasks = working, watching = asyncio.create_task(work), asyncio.create_task(_departure(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone()
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, one per JSON object of `items`, which is closed in the end.

    An error before the first item becomes an ordinary error response; a later one is sent as an event and
    ends the stream. last: sent after the last item, as it is. named: events bear the name of their item's "type".
    """

    media_type = "text/event-stream"

    def __init__(self, items: AsyncGenerator[dict[str, Any], None], last: str = "", named: bool = False) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.items, self.last, self.named, self.begun = items, last, named, False
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_all(send))
        except Gone:
            if not self.begun:  # else the status is sent already
                raise

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self.items):
            first = await anext(self.items)
            self.begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send(send, first, self.named)
            try:
                async for item in self.items:
                    await _send(send, item, self.named)
            except Exception as error:  # the status is sent already: all that is left is to say so in the stream
                await _send(send, as_api_error(error).body())
            else:
                await send({"type": "http.response.body", "body": self.last.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _send(send: Send, item: dict[str, Any], named: bool = False) -> None:
    name = f"event: {item['type']}\n" if named else ""
    event = f"{name}data: {JSON.encode(item)}\n\n".encode()
    await send({"type": "http.response.body", "body": event, "more_body": True})
