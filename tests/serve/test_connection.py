"""Clients that leave, crowds, and failures on the way."""

from __future__ import annotations

import json
import threading
import time

import httpx
import openai
import pytest

import cutaway.serve.embeddings
from cutaway.serve.app import serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import at_rest, encoder, loaded, serving

ASK = {"messages": [{"role": "user", "content": "hi"}], "model": "slow", "ignore_eos": True}
TOKEN_S = 0.02  # a reply that nobody stops has 4,000 tokens


def wait_for(condition, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def slow():
    """Two at a time, two may wait, and 50 tokens per second."""
    model = decoder(context=4096)
    logits = model.logits

    def slowly(hidden_RD):
        time.sleep(TOKEN_S)
        return logits(hidden_RD)

    model.logits = slowly
    return serve_model(loaded("slow", model, tokenizer()), running=2, max_waiting=2)


@pytest.fixture
def http(slow):
    with serving(slow) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.mark.parametrize("n", [1, 3])
def test_leaving_a_stream_stops_the_work(http, slow, n):
    with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True, "n": n}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        next(lines)
        assert slow.service.engine.busy
    assert at_rest(slow)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_leaving_while_the_whole_is_awaited_stops_the_work(http, slow, path):
    body = ASK if "chat" in path else {"model": "slow", "prompt": "hi", "max_tokens": 4000, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        http.post(path, json=body, timeout=0.3)
    assert at_rest(slow)
    assert 'status="499"' in http.get("/metrics").text


def test_leaving_the_queue_leaves_nothing(http, slow):
    with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True, "n": 2}) as answer:
        lines = answer.iter_lines()
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=ASK | {"stream": True}, timeout=0.2)
        wait_for(lambda: slow.service.gate.inside == 2)
    assert at_rest(slow)


def test_a_crowd_is_refused_with_429_and_then_served(http, slow):
    client = openai.OpenAI(base_url=str(http.base_url.join("/v1")), api_key="none", max_retries=0)
    asked = {"model": "slow", "messages": ASK["messages"], "n": 4, "stream": True, "extra_body": {"ignore_eos": True}}
    with client.chat.completions.create(**asked) as stream:
        chunks = iter(stream)
        next(chunks)
        for streaming in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(**asked | {"n": 1, "stream": streaming})
            assert caught.value.code == "rate_limit_exceeded"
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert at_rest(slow)
    assert client.chat.completions.create(**asked | {"n": 1, "stream": False, "max_tokens": 1}).choices


def fail(slow, monkeypatch, after: int) -> None:
    logits, calls = slow.loaded.model.logits, iter(range(10**6))

    def failing(hidden_RD):
        if next(calls) == after:
            raise RuntimeError("secret detail")
        return logits(hidden_RD)

    monkeypatch.setattr(slow.loaded.model, "logits", failing)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_is_a_500(http, slow, monkeypatch, caplog, stream):
    fail(slow, monkeypatch, 0)
    answer = http.post("/v1/chat/completions", json=ASK | {"stream": stream})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text
    assert http.post("/v1/chat/completions", json=ASK | {"max_tokens": 2}).status_code == 200


def test_a_failure_in_a_stream_is_an_event_and_its_end(http, slow, monkeypatch):
    fail(slow, monkeypatch, 3)
    lines = [line for line in http.post("/v1/chat/completions", json=ASK | {"stream": True}).text.split("\n") if line]
    assert "error" in json.loads(lines[-1].removeprefix("data: "))
    assert all("error" not in line for line in lines[:-1])
    client = openai.OpenAI(base_url=str(http.base_url.join("/v1")), api_key="none", max_retries=0)
    fail(slow, monkeypatch, 3)
    asked = {"model": "slow", "messages": ASK["messages"], "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APIError, match="failed to answer"):
        list(client.chat.completions.create(**asked, stream=True, max_tokens=9))
    assert at_rest(slow)


def test_an_unexpected_error_tells_nothing_but_is_logged(http, slow, monkeypatch, caplog):
    def broken(messages):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(slow.loaded.tokenizer, "chat", broken)
    answer = http.post("/v1/chat/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert caplog.text.count("Traceback") == 1
    assert "secret detail" in caplog.text
    for _ in range(20):  # on the same connection, which such an error does not cost
        assert http.post("/v1/chat/completions", json=ASK).status_code == 500


def test_a_stream_is_made_of_events_and_ends_with_done(http):
    text = http.post("/v1/chat/completions", json=ASK | {"stream": True, "max_tokens": 2}).text
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_health_tells_when_an_engine_is_gone(http, slow):
    assert http.get("/health").json() == {"status": "ok", "stopped": []}
    slow.service.close()
    answer = http.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "stopped", "stopped": ["slow"]})
    assert http.post("/v1/chat/completions", json=ASK).status_code == 500


def test_embeddings_stop_when_the_client_leaves_and_refuse_crowds(monkeypatch):
    calls, encode_ids = [], cutaway.serve.embeddings.encode_ids

    def slowly(*args):
        calls.append(1)
        time.sleep(0.1)
        return encode_ids(*args)

    monkeypatch.setattr(cutaway.serve.embeddings, "encode_ids", slowly)
    served = serve_model(loaded("vectors", encoder(), tokenizer()), max_waiting=1)
    body = {"model": "vectors", "input": ["a"] * 2000}
    with serving(served) as url, httpx.Client(base_url=url, timeout=20) as http:

        def impatient():
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/embeddings", json=body, timeout=1)

        threads = [threading.Thread(target=impatient) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: served.gate.inside == 2)
        assert http.post("/v1/embeddings", json=body).status_code == 429
        for thread in threads:
            thread.join()
        wait_for(lambda: served.gate.inside == 0)
        assert len(calls) < 40, "of 126 groups of rows"
        assert http.post("/v1/embeddings", json=body | {"input": "a"}).status_code == 200
