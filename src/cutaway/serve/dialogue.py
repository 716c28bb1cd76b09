"""From a conversation, tools and what the reply must be to a prompt, and back from its events to parts.

What a chat template knows of tools it renders itself. For one that knows nothing of them, tools are described in the
system's message, and calls and results are written as text, in the way of Hermes that most models have seen.
"""

from __future__ import annotations

import json
import secrets
import string
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.sequence import Event
from cutaway.errors import CutawayError
from cutaway.serve.tool_calls import FORMATS, THINK, THOUGHT, Format, Part, format_of, parts
from cutaway.text import sandbox
from cutaway.text.tokenizer import Tokenizer

Json = dict[str, Any]
HERMES = FORMATS["hermes"]
ID_LETTERS = string.ascii_letters + string.digits
PREAMBLE = """You may call functions. Their signatures, in JSON:
<tools>
{tools}
</tools>
For each call, write a JSON object with the function's name and arguments within tags:
<tool_call>
{{"name": <name>, "arguments": <object>}}
</tool_call>"""


@dataclass(frozen=True)
class Wish:
    """What a client wants said. messages: as templates know them, calls' arguments as objects.

    tools: {"name", "description", "parameters", "strict"} each. choice: "none", "auto", "required", or a tool's name
    after "=". parallel: whether several calls may come; None where the client does not say.
    constraint: of a reply that calls nothing. variables: for the template. begun: what the reply goes on from.
    """

    messages: list[Json]
    tools: list[Json] = field(default_factory=list)
    choice: str = "auto"
    parallel: bool | None = None
    constraint: ConstraintSpec | None = None
    variables: Json = field(default_factory=dict)
    begun: str = ""


@dataclass(frozen=True)
class Plan:
    """How to ask a model for it. form, reasons, inside: see `parts`. marks: the text of control tokens in calls.

    single: what a reply says after its first call is not wanted.
    """

    prompt: list[int]
    constraint: ConstraintSpec | None
    form: Format | None
    reasons: bool
    inside: bool
    marks: dict[int, str]
    single: bool = False

    def new_id(self, prefix: str = "call_") -> str:
        """An id for a call."""
        length = self.form.id_length if self.form else 0
        letters = "".join(secrets.choice(ID_LETTERS) for _ in range(length or 24))
        return letters if length else prefix + letters


def plan(tokenizer: Tokenizer, wish: Wish, given: Format | None = None) -> Plan:
    """The prompt and how its reply is read. given: how the model writes calls, None to see in its template.

    Errors: those of `Tokenizer.chat`; a choice of no tool; a constraint beside tools that may be called.
    """
    template = tokenizer.chat_template or ""
    tools = [] if wish.choice == "none" else wish.tools
    native = given or (format_of(template) if _knows_tools(template) else None)
    form = native or HERMES
    messages = _with_arguments(wish.messages, form) if native else _as_text(wish.messages, tools)
    listed = [{"type": "function", "function": {k: v for k, v in t.items() if k != "strict"}} for t in tools]
    more: Json = {"tools": listed} if native and tools else {}
    prompt = tokenizer.chat(messages, **more, **tokenizer.chat_variables(wish.variables))
    constraint = _of_calls(wish, tools, form) if tools else None
    if wish.constraint and tools:
        raise CutawayError("a reply cannot both follow it and call tools", "tools", 'set tool_choice to "none"')
    inside = tokenizer.decode(prompt[-16:], skip_special=False).rstrip().endswith(THINK)
    forced = wish.constraint is not None or wish.choice not in {"auto", "none"}
    if forced and inside:  # what is constrained from its first token on cannot begin with thoughts
        prompt, inside = prompt + tokenizer.encode(f"\n{THOUGHT}\n\n", add_special=False), False
    prompt = prompt + tokenizer.encode(wish.begun, add_special=False, parse_special=False) if wish.begun else prompt
    if forced and tools and not form.forced:
        form = HERMES
    reading = form if tools else None
    return Plan(
        prompt, wish.constraint or constraint, reading, THINK in template and not forced, inside,
        _marks(tokenizer, reading), wish.parallel is False,
    )  # fmt: skip


@lru_cache(32)
def _knows_tools(template: str) -> bool:
    return bool(template) and "tools" in sandbox.variables(template)


def _of_calls(wish: Wish, tools: list[Json], form: Format) -> ConstraintSpec | None:
    """What keeps a reply to the calls that are wanted; None where it may be anything."""
    begin, end = form.forced or HERMES.forced or ("", "")
    allowed = [{"name": t["name"], "parameters": t.get("parameters") or {"type": "object"}} for t in tools]
    if wish.choice == "auto":
        if not form.forced or not any(t.get("strict") for t in tools):
            return None
        free = {"free": True, "several": wish.parallel is not False}
        return ConstraintSpec.tools(allowed, begin, end, arguments=form.arguments, **free)
    named = wish.choice.startswith("=")
    if named:
        allowed = [t for t in allowed if t["name"] == wish.choice[1:]]
        if not allowed:
            raise CutawayError(f"there is no tool {wish.choice[1:]!r} among tools", "tool_choice")
    arguments = form.arguments if form.forced else HERMES.arguments
    return ConstraintSpec.tools(allowed, begin, end, arguments=arguments, several=wish.parallel is True and not named)


def _marks(tokenizer: Tokenizer, form: Format | None) -> dict[int, str]:
    known = f"{THINK} {THOUGHT} "
    known += f"{form.begin} {form.end} {form.fill.pattern} {form.head.pattern}" if form else ""
    ids = tokenizer.special_ids - tokenizer.stop_ids
    return {t.id: t.content for t in tokenizer.recipe.added if t.id in ids and t.content in known}


def _with_arguments(messages: list[Json], form: Format) -> list[Json]:
    """DeepSeek's templates want calls' arguments as text."""
    if form.wrapped:
        return messages

    def spelled(call: Json) -> Json:
        function = call["function"]
        return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

    return [m | {"tool_calls": [*map(spelled, m["tool_calls"])]} if m.get("tool_calls") else m for m in messages]


def _as_text(messages: list[Json], tools: list[Json]) -> list[Json]:
    """The conversation for a template that knows no tools."""
    made = [_turn_as_text(message) for message in messages]
    if not tools:
        return made
    lines = (json.dumps({k: v for k, v in tool.items() if k != "strict"}, ensure_ascii=False) for tool in tools)
    preamble = PREAMBLE.format(tools="\n".join(lines))
    if made and made[0]["role"] == "system":
        return [{"role": "system", "content": f"{_plain(made[0]['content'])}\n\n{preamble}"}, *made[1:]]
    return [{"role": "system", "content": preamble}, *made]


def _turn_as_text(message: Json) -> Json:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_plain(message['content'])}\n</tool_response>"}
    calls = [json.dumps({k: c["function"][k] for k in ("name", "arguments")}, ensure_ascii=False)
             for c in message.get("tool_calls") or ()]  # fmt: skip
    if not calls:
        return {"role": message["role"], "content": message["content"]}
    said = [_plain(message["content"])] if message["content"] else []
    return {"role": message["role"], "content": "\n".join(said + [f"<tool_call>\n{c}\n</tool_call>" for c in calls])}


def _plain(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or ())


class Delta(NamedTuple):
    """What is new in a part. place: of the part in the reply. first: it begins with this."""

    place: int
    part: Part
    first: bool


class Reader:
    """Reads one reply as its events come. reasoned: tokens that were thoughts."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.parts = plan, list[Part]()
        self.reasoned = 0
        self._plain, self._seen = "", list[tuple[int, str]]()

    @property
    def calls(self) -> list[Part]:
        return [part for part in self.parts if part.kind == "call"]

    def read(self, event: Event) -> list[Delta]:
        """What an event brought."""
        if mark := self.plan.marks.get(event.choice.token):
            self._seen.append((event.offset, mark))
        self._plain += event.text
        plan, before = self.plan, self.parts
        found = parts(self._text(), event.finish is not None, plan.form, plan.reasons, plan.inside)
        first = next((i for i, part in enumerate(found) if part.kind == "call"), len(found)) if plan.single else None
        self.parts = found if first is None else found[: first + 1]
        self.reasoned += [part.kind for part in self.parts] == ["reasoning"]
        old = [*before, *[None] * len(self.parts)]
        return [made for i, part in enumerate(self.parts) if (made := _delta(i, old[i], part))]

    def finish(self, event: Event) -> str | None:
        """OpenAI's reason: a reply that ended by itself with calls ended for them; one cut off was cut off."""
        return "tool_calls" if event.finish == "stop" and self.calls else event.finish

    def _text(self) -> str:
        """The reply with the control tokens that calls are written with, which plain text leaves out."""
        text, at = "", 0
        for offset, mark in self._seen:
            if offset <= len(self._plain):
                text, at = text + self._plain[at:offset] + mark, offset
        return text + self._plain[at:]


def _delta(place: int, old: Part | None, new: Part) -> Delta | None:
    """None if there is nothing new."""
    if old is None:
        return Delta(place, new, True)
    return None if old == new else Delta(place, new._replace(text=new.text[len(old.text) :]), False)
