"""Every error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, with a fitting HTTP status.

What the client did wrong is explained to it; what went wrong here is logged, and the client only learns that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.engine.engine import Failed, TimedOut, TooLong
from cutaway.engine.service import Busy
from cutaway.errors import CutawayError, NotFound

log = logging.getLogger(__name__)


class ApiError(HTTPException):
    """A refusal. param: the field at fault. code: what a program may look at."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """The JSON object that is sent."""
        kind = TYPES.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)


TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

# The first class that fits decides: status, code.
STATUS: tuple[tuple[type[CutawayError], int, str | None], ...] = (
    (Failed, 500, "internal_error"),
    (TooLong, 400, "context_length_exceeded"),
    (Busy, 429, "rate_limit_exceeded"),
    (NotFound, 404, "not_found"),
    (TimedOut, 504, "timeout"),
    (CutawayError, 400, "invalid_value"),
)
# What Starlette and FastAPI refuse by themselves: their words -> message, code.
PLAIN = {
    "There was an error parsing the body": ("the body: is not JSON in UTF-8", "invalid_json"),
    "Not Found": ("there is nothing at this address", "not_found"),
    "Method Not Allowed": ("this address takes another method", "method_not_allowed"),
}
# Pydantic's kinds of error: message (with Pydantic's values in it), code.
INVALID = {
    "missing": ("is required", "missing_required_parameter"),
    "extra_forbidden": ("is not supported here, or not with this value", "unsupported_parameter"),
    "json_invalid": ("is not valid JSON", "invalid_json"),
    "model_attributes_type": ("must be a JSON object, with Content-Type: application/json", "invalid_type"),
    "model_type": ("must be a JSON object", "invalid_type"),
    "string_type": ("must be a string", "invalid_type"),
    "bool_type": ("must be true or false", "invalid_type"),
    "int_type": ("must be an integer", "invalid_type"),
    "float_type": ("must be a number", "invalid_type"),
    "list_type": ("must be a list", "invalid_type"),
    "literal_error": ("must be {expected}", "invalid_value"),
    "too_short": ("must not be empty", "invalid_value"),
    "greater_than_equal": ("must be at least {ge}", "invalid_value"),
    "less_than_equal": ("must be at most {le}", "invalid_value"),
}


def as_api_error(error: Exception) -> ApiError:
    """What the client is told of an error of any kind; an unexpected one is logged here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, CutawayError):
        status, code = next((status, code) for kind, status, code in STATUS if isinstance(error, kind))
        headers = {"Retry-After": str(error.seconds)} if isinstance(error, Busy) else None
        return ApiError(status, str(error), param=error.where or None, code=code, headers=headers)
    if isinstance(error, HTTPException):
        message, code = PLAIN.get(str(error.detail), (str(error.detail), None))
        return ApiError(error.status_code, message, code=code, headers=error.headers)
    log.error("unexpected error", exc_info=error)
    return ApiError(500, "the server failed to answer this request; its log says why", code="internal_error")


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first thing wrong with a request's body; an input is never echoed."""
    first = error.errors()[0]
    kind = first["type"]
    param = "" if kind == "json_invalid" else _dotted(first["loc"][1:])
    message, code = INVALID.get(kind, (first["msg"], "invalid_value"))
    told = message.format(**first.get("ctx", {})) if kind in INVALID else message
    return ApiError(400, f"{param or 'the body'}: {told}", param=param or None, code=code)


def _dotted(path: tuple[str | int, ...]) -> str:
    """("messages", 0, "role") -> "messages[0].role". Clients' names may be long, or not even Unicode."""
    names = (f"[{p}]" if isinstance(p, int) else f".{ascii(p)[1:-1]}" for p in path)
    return "".join(names).removeprefix(".")[:100]


async def _handle(request: Request, error: Exception) -> JSONResponse:
    return as_api_error(error).response()


class LastResort:
    """ASGI middleware: an unexpected error becomes a response; left to itself it would cost the connection too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await as_api_error(error).response()(scope, receive, send)


def install(app: FastAPI) -> None:
    """Make every error of `app` take this shape."""
    for kind in (HTTPException, RequestValidationError, CutawayError, Exception):
        app.add_exception_handler(kind, _handle)
    app.add_middleware(LastResort)
