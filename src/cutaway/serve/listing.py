"""GET /v1/models and /health: what is there, and whether it works."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cutaway.serve.generation import Json, find_adapted
from cutaway.serve.served import Served

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Json:
    """Every model that is served, each before its adapters."""
    found = [s for served in request.app.state.models.values() for s in (served, *with_adapters(served))]
    return {"object": "list", "data": [described(served) for served in found]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Json:
    """One of them."""
    return described(find_adapted(request, name))


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while every engine is at work, else 503."""
    stopped = [served.name for served in request.app.state.models.values() if not served.alive]
    body = {"status": "stopped" if stopped else "ok", "stopped": stopped}
    return JSONResponse(body, 503 if stopped else 200)


def with_adapters(served: Served) -> list[Served]:
    """The model with each of its adapters."""
    return [replace(served, adapter=name) for name in served.adapters]


def described(served: Served) -> Json:
    """OpenAI's model object, and the context as vLLM names it; parent: the model that an adapter changes."""
    return {
        "id": served.called,
        "object": "model",
        "created": served.created,
        "owned_by": "cutaway",
        "max_model_len": served.context,
        "parent": served.name if served.adapter else None,
    }
