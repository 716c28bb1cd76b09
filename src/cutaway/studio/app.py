"""`mount`: the studio's routes and pages on an application that serves models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.serve.app import Models
from cutaway.studio import chat, labs, model

STATIC = Path(__file__).parent / "static"
API = "/studio/api"

# Nothing from elsewhere: scripts, styles, fonts and requests are the server's own.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NOT_BUILT = """<!doctype html><meta charset="utf-8"><title>Cutaway</title>
<p>The studio is not built. <code>make studio</code> builds it (Node.js 20 or later). The API works without it.</p>
<p lang="zh">工作室尚未构建。运行 <code>make studio</code> 即可（需要 Node.js 20 或更高版本）。API 不受影响。</p>
"""


def mount(app: FastAPI, models: Models, static: Path = STATIC) -> None:
    """Add the studio to `app`, which finds `models` in its state. static: the built front end."""
    for part in (model, chat, labs):
        app.include_router(part.router, prefix=API)
    if (static / "assets").is_dir():
        app.mount("/assets", StaticFiles(directory=static / "assets"))
    for name in ("index.html", "favicon.svg"):
        app.get("/" if name == "index.html" else f"/{name}", include_in_schema=False)(_page(static / name))
    app.add_middleware(BrowserHeaders)


def _page(path: Path) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return FileResponse(path) if path.exists() else HTMLResponse(NOT_BUILT, 200 if path.suffix == ".html" else 404)

    return page


class BrowserHeaders:
    """ASGI middleware. Built assets carry a hash in their name and never change; all else is asked for anew."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                lasting = scope["path"].startswith("/assets/") and message["status"] == 200
                headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
