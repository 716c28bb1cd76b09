"""The studio's pages, as the front end's build left them in `static`."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

STATIC = Path(__file__).parent / "static"
TYPES = {  # not left to the machine's own table: some call JavaScript text/plain, which browsers then refuse
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
POLICY = {  # everything comes from this server; nothing inline, nothing framed
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ASK_AGAIN = {"Cache-Control": "no-cache"}
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}  # a hash of the content is in the name
NOT_BUILT = """<!doctype html>
<meta charset="utf-8"><title>Cutaway</title>
<h1>The studio is not built</h1>
<p>The server works: its API is at <code>/v1</code>. To build the studio, run <code>make studio</code>
in Cutaway's checkout and start the server again.</p>
<h1 lang="zh">工作室尚未构建</h1>
<p lang="zh">服务器可以使用，API 在 <code>/v1</code>。
在 Cutaway 的代码目录运行 <code>make studio</code> 后重新启动服务器即可。</p>
"""

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def index() -> Response:
    """The application, or how to get it."""
    if not (STATIC / "index.html").is_file():
        return HTMLResponse(NOT_BUILT, headers=HEADERS | ASK_AGAIN)
    return _file(STATIC, "index.html", ASK_AGAIN)


@router.api_route("/assets/{name}", methods=["GET", "HEAD"])
def asset(name: str) -> Response:
    """Scripts and styles."""
    return _file(STATIC / "assets", name, FOREVER)


@router.api_route("/{name}", methods=["GET", "HEAD"])
def beside(name: str) -> Response:
    """Files beside the index, such as its icon."""
    return _file(STATIC, name, ASK_AGAIN)


def _file(folder: Path, name: str, caching: dict[str, str]) -> Response:
    """One of the folder's own files, if it is of a type that pages have. Errors: 404."""
    path = folder / name
    there = os.path.isfile(path)  # unlike Path.is_file, False for a name that no file can have
    if path.suffix not in TYPES or path.parent != folder or not there:
        raise HTTPException(404)
    return FileResponse(path, headers=HEADERS | caching, media_type=TYPES[path.suffix])
