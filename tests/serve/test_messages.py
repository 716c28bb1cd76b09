"""The official client of Anthropic, unchanged, against a real server."""

from __future__ import annotations

import json
from contextlib import contextmanager

import anthropic
import pytest

from cutaway.serve.app import Policy
from engine.tiny import TEMPLATE, tokenizer
from serve.told import CALL, LOOK, PARAMETERS, TOOLED, telling

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"name": "look", "description": LOOK["description"], "input_schema": PARAMETERS}]
ASKED = {"model": "told", "messages": HI, "max_tokens": 200}


@contextmanager
def asking(text, template=TOOLED, policy=None, key="x"):
    with (
        telling(text, template, policy) as url,
        anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client,
    ):
        yield client


def kinds(message):
    return [(b.type, b.input if b.type == "tool_use" else getattr(b, b.type)) for b in message.content]


SAID = [
    ("Hello.", [("text", "Hello.")], "end_turn"),
    (f"I look.\n{CALL}", [("text", "I look."), ("tool_use", {"city": "Ulm"})], "tool_use"),
    (f"<think>Hm.</think>{CALL}", [("thinking", "Hm."), ("tool_use", {"city": "Ulm"})], "tool_use"),
    (f"{CALL}{CALL}", [("tool_use", {"city": "Ulm"})] * 2, "tool_use"),
    ("", [], "end_turn"),
]


@pytest.mark.parametrize(("text", "blocks", "reason"), SAID)
def test_a_message_whole_and_streamed(text, blocks, reason):
    with asking(text) as client:
        message = client.messages.create(**ASKED, tools=TOOLS)
        assert (kinds(message), message.stop_reason) == (blocks, reason)
        with client.messages.stream(**ASKED, tools=TOOLS) as stream:
            names = [event.type for event in stream]
            last = stream.get_final_message()
        assert (kinds(last), last.stop_reason) == (blocks, reason)
        assert last.usage.output_tokens == message.usage.output_tokens
        assert (names[0], names[-1]) == ("message_start", "message_stop")
        assert names.count("content_block_start") == names.count("content_block_stop") == len(blocks)


def test_length_and_stop_sequences():
    with asking("one two three") as client:
        short = client.messages.create(**ASKED | {"max_tokens": 3})
        assert (kinds(short), short.stop_reason, short.stop_sequence) == ([("text", "one")], "max_tokens", None)
        stopped = client.messages.create(**ASKED, stop_sequences=["five", " th"])
        assert kinds(stopped) == [("text", "one two")]
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " th")


def test_prompts_are_the_templates():
    history = [
        *HI,
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Ulm"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "And?"},
        ]},
    ]  # fmt: skip
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}
    rendered = [
        {"role": "system", "content": "Be brief."},
        HI[0],
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "t1", "name": "look"},
        {"role": "user", "content": "And?"},
    ]
    wanted = len(tokenizer(TOOLED).chat(rendered, tools=[{"type": "function", "function": LOOK}]))
    with asking("Fine.") as client:
        counted = client.messages.count_tokens(model="told", messages=history, system=system, tools=TOOLS)
        assert counted.input_tokens == wanted
        usage = client.messages.create(**ASKED | {"messages": history}, system=system, tools=TOOLS).usage
        assert usage.input_tokens + usage.cache_read_input_tokens == wanted
        again = client.messages.create(**ASKED | {"messages": history}, system=system, tools=TOOLS).usage
        assert again.cache_read_input_tokens == wanted // 16 * 16


def test_a_reply_can_be_begun():
    begun = [*HI, {"role": "assistant", "content": "It is"}]
    with asking(" so.") as client:
        message = client.messages.create(**ASKED | {"messages": begun})
        assert kinds(message) == [("text", " so.")]
        prompt = tokenizer(TOOLED).chat(HI) + tokenizer().encode("It is")
        assert message.usage.input_tokens == len(prompt)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_tool_can_be_demanded(choice):
    with asking("I would rather talk.", TEMPLATE) as client:
        (block,) = client.messages.create(**ASKED, tools=TOOLS, tool_choice=choice).content
        assert (block.type, block.name) == ("tool_use", "look")
        assert block.input["city"] in {"Ulm", "Rom"}


def test_json_by_a_schema():
    with asking("no json") as client:
        config = {"format": {"type": "json_schema", "schema": PARAMETERS}}
        (block,) = client.messages.create(**ASKED, output_config=config).content
        assert json.loads(block.text)["city"] in {"Ulm", "Rom"}


WRONG = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
    ({"tools": [{"name": "x", "input_schema": {"type": "odd"}}], "tool_choice": {"type": "any"}}, "tools[0]"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"temperature": -1}, "temperature"),
    ({"n": 2}, "n"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_have_the_shape_that_the_client_knows(stream):
    with asking("x") as client:
        for change, field in WRONG:
            with pytest.raises(anthropic.BadRequestError) as caught:
                client.messages.create(**ASKED | {"stream": stream}, extra_body=change)
            error = caught.value.body
            assert error["type"] == "error"
            assert error["error"]["type"] == "invalid_request_error"
            assert error["error"]["message"].startswith(field), error
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**ASKED | {"model": "other"})


def test_the_key_is_asked_for():
    with asking("x", policy=Policy(api_keys=("right",)), key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(**ASKED)
        assert client.with_options(api_key="right").messages.create(**ASKED).content
