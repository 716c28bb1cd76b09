"""Requests with tools, formats and histories, broken at random: answered or refused, never a 500."""

from __future__ import annotations

import random

import httpx
import pytest

from serve.test_refusals import JUNK, mutated
from serve.told import CALL, LOOK, PARAMETERS, telling

FUNCTION = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [FUNCTION]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ],
    "tools": [{"type": "function", "function": LOOK}],
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "parallel_tool_calls": True,
    "logit_bias": {"5": 1},
    "stop_token_ids": [3],
    "max_tokens": 60,
}
SCHEMA = {
    "messages": [{"role": "user", "content": "hi"}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": PARAMETERS, "strict": True}},
    "max_tokens": 60,
}
MESSAGES = {
    "system": "Be brief.",
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
    ],
    "tools": [{"name": "look", "input_schema": PARAMETERS}],
    "tool_choice": {"type": "any"},
}
RESPONSES = {
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}], "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ],
    "tools": [{"type": "function", **LOOK}],
    "text": {"format": {"type": "text"}},
}
BODIES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", SCHEMA),
    ("/v1/messages", MESSAGES | {"max_tokens": 60, "stop_sequences": ["x"]}),
    ("/v1/messages/count_tokens", MESSAGES),
    ("/v1/responses", RESPONSES | {"max_output_tokens": 60, "metadata": {"a": "b"}}),
    ("/v1/responses/input_tokens", RESPONSES),
]


@pytest.fixture(scope="module")
def told_http():
    with telling(CALL) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_broken_requests(told_http, path, body):
    random.seed(path)
    seen = set()
    for i in range(120):
        streamed = {"stream": True} if i % 3 == 0 and "tokens" not in path else {}
        broken = {name: mutated(value, 0.04) for name, value in body.items() if random.random() < 0.98}
        answer = told_http.post(path, json=broken | {"model": "told"} | streamed)
        seen.add(answer.status_code)
        assert answer.status_code in {200, 400, 404}, answer.text
        assert "its log says why" not in answer.text
    assert {200, 400} <= seen


@pytest.mark.parametrize("path", sorted({path for path, _ in BODIES}))
def test_bodies_that_are_no_request(told_http, path):
    for junk in JUNK:
        assert told_http.post(path, json=junk).status_code == 400
    for raw in (b"", b"{", b"\xff", b"[" * 100_000):
        assert told_http.post(path, content=raw, headers={"Content-Type": "application/json"}).status_code == 400
