"""GET /models, /model/ID, /model/ID/cost and POST /tokenize: what is served, and what it is made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from cutaway import __version__
from cutaway.models.anatomy import Anatomist
from cutaway.models.decoder import Decoder
from cutaway.models.facts import facts
from cutaway.serve.generation import find
from cutaway.serve.schemas import Body, Utf8
from cutaway.serve.served import Served
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights import sources
from cutaway.weights.inspection import context_of

Json = dict[str, Any]

router = APIRouter()


@router.get("/models")
def models(request: Request) -> Json:
    """Every model that is served, in a line each."""
    return {"models": [_summary(served) for served in request.app.state.models.values()], "version": __version__}


@router.get("/model/{name:path}/cost")
def cost(name: str, request: Request, context: int | None = None, batch: int = 1, dtype: str | None = None) -> Json:
    """What it takes to run the model. Errors: sizes below 1, a context beyond the model's, an unknown dtype."""
    model = find(request, name).loaded.model
    context, dtype = context_of(model.spec, context), dtype or _name(model.dtype)
    terms = model.cost.memory(context, batch, dtype)
    return {
        "rows": [{"part": t.name, "bytes": t.value, "formula": t.numbers, "symbols": t.formula} for t in terms],
        "flops_per_token": model.cost.flops_per_token(context),
        "kv_bytes_per_token": model.cost.kv_bytes_per_token(dtype).value,
        "context": context,
        "batch": batch,
        "dtype": dtype,
    }


@router.get("/model/{name:path}")
def model(name: str, request: Request, context: int | None = None) -> Json:
    """The model opened. context: tokens that the token sees whose FLOPs are counted."""
    served = find(request, name)
    model, opened = served.loaded.model, served.loaded.checkpoint
    context = context_of(model.spec, context)
    return _summary(served) | {
        "source": opened.path.name,
        "license": _license(served),
        "counted_context": context,
        "facts": [asdict(fact) for fact in facts(model.cost, _name(model.dtype), context)],
        "tree": Anatomist(model, context, opened.stored_type).draw().to_dict(),
        "spec": model.spec.to_dict(),
    }


class TokenizeRequest(Body):
    """POST /tokenize."""

    model: str
    text: Utf8


@router.post("/tokenize")
def tokenize(body: TokenizeRequest, request: Request) -> Json:
    """The tokens of a text, without those that the model puts around it."""
    tokenizer = find(request, body.model).loaded.tokenizer
    return {"tokens": spelled(tokenizer, tokenizer.encode(body.text, add_special=False))}


def spelled(tokenizer: Tokenizer, ids: list[int]) -> list[Json]:
    """Tokens of one text: what each adds to it, and how it looks by itself."""
    stream = tokenizer.stream(skip_special=False, continuing=True)
    return [{"id": id, "text": stream.push(id), "display": tokenizer.display(id)} for id in ids]


def _summary(served: Served) -> Json:
    model, tokenizer = served.loaded.model, served.loaded.tokenizer
    decoder = isinstance(model, Decoder)
    return {
        "id": served.name,
        "kind": "decoder" if decoder else "encoder",
        "family": model.spec.family,
        "context": served.context,
        "parameters": model.cost.parameters,
        "dtype": _name(model.dtype),
        "chat": decoder and tokenizer.chat_template is not None,
    }


def _license(served: Served) -> str | None:
    """Known of models that were pulled."""
    path = served.loaded.checkpoint.path
    return next((entry.license or None for entry in sources.pulled() if entry.path == path), None)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
