"""POST /v1/completions: how texts go on."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from cutaway.engine.sequence import Event
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import Format, Json, begin, decoder_service, find
from cutaway.serve.logprobs import completion_logprobs
from cutaway.serve.schemas import CompletionRequest
from cutaway.text.tokenizer import Tokenizer

router = APIRouter()


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """n continuations of each prompt; those of prompt i are the choices i * n ... i * n + n - 1."""
    served = find(request, body.model)
    decoder_service(served)
    tokenizer = served.loaded.tokenizer
    if body.best_of not in (None, body.n):
        raise ApiError(400, "best_of: must equal n, nothing is ranked", param="best_of", code="unsupported_parameter")
    generation = begin(
        request,
        body,
        served,
        await asyncio.to_thread(token_rows, tokenizer, body.prompt),
        field="prompt",
        max_tokens=body.max_tokens,
        top_logprobs=body.logprobs or 0,
        format=completion_format(tokenizer, body.logprobs),
    )
    return await generation.respond(request)


def token_rows(tokenizer: Tokenizer, given: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """Token ids of one or several texts; what is given as ids is taken as it is."""
    rows = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return [tokenizer.encode(row) if isinstance(row, str) else row for row in rows]  # type: ignore[misc]


def completion_format(tokenizer: Tokenizer, top: int | None) -> Format:
    """top: how many alternatives to report per token, None for no log-probabilities at all."""

    def choice(index: int, events: list[Event]) -> Json:
        logprobs = None if top is None else completion_logprobs(tokenizer, events, top)
        text = "".join(e.text for e in events)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": events[-1].finish}

    def deltas(index: int, event: Event, first: bool) -> list[Json]:
        worth = event.text or event.finish or top is not None
        return [choice(index, [event])] if worth else []

    return Format("text_completion", "text_completion", "cmpl", choice, deltas)
