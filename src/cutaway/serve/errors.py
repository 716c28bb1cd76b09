"""Every error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, with a fitting HTTP status.

What the client did wrong is explained to it; what went wrong here is logged, and the client learns only that it did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cutaway.engine.engine import TooLong
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
    (TooLong, 400, "context_length_exceeded"),
    (Busy, 429, "rate_limit_exceeded"),
    (NotFound, 404, "not_found"),
    (CutawayError, 400, None),
)
CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unsupported_parameter", "json_invalid": "invalid_json"}
MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not supported here, or not with this value",
    "json_invalid": "is not valid JSON",
    "model_attributes_type": "must be a JSON object (with Content-Type: application/json)",
    "model_type": "must be a JSON object",
}


def as_api_error(error: Exception) -> ApiError:
    """What the client is told of an error of any kind; an unexpected one is logged here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, CutawayError):
        status, code = next((status, code) for kind, status, code in STATUS if isinstance(error, kind))
        headers = {"Retry-After": "1"} if status == 429 else None
        return ApiError(status, str(error), param=error.where or None, code=code, headers=headers)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    log.error("unexpected error", exc_info=error)
    return ApiError(500, "the server failed to answer this request; its log says why", code="internal_error")


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first thing wrong with a request's body; an input is never echoed."""
    first = error.errors()[0]
    kind, path = first["type"], first["loc"][1:]
    param = "" if kind == "json_invalid" else _dotted(path)
    message = MESSAGES.get(kind) or first["msg"]
    return ApiError(400, f"{param or 'the body'}: {message}", param=param or None, code=CODES.get(kind, "invalid_value"))


def _dotted(path: tuple[str | int, ...]) -> str:
    """("messages", 0, "role") -> "messages[0].role"."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


async def _handle(request: Request, error: Exception) -> JSONResponse:
    answer = as_api_error(error)
    if type(error) is HTTPException and answer.status_code in (404, 405):
        answer.detail = f"{answer.detail}: {request.method} {request.url.path}"
    return answer.response()


def install(app: FastAPI) -> None:
    """Make every error of `app` take this shape."""
    for kind in (HTTPException, RequestValidationError, CutawayError, Exception):
        app.add_exception_handler(kind, _handle)
