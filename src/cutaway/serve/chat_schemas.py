"""What clients may ask of a chat, as OpenAI names it: see `schemas` for the rules."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import AfterValidator, Field

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.errors import CutawayError
from cutaway.serve.dialogue import Json
from cutaway.serve.schemas import (
    ANY,
    ANY_OBJECT,
    GENERATING,
    MAX_ALTERNATIVES,
    MESSAGE,
    Body,
    Inert,
    Sampling,
    TextPart,
    Utf8,
    expected,
)

MAX_TOOLS = 128

CHAT: Inert = GENERATING | {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ANY,
    "modalities": (["text"],),
    "moderation": (),
    "prompt_cache_key": ANY,
    "prompt_cache_options": ANY,
    "prompt_cache_retention": ANY,
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
TURN: Inert = {k: v for k, v in MESSAGE.items() if k not in {"tool_calls", "tool_call_id"}}

CALL: Inert = {"index": ANY}  # as a stream numbers them


def holdable(value: Json) -> Json:
    """JSON that can be written again: whole characters, no NaN, not too deep."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return value


Object = Annotated[dict[str, Any], AfterValidator(holdable)]
Content = Annotated[
    Utf8 | Annotated[list[TextPart], Len(1)],
    expected('a string, or a list of parts {"type": "text", "text": ...}, of valid Unicode'),
]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]


class FunctionCall(Body):
    """arguments: JSON, as text."""

    name: Utf8
    arguments: Utf8 = "{}"


class ToolCall(Body):
    """A call that an assistant made."""

    inert = CALL
    id: Utf8
    type: Literal["function"] = "function"
    function: FunctionCall


class Turn(Body):
    """One message. A developer's is rendered as the system's; a tool's answers an assistant's call."""

    inert = TURN
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    reasoning: Utf8 | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: Utf8 | None = None


class Function(Body):
    """A function that may be called. parameters: a JSON Schema. strict: hold calls to it."""

    name: Name
    description: Utf8 = ""
    parameters: Object | None = None
    strict: bool = False


class Tool(Body):
    """The only kind of tool: a function."""

    type: Literal["function"]
    function: Function


class Named(Body):
    name: Utf8


class NamedChoice(Body):
    """Exactly this function is to be called."""

    type: Literal["function"]
    function: Named


class JsonSchema(Body):
    """schema: which JSON a reply is."""

    name: Utf8
    description: Utf8 = ""
    schema_: Object = Field(alias="schema")
    strict: bool = False


class ResponseFormat(Body):
    """What kind of text a reply is. A schema is always kept, strict or not."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def constraint(self) -> ConstraintSpec | None:
        """Errors: a schema that is missing, or beside the point."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise CutawayError('goes with type "json_schema"', "response_format.json_schema")
        if self.json_schema is not None:
            return ConstraintSpec.schema(self.json_schema.schema_)
        return ANY_OBJECT if self.type == "json_object" else None


class Prediction(Body):
    """What the reply will probably be. It is the sooner there the more of that is right, and says the same anyway."""

    type: Literal["content"]
    content: Content

    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Sampling):
    """POST /v1/chat/completions. Without a maximum, a reply may fill the context.

    parallel_tool_calls: whether a reply may hold several calls. Required calls are one, unless this is true.
    """

    inert = CHAT
    messages: Annotated[list[Turn], Len(1)]
    tools: Annotated[list[Tool], Len(0, MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedChoice,
        expected('"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'),
    ] = "auto"
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat = ResponseFormat()
    prediction: Prediction | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
