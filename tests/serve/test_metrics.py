"""What /metrics counts, read as Prometheus reads it."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cutaway.serve.app import serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import encoder, loaded, serving

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "ignore_eos": True}


@pytest.fixture
def http():
    models = [loaded("tiny", decoder(), tokenizer()), loaded("vectors", encoder(), tokenizer())]
    with serving(*map(serve_model, models)) as url, httpx.Client(base_url=url) as client:
        yield client


def read(http) -> dict[tuple, float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [s for family in families for s in family.samples]
    return {(s.name.removeprefix("cutaway:"), *sorted(s.labels.values())): s.value for s in samples}


def test_tokens_times_and_requests_are_counted(http):
    for body in (ASK, ASK | {"stream": True}, ASK | {"n": 2}):
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert http.post("/v1/chat/completions", json=ASK | {"n": 0}).status_code == 400
    assert http.post("/v1/embeddings", json={"model": "vectors", "input": ["ab", "c"]}).status_code == 200
    assert http.get("/made/up").status_code == 404
    figures = read(http)
    prompt = len(tokenizer().chat(ASK["messages"]))
    assert figures["prompt_tokens_total", "tiny"] == 3 * prompt
    assert figures["prompt_tokens_total", "vectors"] == 3
    assert figures["generation_tokens_total", "tiny"] == 20
    assert figures["request_success_total", "length", "tiny"] == 4
    assert figures["time_to_first_token_seconds_count", "tiny"] == 4
    assert figures["inter_token_latency_seconds_count", "tiny"] == 16
    assert figures["e2e_request_latency_seconds_count", "tiny"] == 3
    assert figures["http_requests_total", "/v1/chat/completions", "200", "POST"] == 3
    assert figures["http_requests_total", "/v1/chat/completions", "400", "POST"] == 1
    assert figures["http_requests_total", "404", "GET", "unrouted"] == 1
    assert figures["num_requests_running", "tiny"] == 0
    assert figures["num_requests_waiting", "tiny"] == 0


def test_the_times_of_a_reply_add_up(http):
    assert http.post("/v1/chat/completions", json=ASK).status_code == 200
    figures = read(http)
    first, between, whole = (
        figures[f"{name}_seconds_sum", "tiny"]
        for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
    )
    assert 0 < first < whole
    assert 0 < between < whole
    assert first + between == pytest.approx(whole, abs=0.05)


def test_a_busy_engine_shows(http):
    body = ASK | {"stream": True, "n": 16, "max_tokens": 200}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()  # to be held: when it is collected, the connection closes
        next(lines)
        figures = read(http)
        assert figures["num_requests_running", "tiny"] == 16
