"""POST /v1/chat/completions: the next message of a conversation."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cutaway.engine.sequence import Event
from cutaway.serve.chat_schemas import ChatRequest, NamedChoice, Turn
from cutaway.serve.dialogue import Delta, Plan, Reader, Wish, plan
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import Answer, Format, Json, begin, compiled, find_decoder, one_of
from cutaway.serve.logprobs import chat_logprobs
from cutaway.serve.schemas import Message
from cutaway.serve.tool_calls import Part, arguments_of
from cutaway.text.tokenizer import Tokenizer

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request) -> Response:
    """A reply, whole or streamed."""
    served = find_decoder(request, body.model)
    tokenizer = served.loaded.tokenizer
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs = true", param="top_logprobs", code="invalid_value")
    wish, field = wished(body)
    # In a thread: a long prompt must not hold up the streams of others.
    planned = await asyncio.to_thread(plan, tokenizer, wish, served.calls)
    await compiled(planned.constraint, tokenizer, field)
    predicted = await asyncio.to_thread(predicted_by, body, tokenizer)
    top = body.top_logprobs or 0
    generation = begin(
        request,
        body,
        served,
        [planned.prompt],
        field="messages",
        max_tokens=max_tokens(body),
        top_logprobs=top,
        constraint=planned.constraint,
        prediction=predicted[: served.context],
    )
    format = chat_format(tokenizer, planned, body.n, top if body.logprobs else None)
    return await Answer(generation, format, body.n).respond(request)


def predicted_by(body: ChatRequest, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens of what the reply will probably be."""
    text = body.prediction.text() if body.prediction else ""
    return tuple(tokenizer.encode(text, add_special=False, parse_special=False))


def wished(body: ChatRequest) -> tuple[Wish, str]:
    """What is asked for, and the field that says what the reply must be."""
    outputs = body.structured_outputs.constraint() if body.structured_outputs else None
    field, constraint = one_of(response_format=body.response_format.constraint(), structured_outputs=outputs)
    tools = [tool.function.model_dump() for tool in body.tools]
    choice = f"={body.tool_choice.function.name}" if isinstance(body.tool_choice, NamedChoice) else body.tool_choice
    if not tools and choice not in {"none", "auto"}:
        raise ApiError(400, "tool_choice: there are no tools", param="tool_choice", code="invalid_value")
    wish = Wish(turns(body.messages), tools, choice, body.parallel_tool_calls, constraint, body.chat_template_kwargs)
    return wish, field or "tools"


def max_tokens(body: ChatRequest) -> int | None:
    """The limit under either of its names. Errors: both are given and differ."""
    given = {v for v in (body.max_tokens, body.max_completion_tokens) if v is not None}
    if len(given) > 1:
        message = "max_tokens: differs from max_completion_tokens, its new name"
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    return next(iter(given), None)


def as_template_message(message: Message | Turn) -> Json:
    """A message as chat templates know it."""
    role = "system" if message.role == "developer" else message.role
    content = message.content if not isinstance(message.content, list) else [p.model_dump() for p in message.content]
    return {"role": role, "content": content}


def turns(messages: list[Turn]) -> list[Json]:
    """Messages as chat templates know them. Errors: fields that do not go with the role, or miss."""
    names: dict[str, str] = {}
    return [_turn(turn, f"messages[{i}]", names) for i, turn in enumerate(messages)]


def _turn(turn: Turn, where: str, names: dict[str, str]) -> Json:
    """names: of the functions called so far, by the calls' ids."""
    if turn.content is None and not turn.tool_calls:
        message = f"{where}.content: is required"
        raise ApiError(400, message, param=f"{where}.content", code="missing_required_parameter")
    if turn.role == "tool" and turn.tool_call_id is None:
        message = f"{where}.tool_call_id: is required"
        raise ApiError(400, message, param=f"{where}.tool_call_id", code="missing_required_parameter")
    for field, role in (("tool_calls", "assistant"), ("reasoning", "assistant"), ("tool_call_id", "tool")):
        if getattr(turn, field) and turn.role != role:
            message = f"{where}.{field}: goes with the role {role!r}"
            raise ApiError(400, message, param=f"{where}.{field}", code="invalid_value")
    made = as_template_message(turn)
    if turn.tool_calls:
        made["tool_calls"] = [as_call(c.id, c.function.name, c.function.arguments) for c in turn.tool_calls]
        names |= {call.id: call.function.name for call in turn.tool_calls}
    if turn.reasoning:
        made["reasoning_content"] = turn.reasoning
    if turn.tool_call_id is not None:
        made["tool_call_id"] = turn.tool_call_id
        made |= {"name": names[turn.tool_call_id]} if turn.tool_call_id in names else {}
    return made


def as_call(id: str, name: str, arguments: str) -> Json:
    """A call as templates know it, its arguments an object."""
    given = arguments_of(Part("call", arguments))
    return {"id": id, "type": "function", "function": {"name": name, "arguments": given}}


class Replies:
    """The choices of one request, each read by its own reader. top: see `chat_format`."""

    def __init__(self, tokenizer: Tokenizer, plan: Plan, n: int, top: int | None) -> None:
        self.tokenizer, self.top = tokenizer, top
        self.readers = [Reader(plan) for _ in range(n)]
        self.new_id = plan.new_id

    def choice(self, index: int, events: list[Event]) -> Json:
        """The whole choice."""
        reader = self.readers[index]
        for event in events:
            reader.read(event)
        said = {kind: "".join(p.text for p in reader.parts if p.kind == kind) for kind in ("content", "reasoning")}
        calls = [_call_out(self.new_id(), part.name, part.text) for part in reader.calls]
        message: Json = {"role": "assistant", "content": said["content"] or (None if calls else ""), "refusal": None}
        message |= {"reasoning": said["reasoning"]} if said["reasoning"] else {}
        message |= {"tool_calls": calls} if calls else {}
        finish = reader.finish(events[-1])
        return {"index": index, "message": message, "logprobs": self._logprobs(events), "finish_reason": finish}

    def deltas(self, index: int, event: Event, first: bool) -> list[Json]:
        """What an event adds to a choice."""
        contents = [self._content(index, made) for made in self.readers[index].read(event)]
        if self.top is not None and not contents:
            contents = [{"content": ""}]
        deltas: list[tuple[Json, Any, str | None]] = [({"role": "assistant", "content": ""}, None, None)] * first
        deltas += [(content, None if i else self._logprobs([event]), None) for i, content in enumerate(contents)]
        if event.finish:
            deltas.append(({}, None, self.readers[index].finish(event)))
        return [{"index": index, "delta": d, "logprobs": p, "finish_reason": f} for d, p, f in deltas]

    def reasoned(self) -> int:
        """Tokens that were thoughts."""
        return sum(reader.reasoned for reader in self.readers)

    def _content(self, index: int, made: Delta) -> Json:
        """A piece of a part."""
        if made.part.kind != "call":
            return {made.part.kind: made.part.text}
        number = len([p for p in self.readers[index].parts[: made.place] if p.kind == "call"])
        if not made.first:
            return {"tool_calls": [{"index": number, "function": {"arguments": made.part.text}}]}
        return {"tool_calls": [{"index": number} | _call_out(self.new_id(), made.part.name, made.part.text)]}

    def _logprobs(self, events: list[Event]) -> Json | None:
        return None if self.top is None else chat_logprobs(self.tokenizer, events, self.top)


def _call_out(id: str, name: str, arguments: str) -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_format(tokenizer: Tokenizer, plan: Plan, n: int, top: int | None) -> Format:
    """top: how many alternatives to report per token, None for no log-probabilities at all."""
    replies = Replies(tokenizer, plan, n, top)
    kinds = "chat.completion", "chat.completion.chunk", "chatcmpl"
    return Format(*kinds, replies.choice, replies.deltas, replies.reasoned)
