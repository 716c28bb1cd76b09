"""From messages to a prompt, with the control tokens written by the template and by nobody else.

A user may type "<|im_end|>". In the prompt that must stay the text it is: were it encoded as the control
token, the user could end their turn and speak as the system. So before rendering, a guard (a character that
occurs nowhere else) is put into every control token's name that the messages contain, and at their edges
where a name could be completed from outside. The rendered text is cut into control tokens with the guards in
it, so that only names written by the template match; then the guards are dropped, and the rest is encoded as
if they had never been there. Messages without such names are rendered unchanged, so the ids are those of any
other implementation.

Templates may trim, split and compare contents as they like. The limits: a template that cuts a content in its
middle and completes one of its own unfinished control tokens with the piece is not guarded against (no
template does), nor is a control token whose name is a single character.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cutaway.errors import CutawayError
from cutaway.text.added import AddedToken, Finder

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function", "ipython"))
PROMPT = ("self", "messages", "tools", "documents", "add_generation_prompt")  # what a prompt is made of
_NONCHARACTERS, _PRIVATE_USE = range(0xFDD0, 0xFDF0), range(0xE000, 0xF900)

Message = Mapping[str, Any]


def check(messages: Any) -> list[dict[str, Any]]:
    """The messages as templates want them, contents as strings. CutawayError names the one that is wrong."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise CutawayError("this should be a list of messages", "messages")
    if not messages:
        raise CutawayError("the list is empty", "messages", "give at least one message with a role and a content")
    return [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise CutawayError("a message should be an object with role and content", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise CutawayError(f"unknown role {role!r}", f"{where}.role", f"one of {', '.join(sorted(ROLES))}")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise CutawayError("the message has no content", f"{where}.content", "a string, or a list of text parts")
    return {**message, "content": _text(content, f"{where}.content")}


def _text(content: Any, where: str) -> str | None:
    """Text parts are paragraphs: they are joined by line feeds."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise CutawayError("content should be a string or a list of parts", where)
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise CutawayError("only parts of the form {'type': 'text', 'text': …} are understood", where)
    return part["text"]


def sign_for(*values: Any) -> str:
    """A character that occurs nowhere in these values."""
    used = set().union(*(text for value in values for text in _strings(value)))
    free = (chr(code) for code in (*_NONCHARACTERS, *_PRIVATE_USE) if chr(code) not in used)
    sign = next(free, None)
    if sign is None:
        raise CutawayError("the messages use every private-use character", "messages", "leave one out")
    return sign


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        for part in parts:
            yield from _strings(part)


class Guard:
    """Marks the control tokens' names in foreign text so that they cannot match."""

    def __init__(self, added: Iterable[AddedToken]) -> None:
        special = [token for token in added if token.special]
        names = [token.content for token in special if len(token.content) > 1]
        self._finder = Finder(special)
        self._joined = "\0".join(names)
        self._heads = {name[:k] for name in names for k in range(1, len(name))}
        self._tails = {name[k:] for name in names for k in range(1, len(name))}
        self._longest = max(map(len, names), default=0)

    def apply(self, value: Any, sign: str) -> Any:
        """The same value with every string in it guarded; roles and the keys of objects only within."""
        if isinstance(value, str):
            return self._edges(self._within(value, sign), sign)
        if isinstance(value, Mapping):
            return {self._key(k, sign): self._field(k, v, sign) for k, v in value.items()}
        return [self.apply(item, sign) for item in value] if isinstance(value, list | tuple) else value

    def _field(self, key: Any, value: Any, sign: str) -> Any:
        return value if key == "role" and value in ROLES else self.apply(value, sign)

    def _key(self, key: Any, sign: str) -> Any:
        return self._within(key, sign) if isinstance(key, str) else key

    def _within(self, text: str, sign: str) -> str:
        cuts = {start + 1 for start, token in self._finder.occurrences(text) if len(token.content) > 1}
        ends = [0, *sorted(cuts), len(text)]
        return sign.join(text[a:b] for a, b in pairwise(ends))

    def _edges(self, text: str, sign: str) -> str:
        """Guard the ends inside surrounding white space, so that a template's trimming still works."""
        core = text.strip()
        if not core:
            return text
        inner = len(core) < self._longest and core in self._joined
        lengths = range(1, min(len(core), self._longest) + 1)
        before = sign if inner or any(core[:k] in self._tails for k in lengths) else ""
        after = sign if any(core[-k:] in self._heads for k in lengths) else ""
        start = text.index(core)
        return text[:start] + before + core + after + text[start + len(core) :]
