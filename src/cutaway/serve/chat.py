"""POST /v1/chat/completions: the next message of a conversation."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from cutaway.engine.sequence import Event
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import Format, Json, begin, decoder_service, find
from cutaway.serve.logprobs import chat_logprobs
from cutaway.serve.schemas import ChatRequest, Message
from cutaway.text.tokenizer import Tokenizer

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request) -> Response:
    """A reply, whole or streamed."""
    served = find(request, body.model)
    decoder_service(served)
    tokenizer = served.loaded.tokenizer
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs = true", param="top_logprobs", code="invalid_value")
    # In a thread: a long prompt must not hold up the streams of others.
    messages, variables = [as_template_message(m) for m in body.messages], body.chat_template_kwargs
    prompt = await asyncio.to_thread(lambda: tokenizer.chat(messages, **tokenizer.chat_variables(variables)))
    top = body.top_logprobs or 0
    generation = begin(
        request,
        body,
        served,
        [prompt],
        field="messages",
        max_tokens=max_tokens(body),
        top_logprobs=top,
        format=chat_format(tokenizer, top if body.logprobs else None),
    )
    return await generation.respond(request)


def max_tokens(body: ChatRequest) -> int | None:
    """The limit under either of its names. Errors: both are given and differ."""
    given = {v for v in (body.max_tokens, body.max_completion_tokens) if v is not None}
    if len(given) > 1:
        message = "max_tokens: differs from max_completion_tokens, its new name"
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    return next(iter(given), None)


def as_template_message(message: Message) -> Json:
    """A message as chat templates know it."""
    role = "system" if message.role == "developer" else message.role
    content = message.content
    return {"role": role, "content": content if isinstance(content, str) else [part.model_dump() for part in content]}


def chat_format(tokenizer: Tokenizer, top: int | None) -> Format:
    """top: how many alternatives to report per token, None for no log-probabilities at all."""

    def logprobs(events: list[Event]) -> Json | None:
        return None if top is None else chat_logprobs(tokenizer, events, top)

    def choice(index: int, events: list[Event]) -> Json:
        message = {"role": "assistant", "content": "".join(e.text for e in events), "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs(events), "finish_reason": events[-1].finish}

    def deltas(index: int, event: Event, first: bool) -> list[Json]:
        def delta(content: Json, logprobs: Json | None, finish: str | None) -> Json:
            return {"index": index, "delta": content, "logprobs": logprobs, "finish_reason": finish}

        made = [delta({"role": "assistant", "content": ""}, None, None)] if first else []
        if event.text or top is not None:
            made.append(delta({"content": event.text}, logprobs([event]), None))
        return [*made, delta({}, None, event.finish)] if event.finish else made

    return Format("chat.completion", "chat.completion.chunk", "chatcmpl", choice, deltas)
