"""POST /v1/completions: how texts go on."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from cutaway.engine.sequence import Event, Sequence
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import Answer, Format, Json, begin, compiled, find_decoder
from cutaway.serve.logprobs import completion_logprobs, of_prompt
from cutaway.serve.schemas import CompletionRequest
from cutaway.text.tokenizer import Tokenizer

router = APIRouter()


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """n continuations of each prompt; those of prompt i are the choices i * n ... i * n + n - 1."""
    served = find_decoder(request, body.model)
    tokenizer = served.loaded.tokenizer
    check(body)
    constraint = body.structured_outputs.constraint() if body.structured_outputs else None
    await compiled(constraint, tokenizer, "structured_outputs")
    rows = await asyncio.to_thread(token_rows, tokenizer, body.prompt)
    prompts = await asyncio.to_thread(texts_of, tokenizer, body.prompt) if body.echo else [""] * len(rows)
    generation = begin(
        request,
        body,
        served,
        rows,
        field="prompt",
        max_tokens=body.max_tokens or body.silent,  # what follows the prompt is computed, and not told
        top_logprobs=body.logprobs or 0,
        constraint=constraint,
    )
    format = completion_format(tokenizer, body, [p for p in prompts for _ in range(body.n)], generation.sequences)
    return await Answer(generation, format, body.n).respond(request)


def check(body: CompletionRequest) -> None:
    """Errors: what cannot be had together."""
    if body.choices < body.n:
        raise ApiError(400, f"best_of: must be at least n = {body.n}", param="best_of", code="invalid_value")
    if body.stream and body.choices > body.n:
        raise ApiError(400, "best_of: what is streamed cannot be ranked", param="best_of", code="invalid_value")


def texts_of(tokenizer: Tokenizer, given: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    """The prompts as text."""
    rows = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return [row if isinstance(row, str) else tokenizer.decode(row) for row in rows]  # type: ignore[arg-type]


def token_rows(tokenizer: Tokenizer, given: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """Token ids of one or several texts; what is given as ids is taken as it is."""
    rows = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return [tokenizer.encode(row) if isinstance(row, str) else row for row in rows]  # type: ignore[misc]


def completion_format(
    tokenizer: Tokenizer, body: CompletionRequest, echoes: list[str], sequences: list[Sequence]
) -> Format:
    """echoes: what each choice begins with. sequences: of the request, as soon as it has begun."""
    top = body.logprobs

    def described(index: int, events: list[Event], first: bool) -> Json:
        echo, said = echoes[index], [] if body.silent else events
        told = [(event.choice, len(echo) + event.offset) for event in said]
        if first and body.echo and top is not None:
            told = [*of_prompt(tokenizer, sequences[index * body.choices // body.n], echo), *told]
        logprobs = None if top is None else completion_logprobs(tokenizer, told, top)
        text = echo * first + "".join(event.text for event in said)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": events[-1].finish}

    def choice(index: int, events: list[Event]) -> Json:
        return described(index, events, True)

    def deltas(index: int, event: Event, first: bool) -> list[Json]:
        made = described(index, [event], first)
        return [made] if made["text"] or event.finish or top is not None else []

    return Format("text_completion", "text_completion", "cmpl", choice, deltas)
