"""Tools, formats and thoughts through the official client of OpenAI."""

from __future__ import annotations

import json
import re

import openai
import pytest

from engine.tiny import TEMPLATE, tokenizer
from serve.told import CALL, LOOK, TOOLED, telling

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": LOOK}]


def ask(text, template=TOOLED, stream=False, **asked):
    """The choice that a model which says `text` gives."""
    with telling(text, template) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        asked = {"model": "told", "messages": HI, "temperature": 0, **asked}
        if not stream:
            return client.chat.completions.create(**asked).choices[0]
        return list(client.chat.completions.create(**asked, stream=True))


def put_together(chunks):
    """content, reasoning, calls and finish of a stream."""
    content, reasoning, calls = "", "", []
    for chunk in chunks:
        delta = chunk.choices[0].delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning", None) or ""
        for call in delta.tool_calls or ():
            if call.id:
                assert call.index == len(calls)
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments or ""
    return content, reasoning, [tuple(c) for c in calls], chunks[-1].choices[0].finish_reason


SAID = [
    (f"I look.\n{CALL}", "I look.", "", [("look", '{"city": "Ulm"}')], "tool_calls"),
    (f"{CALL}\n{CALL}", "", "", [("look", '{"city": "Ulm"}')] * 2, "tool_calls"),
    (f"<think>\nWhere?\n</think>\n\n{CALL}", "", "Where?", [("look", '{"city": "Ulm"}')], "tool_calls"),
    ("<think>Who?</think>Me.", "Me.", "Who?", [], "stop"),
    ("No <tool_call> here. ", "No <tool_call> here. ", "", [], "stop"),
]


@pytest.mark.parametrize(("text", "content", "reasoning", "calls", "finish"), SAID)
def test_a_reply_is_taken_apart_streamed_or_not(text, content, reasoning, calls, finish):
    choice = ask(text, tools=TOOLS)
    message = choice.message
    assert (message.content or "") == content
    assert getattr(message, "reasoning", "") == reasoning
    assert [(c.function.name, c.function.arguments) for c in message.tool_calls or ()] == calls
    assert len({c.id for c in message.tool_calls or ()}) == len(calls)
    assert choice.finish_reason == finish
    assert put_together(ask(text, tools=TOOLS, stream=True)) == (content, reasoning, calls, finish)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_ends_for_its_length(stream):
    cut = ask(CALL, tools=TOOLS, max_tokens=CALL.index('": "Ulm'), stream=stream)
    calls = (
        put_together(cut)[2] if stream else [(c.function.name, c.function.arguments) for c in cut.message.tool_calls]
    )
    assert calls == [("look", '{"city')]
    assert (cut[-1].choices[0] if stream else cut).finish_reason == "length"


def test_without_tools_marks_are_text():
    assert ask(CALL).message.content == CALL
    assert ask(CALL, tools=TOOLS, tool_choice="none").message.content == CALL


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
@pytest.mark.parametrize("template", [TOOLED, TEMPLATE])
def test_a_required_call_is_made_whatever_the_model_wants(choice, template):
    message = ask("I would rather talk.", template, tools=TOOLS, tool_choice=choice, max_tokens=300).message
    (call,) = message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["city"] in {"Ulm", "Rom"}
    assert not message.content


def test_parallel_calls_can_be_forbidden_and_strict_ones_keep_their_schema():
    assert len(ask(CALL + CALL, tools=TOOLS, parallel_tool_calls=False).message.tool_calls) == 1
    strict = [{"type": "function", "function": LOOK | {"strict": True}}]
    (call,) = ask(CALL.replace("Ulm", "Bonn"), tools=strict, max_tokens=300).message.tool_calls
    assert json.loads(call.function.arguments)["city"] in {"Ulm", "Rom"}


def conversation(content):
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Ulm"}'}}
    return [
        *HI,
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]


def test_results_reach_the_template():
    with telling("Fine.") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        made = client.chat.completions.create(model="told", messages=conversation(None), tools=TOOLS)
        prompt = [
            HI[0],
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}]},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "look"},
        ]  # fmt: skip
        assert made.usage.prompt_tokens == len(tokenizer(TOOLED).chat(prompt, tools=TOOLS))
        assert made.choices[0].message.content == "Fine."


def test_a_template_that_knows_no_tools_is_given_them_as_text():
    from cutaway.serve.chat import turns
    from cutaway.serve.chat_schemas import Turn
    from cutaway.serve.dialogue import Wish, plan

    messages = turns([Turn.model_validate(m) for m in conversation("Well.")])
    prompt = tokenizer(TEMPLATE).decode(plan(tokenizer(TEMPLATE), Wish(messages, [LOOK])).prompt)
    assert prompt.startswith("system\nYou may call functions.")
    assert json.dumps(LOOK) in prompt
    assert 'Well.\n<tool_call>\n{"name": "look", "arguments": {"city": "Ulm"}}\n</tool_call>' in prompt
    assert "user\n<tool_response>\nsunny\n</tool_response>" in prompt


def test_a_prompt_that_ends_in_thoughts_is_gone_on_from():
    thinking = TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
    choice = ask("Hm.\n</think>\n\nYes.", thinking)
    assert (choice.message.reasoning, choice.message.content) == ("Hm.", "Yes.")
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["a"]}}}
    choice = ask("Hm.", thinking, response_format=schema)
    assert choice.message.content == '"a"'


FORMATS = [
    ({"response_format": {"type": "json_object"}}, lambda text: text.startswith("{")),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": LOOK["parameters"]}}},
     lambda text: json.loads(text)["city"] in {"Ulm", "Rom"}),
    ({"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}}, lambda text: text in {"yes", "no"}),
    ({"extra_body": {"structured_outputs": {"regex": "[0-9]{3}"}}}, lambda text: text.isdecimal() and len(text) == 3),
    ({"extra_body": {"structured_outputs": {"json": {"const": 5}}}}, lambda text: text == "5"),
    ({"extra_body": {"structured_outputs": {"grammar": 'root ::= "a" "b"'}}}, lambda text: text == "ab"),
    ({"extra_body": {"structured_outputs": {"words": ["a", "bc"]}}},
     lambda text: {*re.findall("[a-z]+", text.lower())[:-1]} <= {"a", "bc"}),
    ({"extra_body": {"logit_bias": {str(tokenizer().encode("Z")[0]): 100}, "min_tokens": 3}, "max_tokens": 3},
     lambda text: text == "ZZZ"),
    ({"extra_body": {"stop_token_ids": tokenizer().encode("t")}}, lambda text: text == "Hello "),
    ({"extra_body": {"typical_p": 0.5, "priority": -3, "no_repeat_ngram_size": 0}}, lambda text: text == "Hello there"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "holds"), FORMATS)
def test_a_reply_is_what_it_must_be(asked, holds):
    assert holds(ask("Hello there", **({"max_tokens": 200} | asked)).message.content)


def test_a_reply_whose_schema_is_kept_can_be_parsed_by_the_client():
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    with telling('{"city": "Ulm"}') as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        made = client.chat.completions.parse(model="told", messages=HI, response_format=Place)
        assert made.choices[0].message.parsed == Place(city="Ulm")


def test_what_was_found_in_the_cache_is_told():
    with telling("Yes.") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        asked = {"model": "told", "messages": [{"role": "user", "content": "long " * 20}]}
        first, second = [client.chat.completions.create(**asked).usage for _ in range(2)]
        assert first.prompt_tokens_details.cached_tokens == 0
        assert second.prompt_tokens_details.cached_tokens == second.prompt_tokens // 16 * 16
        assert first.completion_tokens_details.reasoning_tokens == 0


def test_thoughts_are_counted():
    with telling("<think>12345</think>Yes.") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        usage = client.chat.completions.create(model="told", messages=HI).usage
        assert 5 <= usage.completion_tokens_details.reasoning_tokens <= 5 + len("</think>")


def test_echo_and_best_of():
    with telling("Yes.") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        asked = {"model": "told", "prompt": "Is it? ", "max_tokens": 9}
        assert client.completions.create(**asked, echo=True).choices[0].text == "Is it? Yes."
        streamed = client.completions.create(**asked, echo=True, stream=True)
        assert "".join(c.choices[0].text for c in streamed) == "Is it? Yes."
        best = client.completions.create(**asked, n=2, best_of=4)
        assert [c.index for c in best.choices] == [0, 1]
        assert best.usage.completion_tokens == 4 * len("Yes..")
