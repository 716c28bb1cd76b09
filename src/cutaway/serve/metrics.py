"""What an operator watches, in Prometheus' format (GET /metrics): under our prefix, and again under vLLM's where vLLM
has the same figure, so that its dashboards work (vLLM, docs/design/metrics.md)."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.engine.engine import Step
from cutaway.engine.sequence import Event
from cutaway.engine.sequence import Sequence as Reply
from cutaway.serve import requestlog
from cutaway.serve.enginefigures import EngineFigures
from cutaway.serve.served import Models

M = TypeVar("M")
Labels = tuple[str, ...]

PREFIX, ALIAS = "cutaway:", "vllm:"
OURS = re.compile(r"^(?:# (?:HELP|TYPE) )?cutaway:(?:http_|page|step_|adapter)")  # what vLLM has not
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
COUNTS = tuple(2**k for k in range(18))  # tokens

# attribute: name, help, buckets
HISTOGRAMS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "first": ("time_to_first_token_seconds", "From the request to the first token.", LONG),
    "between": ("inter_token_latency_seconds", "Token to token.", SHORT),
    "each": ("request_time_per_output_token_seconds", "A sequence's mean from token to token.", SHORT),
    "whole": ("e2e_request_latency_seconds", "From the request to the last token.", LONG),
    "queued": ("request_queue_time_seconds", "From the request to its first step.", LONG),
    "prefill": ("request_prefill_time_seconds", "From the first step to the first token.", LONG),
    "decode": ("request_decode_time_seconds", "From the first token to the last.", LONG),
    "asked": ("request_prompt_tokens", "Tokens of a sequence's prompt.", COUNTS),
    "told": ("request_generation_tokens", "Tokens of a reply.", COUNTS),
    "batch": ("iteration_tokens_total", "Tokens that a step computed.", COUNTS),
    "step": ("step_seconds", "A step of the engine.", SHORT),
}


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, models: Models) -> None:
        registry = self.registry = CollectorRegistry()

        def make(kind: Callable[..., M], name: str, help: str, labels: Labels = ("model_name",), **more: Any) -> M:
            return kind(PREFIX + name, help, labels, registry=registry, **more)

        self.requests = make(Counter, "http_requests", "Answered requests.", ("route", "method", "status"))
        self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens read.")
        self.reply_tokens = make(Counter, "generation_tokens", "Tokens generated.")
        self.finished = make(Counter, "request_success", "Ended sequences.", ("model_name", "finished_reason"))
        self.histograms = {
            key: make(Histogram, name, help, buckets=buckets) for key, (name, help, buckets) in HISTOGRAMS.items()
        }
        services = {served.name: served.service for served in models.values() if served.service}
        registry.register(EngineFigures(PREFIX, services))
        for model, service in services.items():
            service.watchers.append(partial(self._step, model))

    def observe(self, key: str, model: str, value: float) -> None:
        """Into one of `HISTOGRAMS`."""
        self.histograms[key].labels(model).observe(value)

    def read(self, model: str, tokens: int) -> None:
        """Count what a request gave to read."""
        self.prompt_tokens.labels(model).inc(tokens)
        requestlog.current().prompt_tokens += tokens

    async def watch(
        self,
        model: str,
        prompt_tokens: int,
        events: AsyncGenerator[tuple[int, Event], None],
        sequences: Sequence[Reply] = (),
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Pass events on and take their times, for the figures and for the request's line in the log."""
        began, record, counts = time.monotonic(), requestlog.current(), dict[int, int]()
        between, made = self.histograms["between"].labels(model), self.reply_tokens.labels(model)
        first, last = dict[int, float](), dict[int, float]()
        record.finish = []
        try:
            async with aclosing(events):
                async for index, event in events:
                    now = time.monotonic()
                    if not last:
                        self.read(model, prompt_tokens)
                        record.first_token_s = now - began
                    if index in last:
                        between.observe(now - last[index])
                    else:
                        self.observe("first", model, now - began)
                        first[index] = now
                    last[index], counts[index] = now, counts.get(index, 0) + 1
                    record.completion_tokens += 1
                    made.inc()
                    if event.finish:
                        record.finish.append(event.finish)
                        self._ended(model, event.finish, first[index], now, counts[index])
                    yield index, event
            self.observe("whole", model, time.monotonic() - began)
        finally:
            self._begun(model, began, sequences, first)

    def _ended(self, model: str, finish: str, first: float, last: float, count: int) -> None:
        self.finished.labels(model, finish).inc()
        self.observe("told", model, count)
        self.observe("decode", model, last - first)
        if count > 1:
            self.observe("each", model, (last - first) / (count - 1))

    def _begun(self, model: str, began: float, sequences: Sequence[Reply], first: dict[int, float]) -> None:
        """Queue and prefill, once all is over; and who was never finished."""
        starts = [s.began for s in sequences if s.began is not None]
        requestlog.current().queue_s = max(0.0, min(starts) - began) if starts else None
        for index, sequence in enumerate(sequences):
            self.observe("asked", model, len(sequence.prompt))
            if sequence.began is not None:
                self.observe("queued", model, max(0.0, sequence.began - began))
            if sequence.began is not None and index in first:
                self.observe("prefill", model, first[index] - sequence.began)
            if sequence.finish in (None, "abort", "timeout", "error"):
                self.finished.labels(model, sequence.finish or "abort").inc()

    def _step(self, model: str, step: Step) -> None:
        self.observe("batch", model, sum(count for _, _, count, _, _ in step.spans))
        self.observe("step", model, step.seconds[1])

    def text(self) -> bytes:
        """All figures; those that vLLM has too stand there twice."""
        lines = generate_latest(self.registry).decode().splitlines(keepends=True)
        again = [line.replace(PREFIX, ALIAS, 1) for line in lines if PREFIX in line and not OURS.match(line)]
        return "".join([*lines, *again]).encode()

    def install(self, app: FastAPI) -> None:
        """Add the route and the counting to `app`."""
        app.add_middleware(CountRequests, metrics=self)

        @app.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            return Response(self.text(), media_type=CONTENT_TYPE_LATEST)


class CountRequests:
    """ASGI middleware. An unknown path counts as route "unrouted", so that no client can make up labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 500  # of an answer that never begins

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unrouted")
            method = scope["method"] if scope["method"] in {"GET", "POST", "OPTIONS", "HEAD"} else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
