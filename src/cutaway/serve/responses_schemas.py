"""What clients may ask of POST /v1/responses, as OpenAI names it: see `schemas` for the rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BeforeValidator, Discriminator, Field, Tag

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.serve.chat_schemas import MAX_TOOLS, Name, Named, Object, expected
from cutaway.serve.schemas import ANY, ANY_OBJECT, EVERYWHERE, Body, Drawing, Inert, Utf8

RESPONSES: Inert = EVERYWHERE | {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_key": ANY,
    "prompt_cache_options": ANY,
    "prompt_cache_retention": ANY,
    "reasoning": ({}, {"effort": "none"}),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
ITEM: Inert = {"id": ANY, "status": ANY}
PART: Inert = {"annotations": ANY, "logprobs": ANY}
THOUGHTS: Inert = ITEM | {"summary": ANY, "encrypted_content": ()}
SHAPE: Inert = {"verbosity": ("medium",)}


class Piece(Body):
    """Text, whoever wrote it."""

    inert = PART
    type: Literal["input_text", "output_text", "text", "reasoning_text"]
    text: Utf8


def as_pieces(content: Any) -> Any:
    """A string is one piece of text."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Pieces = Annotated[list[Piece], BeforeValidator(as_pieces)]


class MessageItem(Body):
    inert = ITEM
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Pieces


class CallItem(Body):
    """A call that the model made."""

    inert = ITEM
    type: Literal["function_call"]
    call_id: Utf8
    name: Utf8
    arguments: Utf8


class OutputItem(Body):
    """What came of a call."""

    inert = ITEM
    type: Literal["function_call_output"]
    call_id: Utf8
    output: Pieces


class ReasoningItem(Body):
    inert = THOUGHTS
    type: Literal["reasoning"]
    content: Pieces = Field(default_factory=list)


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if isinstance(kind, str) else ""


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


def as_items(given: Any) -> Any:
    """A string is a message of the user."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class FunctionTool(Body):
    """A function that may be called."""

    type: Literal["function"]
    name: Name
    description: Utf8 = ""
    parameters: Object | None = None
    strict: bool = False


class FunctionChoice(Named):
    """Exactly this function is to be called."""

    type: Literal["function"]


class TextFormat(Body):
    """What kind of text the reply is; a schema is always kept, strict or not."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Utf8 = ""
    description: Utf8 = ""
    schema_: Object | None = Field(None, alias="schema")
    strict: bool = False

    def constraint(self) -> ConstraintSpec | None:
        """What keeps a reply to it."""
        if self.type == "json_schema":
            return ConstraintSpec.schema(self.schema_ or {})
        return ANY_OBJECT if self.type == "json_object" else None


class TextShape(Body):
    """format: of the reply."""

    inert = SHAPE
    format: TextFormat = TextFormat(schema=None)


class Prompted(Body):
    """What the prompt is made of."""

    model: str
    input: Annotated[list[Item], BeforeValidator(as_items), Len(1)]
    instructions: Utf8 | None = None
    previous_response_id: Utf8 | None = None
    tools: Annotated[list[FunctionTool], Len(0, MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | FunctionChoice,
        expected('"none", "auto", "required" or {"type": "function", "name": ...}'),
    ] = "auto"
    parallel_tool_calls: bool | None = None
    text: TextShape = Field(default_factory=TextShape)


class InputTokensRequest(Prompted):
    """POST /v1/responses/input_tokens."""

    inert = RESPONSES


class ResponsesRequest(Prompted, Drawing):
    """POST /v1/responses. Without a maximum, a reply may fill the context. store: keep it for those that follow."""

    inert = RESPONSES
    max_output_tokens: int | None = Field(None, ge=1)
    store: bool = True
    metadata: Object | None = None
