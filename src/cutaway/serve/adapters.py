"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them: adapters come and go while a model serves.

A path names files of this machine, so only those below one folder are read, and only if the server was given one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from cutaway.errors import CutawayError
from cutaway.serve.errors import ApiError
from cutaway.serve.schemas import ANY, Body, Inert, Utf8
from cutaway.serve.served import Models, Served, adapted

router = APIRouter()


class LoadRequest(Body):
    """lora_path: below the folder of adapters. model: which to adapt, where several are served."""

    inert: ClassVar[Inert] = {"load_inplace": (False,), "is_3d_lora_weight": (False,)}
    lora_name: Utf8
    lora_path: Utf8
    model: str | None = None


class UnloadRequest(Body):
    """lora_name: no request may ask for it any more; those that run with it end with it."""

    inert: ClassVar[Inert] = {"lora_int_id": ANY}
    lora_name: Utf8


@router.post("/v1/load_lora_adapter")
async def load_adapter(body: LoadRequest, request: Request) -> Response:
    """Make a folder known under a name. Errors: 403, 404, and 400 for what cannot be used."""
    source = inside(allowed(request), body.lora_path)
    await asyncio.to_thread(load, request.app.state.models, body.lora_name, source, body.model)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter")
async def unload_adapter(body: UnloadRequest, request: Request) -> Response:
    """Forget a name. Errors: 403, 404."""
    allowed(request)
    served = adapted(request.app.state.models, body.lora_name)
    if served is None or served.service is None:
        message = f"lora_name: no adapter {body.lora_name!r} is loaded"
        raise ApiError(404, message, param="lora_name", code="not_found")
    served.service.engine.adapters.unload(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def allowed(request: Request) -> Path:
    """The folder of adapters. Errors: 403 without one."""
    folder: Path | None = request.app.state.adapters_from
    if folder is None:
        message = "adapters are not loaded or unloaded over HTTP here; `cutaway serve --adapters-from FOLDER` allows it"
        raise ApiError(403, message, code="adapters_not_allowed")
    return folder.resolve()


def inside(folder: Path, path: str) -> Path:
    """A path below the folder, links followed. Errors: 404 for any other, there or not."""
    try:
        found = (folder / path).resolve()
        if found.is_relative_to(folder) and found.is_dir():
            return found
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, links in a circle
        pass
    raise ApiError(
        404, f"lora_path: there is no such folder of adapters: {path!r}", param="lora_path", code="not_found"
    )


def load(models: Models, name: str, source: Path, base: str | None = None) -> None:
    """Load an adapter for the only decoder, or for that named `base`. Errors: as of `Adapters.load`; a taken name."""
    if name in models or adapted(models, name):
        raise CutawayError(f"{name!r} is the name of a model or adapter already", "lora_name", "choose another")
    service = _decoder(models, base).service
    assert service is not None
    service.engine.adapters.load(name, source)


def _decoder(models: Models, base: str | None) -> Served:
    decoders = {s.name: s for s in models.values() if s.service is not None}
    chosen = [*decoders.values()] if base is None else [decoders[base]] if base in decoders else []
    if len(chosen) != 1:
        what = "is required, several decoders are served" if chosen else "names no decoder here"
        raise CutawayError(what, "model", f"there is {', '.join(decoders) or 'none'}")
    return chosen[0]
