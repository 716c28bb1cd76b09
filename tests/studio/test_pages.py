"""The studio's pages: what is sent, with which headers, and what is never sent."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cutaway.studio import pages

FILES = {
    "index.html": "<!doctype html><p>studio",
    "favicon.svg": "<svg/>",
    "secret.env": "KEY=1",
    "assets/index-a1b2c3.js": "export {}",
    "assets/index-a1b2c3.css": "p {}",
    "assets/deep/down.js": "export {}",
}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "static"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "outside.js").write_text("outside")
    monkeypatch.setattr(pages, "STATIC", folder)
    return folder


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("path", "name", "type", "lasting"),
    [
        ("/", "index.html", "text/html", False),
        ("/index.html", "index.html", "text/html", False),
        ("/favicon.svg", "favicon.svg", "image/svg+xml", False),
        ("/assets/index-a1b2c3.js", "assets/index-a1b2c3.js", "text/javascript", True),
        ("/assets/index-a1b2c3.css", "assets/index-a1b2c3.css", "text/css", True),
    ],
)
def test_files_come_with_their_type_and_how_long_they_last(
    http: httpx.Client, path: str, name: str, type: str, lasting: bool
) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.text) == (200, FILES[name])
    assert answer.headers["content-type"].startswith(type)
    assert answer.headers["cache-control"] == ("public, max-age=31536000, immutable" if lasting else "no-cache")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert http.head(path).headers["content-length"] == str(len(FILES[name]))


@pytest.mark.usefixtures("built")
def test_nothing_may_come_from_elsewhere(http: httpx.Client) -> None:
    policy = http.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in policy


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    "path",
    [
        "/secret.env",
        "/nothing.js",
        "/assets/nothing.js",
        "/assets/deep/down.js",
        "/assets/..%2f..%2foutside.js",
        "/..%2foutside.js",
        "/assets/..%5c..%5coutside.js",
        "/assets/",
        "/assets",
    ],
)
def test_nothing_else_is_sent(http: httpx.Client, path: str) -> None:
    answer = http.get(path, follow_redirects=True)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_the_apis_answers_stay_their_own(http: httpx.Client) -> None:
    assert http.get("/health").json()["status"] == "ok"
    assert http.get("/v1/models").status_code == 200
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_without_a_build_the_page_says_how_to_get_one(
    http: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STATIC", tmp_path / "none")
    answer = http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "make studio" in answer.text
    assert answer.headers["cache-control"] == "no-cache"
