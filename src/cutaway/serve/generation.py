"""From a validated request to the events of its sequences: what chat and text completions share."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi import Request
from starlette.responses import JSONResponse, Response

from cutaway.engine.sequence import Event
from cutaway.engine.service import Request as EngineRequest
from cutaway.engine.service import Service
from cutaway.errors import CutawayError
from cutaway.serve.connection import EventStream, while_connected
from cutaway.serve.errors import ApiError
from cutaway.serve.metrics import Metrics
from cutaway.serve.schemas import Sampling
from cutaway.serve.served import Models, Served

Json = dict[str, Any]
Item = tuple[int, Event]


def find(request: Request, name: str) -> Served:
    """The model that a client names. Errors: 404."""
    models: Models = request.app.state.models
    if name not in models:
        known = ", ".join(models)
        raise ApiError(404, f"no model {name!r} here; there is {known}", param="model", code="model_not_found")
    return models[name]


def decoder_service(served: Served) -> Service:
    """The service of a model that generates. Errors: 400 for one that does not."""
    if served.service is None:
        message = f"{served.name} is an encoder: it makes embeddings, it cannot generate"
        raise ApiError(400, message, param="model", code="model_not_supported")
    return served.service


@dataclass(frozen=True)
class Format:
    """How one of the two APIs writes an answer.

    kind, chunk_kind: "object" of an answer and of a stream's chunks. prefix: of ids.
    choice: (index, all events of the sequence) -> its choice.
    deltas: (index, event, is it the sequence's first?) -> the choices of the chunks that it is worth.
    """

    kind: str
    chunk_kind: str
    prefix: str
    choice: Callable[[int, list[Event]], Json]
    deltas: Callable[[int, Event, bool], list[Json]]


@dataclass(frozen=True)
class Generation:
    """One request under way: `n` sequences for each of `prompts`, all of one model."""

    body: Sampling
    served: Served
    prompts: list[list[int]]
    requests: list[EngineRequest]
    metrics: Metrics
    format: Format
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    async def respond(self, request: Request) -> Response:
        """The whole answer, or the stream of its parts."""
        if self.body.stream:
            return EventStream(self._chunks(), last="data: [DONE]\n\n")
        return JSONResponse(await while_connected(request.receive, self._whole()))

    def _events(self) -> AsyncGenerator[Item, None]:
        events = decoder_service(self.served).stream_all(self.requests)
        return self.metrics.watch(self.served.name, self.prompt_tokens, events)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts. A prompt counts once, however many replies it gets."""
        return sum(map(len, self.prompts))

    async def _whole(self) -> Json:
        replies: list[list[Event]] = [[] for _ in self.requests]
        async with aclosing(self._events()) as events:
            async for index, event in events:
                replies[index].append(event)
        choices = [self.format.choice(index, reply) for index, reply in enumerate(replies)]
        return self._head(self.format.kind) | {"choices": choices, "usage": self._usage(sum(map(len, replies)))}

    async def _chunks(self) -> AsyncGenerator[Json, None]:
        head, counts = self._head(self.format.chunk_kind), [0] * len(self.requests)
        blank = {"usage": None} if self.body.include_usage else {}
        async with aclosing(self._events()) as events:
            async for index, event in events:
                for delta in self.format.deltas(index, event, counts[index] == 0):
                    yield head | {"choices": [delta]} | blank
                counts[index] += 1
        if self.body.include_usage:
            yield head | {"choices": [], "usage": self._usage(sum(counts))}

    def _head(self, kind: str) -> Json:
        name = f"{self.format.prefix}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.served.name}

    def _usage(self, completion_tokens: int) -> Json:
        """A reply's end token counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


def begin(
    request: Request,
    body: Sampling,
    served: Served,
    prompts: list[list[int]],
    *,
    field: str,
    max_tokens: int | None,
    top_logprobs: int,
    format: Format,
) -> Generation:
    """Check everything that can be checked before computing. field: where the prompt stood in the request.

    Errors: 400, naming the field; also for more sequences than are ever computed and queued at once.
    """
    service = decoder_service(served)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: is for streams only", param="stream_options", code="invalid_value")
    if len(prompts) * body.n > service.gate.room:
        count = f"{len(prompts)} x n = {body.n} sequences"
        message = f"{field}: {count} are more than the {service.gate.room} that this server takes"
        raise ApiError(400, message, param=field, code="invalid_value")
    if max_tokens is not None and max_tokens > served.context:
        raise ApiError(
            400, f"max_tokens: the context holds {served.context} tokens", param="max_tokens", code="invalid_value"
        )
    seed = secrets.randbits(63) if body.seed is None else body.seed
    requests = []
    for prompt in prompts:
        check_prompt(service, prompt, field)
        limit = served.context - len(prompt) if max_tokens is None else max_tokens
        requests += [(prompt, body.params(seed + choice, limit, top_logprobs)) for choice in range(body.n)]
    return Generation(body, served, prompts, requests, request.app.state.metrics, format)


def check_prompt(service: Service, prompt: list[int], field: str) -> None:
    """Errors: those of `Engine.check`, blamed on the request's field that the prompt comes from."""
    try:
        service.engine.check(prompt)
    except CutawayError as error:
        raise type(error)(error.what, field, error.hint) from None
