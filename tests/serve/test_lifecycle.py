"""Starting, ready, draining; and what the log says of each request."""

from __future__ import annotations

import json
import logging
import threading
import time

import httpx
import pytest

from cutaway import __version__
from cutaway.serve.app import create_app, serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import loaded, running
from serve.test_connection import wait_for

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "ignore_eos": True}


@pytest.fixture
def app():
    served = serve_model(loaded("tiny", decoder(context=4096), tokenizer()))
    app = create_app({"tiny": served}, log_prompts=True)
    yield app
    served.close()


@pytest.fixture
def http(app):
    with running(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "cutaway.requests")

    def written():
        return [json.loads(r.message) for r in caplog.records if r.name == "cutaway.requests"]

    return written


def one(lines):
    """The only line; it is written after the answer is."""
    wait_for(lines)
    (line,) = lines()
    return line


def test_ready_is_not_before_proof_and_not_while_draining(app, http):
    def ready():
        answer = http.get("/ready")
        return answer.status_code, answer.json()["status"]

    assert ready() == (503, "starting")
    app.state.lifecycle.proven()
    assert ready() == (200, "ready")
    assert http.get("/ping").status_code == 200
    assert http.get("/version").json() == {"version": __version__}
    app.state.models["tiny"].service.close()
    assert ready() == (503, "stopped")


def test_a_drain_finishes_what_runs_and_refuses_the_rest(app, http):
    lifecycle = app.state.lifecycle
    told = {}

    def long():
        told["whole"] = httpx.post(
            http.base_url.join("/v1/chat/completions"), json=ASK | {"max_tokens": 300}, timeout=60
        )

    thread = threading.Thread(target=long)
    thread.start()
    wait_for(lambda: app.state.models["tiny"].service.engine.busy)
    lifecycle.drain(30)
    refused = http.post("/v1/chat/completions", json=ASK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) > 0
    assert http.get("/ready").status_code == 503
    assert http.get("/health").status_code == 200
    thread.join()
    assert told["whole"].json()["usage"]["completion_tokens"] == 300
    wait_for(lambda: lifecycle.over)


def test_a_drain_has_a_limit(app):
    lifecycle = app.state.lifecycle
    lifecycle.inside = 1
    assert not lifecycle.over
    lifecycle.drain(0.05)
    assert not lifecycle.over
    time.sleep(0.06)
    assert lifecycle.over


def test_a_line_says_who_asked_how_long_and_how_it_ended(http, lines):
    answer = http.post("/v1/chat/completions", json=ASK | {"n": 2}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    line = one(lines)
    assert {k: line[k] for k in ("id", "method", "path", "status", "model")} == {
        "id": "mine-1", "method": "POST", "path": "/v1/chat/completions", "status": 200, "model": "tiny"
    }  # fmt: skip
    assert (line["prompt_tokens"], line["completion_tokens"]) == (len(tokenizer().chat(ASK["messages"])), 10)
    assert line["finish"] == ["length", "length"]
    assert 0 <= line["queue_s"] <= line["first_token_s"] <= line["total_s"]
    assert line["body"] == ASK | {"n": 2}


def test_a_stream_that_is_left_has_its_line_too(http, lines):
    body = ASK | {"stream": True, "max_tokens": 4000}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        stream = answer.iter_lines()
        next(stream)
    line = one(lines)
    assert line["status"] == 200
    assert line["finish"] == []
    assert 0 < line["completion_tokens"] < 4000


@pytest.mark.parametrize("name", ["", "x" * 129, "line\tbreak", "{}"])
def test_a_strange_name_is_replaced(http, lines, name):
    headers = {"x-request-id": name, "Content-Type": "application/json"}
    answer = http.post("/v1/completions", content=b"\xff", headers=headers)
    line = one(lines)
    assert line["id"] == answer.headers["x-request-id"] != name
    assert (line["status"], line["body"]) == (400, "\ufffd")


def test_what_works_quietly_is_not_logged_and_nobody_speaks_in_the_log(http, lines, app):
    for path in ("/v1/models", "/metrics", "/health", "/ready"):
        http.get(path)
    assert lines() == []
    quiet = create_app(app.state.models)
    with running(quiet) as url:
        httpx.post(f"{url}/v1/chat/completions", json=ASK)
    line = one(lines)
    assert "body" not in line
    assert "hi" not in json.dumps(line).replace("this", "")
