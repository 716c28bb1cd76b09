"""POST /tokenize and /detokenize, as vLLM has them: texts as token ids, and back."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from annotated_types import Len
from fastapi import APIRouter, Request
from pydantic import Field

from cutaway.errors import CutawayError
from cutaway.serve.chat import as_template_message
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import Json, find_adapted
from cutaway.serve.schemas import Body, Message, Utf8
from cutaway.serve.served import Served

router = APIRouter()


class TokenizeRequest(Body):
    """Either prompt, or messages, which the chat template writes out. add_special_tokens: those around a prompt."""

    model: str | None = None
    prompt: Utf8 | None = None
    messages: Annotated[list[Message], Len(1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class DetokenizeRequest(Body):
    """tokens: of a text."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Json:
    """{count, max_model_len, tokens, token_strs}."""
    served = named(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt: give either this or messages", param="prompt", code="invalid_value")
    tokens = await asyncio.to_thread(ids_of, served, body)
    spelled = [served.loaded.tokenizer.display(token) for token in tokens] if body.return_token_strs else None
    return {"count": len(tokens), "max_model_len": served.context, "tokens": tokens, "token_strs": spelled}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Json:
    """{prompt}. Errors: ids that the vocabulary lacks."""
    served = named(request, body.model)
    vocab = served.loaded.spec.vocab
    if max(body.tokens, default=0) >= vocab:
        raise CutawayError(f"has token ids outside 0 ... {vocab - 1}", "tokens")
    decode = served.loaded.tokenizer.decode
    return {"prompt": await asyncio.to_thread(decode, body.tokens, skip_special=False)}


def ids_of(served: Served, body: TokenizeRequest) -> list[int]:
    """Token ids of what is asked about."""
    tokenizer = served.loaded.tokenizer
    if body.messages is None:
        return tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens)
    messages, variables = [as_template_message(m) for m in body.messages], dict(body.chat_template_kwargs)
    return tokenizer.chat(
        messages, **tokenizer.chat_variables(variables), add_generation_prompt=body.add_generation_prompt
    )


def named(request: Request, model: str | None) -> Served:
    """The model of that name; where there is one only, it need not be named."""
    models = request.app.state.models
    if model is None and len(models) != 1:
        raise ApiError(400, "model: is required, several are served", param="model", code="missing_required_parameter")
    return find_adapted(request, next(iter(models)) if model is None else model)
