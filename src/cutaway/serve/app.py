"""The application: routes, guards and metrics around a mapping of models.

`models` maps the name that clients use to a `Served`: its `loaded` model and tokenizer, and the `service`
that generates (None for an encoder). Whoever makes the mapping closes the models in it. More routes may be
added to the application, as the studio's are; they find the mapping in `app.state.models`, guarded alike.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from cutaway import __version__
from cutaway.serve import (
    adapters,
    chat,
    completions,
    embeddings,
    errors,
    lifecycle,
    listing,
    messages,
    rerank,
    responses,
    tokens,
)
from cutaway.serve.anthropic_errors import AnthropicErrors
from cutaway.serve.guard import Guard, Policy
from cutaway.serve.lifecycle import Drain, Lifecycle
from cutaway.serve.memory import Memory
from cutaway.serve.metrics import Metrics
from cutaway.serve.requestlog import RequestLog
from cutaway.serve.served import Models, Served, serve_model

__all__ = ["Models", "Policy", "Served", "create_app", "serve_model"]


def create_app(
    models: Models, policy: Policy | None = None, log_prompts: bool = False, adapters_from: Path | None = None
) -> FastAPI:
    """An ASGI application that serves `models` under `policy` (by default to this machine alone).

    adapters_from: the folder below which clients may have LoRA adapters loaded; None: they may not.
    """
    policy = policy or Policy()
    # The interactive pages would load scripts from elsewhere; the description at /openapi.json remains.
    app = FastAPI(title="Cutaway", version=__version__, docs_url=None, redoc_url=None)
    app.state.models, app.state.metrics, app.state.lifecycle = models, Metrics(models), Lifecycle()
    app.state.memories, app.state.adapters_from = defaultdict[str, Memory](Memory), adapters_from
    app.state.timeout = policy.timeout
    errors.install(app)
    for resource in (adapters, chat, completions, embeddings, listing, lifecycle, messages, rerank, responses, tokens):
        app.include_router(resource.router)
    app.add_middleware(Guard, policy=policy)
    if policy.origins:
        app.add_middleware(CORSMiddleware, allow_origins=[*policy.origins], allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Drain, lifecycle=app.state.lifecycle)
    app.add_middleware(AnthropicErrors)
    app.state.metrics.install(app)
    app.add_middleware(RequestLog, prompts=log_prompts)
    return app
