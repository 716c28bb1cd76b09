"""Whatever a client sends: a 4xx in OpenAI's shape that names the field, never a traceback."""

from __future__ import annotations

import json
import random

import openai
import pytest

from engine.tiny import VOCAB

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
VECTORS = {"model": "vectors", "input": "hi"}
ROUTES = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT, "/v1/embeddings": VECTORS}
LONG = "x" * 300


def message(**fields):
    return {"messages": [{"role": "user", "content": "hi"} | fields]}


def tool(**fields):
    return {"tools": [{"type": "function", "function": {"name": "f"} | fields}]}


def named(name):
    return {"type": "function", "function": {"name": name}}


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}}


# route, what is changed, the field at fault, status, code
WRONG = [
    ("chat", {"temperature": -0.1}, "temperature", 400, "invalid_value"),
    ("chat", {"temperature": "0.5"}, "temperature", 400, "invalid_type"),
    ("chat", {"temperature": True}, "temperature", 400, "invalid_type"),
    ("chat", {"top_p": 1.1}, "top_p", 400, "invalid_value"),
    ("chat", {"top_p": 0}, "top_p", 400, "invalid_value"),
    ("chat", {"top_k": -2}, "top_k", 400, "invalid_value"),
    ("chat", {"min_p": 2}, "min_p", 400, "invalid_value"),
    ("chat", {"repetition_penalty": 0}, "repetition_penalty", 400, "invalid_value"),
    ("chat", {"presence_penalty": 3}, "presence_penalty", 400, "invalid_value"),
    ("chat", {"frequency_penalty": -3}, "frequency_penalty", 400, "invalid_value"),
    ("chat", {"n": 0}, "n", 400, "invalid_value"),
    ("chat", {"n": 17}, "n", 400, "invalid_value"),
    ("chat", {"n": 1.5}, "n", 400, "invalid_type"),
    ("chat", {"max_tokens": 0}, "max_tokens", 400, "invalid_value"),
    ("chat", {"max_tokens": 10**9}, "max_tokens", 400, "invalid_value"),
    ("chat", {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", 400, "invalid_value"),
    ("chat", {"seed": 2**64}, "seed", 400, None),
    ("chat", {"seed": "1"}, "seed", 400, "invalid_type"),
    ("chat", {"stop": ""}, "stop", 400, "invalid_value"),
    ("chat", {"stop": ["a"] * 17}, "stop", 400, "invalid_value"),
    ("chat", {"stop": ["a" * 257]}, "stop", 400, "invalid_value"),
    ("chat", {"stop": [1]}, "stop", 400, "invalid_value"),
    ("chat", {"stream": "yes"}, "stream", 400, "invalid_type"),
    ("chat", {"stream_options": {"include_usage": True}}, "stream_options", 400, "invalid_value"),
    ("chat", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x", 400, "unsupported_parameter"),
    ("chat", {"top_logprobs": 2}, "top_logprobs", 400, "invalid_value"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", 400, "invalid_value"),
    ("chat", {"logprobs": 2}, "logprobs", 400, "invalid_type"),
    ("chat", {"messages": []}, "messages", 400, "invalid_value"),
    ("chat", {"messages": "hi"}, "messages", 400, "invalid_type"),
    ("chat", {"messages": None}, "messages", 400, "missing_required_parameter"),
    ("chat", {"messages": [5]}, "messages[0]", 400, None),
    ("chat", {"messages": [{"role": "user"}]}, "messages[0].content", 400, "missing_required_parameter"),
    ("chat", {"messages": [{"content": "x"}]}, "messages[0].role", 400, "missing_required_parameter"),
    ("chat", message(role="wizard"), "messages[0].role", 400, "invalid_value"),
    ("chat", message(role="tool"), "messages[0].tool_call_id", 400, "missing_required_parameter"),
    ("chat", message(tool_call_id="x"), "messages[0].tool_call_id", 400, "invalid_value"),
    ("chat", message(reasoning="x"), "messages[0].reasoning", 400, "invalid_value"),
    ("chat", message(content=5), "messages[0].content", 400, "invalid_value"),
    ("chat", message(content=[]), "messages[0].content", 400, "invalid_value"),
    (
        "chat",
        message(content=[{"type": "image_url", "image_url": {}}]),
        "messages[0].content",
        400,
        "invalid_value",
    ),
    ("chat", message(content="\ud800"), "messages[0].content", 400, "invalid_value"),
    ("chat", message(name="Tom"), "messages[0].name", 400, "unsupported_parameter"),
    ("chat", message(tool_calls=[{}]), "messages[0].tool_calls[0].id", 400, "missing_required_parameter"),
    ("chat", message(tool_calls=[{"id": "x", "function": {"name": "f"}}]), "messages[0].tool_calls", 400, None),
    ("chat", message(content=LONG), "messages", 400, "context_length_exceeded"),
    ("chat", {"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs", 400, "invalid_value"),
    ("chat", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", 400, "invalid_value"),
    ("chat", {"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", 400, "invalid_value"),
    ("chat", {"chat_template_kwargs": "x"}, "chat_template_kwargs", 400, None),
    ("chat", {"tools": [{"type": "function"}]}, "tools[0].function", 400, "missing_required_parameter"),
    ("chat", {"tools": [{"type": "web_search"}]}, "tools[0].type", 400, None),
    ("chat", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", 400, None),
    ("chat", tool(parameters={"a": "\ud800"}), "tools[0].function.parameters", 400, None),
    ("chat", tool(strict=1), "tools[0].function.strict", 400, "invalid_type"),
    ("chat", tool(parameters={"type": "no"}) | {"tool_choice": "required"}, "tools[0].parameters", 400, None),
    ("chat", {"tool_choice": "required"}, "tool_choice", 400, "invalid_value"),
    ("chat", {"tool_choice": "sometimes"}, "tool_choice", 400, "invalid_value"),
    ("chat", tool() | {"tool_choice": named("other")}, "tool_choice", 400, "invalid_value"),
    ("chat", tool() | {"response_format": {"type": "json_object"}}, "tools", 400, "invalid_value"),
    ("chat", {"functions": [{}]}, "functions", 400, "unsupported_parameter"),
    ("chat", {"response_format": {"type": "xml"}}, "response_format.type", 400, "invalid_value"),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema", 400, "invalid_value"),
    ("chat", schema({"type": "no"}), "response_format", 400, "invalid_value"),
    ("chat", schema({"$ref": "#/$defs/x"}), "response_format", 400, "invalid_value"),
    ("chat", schema(True), "response_format.json_schema.schema", 400, None),
    ("chat", {"structured_outputs": {"regex": "("}}, "structured_outputs", 400, "invalid_value"),
    ("chat", {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", 400, "invalid_value"),
    ("chat", {"structured_outputs": {"choice": []}}, "choices", 400, "invalid_value"),
    ("chat", {"structured_outputs": {"grammar": "?"}}, "structured_outputs", 400, "invalid_value"),
    ("chat", {"structured_outputs": {"words": []}}, "words", 400, "invalid_value"),
    ("chat", {"structured_outputs": {"tag": "x"}}, "structured_outputs.tag", 400, "unsupported_parameter"),
    ("chat", schema({}) | {"structured_outputs": {"regex": "a"}}, "structured_outputs", 400, "invalid_value"),
    ("chat", {"audio": {"voice": "x"}}, "audio", 400, "unsupported_parameter"),
    ("chat", {"modalities": ["text", "audio"]}, "modalities", 400, "unsupported_parameter"),
    ("chat", {"logit_bias": {"a": 1}}, "logit_bias", 400, "invalid_value"),
    ("chat", {"logit_bias": {"5": 101}}, "logit_bias", 400, "invalid_value"),
    ("chat", {"logit_bias": {str(VOCAB): 1}}, "logit_bias", 400, "invalid_value"),
    ("chat", {"typical_p": 0}, "typical_p", 400, "invalid_value"),
    ("chat", {"min_tokens": 3}, "min_tokens", 400, "invalid_value"),
    ("chat", {"min_tokens": -1}, "min_tokens", 400, "invalid_value"),
    ("chat", {"stop_token_ids": [VOCAB]}, "stop_token_ids", 400, "invalid_value"),
    ("chat", {"stop_token_ids": [-1]}, "stop_token_ids[0]", 400, "invalid_value"),
    ("chat", {"priority": 101}, "priority", 400, "invalid_value"),
    ("chat", {"prediction": {}}, "prediction.type", 400, "missing_required_parameter"),
    ("chat", {"reasoning_effort": "high"}, "reasoning_effort", 400, "unsupported_parameter"),
    ("chat", {"service_tier": "flex"}, "service_tier", 400, "unsupported_parameter"),
    ("chat", {"store": True}, "store", 400, "unsupported_parameter"),
    ("chat", {"web_search_options": {}}, "web_search_options", 400, "unsupported_parameter"),
    ("chat", {"tempreature": 0.5}, "tempreature", 400, "unsupported_parameter"),
    ("chat", {"tempreature": None}, "tempreature", 400, "unsupported_parameter"),
    ("chat", {"\ud800": 1}, None, 400, None),
    ("chat", {"model": None}, "model", 400, "missing_required_parameter"),
    ("chat", {"model": 5}, "model", 400, "invalid_type"),
    ("chat", {"model": "other"}, "model", 404, "model_not_found"),
    ("chat", {"model": "\ud800"}, "model", 404, "model_not_found"),
    ("chat", {"model": "vectors"}, "model", 400, "model_not_supported"),
    ("chat", {"model": "base"}, "chat_template", 400, "invalid_value"),
    ("text", {"prompt": ""}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": []}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": [[]]}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": ["a", 1]}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": [True]}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": [1.5]}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": [VOCAB]}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": [-1]}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": [10**30]}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": ["a"] * 65}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": ["a"] * 40, "n": 2}, "prompt", 400, "invalid_value"),
    ("text", {"prompt": LONG}, "prompt", 400, "context_length_exceeded"),
    ("text", {"prompt": "x" * 40, "model": "base"}, "prompt", 400, "context_length_exceeded"),
    ("text", {"model": "vectors"}, "model", 400, "model_not_supported"),
    ("text", {"best_of": 1, "n": 2}, "best_of", 400, "invalid_value"),
    ("text", {"best_of": 2, "stream": True}, "best_of", 400, "invalid_value"),
    ("text", {"best_of": 17}, "best_of", 400, "invalid_value"),
    ("text", {"max_tokens": 0}, "max_tokens", 400, "invalid_value"),
    ("text", {"max_tokens": -1, "echo": True}, "max_tokens", 400, "invalid_value"),
    ("text", {"stop_token_ids": [1, VOCAB]}, "stop_token_ids", 400, "invalid_value"),
    ("text", {"logit_bias": {str(VOCAB): 1}, "stream": True}, "logit_bias", 400, "invalid_value"),
    ("text", {"suffix": "x"}, "suffix", 400, "unsupported_parameter"),
    ("text", {"logprobs": 21}, "logprobs", 400, "invalid_value"),
    ("text", {"logprobs": True}, "logprobs", 400, "invalid_type"),
    ("vectors", {"input": []}, "input", 400, "invalid_value"),
    ("vectors", {"input": [[]]}, "input", 400, "invalid_value"),
    ("vectors", {"input": None}, "input", 400, "missing_required_parameter"),
    ("vectors", {"input": [VOCAB]}, "input", 400, "invalid_value"),
    ("vectors", {"input": ["a", "x" * 65]}, "input", 400, "context_length_exceeded"),
    ("vectors", {"input": ["a"] * 2049}, "input", 400, "invalid_value"),
    ("vectors", {"dimensions": 17}, "dimensions", 400, "invalid_value"),
    ("vectors", {"dimensions": 0}, "dimensions", 400, "invalid_value"),
    ("vectors", {"encoding_format": "hex"}, "encoding_format", 400, "invalid_value"),
    ("vectors", {"model": "tiny"}, "model", 400, "model_not_supported"),
]
SHORT = dict(zip(("chat", "text", "vectors"), ROUTES.items(), strict=True))


def refused(answer, status=400):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in answer.text
    return error


@pytest.mark.parametrize(
    ("route", "change", "param", "status", "code"),
    WRONG,
    ids=lambda v: str(v)[:40].encode("ascii", "replace").decode(),
)
def test_the_field_at_fault_is_named(http, route, change, param, status, code):  # noqa: PLR0917
    path, body = SHORT[route]
    content = json.dumps(body | change)  # unlike the client's own JSON, this can hold half a surrogate pair
    error = refused(http.post(path, content=content, headers={"Content-Type": "application/json"}), status)
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"model": "\xe9"}',
        b"[]",
        b"null",
        b"5",
        b"[" * 100_000,
        b'{"seed": ' + b"1" * 9999,
    ],
)
def test_what_is_no_json_object(http, path, body):
    refused(http.post(path, content=body, headers={"Content-Type": "application/json"}))


def test_a_body_of_another_type(http):
    refused(http.post("/v1/chat/completions", data={"model": "tiny"}))
    refused(http.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "text/plain"}))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_lacks(http, value):
    body = json.dumps(CHAT)[:-1] + f', "temperature": {value}}}'
    error = refused(http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}))
    assert error["param"] == "temperature"


def test_a_body_that_is_too_large_announced_or_not(http):
    large = b'{"model": "' + b"x" * (5 << 20) + b'"}'
    json_type = {"Content-Type": "application/json"}
    pieces = (large[i : i + 65536] for i in range(0, len(large), 65536))
    assert refused(http.post("/v1/embeddings", content=large, headers=json_type), 413)["code"] == "body_too_large"
    assert refused(http.post("/v1/embeddings", content=pieces, headers=json_type), 413)["code"] == "body_too_large"


def test_unknown_addresses_and_methods(http):
    assert refused(http.get("/v1/nothing"), 404)["code"] == "not_found"
    assert refused(http.post("/v1/nothing", json={}), 404)["code"] == "not_found"
    answer = http.get("/v1/chat/completions")
    assert refused(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"
    assert refused(http.delete("/v1/models"), 405)


HARMLESS = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "n": 1,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "logit_bias": {},
    "modalities": ["text"],
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "reasoning_effort": "none",
    "verbosity": "medium",
    "seed": -5,
    "temperature": None,
    "audio": None,
    "stop": None,
    "stream_options": None,
    "top_logprobs": None,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_change_nothing_are_accepted(http, name):
    assert http.post("/v1/chat/completions", json=CHAT | {name: HARMLESS[name]}).status_code == 200


def test_the_client_raises_its_own_exceptions(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CHAT | {"temperature": -1})
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**CHAT | {"model": "other"})
    with pytest.raises(openai.BadRequestError):  # before a stream has begun, errors have their status
        client.chat.completions.create(**CHAT | {"messages": [{"role": "user", "content": LONG}], "stream": True})


JUNK = [
    None,
    True,
    -1,
    0,
    10**20,
    1e308,
    "",
    "x",
    "\x00",
    "😀",
    [],
    {},
    [[]],
    [{}],
    {"a": []},
    [None],
    "x" * 999,
]


def mutated(value, chance: float):
    """Part of a JSON value replaced by something else."""
    if random.random() < chance:
        return random.choice(JUNK)
    if isinstance(value, dict):
        kept = {k: mutated(v, chance) for k, v in value.items() if random.random() > chance / 2}
        return kept | ({random.choice(list(HARMLESS)): random.choice(JUNK)} if random.random() < chance else {})
    return [mutated(v, chance) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", ROUTES)
def test_mutated_requests_never_break_the_server(http, path):
    random.seed(path)
    seen = set()
    for _ in range(250):
        answer = http.post(path, json=mutated(ROUTES[path], 0.15))
        seen.add(answer.status_code)
        if answer.status_code != 200:
            refused(answer, answer.status_code)
    assert seen <= {200, 400, 404}
    assert {200, 400} <= seen
