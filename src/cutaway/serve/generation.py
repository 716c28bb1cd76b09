"""From a validated request to the events of its sequences: what chat and text completions share."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi import Request
from starlette.responses import JSONResponse, Response

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.sequence import Event, Sequence
from cutaway.engine.service import Request as EngineRequest
from cutaway.engine.service import Service
from cutaway.errors import CutawayError
from cutaway.serve import requestlog
from cutaway.serve.connection import EventStream, while_connected
from cutaway.serve.errors import ApiError
from cutaway.serve.metrics import Metrics
from cutaway.serve.schemas import Drawing
from cutaway.serve.served import Models, Served, adapted
from cutaway.text.tokenizer import Tokenizer

Json = dict[str, Any]
Item = tuple[int, Event]


def find(request: Request, name: str) -> Served:
    """The model that a client names. Errors: 404, for names of adapters too."""
    models: Models = request.app.state.models
    return _found(name, models.get(name), models)


def find_adapted(request: Request, name: str) -> Served:
    """The model that a client names, by its own name or by that of an adapter it is to use. Errors: 404."""
    models: Models = request.app.state.models
    return _found(name, models.get(name) or adapted(models, name), models)


def find_decoder(request: Request, name: str) -> Served:
    """The same, one that generates. Errors: 404; 400 for an encoder."""
    served = find_adapted(request, name)
    decoder_service(served)
    return served


def _found(name: str, served: Served | None, models: Models) -> Served:
    if served is None:
        known = ", ".join(n for some in models.values() for n in (some.name, *some.adapters))
        raise ApiError(404, f"no model {name!r} here; there is {known}", param="model", code="model_not_found")
    requestlog.current().model = name
    return served


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
    reasoned: how many tokens were thoughts, in the end.
    """

    kind: str
    chunk_kind: str
    prefix: str
    choice: Callable[[int, list[Event]], Json]
    deltas: Callable[[int, Event, bool], list[Json]]
    reasoned: Callable[[], int] = lambda: 0


@dataclass(frozen=True)
class Generation:
    """One request under way: `body.choices` sequences for each of `prompts`, all of one model.

    sequences: known once it has begun.
    """

    body: Drawing
    served: Served
    prompts: list[list[int]]
    requests: list[EngineRequest]
    metrics: Metrics
    sequences: list[Sequence] = field(default_factory=list)

    async def events(self) -> AsyncGenerator[Item, None]:
        """Events of the sequences as they come."""
        service = decoder_service(self.served)
        self.sequences.extend(service.prepare(self.requests))
        events = service.follow(self.sequences)
        watched = self.metrics.watch(self.served.name, self.prompt_tokens, events, self.sequences)
        async with aclosing(watched):
            async for item in watched:
                yield item

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts. A prompt counts once, however many replies it gets."""
        return sum(map(len, self.prompts))

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts whose keys and values were there already."""
        return sum(sequence.cached for sequence in self.sequences[:: self.body.choices])

    @property
    def predicted(self) -> dict[str, int]:
        """Tokens of a prediction that were computed, by whether the replies have them."""
        counts = [sequence.predicted for sequence in self.sequences]
        names = "accepted_prediction_tokens", "rejected_prediction_tokens"
        return {name: sum(count[i] for count in counts) for i, name in enumerate(names)}


@dataclass(frozen=True)
class Answer:
    """What a client of one of the two APIs gets of a generation."""

    generation: Generation
    format: Format
    n: int
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    async def respond(self, request: Request) -> Response:
        """The whole answer, or the stream of its parts."""
        if self.generation.body.stream:
            return EventStream(self._chunks(), last="data: [DONE]\n\n")
        return JSONResponse(await while_connected(request.receive, self._whole()))

    async def _whole(self) -> Json:
        replies: list[list[Event]] = [[] for _ in self.generation.requests]
        async with aclosing(self.generation.events()) as events:
            async for index, event in events:
                replies[index].append(event)
        best = [events for _, events in best_of(replies, self.generation.body.choices, self.n)]
        choices = [self.format.choice(index, reply) for index, reply in enumerate(best)]
        return self._head(self.format.kind) | {"choices": choices, "usage": self._usage(sum(map(len, replies)))}

    async def _chunks(self) -> AsyncGenerator[Json, None]:
        head, counts = self._head(self.format.chunk_kind), [0] * len(self.generation.requests)
        blank = {"usage": None} if self.generation.body.include_usage else {}
        async with aclosing(self.generation.events()) as events:
            async for index, event in events:
                for delta in self.format.deltas(index, event, counts[index] == 0):
                    yield head | {"choices": [delta]} | blank
                counts[index] += 1
        if self.generation.body.include_usage:
            yield head | {"choices": [], "usage": self._usage(sum(counts))}

    def _head(self, kind: str) -> Json:
        name = f"{self.format.prefix}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.generation.served.called}

    def _usage(self, completion_tokens: int) -> Json:
        """A reply's end token counts."""
        completion_tokens *= not self.generation.body.silent
        return {
            "prompt_tokens": self.generation.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.generation.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.generation.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.format.reasoned()} | self.generation.predicted,
        }


def best_of(replies: list[list[Event]], of: int, n: int) -> list[tuple[int, list[Event]]]:
    """The n most probable per token of each `of` replies, best first where there is something to choose."""
    numbered = [*enumerate(replies)]
    if of == n:
        return numbered
    groups = (numbered[i : i + of] for i in range(0, len(numbered), of))
    return [reply for group in groups for reply in sorted(group, key=lambda r: -mean_logprob(r[1]))[:n]]


def mean_logprob(events: list[Event]) -> float:
    return sum(event.choice.logprob for event in events) / len(events)


def begin(
    request: Request,
    body: Drawing,
    served: Served,
    prompts: list[list[int]],
    *,
    field: str,
    max_tokens: int | None,
    top_logprobs: int = 0,
    constraint: ConstraintSpec | None = None,
    prediction: tuple[int, ...] = (),
) -> Generation:
    """Check everything that can be checked before computing. field: where the prompt stood in the request.

    Errors: 400, naming the field; also for more sequences than are ever computed and queued at once.
    """
    service = decoder_service(served)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: is for streams only", param="stream_options", code="invalid_value")
    if len(prompts) * body.choices > service.gate.room:
        count = f"{len(prompts)} x n = {body.choices} sequences"
        message = f"{field}: {count} are more than the {service.gate.room} that this server takes"
        raise ApiError(400, message, param=field, code="invalid_value")
    if max_tokens is not None and max_tokens > served.context:
        raise ApiError(
            400, f"max_tokens: the context holds {served.context} tokens", param="max_tokens", code="invalid_value"
        )
    if body.min_tokens > served.context:
        raise ApiError(400, "min_tokens: exceeds the context", param="min_tokens", code="invalid_value")
    seed = secrets.randbits(63) if body.seed is None else body.seed
    others: Json = {"top_logprobs": top_logprobs, "constraint": constraint, "prediction": prediction}
    others |= {"adapter": served.adapter, "tenant": request.state.tenant, "timeout": request.app.state.timeout}
    requests = []
    for prompt in prompts:
        check_prompt(service, prompt, field)
        limit = served.context - len(prompt) if max_tokens is None else max_tokens
        requests += [(prompt, body.params(seed=seed + i, max_tokens=limit, **others)) for i in range(body.choices)]
    return Generation(body, served, prompts, requests, request.app.state.metrics)


def check_prompt(service: Service, prompt: list[int], field: str) -> None:
    """Errors: those of `Engine.check`, blamed on the request's field that the prompt comes from."""
    try:
        service.engine.check(prompt)
    except CutawayError as error:
        raise type(error)(error.what, field, error.hint) from None


async def compiled(constraint: ConstraintSpec | None, tokenizer: Tokenizer, field: str) -> None:
    """Compile a constraint where it holds up nobody; the engine finds it ready. field: what it came from.

    Errors: those of `ConstraintSpec.compile`, blamed on that field.
    """
    if constraint is None:
        return
    try:
        await asyncio.to_thread(constraint.compile, tokenizer)
    except CutawayError as error:
        where = error.where if error.where.startswith("tools") else field
        raise CutawayError(error.what, where, error.hint) from None


def one_of(**given: ConstraintSpec | None) -> tuple[str, ConstraintSpec | None]:
    """The constraint that is given, and the field it comes from. Errors: two."""
    named = {name: constraint for name, constraint in given.items() if constraint}
    if len(named) > 1:
        raise CutawayError(f"cannot be combined with {', '.join(list(named)[:-1])}", [*named][-1])
    return next(iter(named.items()), ("", None))
