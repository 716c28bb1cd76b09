"""What an operator watches, in Prometheus' format, under vLLM's names with our prefix (GET /metrics)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.engine.sequence import Event
from cutaway.engine.service import Service
from cutaway.serve.served import Models

M = TypeVar("M")
Labels = tuple[str, ...]

PREFIX = "cutaway:"
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


def waiting(service: Service) -> int:
    """Sequences that were let in but are not computed yet."""
    return max(0, service.gate.inside - len(service.engine.scheduler.running))


GAUGES: tuple[tuple[str, str, Callable[[Service], float]], ...] = (
    ("num_requests_running", "Sequences being computed.", lambda service: len(service.engine.scheduler.running)),
    ("num_requests_waiting", "Sequences accepted, not begun.", waiting),
)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, models: Models) -> None:
        registry = self.registry = CollectorRegistry()

        def make(kind: Callable[..., M], name: str, help: str, labels: Labels = ("model_name",), **more: Any) -> M:
            return kind(PREFIX + name, help, labels, registry=registry, **more)

        self.requests = make(Counter, "http_requests", "Answered requests.", ("route", "method", "status"))
        self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens read.")
        self.reply_tokens = make(Counter, "generation_tokens", "Tokens generated.")
        self.finished = make(Counter, "request_success", "Finished sequences.", ("model_name", "finished_reason"))
        self.first = make(Histogram, "time_to_first_token_seconds", "To the first token.", buckets=LONG)
        self.between = make(Histogram, "inter_token_latency_seconds", "Token to token.", buckets=SHORT)
        self.whole = make(Histogram, "e2e_request_latency_seconds", "To the last token.", buckets=LONG)
        for name, help, read in GAUGES:
            gauge = make(Gauge, name, help)
            for served in models.values():
                if served.service:
                    gauge.labels(served.name).set_function(partial(read, served.service))

    async def watch(
        self, model: str, prompt_tokens: int, events: AsyncGenerator[tuple[int, Event], None]
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Pass events on and take their times."""
        began = time.perf_counter()
        last: dict[int, float] = {}
        async with aclosing(events):
            async for index, event in events:
                if not last:
                    self.prompt_tokens.labels(model).inc(prompt_tokens)
                now = time.perf_counter()
                delay = self.between if index in last else self.first
                delay.labels(model).observe(now - last.get(index, began))
                last[index] = now
                self.reply_tokens.labels(model).inc()
                if event.finish:
                    self.finished.labels(model, event.finish).inc()
                yield index, event
        self.whole.labels(model).observe(time.perf_counter() - began)

    def install(self, app: FastAPI) -> None:
        """Add the route and the counting to `app`."""
        app.add_middleware(CountRequests, metrics=self)

        @app.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


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
