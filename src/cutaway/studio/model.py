"""The Model page: which models there are, their anatomy, what they cost, and the code behind each part."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from cutaway import __version__
from cutaway.errors import CutawayError, NotFound
from cutaway.models.anatomy import PACKAGE, Anatomist
from cutaway.models.cost import Cost
from cutaway.models.facts import facts
from cutaway.serve.generation import find
from cutaway.serve.served import Served
from cutaway.weights.sources import describe

router = APIRouter()

CONTEXT = 1024  # tokens seen by the token whose FLOPs the page shows, or fewer if the model takes fewer

Json = dict[str, Any]


def dtype_of(served: Served) -> str:
    """The dtype that the model computes in: "float32"."""
    return str(served.loaded.model.dtype).removeprefix("torch.")


@router.get("/models")
def models(request: Request) -> Json:
    """Every model that is served."""
    return {"models": [_summary(served) for served in request.app.state.models.values()], "version": __version__}


def _summary(served: Served) -> Json:
    spec = served.loaded.model.spec
    return {
        "id": served.name,
        "kind": "decoder" if served.service else "encoder",
        "family": spec.family,
        "context": served.context,
        "parameters": Cost(spec).parameters,
        "dtype": dtype_of(served),
        "chat": served.service is not None and served.loaded.tokenizer.chat_template is not None,
    }


@router.get("/model/{name:path}/cost")
def cost(name: str, request: Request, context: int = 2048, batch: int = 1, dtype: str = "float32") -> Json:
    """Memory for a number of sequences of a length. Errors: sizes below 1, an unknown dtype."""
    model = Cost(find(request, name).loaded.model.spec)
    return {
        "rows": [
            {"part": term.name, "bytes": term.value, "formula": term.numbers}
            for term in model.memory(context, batch, dtype)
        ],
        "flops_per_token": model.flops_per_token(context),
        "kv_bytes_per_token": model.kv_bytes_per_token(dtype).value,
    }


@router.get("/model/{name:path}")
def model(name: str, request: Request) -> Json:
    """A model opened: facts, spec and the tree of its parts."""
    served = find(request, name)
    stack, checkpoint, card = served.loaded.model, served.loaded.checkpoint, describe(name)
    context = min(CONTEXT, stack.spec.context)
    tree = Anatomist(stack, context, checkpoint.stored_type).draw()
    return {
        **_summary(served),
        "source": checkpoint.path.name,
        "license": card.license if card else None,
        "facts": [asdict(fact) for fact in facts(Cost(stack.spec), dtype_of(served), context)],
        "tree": tree.to_dict(),
        "spec": stack.spec.to_dict(),
    }


@router.get("/code")
def code(path: str) -> Json:
    """A source file of this package. Errors: anything else."""
    file = (PACKAGE / path).resolve()
    if not file.is_relative_to(PACKAGE) or file.suffix != ".py":
        raise CutawayError("is not a source file of this package", "path")
    if not file.is_file():
        raise NotFound("no such source file", "path")
    text = file.read_text("utf-8")
    return {"path": path, "text": text, "lines": text.count("\n")}
