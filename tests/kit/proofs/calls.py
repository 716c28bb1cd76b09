"""Calls of tools in texts: what they say, and that no cut of the text changes it."""

from __future__ import annotations

from cutaway.serve.tool_calls import FORMATS, Part, parts

ARGUMENTS = '{"city": "Ulm </tool_call> \\"}{", "n": [1, {"a": 2}]}'
CALL = f'{{"name": "look", "arguments": {ARGUMENTS}}}'
LOOK = Part("call", ARGUMENTS, "look")
TEXTS = {
    f"I look. \n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call> So.": [
        Part("content", "I look."), LOOK, LOOK, Part("content", "So."),
    ],
    '<tool_call>{"arguments": {"a": 1}, "name": "x"}</tool_call>': [Part("call", '{"a": 1}', "x")],
    '<tool_call>{"name": "x", "arguments": {"a": 1</tool_call> so': [
        Part("call", '{"a": 1', "x"), Part("content", "so"),
    ],
    "<think>\nhm \n</think>\n\nno <tool_call> here ": [
        Part("reasoning", "hm"), Part("content", "no <tool_call> here "),
    ],
}  # fmt: skip


def read() -> None:
    """Names, arguments with marks and brackets in strings, several calls, what is no call, thoughts."""
    for text, wanted in TEXTS.items():
        assert parts(text, True, FORMATS["hermes"], True) == wanted


def split() -> None:
    """As a text grows its parts grow; nothing is taken back."""
    for text in TEXTS:
        before: list[Part] = []
        for end in range(len(text) + 1):
            after = parts(text[:end], False, FORMATS["hermes"], True)
            assert len(after) >= len(before)
            for old, new in zip(before, after, strict=False):
                assert (old.kind, old.name) == (new.kind, new.name)
                assert new.text.startswith(old.text)
            before = after


PROOFS = {"calls read": read, "calls split": split}
