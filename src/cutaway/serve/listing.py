"""GET /v1/models and /health: what is there, and whether it works."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cutaway.serve.generation import Json, find
from cutaway.serve.served import Served

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Json:
    """Every model that is served."""
    return {"object": "list", "data": [described(served) for served in request.app.state.models.values()]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Json:
    """One of them."""
    return described(find(request, name))


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while every engine is at work, else 503."""
    stopped = [served.name for served in request.app.state.models.values() if not served.alive]
    body = {"status": "stopped" if stopped else "ok", "stopped": stopped}
    return JSONResponse(body, 503 if stopped else 200)


def described(served: Served) -> Json:
    """OpenAI's model object, and the context as vLLM names it."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "cutaway",
        "max_model_len": served.context,
    }
