"""What clients may ask of POST /v1/messages, as Anthropic names it: see `schemas` for the rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BeforeValidator, Field

from cutaway.serve.chat_schemas import MAX_TOOLS, Name, Object
from cutaway.serve.schemas import ANY, EVERYWHERE, MAX_STOPS, Body, Drawing, Inert, Text, Utf8

BLOCK: Inert = {"cache_control": ANY, "citations": (), "caller": ANY}
TOOL: Inert = {"cache_control": ANY, "type": ("custom",), "eager_input_streaming": ANY, "defer_loading": (False,)}
SHOWN: Inert = {"display": ANY}
MESSAGES: Inert = EVERYWHERE | {
    "cache_control": ANY,
    "container": (),
    "context_management": ({},),
    "inference_geo": ANY,
    "mcp_servers": ([],),
    "metadata": ANY,
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
}


def as_blocks(content: Any) -> Any:
    """A string is one block of text."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class TextBlock(Body):
    inert = BLOCK
    type: Literal["text"]
    text: Utf8


class ThinkingBlock(Body):
    """Thoughts, as they were given; whoever signs them is not asked."""

    inert = BLOCK | {"signature": ANY}
    type: Literal["thinking"]
    thinking: Utf8


class ToolUseBlock(Body):
    """A call that an assistant made."""

    inert = BLOCK
    type: Literal["tool_use"]
    id: Utf8
    name: Utf8
    input: Object


Texts = Annotated[list[TextBlock], BeforeValidator(as_blocks)]


class ToolResultBlock(Body):
    """What came of a call."""

    inert = BLOCK
    type: Literal["tool_result"]
    tool_use_id: Utf8
    content: Texts = Field(default_factory=list)
    is_error: bool = False


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Exchange(Body):
    """One message: its blocks."""

    role: Literal["user", "assistant"]
    content: Annotated[list[Block], BeforeValidator(as_blocks), Len(1)]


class CustomTool(Body):
    """A function that may be called."""

    inert = TOOL
    name: Name
    description: Utf8 = ""
    input_schema: Object
    strict: bool = False


class Choice(Body):
    """Whether tools are called: "any" is at least one, "tool" the one of that name."""

    type: Literal["auto", "any", "none", "tool"] = "auto"
    name: Utf8 | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Body):
    """Whether the model should think first; the budget is not enforced, `max_tokens` is."""

    inert = SHOWN
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)


class OutputFormat(Body):
    """Which JSON the reply is."""

    type: Literal["json_schema"]
    schema_: Object = Field(alias="schema")


class OutputConfig(Body):
    """format: of the reply."""

    format: OutputFormat | None = None


class Asked(Body):
    """What the prompt is made of."""

    model: str
    messages: Annotated[list[Exchange], Len(1)]
    system: Texts = Field(default_factory=list)
    tools: Annotated[list[CustomTool], Len(0, MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Choice = Field(default_factory=Choice)
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class CountRequest(Asked):
    """POST /v1/messages/count_tokens."""

    inert = MESSAGES


class MessagesRequest(Asked, Drawing):
    """POST /v1/messages."""

    inert = MESSAGES
    max_tokens: int
    stop_sequences: Annotated[list[Text], Len(0, MAX_STOPS)] = Field(default_factory=list)

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop_sequences)
