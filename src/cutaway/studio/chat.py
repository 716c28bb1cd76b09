"""The Chat page: generation with everything that can be told about each token.

Branching needs nothing special: the page sends the tokens of the reply that stay, and generation goes on behind
them. Presence and frequency penalties count the tokens drawn since; the repetition penalty counts all.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from math import exp
from typing import Annotated, Any

from annotated_types import Len
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Alternative
from cutaway.engine.sequence import Event
from cutaway.engine.service import Service
from cutaway.errors import CutawayError
from cutaway.serve.chat import as_template_message
from cutaway.serve.connection import EventStream
from cutaway.serve.generation import decoder_service, find
from cutaway.serve.schemas import Body, Message, Sampling, Utf8
from cutaway.text.tokenizer import Tokenizer

router = APIRouter()

ALTERNATIVES = 10

Json = dict[str, Any]


class GenerateRequest(Sampling):
    """continue_tokens: the beginning of the reply, which is kept."""

    messages: Annotated[list[Message], Len(1)]
    continue_tokens: list[int] = []
    max_tokens: int = Field(256, ge=1)


class TokenizeRequest(Body):
    """A text, and the model whose tokenizer is asked."""

    model: str
    text: Utf8


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Json:
    """A text as the model's tokens."""
    tokenizer = find(request, body.model).loaded.tokenizer
    ids = await asyncio.to_thread(tokenizer.encode, body.text, add_special=False)
    return {"tokens": [spelled(tokenizer, id) for id in ids]}


@router.post("/generate")
async def generate(body: GenerateRequest, request: Request) -> Response:
    """A stream: the prompt as tokens, each token with its alternatives, the end with times."""
    served = find(request, body.model)
    service = decoder_service(served)
    prompt = await asyncio.to_thread(served.loaded.tokenizer.chat, [as_template_message(m) for m in body.messages])
    _check(service, prompt, body.continue_tokens)
    seed = secrets.randbits(32) if body.seed is None else body.seed
    room = served.context - len(prompt) - len(body.continue_tokens)
    params = body.params(seed, min(body.max_tokens, max(room, 1)), 0)
    return EventStream(_events(service, served.loaded.tokenizer, prompt, body.continue_tokens, params))


def _check(service: Service, prompt: list[int], kept: list[int]) -> None:
    try:
        service.engine.check(prompt + kept)
    except CutawayError as error:
        raise type(error)(error.what, "messages", error.hint) from None


async def _events(
    service: Service, tokenizer: Tokenizer, prompt: list[int], kept: list[int], params: SamplingParams
) -> AsyncGenerator[Json, None]:
    yield {"type": "prompt", "tokens": [spelled(tokenizer, id) for id in prompt], "count": len(prompt)}
    began, first, texts, event = time.perf_counter(), 0.0, [tokenizer.decode(kept)], None
    async with aclosing(service.stream(prompt + kept, params, ALTERNATIVES)) as events:
        async for event in events:
            first = first or time.perf_counter()
            yield {"type": "token", "index": len(kept) + len(texts) - 1, **_described(tokenizer, event)}
            texts.append(event.text)
    drawn, ended = len(texts) - 1, time.perf_counter()
    yield {
        "type": "done",
        "finish_reason": event.finish if event else None,
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(kept) + drawn},
        "timing": {
            "prefill_s": first - began,
            "decode_s": ended - first,
            "tokens_per_s": (drawn - 1) / (ended - first) if drawn > 1 else 0.0,
        },
        "text": "".join(texts),
    }


def spelled(tokenizer: Tokenizer, id: int) -> Json:
    """A token as text, empty if it is less than a character, and for the eye."""
    text = tokenizer.token_bytes(id).decode("utf-8", "ignore") if id not in tokenizer.special_ids else ""
    return {"id": id, "text": text, "display": tokenizer.display(id)}


def _described(tokenizer: Tokenizer, event: Event) -> Json:
    choice = event.choice
    return {
        **spelled(tokenizer, choice.token),
        "text": event.text,
        "logprob": choice.logprob,
        "probability": exp(choice.logprob),
        "entropy": choice.entropy,
        "rank": choice.rank,
        "candidates": choice.candidates,
        "alternatives": [_alternative(tokenizer, a) for a in choice.alternatives],
    }


def _alternative(tokenizer: Tokenizer, a: Alternative) -> Json:
    return {**spelled(tokenizer, a.id), "probability": exp(a.logprob), "sampled": a.sampled, "cut": a.cut}
