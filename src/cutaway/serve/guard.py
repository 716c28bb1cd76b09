"""Who may talk to the server: checks on a request's headers before anything reads its body.

A server on the loopback interface is still within reach of every web page that the user opens. Two attacks
are met here. A page can send requests to 127.0.0.1 itself; browsers then name the page in `Origin`. Or its
name can be made to resolve to 127.0.0.1 (DNS rebinding); browsers then send that name in `Host`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.errors import CutawayError
from cutaway.serve.errors import ApiError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PROBES = frozenset({"/health", "/ping", "/ready"})  # for those who watch over the server: open to all, never refused


@dataclass(frozen=True)
class Policy:
    """api_keys: clients must show one of these, if there are any. hosts: names the server answers to, None for any.

    Who shows another key is another tenant: tenants share time fairly, and nothing that is kept of their texts.
    origins: of other web pages that may use it, "*" for all. max_body: bytes. timeout: seconds that a reply may take.
    """

    api_keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = LOOPBACK
    origins: frozenset[str] = frozenset()
    max_body: int = 4 << 20
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not all(key.strip() for key in self.api_keys):
            raise CutawayError("is empty", "--api-key", "who shows nothing would show it")


def check_host(policy: Policy, headers: Headers, path: str) -> ApiError | None:
    """Against DNS rebinding."""
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        name = None
    if policy.hosts is None or name in policy.hosts:
        return None
    known = ", ".join(sorted(policy.hosts))
    return ApiError(403, f"this server answers to {known} only, not to the Host named", code="host_not_allowed")


def check_origin(policy: Policy, headers: Headers, path: str) -> ApiError | None:
    """Against other web pages. Programs send no Origin; the server's own pages send its own."""
    origin = headers.get("origin")
    if origin is None or policy.origins & {origin, "*"} or origin.partition("://")[2] == headers.get("host"):
        return None
    return ApiError(403, "requests from other web pages are refused (see --allow-origin)", code="origin_not_allowed")


def check_key(policy: Policy, headers: Headers, path: str) -> ApiError | None:
    """`Authorization: Bearer KEY`, Anthropic's `x-api-key: KEY`, or for browsers Basic with the key as password."""
    if not policy.api_keys or path in PROBES or tenant(policy, headers):
        return None
    headers_out = {"WWW-Authenticate": 'Basic realm="Cutaway: the API key is the password"'}
    return ApiError(401, "missing or wrong API key", code="invalid_api_key", headers=headers_out)


def tenant(policy: Policy, headers: Headers) -> str:
    """Which of the keys is shown, by its number; nothing if none is."""
    shown = _shown(headers.get("authorization", "")) or headers.get("x-api-key", "").encode("latin-1")
    found = [hmac.compare_digest(shown, key.encode()) for key in policy.api_keys]  # as long for each of them
    return str(found.index(True)) if any(found) else ""


def _shown(authorization: str) -> bytes:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return value.encode("latin-1") if scheme.lower() == "bearer" else b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def check_length(policy: Policy, headers: Headers, path: str) -> ApiError | None:
    """What the client announces; `Guard` counts what it sends as well."""
    length = headers.get("content-length", "0")
    return too_large(policy) if not length.isdecimal() or int(length) > policy.max_body else None


def too_large(policy: Policy) -> ApiError:
    return ApiError(413, f"the body exceeds {policy.max_body:,} bytes", code="body_too_large")


CHECKS = (check_host, check_origin, check_key, check_length)


class Guard:
    """ASGI middleware that answers with the first refusal, or else passes the request on."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refusals = (check(self.policy, headers, scope["path"]) for check in CHECKS)
        refusal = next((r for r in refusals if r), None)
        if refusal:
            return await refusal.response()(scope, receive, send)
        scope.setdefault("state", {})["tenant"] = tenant(self.policy, headers)
        await self.app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.policy.max_body:
                raise too_large(self.policy)
            return message

        return limited
