"""What /metrics counts, read as Prometheus reads it."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cutaway.engine.drafter import Drafter
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.serve.app import serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import encoder, loaded, serving
from serve.test_connection import wait_for

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


def test_engines_tell_their_pages_and_steps(http):
    long = ASK | {"messages": [{"role": "user", "content": "the same words " * 8}]}
    for _ in range(2):
        assert http.post("/v1/chat/completions", json=long).status_code == 200
    figures = read(http)
    prompt = len(tokenizer().chat(long["messages"]))
    assert figures["prefix_cache_queries_total", "tiny"] == 2 * prompt
    assert 0 < figures["prefix_cache_hits_total", "tiny"] < prompt
    assert figures["num_preemptions_total", "tiny"] == 0
    assert figures["spec_decode_num_drafts_total", "tiny"] == 0
    assert figures["kv_cache_usage_perc", "tiny"] == figures["pages", "held", "tiny"] == 0
    assert figures["pages", "cached", "tiny"] > 0
    assert figures["iteration_tokens_total_count", "tiny"] == figures["step_seconds_count", "tiny"] == 2 * 5
    read_once = 2 * prompt - figures["prefix_cache_hits_total", "tiny"]
    assert figures["iteration_tokens_total_sum", "tiny"] == read_once + 2 * 4  # nothing comes after the last
    for name in ("request_prompt_tokens", "request_generation_tokens", "request_queue_time_seconds"):
        assert figures[f"{name}_count", "tiny"] == 2
    assert figures["request_prompt_tokens_sum", "tiny"] == 2 * prompt
    assert figures["request_generation_tokens_sum", "tiny"] == 2 * 5
    parts = [figures[f"request_{part}_time_seconds_sum", "tiny"] for part in ("queue", "prefill", "decode")]
    assert sum(parts) == pytest.approx(figures["e2e_request_latency_seconds_sum", "tiny"], abs=0.05)


def test_guesses_are_counted_by_place():
    prompt = tokenizer().chat(ASK["messages"])
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    known = prompt + [e.choice.token for e in Engine(decoder(), tokenizer()).generate(prompt, params)]

    class Seer(Drafter):
        """Right about two tokens, wrong about the third."""

        def worth(self, sequence, company):
            return 3

        def propose(self, asked):
            places = [len(sequence.tokens) for sequence, _ in asked]
            return [[*known[at:][:2], [*known, 0, 0, 0][at + 2] ^ 1] for at in places]

    served = serve_model(loaded("tiny", decoder(), tokenizer()))
    served.service.engine.drafter = Seer()
    with serving(served) as url, httpx.Client(base_url=url) as client:
        body = ASK | {"temperature": 0, "max_tokens": 40}
        assert client.post("/v1/chat/completions", json=body, timeout=20).status_code == 200
        figures = read(client)
    stats = served.service.engine.stats
    assert stats.accepted[0] > 9
    assert stats.accepted[2] == 0 < stats.drafted[2]
    assert figures["spec_decode_num_drafts_total", "tiny"] == stats.drafted[0]
    assert figures["spec_decode_num_draft_tokens_total", "tiny"] == stats.drafted.total()
    assert figures["spec_decode_num_accepted_tokens_total", "tiny"] == stats.accepted.total()
    assert figures["spec_drafted_total", "Seer", "tiny"] == stats.drafted.total()
    assert figures["spec_accepted_total", "Seer", "tiny"] == stats.accepted.total()
    for place in stats.drafted:
        assert figures["spec_decode_num_accepted_tokens_per_pos_total", str(place), "tiny"] == stats.accepted[place]


def test_who_leaves_is_counted(http):
    with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True, "n": 3, "max_tokens": 200}) as answer:
        lines = answer.iter_lines()
        next(lines)
    wait_for(lambda: read(http).get(("request_success_total", "abort", "tiny")) == 3)


def test_vllms_names_say_the_same(http):
    assert http.post("/v1/chat/completions", json=ASK).status_code == 200
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    aliases = {name for name in families if name.startswith("vllm:")}
    assert {name.removeprefix("vllm:") for name in aliases} >= VLLM
    for name in aliases:
        ours = families[name.replace("vllm:", "cutaway:")]
        theirs = [(s.name.replace("vllm:", "cutaway:"), s.labels, s.value) for s in families[name].samples]
        assert theirs == [(s.name, s.labels, s.value) for s in ours.samples]
    assert "vllm:pages" not in aliases
    assert "cutaway:pages" in families


VLLM = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens", "generation_tokens",
    "request_success", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits", "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "spec_decode_num_accepted_tokens_per_pos",
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
    "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total",
}  # fmt: skip
