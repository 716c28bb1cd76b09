"""Reasoning, content and calls out of text: the same however the text is cut."""

from __future__ import annotations

import json
import random

import pytest

from cutaway.serve.tool_calls import FORMATS, Part, arguments_of, format_of, parts

CALL = '{"name": "look", "arguments": {"city": "Ulm </tool_call> \\"}{", "n": [1, {"a": 2}]}}'
ARGUMENTS = '{"city": "Ulm </tool_call> \\"}{", "n": [1, {"a": 2}]}'
LLAMA = '{"name": "look", "parameters": {"city": "Ulm"}}'
V3 = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{"a": "｜"}\n```<｜tool▁call▁end｜>'
V31 = '<｜tool▁call▁begin｜>look<｜tool▁sep｜>{"a": "｜"}<｜tool▁call▁end｜>'
ODD = "<｜tool▁calls▁begin｜>odd<｜tool▁calls▁end｜>."


def content(text):
    return Part("content", text)


def call(arguments, name="look"):
    return Part("call", arguments, name)


# format, text, its parts
READ = [
    ("hermes", "plain text ", [content("plain text ")]),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", [call(ARGUMENTS)]),
    ("hermes", f"I look. \n\n<tool_call>{CALL}</tool_call>", [content("I look."), call(ARGUMENTS)]),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [call(ARGUMENTS)] * 2),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n then", [call(ARGUMENTS), content("then")]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "x"}</tool_call>', [call('{"a": 1}', "x")]),
    ("hermes", '<tool_call>{"name": "x"}</tool_call>', [call("{}", "x")]),
    ("hermes", '<tool_call>{"name": "x", "arguments": "{\\"a\\": 1}"}</tool_call>', [call('{"a": 1}', "x")]),
    ("hermes", '<tool_call>{"name": "x", "arguments": {"a": 1</tool_call> so', [call('{"a": 1', "x"), content("so")]),
    ("hermes", '<tool_call>{"name": "x", "arguments": {"a"', [call('{"a"', "x")]),
    ("hermes", "a <tool_call> is a mark", [content("a <tool_call> is a mark")]),
    ("hermes", "a <tool_call> {no json} </tool_call>", [content("a <tool_call> {no json} </tool_call>")]),
    ("hermes", 'a <tool_call> {"na', [content('a <tool_call> {"na')]),
    ("hermes", "a < b <tool", [content("a < b <tool")]),
    ("llama", LLAMA, [call('{"city": "Ulm"}')]),
    ("llama", f"<|python_tag|>{LLAMA}; {LLAMA}", [call('{"city": "Ulm"}')] * 2),
    ("llama", '{"type": "function", "name": "x", "parameters": {}}', [call("{}", "x")]),
    ("llama", '{"answer": {"name": 5}} is it', [content('{"answer": {"name": 5}} is it')]),
    ("llama", '{"never closed', [content('{"never closed')]),
    ("llama", f"Text. {LLAMA}", [content(f"Text. {LLAMA}")]),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", [call(ARGUMENTS)] * 2),
    ("mistral", f"Well [TOOL_CALLS][{CALL}]", [content("Well"), call(ARGUMENTS)]),
    ("deepseek", f"<｜tool▁calls▁begin｜>{V3}\n{V3}<｜tool▁calls▁end｜>", [call('{"a": "｜"}')] * 2),
    ("deepseek", f"On. <｜tool▁calls▁begin｜>{V31}<｜tool▁calls▁end｜>", [content("On."), call('{"a": "｜"}')]),
    ("deepseek", ODD, [content(ODD)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "wanted"), READ)
def test_what_a_text_says(name, text, wanted):
    assert parts(text, True, FORMATS[name]) == wanted


@pytest.mark.parametrize(
    ("text", "inside", "wanted"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, [Part("reasoning", "hm"), content("yes")]),
        ("hm </think> yes", True, [Part("reasoning", "hm"), content("yes")]),
        ("<think>\n\n</think>\n\nyes", False, [content("yes")]),
        ("<think>for ever", False, [Part("reasoning", "for ever")]),
        (" <thin", False, [content(" <thin")]),
        ("yes <think> no", False, [content("yes <think> no")]),
        ("hm</think>", True, [Part("reasoning", "hm")]),
    ],
)
def test_reasoning_comes_first(text, inside, wanted):
    assert parts(text, True, None, True, inside) == wanted


def grows(before: list[Part], after: list[Part]) -> bool:
    """Is nothing taken back?"""
    same = all(a == b for a, b in zip(before[:-1], after, strict=False))
    last = not before or (len(after) >= len(before) and extends(before[-1], after[len(before) - 1]))
    return same and last


def extends(old: Part, new: Part) -> bool:
    return old.kind == new.kind and old.name == new.name and new.text.startswith(old.text)


PIECES = (
    [text for _, text, _ in READ]
    + [mark for form in FORMATS.values() for mark in (form.begin, form.end)]
    + ["<think>", "</think>", "{", "}", '"', '"name": "x"', "\\", "[", "]", ", ", "\n", " ", "<", "｜", '"arguments": ']
)


@pytest.mark.parametrize("name", [*FORMATS, None])
@pytest.mark.parametrize("inside", [False, True])
def test_every_split_gives_the_same(name, inside):
    form = FORMATS.get(name)
    chance = random.Random(f"{name} {inside}")
    texts = [text for _, text, _ in READ]
    for _ in range(150):
        pieces = chance.choices(PIECES, k=chance.randint(1, 6))
        texts.append("".join(p[chance.randrange(len(p)) if chance.random() < 0.3 and p else 0 :] for p in pieces))
    for text in texts:
        before: list[Part] = []
        for end in range(len(text) + 1):
            after = parts(text[:end], False, form, True, inside)
            assert grows(before, after), (text, end, before, after)
            assert grows(after, parts(text[:end], True, form, True, inside)), (text, end)
            before = after


def test_nothing_is_lost_from_plain_text():
    for text in ("", " ", "a", "a \n", "\n\na", "<", "<tool_call", "{", '{"a": 1}', "[TOOL_CALLS"):
        for form in FORMATS.values():
            assert "".join(p.text for p in parts(text, True, form)) == text


def test_formats_are_found_by_their_marks():
    assert format_of("... <tool_call> ...") is FORMATS["hermes"]
    assert format_of('{"name": function name, "parameters": dictionary}') is FORMATS["llama"]
    assert format_of("[TOOL_CALLS]") is FORMATS["mistral"]
    assert format_of(None) is format_of("plain") is None


def test_arguments_that_no_answer_could_hold():
    assert arguments_of(call('{"a": 1}')) == {"a": 1}
    for text in ('{"a": 1', "[1]", '{"a": "\\ud800"}', '{"a": 1e999}', "[" * 100_000, ""):
        assert arguments_of(call(text)) == {}
    assert json.dumps(arguments_of(call('{"a": NaN}'))) == "{}"


def test_names_that_no_answer_could_hold():
    (made,) = parts('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', True, FORMATS["hermes"])
    made.name.encode()
    deep = "<tool_call>" + '{"a":' * 50_000 + "}" * 50_000 + "</tool_call>"
    assert parts(deep, True, FORMATS["hermes"]) == [content(deep)]
