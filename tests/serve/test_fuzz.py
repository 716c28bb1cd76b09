"""Whatever comes in, nothing that the description allows or forbids is answered with a 5xx, and nothing leaks.

CUTAWAY_FUZZ says how many requests to make up for each address and mode, for a longer hunt.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from cutaway.serve.app import Policy, create_app, serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import at_rest, encoder, loaded, running

EXAMPLES = int(os.environ.get("CUTAWAY_FUZZ", "4"))
MODELS = ("tiny", "vectors")
HI = [{"role": "user", "content": "hi"}]

thorough = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def served():
    return {
        "tiny": serve_model(loaded("tiny", decoder(context=96), tokenizer()), running=4),
        "vectors": serve_model(loaded("vectors", encoder(), tokenizer())),
    }


@pytest.fixture(scope="module")
def url(served):
    app = create_app(served, Policy(max_body=1 << 16))
    app.state.lifecycle.proven()
    with running(app) as url:
        yield url
    for model in served.values():
        model.close()


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_leaks(served):
    """After each test the engine is at rest, and every page accounted for."""
    yield
    tiny = served["tiny"]
    assert at_rest(tiny)
    assert tiny.service.alive
    pages = tiny.service.engine.scheduler.pages
    pages.check([])
    assert pages.held == 0
    assert all(model.gate.inside == 0 for model in served.values())


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_what_the_description_allows_and_forbids(url, http, mode):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried = []
    for operation in (found.ok() for found in schema.get_all_operations()):
        try:
            hunt(operation, operation.as_strategy(generation_mode=mode))
        except Unsatisfiable:  # it has nothing that could be wrong
            assert mode is GenerationMode.NEGATIVE
        else:
            tried.append(operation.path)
    assert {"/v1/chat/completions", "/tokenize", "/v1/rerank"} <= {*tried}


def hunt(operation, strategy) -> None:
    """Made-up requests to one address; half of those with a model name one that is there."""
    calls = []

    @thorough
    @given(case=strategy)
    def hunting(case):
        body = case.body
        if isinstance(body, dict) and "model" in body and len(calls) % 2:
            body["model"] = MODELS[len(calls) // 2 % 2]
        answer = case.call(timeout=20)
        calls.append(answer.status_code)
        assert answer.status_code < 500 or "ready" in operation.path, (operation.path, body, answer.text)

    hunting()


VALID = {
    "/v1/chat/completions": {"model": "tiny", "messages": HI, "max_tokens": 3, "temperature": 0.5, "stop": ["x"]},
    "/v1/completions": {"model": "tiny", "prompt": "ab", "max_tokens": 3, "n": 2, "logprobs": 2},
    "/v1/embeddings": {"model": "vectors", "input": ["a", "b"], "dimensions": 4},
    "/v1/rerank": {"model": "vectors", "query": "a", "documents": ["b", "c"], "top_n": 1},
    "/v1/score": {"model": "vectors", "text_1": "a", "text_2": ["b"]},
    "/tokenize": {"model": "tiny", "messages": HI},
    "/detokenize": {"model": "tiny", "tokens": [1, 2]},
    "/v1/responses": {"model": "tiny", "input": "a", "max_output_tokens": 3},
    "/v1/messages": {"model": "tiny", "messages": HI, "max_tokens": 3},
}
ODD = [
    None, True, -1, 0, 2**63, -(2**70), 1e308, -0.0, "", "\ud800", "\0", "x" * 3000, [], [[]], {}, {"a": {}}, [None],
    ["", 1], [0], [2**40], "猫", "<|im_end|>", [HI], {"type": "text", "text": "a"}, 0.1, "auto", "none",
]  # fmt: skip


def mutated(body: dict, rng: random.Random) -> dict:
    """The body with a value somewhere replaced by an odd one, or with one more or less."""
    body = json.loads(json.dumps(body))
    place = body
    while isinstance(
        inner := place[rng.choice(list(place) if isinstance(place, dict) else range(len(place)))], dict | list
    ):
        if not inner or rng.random() < 0.4:
            break
        place = inner
    key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
    if rng.random() < 0.15:
        del place[key]
    else:
        place[key] = rng.choice(ODD)
    return body


@pytest.mark.parametrize("path", VALID)
def test_a_valid_request_with_something_odd_in_it(http, path):
    rng = random.Random(path)
    if http.post(path, json=VALID[path]).status_code == 404:
        pytest.skip("not served")
    for _ in range(12 * EXAMPLES):
        content = json.dumps(mutated(VALID[path], rng))
        answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (content, answer.text)
        assert answer.status_code == 200 or "error" in answer.json(), content


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"model": NaN}',
    b"[" * 5000,
    b'{"a":' * 3000,
    b'{"model": 1e999}',
    b'"\\ud800"',
]


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize("content", BROKEN, ids=lambda c: repr(c[:12]))
def test_what_is_no_request_at_all(http, path, content):
    answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("told", [True, False], ids=["announced", "unannounced"])
def test_too_much_is_refused_before_it_is_all_read(http, told):
    content = b'{"prompt": "' + b"a" * (1 << 20) + b'"}'
    sent = content if told else (content[i : i + 4096] for i in range(0, len(content), 4096))
    answer = http.post("/v1/completions", content=sent, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def raw(url: str, body: dict, path: str = "/v1/completions") -> socket.socket:
    """A connection on which a request was sent, of which nothing was read."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode() + content)
    return connection


def test_clients_that_leave_at_any_moment(url, served):
    rng = random.Random(0)
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 90, "ignore_eos": True, "n": 3}
    for i in range(30):
        connection = raw(url, body | {"stream": i % 2 == 0})
        time.sleep(rng.random() * 0.03)
        connection.close()
    assert at_rest(served["tiny"])


def test_half_a_request_holds_nobody_up(url, http):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        assert http.post("/v1/completions", json=VALID["/v1/completions"]).status_code == 200


def test_a_slow_reader_holds_nobody_up(url, http):
    body = {
        "model": "tiny",
        "prompt": "ab",
        "max_tokens": 90,
        "ignore_eos": True,
        "n": 16,
        "stream": True,
        "logprobs": 20,
    }
    with raw(url, body) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        slow.recv(1)
        for _ in range(3):
            assert http.post("/v1/completions", json=VALID["/v1/completions"]).status_code == 200
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        slow.settimeout(20)
        received = b""
        while b"data: [DONE]" not in received:
            more = slow.recv(1 << 16)
            assert more, received[-200:]
            received = received[-100:] + more
