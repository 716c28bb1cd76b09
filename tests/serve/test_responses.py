"""The Responses API through the official client of OpenAI."""

from __future__ import annotations

import json
from contextlib import contextmanager

import openai
import pytest

from cutaway.serve.errors import ApiError
from cutaway.serve.memory import Memory
from engine.tiny import TEMPLATE, tokenizer
from serve.told import CALL, LOOK, PARAMETERS, TOOLED, telling

TOOLS = [{"type": "function", **LOOK}]
ASKED = {"model": "told", "input": "hi", "max_output_tokens": 200}


@contextmanager
def asking(text, template=TOOLED):
    with (
        telling(text, template) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        yield client


def output(response):
    read = {
        "message": lambda item: item.content[0].text,
        "reasoning": lambda item: item.content[0].text,
        "function_call": lambda item: (item.name, item.arguments),
    }
    return [(item.type, read[item.type](item)) for item in response.output]


LOOKED = ("function_call", ("look", '{"city": "Ulm"}'))
SAID = [
    ("Hello.", [("message", "Hello.")]),
    (f"I look.\n{CALL}{CALL}", [("message", "I look."), LOOKED, LOOKED]),
    (f"<think>Hm.</think>{CALL}", [("reasoning", "Hm."), LOOKED]),
    ("", []),
]


@pytest.mark.parametrize(("text", "said"), SAID)
def test_a_response_whole_and_streamed(text, said):
    with asking(text) as client:
        whole = client.responses.create(**ASKED, tools=TOOLS)
        assert (output(whole), whole.status) == (said, "completed")
        with client.responses.stream(**ASKED, tools=TOOLS) as stream:
            events = list(stream)
            last = stream.get_final_response()
        assert output(last) == said
        assert last.usage.output_tokens == whole.usage.output_tokens
    assert [e.sequence_number for e in events] == [*range(len(events))]
    names = [e.type for e in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == "response.completed"
    assert names.count("response.output_item.added") == names.count("response.output_item.done") == len(said)
    done = [getattr(e, "text", None) or e.arguments for e in events
            if e.type.endswith((".output_text.done", "_text.done", "arguments.done"))]  # fmt: skip
    assert done == [part if isinstance(part, str) else part[1] for _, part in said]
    pieces = "".join(e.delta for e in events if e.type.endswith(".delta"))
    assert pieces == "".join(done)


def test_a_response_that_is_cut_off():
    with asking("one two") as client:
        response = client.responses.create(**ASKED | {"max_output_tokens": 3})
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert [e.type for e in client.responses.create(**ASKED | {"max_output_tokens": 3}, stream=True)][-1] == (
            "response.incomplete"
        )


def test_a_conversation_that_the_server_remembers():
    with asking(CALL) as client:
        first = client.responses.create(**ASKED, tools=TOOLS, instructions="Be brief.")
        call = first.output[0]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        second = client.responses.create(
            model="told", input=[result], previous_response_id=first.id, tools=TOOLS, max_output_tokens=9
        )
        made = {"id": call.call_id, "type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}
        turns = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [made]},
            {"role": "tool", "content": "sunny", "tool_call_id": call.call_id, "name": "look"},
        ]
        tools = [{"type": "function", "function": LOOK}]
        assert second.usage.input_tokens == len(tokenizer(TOOLED).chat(turns, tools=tools))
        given = [{"role": "user", "content": "hi"}, call.model_dump(exclude_none=True), result]
        alone = client.responses.create(model="told", input=given, tools=TOOLS, max_output_tokens=9, store=False)
        assert alone.usage.input_tokens == second.usage.input_tokens
        assert client.responses.input_tokens.count(model="told", input=given, tools=TOOLS).input_tokens == (
            second.usage.input_tokens
        )
        assert client.responses.retrieve(first.id).output == first.output
        client.responses.delete(first.id)
        for name in (first.id, alone.id):
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(name)
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(**ASKED, previous_response_id=first.id)
        assert caught.value.param == "previous_response_id"


def test_what_was_read_can_be_sent_back_as_it_came():
    with asking(f"<think>Hm.</think>So.\n{CALL}") as client:
        response = client.responses.create(**ASKED, tools=TOOLS)
        items = [item.model_dump(exclude_none=True) for item in response.output]
        assert client.responses.create(**ASKED | {"input": [{"role": "user", "content": "hi"}, *items]}, tools=TOOLS)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "look"}])
def test_a_tool_can_be_demanded(choice):
    with asking("I would rather talk.", TEMPLATE) as client:
        (call,) = client.responses.create(**ASKED, tools=TOOLS, tool_choice=choice).output
        assert json.loads(call.arguments)["city"] in {"Ulm", "Rom"}


def test_json_by_a_schema():
    with asking("no json") as client:
        form = {"type": "json_schema", "name": "s", "schema": PARAMETERS, "strict": True}
        response = client.responses.create(**ASKED, text={"format": form})
        assert json.loads(response.output_text)["city"] in {"Ulm", "Rom"}
        assert response.text.format.type == "json_schema"


WRONG = [
    ({"input": []}, "input"),
    ({"input": [{"type": "computer_call"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].message.content[0].type"),
    ({"input": "x" * 5000}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "schema": {"type": "odd"}}}}, "text"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"background": True}, "background"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"metadata": {"a": "\ud800"}}, "metadata"),
    ({"truncation": "auto"}, "truncation"),
    ({"n": 2}, "n"),
]


def test_refusals_name_the_field():
    with asking("x") as client:
        for change, field in WRONG:
            content = json.dumps({"model": "told", "input": "hi"} | change)
            answer = client._client.post("responses", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400, answer.text
            assert (answer.json()["error"]["param"] or "").startswith(field), answer.text


def test_the_memory_is_bounded():
    memory = Memory(room=300)
    for name in "abc":
        memory.keep({"id": name}, [{"content": "x" * 100}])
    memory.find("b", "previous_response_id")
    memory.keep({"id": "d"}, [{"content": "x" * 100}])
    assert memory.find("b")[1] == [{"content": "x" * 100}]
    assert memory.size <= memory.room
    for name in "ac":
        with pytest.raises(ApiError):
            memory.find(name)
    memory.forget("b")
    memory.forget("d")
    assert memory.size == 0
