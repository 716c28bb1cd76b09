"""What a reply is made of: reasoning, content and calls of tools, read out of its text.

`parts` is a pure function of the text so far, and monotone: as the text grows, parts grow and parts are added, nothing
is taken back. What cannot be decided yet (half a mark, white space that a call may follow) is withheld. So however a
reply is cut into pieces, its parts are the same in the end.

A model writes calls as its chat template taught it; `FORMATS` lists the ways. What looks like a call but is none
(no name, no JSON) is content, verbatim.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from cutaway.engine.sequence import held

_STRING = r'"(?:[^"\\]|\\.)*"'
_OBJECT_HEAD = re.compile(
    rf'\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*(?P<name>{_STRING})\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\S)',
    re.DOTALL,
)
_SEP = "<｜tool▁sep｜>"
THINK, THOUGHT = "<think>", "</think>"


class Part(NamedTuple):
    """kind: "reasoning", "content" or "call"; a call's text is its arguments, in JSON unless cut off."""

    kind: str
    text: str
    name: str = ""


@dataclass(frozen=True)
class Format:
    """How a model writes calls.

    marks: in a chat template, any of them tells that this is it. begin, end: around a block of calls.
    fill: what else may stand between the calls of a block. head: a call up to its arguments.
    wrapped: the head opens an object that is closed after the arguments. bare: a reply may be a call without `begin`.
    forced: begin and end of a call that a constraint makes; None if constraints cannot write such calls.
    arguments: the arguments' name there. id_length: of calls' ids, 0 for any.
    """

    marks: tuple[str, ...]
    begin: str
    end: str
    fill: re.Pattern[str]
    head: re.Pattern[str] = _OBJECT_HEAD
    wrapped: bool = True
    bare: bool = False
    forced: tuple[str, str] | None = None
    arguments: str = "arguments"
    id_length: int = 0


FORMATS = {
    "deepseek": Format(
        ("<｜tool▁calls▁begin｜>",),
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        re.compile(r"(?:\s|```|<｜tool▁call▁begin｜>|<｜tool▁call▁end｜>)*"),
        head=re.compile(rf"(?:function{_SEP})?(?P<name>[^\n<{{]+?)(?:\n```json\n|{_SEP})\s*(?=\{{)"),
        wrapped=False,
    ),
    "mistral": Format(
        ("[TOOL_CALLS]",), "[TOOL_CALLS]", "", re.compile(r"[\s\[\],]*"), forced=("[TOOL_CALLS][", "]"), id_length=9
    ),
    "hermes": Format(
        ("<tool_call>",), "<tool_call>", "</tool_call>", re.compile(r"\s*"), forced=("<tool_call>\n", "\n</tool_call>")
    ),
    "llama": Format(
        ("<|python_tag|>", '"parameters":'), "<|python_tag|>", "", re.compile(r"[\s;]*"), bare=True,
        forced=("<|python_tag|>", ""), arguments="parameters",
    ),
}  # fmt: skip


def format_of(template: str | None) -> Format | None:
    """The way of writing calls that a chat template teaches; None if it teaches none that is known."""
    marks = ((mark, form) for form in FORMATS.values() for mark in form.marks)
    return next((form for mark, form in marks if mark in (template or "")), None)


def parts(text: str, ended: bool, form: Format | None, reasons: bool = False, inside: bool = False) -> list[Part]:
    """The parts of a reply that is `text` so far.

    form: how calls are written, None where none are expected. reasons: the reply may begin with <think>.
    inside: it begins after one, which the prompt ends with.
    """
    found: list[Part] = []
    at = _reasoning(text, ended, inside, found) if reasons or inside else 0
    if at is None:
        return found
    if form:
        _calls(text, at, ended, form, found)
    elif text[at:]:
        found.append(Part("content", text[at:]))
    return found


def _reasoning(text: str, ended: bool, inside: bool, found: list[Part]) -> int | None:
    """Where the rest begins; None if there is none yet."""
    start = _skip(text, 0)
    if text.startswith(THINK, start):
        start = _skip(text, start + len(THINK))
    elif not inside:
        return None if not ended and THINK.startswith(text[start:]) else 0
    elif not ended and THINK.startswith(text[start:]):
        return None
    stop = text.find(THOUGHT, start)
    said = text[start : stop if stop >= 0 else len(text)]
    if stop < 0 and not ended:
        said = said[: len(said) - held(said, (THOUGHT,))]
    if said.strip():
        found.append(Part("reasoning", said.rstrip()))
    return None if stop < 0 else _skip(text, stop + len(THOUGHT))


def _calls(text: str, at: int, ended: bool, form: Format, found: list[Part]) -> None:
    start = search = at
    while (begin := _find(form, text, search, at)) >= 0:
        calls, after = _block(text, begin, form)
        if not calls and (ended or after is not None):  # no call after all
            search = begin + 1
            continue
        found += _content(text[start:begin].rstrip())
        found += calls
        if after is None:
            return
        start = search = _skip(text, after)
    rest = text[start:]
    if not ended:
        rest = rest[: len(rest) - held(rest, (form.begin,))].rstrip()
    found += _content(rest)


def _content(text: str) -> list[Part]:
    return [Part("content", text)] if text else []


def _find(form: Format, text: str, search: int, first: int) -> int:
    start = _skip(text, first)
    bare = form.bare and search <= start and text.startswith("{", start)
    return start if bare else text.find(form.begin, search)


def _block(text: str, begin: int, form: Format) -> tuple[list[Part], int | None]:
    """The calls of a block, the last perhaps unfinished, and where the block ended; None if it may go on."""
    calls: list[Part] = []
    at = begin + len(form.begin) if text.startswith(form.begin, begin) else begin
    while True:
        at = _past(form.fill, text, at)
        if form.end and text.startswith(form.end, at):
            return calls, at + len(form.end)
        if at == len(text) or form.end.startswith(text[at:]):
            return calls, None
        call, after = _wrapped(text, at, form) if form.wrapped else _named(text, at, form)
        calls += [call] if call else []
        if after is None:
            return calls, None
        if call is None:
            return calls, after
        at = after


def _wrapped(text: str, at: int, form: Format) -> tuple[Part | None, int | None]:
    """A call that is one object, and its end if it is there. No call: nothing or, with an end, none here."""
    if text[at] != "{":
        return None, at
    stop, whole = _balanced(text, at, form.end)
    head = form.head.match(text, at, stop)
    if head and text[head.end()] == "{":
        inner, _ = _balanced(text, head.end(), form.end)
        return Part("call", text[head.end() : inner], _name(head["name"])), stop if whole else None
    return (_loaded(text[at:stop]), stop) if whole else (None, None)


def _named(text: str, at: int, form: Format) -> tuple[Part | None, int | None]:
    """A call that is a name and then an object."""
    stop = text.find(form.end, at)
    head = form.head.match(text, at, stop if stop >= 0 else len(text) - held(text, (form.end,)))
    if not head:
        return None, stop + len(form.end) if stop >= 0 else None
    end, whole = _balanced(text, head.end(), form.end)
    return Part("call", text[head.end() : end], _name(head["name"])), end if whole else None


def _balanced(text: str, at: int, end: str) -> tuple[int, bool]:
    """Where the object that opens at `at` closes, or is broken off by `end`; if neither, how much of it is certain."""
    depth = 0
    for found in _tokens(end).finditer(text, at):
        if found[0] == end:
            return found.start(), True
        depth += (found[0] in "{[") - (found[0] in "}]")
        if depth == 0:
            return found.end(), True
    return len(text) - (held(text, (end,)) if end else 0), False


@cache
def _tokens(end: str) -> re.Pattern[str]:
    """What matters in JSON when looking for the end of an object: whole strings, brackets, and what breaks it off."""
    return re.compile(rf"{_STRING}?|[{{}}\[\]]" + (f"|{re.escape(end)}" if end else ""), re.DOTALL)


def _loaded(text: str) -> Part | None:
    """A call from its whole object, however its fields are ordered."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name, given = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if not isinstance(name, str) or not name or not isinstance(given, dict | str):
        return None
    return Part("call", given if isinstance(given, str) else json.dumps(given), encodable(name))


def _name(written: str) -> str:
    try:
        return encodable(json.loads(written))
    except ValueError:
        return written.strip('" ')


def encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which no answer can hold."""
    return text.encode("utf-8", "replace").decode()


def _skip(text: str, at: int) -> int:
    return _past(re.compile(r"\s*"), text, at)


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def arguments_of(call: Part) -> dict[str, Any]:
    """A call's arguments as an object; none where they are cut off or not what answers can hold."""
    try:
        given = json.loads(call.text, parse_constant=int)
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}
