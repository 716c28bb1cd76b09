"""POST /generate: a reply as it comes about, token by token, with what else could have come.

prompt                the prompt's tokens, as the model sees them
token, token, ...     each with probability, entropy, alternatives and what the settings did to them
done | error
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from annotated_types import Len
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Alternative
from cutaway.engine.sequence import Event
from cutaway.serve.chat import as_template_message
from cutaway.serve.connection import EventStream
from cutaway.serve.errors import as_api_error
from cutaway.serve.generation import check_prompt, decoder_service, find_decoder
from cutaway.serve.logprobs import LOWEST
from cutaway.serve.schemas import Body, Message, Stop
from cutaway.serve.served import Served
from cutaway.studio.model import spelled
from cutaway.text.tokenizer import Tokenizer

Json = dict[str, Any]

TRACE = 10  # alternatives per token
SETTINGS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
)

router = APIRouter()


class GenerateRequest(Body):
    """continue_tokens: with which the reply begins, for branching; max_tokens counts those that follow."""

    model: str
    messages: Annotated[list[Message], Len(1)]
    continue_tokens: list[int] = Field(default_factory=list)
    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = Field(default_factory=list)

    def params(self) -> SamplingParams:
        """Errors: a setting out of range, by name."""
        seed = secrets.randbits(32) if self.seed is None else self.seed
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        params = SamplingParams(**{name: getattr(self, name) for name in SETTINGS}, seed=seed, stop=stop)
        return replace(params, max_tokens=params.max_tokens + len(self.continue_tokens))


@router.post("/generate")
async def generate(body: GenerateRequest, request: Request) -> Response:
    """A stream of events; closing the connection stops the generation. Errors: as chat completions have them."""
    served = find_decoder(request, body.model)
    service = decoder_service(served)
    ours = {"tenant": request.state.tenant, "timeout": request.app.state.timeout}
    params = replace(body.params(), adapter=served.adapter, **ours)
    # In a thread: a long prompt must not hold up the streams of others.
    prompt = await asyncio.to_thread(prompt_of, served.loaded.tokenizer, body.messages)
    check_prompt(service, prompt + body.continue_tokens, "messages")
    events = service.stream(prompt, params, TRACE, body.continue_tokens)
    watched = request.app.state.metrics.watch(served.name, len(prompt), _numbered(events))
    return EventStream(typed(_told(served, prompt, body.continue_tokens, params, watched)))


def prompt_of(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    """The ids of a conversation; of the text that a base model, which has no template, goes on with."""
    turns = [as_template_message(message) for message in messages]
    if tokenizer.chat_template is not None:
        return tokenizer.chat(turns)
    texts = [t if isinstance(t, str) else "".join(part["text"] for part in t) for t in (m["content"] for m in turns)]
    return tokenizer.encode("".join(texts))


async def typed(items: AsyncGenerator[Json, None]) -> AsyncGenerator[Json, None]:
    """The items, and an error after the first of them as an item of its own."""
    async with aclosing(items):
        yield await anext(items)
        try:
            async for item in items:
                yield item
        except Exception as error:
            yield {"type": "error", **as_api_error(error).body()}


async def _numbered(events: AsyncGenerator[Event, None]) -> AsyncGenerator[tuple[int, Event], None]:
    async with aclosing(events):
        async for event in events:
            yield 0, event


async def _told(
    served: Served,
    prompt: list[int],
    kept: list[int],
    params: SamplingParams,
    events: AsyncGenerator[tuple[int, Event], None],
) -> AsyncGenerator[Json, None]:
    """The events of one sequence as the studio has them."""
    tokenizer = served.loaded.tokenizer
    yield {"type": "prompt", "tokens": spelled(tokenizer, prompt), "count": len(prompt)}
    clock, finish = [time.perf_counter()], ""
    texts = [*map(tokenizer.stream(continuing=True).push, kept)]
    async with aclosing(events):
        async for _, event in events:
            clock.append(time.perf_counter())
            texts.append(event.text)
            finish = event.finish or ""
            yield token(tokenizer, event, len(kept) + len(clock) - 2)
    usage = {"prompt_tokens": len(prompt), "kept_tokens": len(kept), "completion_tokens": len(clock) - 1}
    timing = timing_of(clock)
    text = "".join(texts)
    yield {"type": "done", "finish_reason": finish, "usage": usage, "timing": timing, "text": text, "seed": params.seed}


def token(tokenizer: Tokenizer, event: Event, index: int) -> Json:
    """One token of the reply. text: the characters that became certain with it, perhaps none."""
    choice = event.choice
    return {
        "type": "token",
        "index": index,
        "id": choice.token,
        "text": event.text,
        "display": tokenizer.display(choice.token),
        "logprob": max(choice.logprob, LOWEST),
        "probability": math.exp(choice.logprob),
        "entropy": choice.entropy,
        "rank": choice.rank,
        "candidates": choice.candidates,
        "alternatives": [alternative(tokenizer, a) for a in choice.alternatives],
    }


def alternative(tokenizer: Tokenizer, a: Alternative) -> Json:
    """A token that could have come. text: what it would add, nothing for a part of a character."""
    try:
        text = "" if a.id in tokenizer.special_ids else tokenizer.token_bytes(a.id).decode()
    except UnicodeDecodeError:
        text = ""
    display = tokenizer.display(a.id)
    cut = None if a.cut == "temperature" else a.cut  # greedy: no filter, the best is simply taken
    chances = {"probability": math.exp(a.logprob), "sampled": a.sampled, "cut": cut}
    return {"id": a.id, "text": text, "display": display, **chances}


def timing_of(clock: list[float]) -> Json:
    """Seconds from the request to the first token, from there to the last, and tokens per second of the latter."""
    first, decode = clock[min(1, len(clock) - 1)], clock[-1] - clock[min(1, len(clock) - 1)]
    rate = (len(clock) - 2) / decode if decode > 0 else 0.0
    return {"prefill_s": first - clock[0], "decode_s": decode, "tokens_per_s": rate}
