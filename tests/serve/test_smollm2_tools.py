"""A real model that is too small to call tools by itself: it calls them when it must."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest

from cutaway.serve.app import serve_model
from cutaway.weights.checkpoint import load
from serve.servers import serving
from serve.told import LOOK, PARAMETERS

ASKED = [{"role": "user", "content": "What is the weather in Rom?"}]


@pytest.fixture(scope="module")
def real(smollm2_gguf):
    with serving(serve_model(load(str(smollm2_gguf)), context=1024, running=2, name="small")) as url:
        yield url


def test_openai_calls(real):
    with openai.OpenAI(base_url=f"{real}/v1", api_key="x", max_retries=0) as client:
        asked = {"model": "small", "temperature": 0, "tools": [{"type": "function", "function": LOOK}]}
        choice = client.chat.completions.create(
            **asked, messages=ASKED, tool_choice="required", max_tokens=100
        ).choices[0]
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        assert call.function.name == "look"
        assert json.loads(call.function.arguments)["city"] in {"Ulm", "Rom"}
        made = {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude_none=True)]}
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}
        answer = client.chat.completions.create(
            **asked, messages=[*ASKED, made, result], tool_choice="none", max_tokens=20
        ).choices[0]
        assert answer.message.content


def test_anthropic_calls(real):
    with anthropic.Anthropic(base_url=real, api_key="x", max_retries=0) as client:
        tools = [{"name": "look", "description": LOOK["description"], "input_schema": PARAMETERS}]
        message = client.messages.create(
            model="small", messages=ASKED, tools=tools, tool_choice={"type": "any"}, max_tokens=100
        )
        (block,) = message.content
        assert (block.name, message.stop_reason) == ("look", "tool_use")
        assert block.input["city"] in {"Ulm", "Rom"}


def test_json_by_a_schema(real):
    with openai.OpenAI(base_url=f"{real}/v1", api_key="x", max_retries=0) as client:
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
        messages = [{"role": "user", "content": "Invent a person. Answer in JSON."}]
        asked = {"model": "small", "messages": messages, "max_tokens": 150, "temperature": 0}
        text = client.chat.completions.create(**asked, response_format=form).choices[0].message.content
        person = json.loads(text)
        assert person["name"]
        assert isinstance(person["age"], int)
