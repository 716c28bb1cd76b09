"""POST /v1/messages and /v1/messages/count_tokens: a conversation as Anthropic's clients have it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.sequence import Event
from cutaway.serve.anthropic_errors import in_stream
from cutaway.serve.connection import EventStream, while_connected
from cutaway.serve.dialogue import Delta, Json, Plan, Reader, Wish, plan
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import Generation, begin, compiled, find_decoder, one_of
from cutaway.serve.messages_schemas import Asked, Choice, CountRequest, Exchange, MessagesRequest, ToolResultBlock
from cutaway.serve.served import Served
from cutaway.serve.tool_calls import THINK, Part, arguments_of
from cutaway.text import sandbox

router = APIRouter()

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@router.post("/v1/messages")
async def messages(body: MessagesRequest, request: Request) -> Response:
    """A reply, whole or streamed."""
    served = find_decoder(request, body.model)
    outputs = body.structured_outputs.constraint() if body.structured_outputs else None
    field, constraint = one_of(output_config=_schema(body), structured_outputs=outputs)
    planned = await asyncio.to_thread(plan, served.loaded.tokenizer, wished(body, served, constraint), served.calls)
    await compiled(planned.constraint, served.loaded.tokenizer, field or "tools")
    generation = begin(
        request, body, served, [planned.prompt], field="messages", max_tokens=body.max_tokens,
        constraint=planned.constraint,
    )  # fmt: skip
    reply = Reply(generation, planned)
    if body.stream:
        return EventStream(in_stream(reply.stream()), named=True)
    return JSONResponse(await while_connected(request.receive, reply.whole()))


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountRequest, request: Request) -> Json:
    """How long the prompt would be."""
    served = find_decoder(request, body.model)
    wish = wished(body, served, _schema(body))
    planned = await asyncio.to_thread(plan, served.loaded.tokenizer, wish, served.calls)
    return {"input_tokens": len(planned.prompt)}


def _schema(body: Asked) -> ConstraintSpec | None:
    form = body.output_config.format if body.output_config else None
    return ConstraintSpec.schema(form.schema_) if form else None


def wished(body: Asked, served: Served, constraint: ConstraintSpec | None) -> Wish:
    """What is asked for. Errors: a choice of tools where there are none, thoughts of a model that has none."""
    tools = [{"name": t.name, "description": t.description, "parameters": t.input_schema, "strict": t.strict}
             for t in body.tools]  # fmt: skip
    choice = _choice(body.tool_choice, bool(tools))
    turns = [{"role": "system", "content": "\n\n".join(b.text for b in body.system)}] if body.system else []
    names: dict[str, str] = {}
    for i, exchange in enumerate(body.messages):
        turns += _turns(exchange, f"messages[{i}]", names)
    begun = turns.pop()["content"] if turns[-1]["role"] == "assistant" and not turns[-1].get("tool_calls") else ""
    parallel = False if body.tool_choice.disable_parallel_tool_use else None
    return Wish(turns, tools, choice, parallel, constraint, _thinking(body, served), begun or "")


def _choice(choice: Choice, tools: bool) -> str:
    if (choice.type == "tool") != (choice.name is not None):
        raise ApiError(400, 'tool_choice.name: goes with type "tool"', param="tool_choice.name", code="invalid_value")
    if choice.type in {"any", "tool"} and not tools:
        raise ApiError(400, "tool_choice: there are no tools", param="tool_choice", code="invalid_value")
    return CHOICES.get(choice.type) or f"={choice.name}"


def _thinking(body: Asked, served: Served) -> Json:
    """What the template is told of it, if it asks."""
    template = served.loaded.tokenizer.chat_template or ""
    if body.thinking is None:
        return {}
    if "enable_thinking" in sandbox.variables(template):
        return {"enable_thinking": body.thinking.type != "disabled"}
    if body.thinking.type == "enabled" and THINK not in template:
        raise ApiError(400, "thinking: the model does not think", param="thinking", code="unsupported_parameter")
    return {}


def _turns(exchange: Exchange, where: str, names: dict[str, str]) -> list[Json]:
    """A message as chat templates know it; results of calls are messages of their own. names: by the calls' ids."""
    kinds: dict[str, list[Any]] = {}
    for i, block in enumerate(exchange.content):
        kinds.setdefault(block.type, []).append(block)
        if (block.type in {"tool_use", "thinking"}) > (exchange.role == "assistant") or (
            block.type == "tool_result" and exchange.role == "assistant"
        ):
            message = f"{where}.content[{i}]: {block.type} is not what a message of role {exchange.role!r} holds"
            raise ApiError(400, message, param=f"{where}.content[{i}]", code="invalid_value")
    made = [_result(block, names) for block in kinds.get("tool_result", ())]
    text = "\n\n".join(block.text for block in kinds.get("text", ()))
    if exchange.role == "user":
        return made + ([{"role": "user", "content": text}] if text or not made else [])
    turn: Json = {"role": "assistant", "content": text}
    if "thinking" in kinds:
        turn["reasoning_content"] = "\n\n".join(block.thinking for block in kinds["thinking"])
    if "tool_use" in kinds:
        names |= {block.id: block.name for block in kinds["tool_use"]}
        turn["tool_calls"] = [
            {"id": b.id, "type": "function", "function": {"name": b.name, "arguments": b.input}}
            for b in kinds["tool_use"]
        ]
    return [turn]


def _result(block: ToolResultBlock, names: dict[str, str]) -> Json:
    text = "\n\n".join(part.text for part in block.content)
    made = {"role": "tool", "content": f"Error: {text}" if block.is_error else text, "tool_call_id": block.tool_use_id}
    return made | ({"name": names[block.tool_use_id]} if block.tool_use_id in names else {})


class Reply:
    """One message in the making."""

    def __init__(self, generation: Generation, plan: Plan) -> None:
        self.generation, self.plan, self.reader = generation, plan, Reader(plan)
        self.id, self.tokens = f"msg_{uuid4().hex}", 0

    async def whole(self) -> Json:
        """The message."""
        async with aclosing(self.generation.events()) as events:
            async for _, event in events:
                self._read(event)
        content = [self._block(part, part.text) for part in self.reader.parts]
        return self._message(content) | self._end(event) | {"usage": self._usage() | {"output_tokens": self.tokens}}

    async def stream(self) -> AsyncGenerator[Json, None]:
        """Anthropic's events: of the message, and of each block its start, pieces and stop."""
        last = -1
        async with aclosing(self.generation.events()) as events:
            async for _, event in events:
                if not self.tokens:
                    yield {"type": "message_start", "message": self._message([]) | {"usage": self._usage()}}
                for made in self._read(event):
                    for item in self._pieces(made, last):
                        yield item
                    last = made.place
        if last >= 0:
            yield {"type": "content_block_stop", "index": last}
        usage = self._usage() | {"output_tokens": self.tokens}
        yield {"type": "message_delta", "delta": self._end(event), "usage": usage}
        yield {"type": "message_stop"}

    def _read(self, event: Event) -> list[Delta]:
        self.tokens += 1
        return self.reader.read(event)

    def _pieces(self, made: Delta, last: int) -> list[Json]:
        """The events of a piece of a block. last: the block that is open, -1 for none."""
        items: list[Json] = []
        if made.first and last >= 0:
            items.append({"type": "content_block_stop", "index": last})
        if made.first:
            block = self._block(made.part, "")
            items.append({"type": "content_block_start", "index": made.place, "content_block": block})
        kind, field = PIECES[made.part.kind]
        delta = {"type": kind, field: made.part.text}
        return [*items, {"type": "content_block_delta", "index": made.place, "delta": delta}]

    def _block(self, part: Part, text: str) -> Json:
        if part.kind == "call":
            return {"type": "tool_use", "id": self.plan.new_id("toolu_"), "name": part.name,
                    "input": arguments_of(part._replace(text=text))}  # fmt: skip
        if part.kind == "reasoning":
            return {"type": "thinking", "thinking": text, "signature": ""}
        return {"type": "text", "text": text}

    def _message(self, content: list[Json]) -> Json:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.generation.served.called}
        return head | {"content": content, "stop_reason": None, "stop_sequence": None}

    def _end(self, event: Event) -> Json:
        """Why it ended."""
        stop = stop_sequence(self.generation)
        reason = "stop_sequence" if stop else STOP_REASONS[self.reader.finish(event) or "stop"]
        return {"stop_reason": reason, "stop_sequence": stop}

    def _usage(self) -> Json:
        """Anthropic counts what was found in the cache apart."""
        cached = self.generation.cached_tokens
        counts = {"input_tokens": self.generation.prompt_tokens - cached, "cache_read_input_tokens": cached}
        return counts | {"cache_creation_input_tokens": 0, "output_tokens": 0}


PIECES = {
    "content": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def stop_sequence(generation: Generation) -> str | None:
    """The stop string that ended a reply: what its tokens say beyond its text begins with it."""
    (sequence,) = generation.sequences
    decoder = generation.served.loaded.tokenizer.stream(continuing=True)
    said = "".join([*map(decoder.push, sequence.reply), decoder.flush()])
    stops = (s for s in generation.body.stops if said.startswith(s, len(sequence.text)))
    return next(stops, None) if sequence.finish == "stop" else None
