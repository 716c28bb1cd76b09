"""POST /v1/responses and what belongs to it: a conversation that the server may remember, as OpenAI has it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cutaway.serve.chat import as_call
from cutaway.serve.connection import EventStream, while_connected
from cutaway.serve.dialogue import Json, Wish, plan
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import begin, compiled, find_decoder, one_of
from cutaway.serve.memory import Memory, memory_of
from cutaway.serve.response_stream import Making, in_stream
from cutaway.serve.responses_schemas import (
    CallItem,
    FunctionChoice,
    InputTokensRequest,
    Item,
    OutputItem,
    Piece,
    Prompted,
    ReasoningItem,
    ResponsesRequest,
)

router = APIRouter()


@router.post("/v1/responses")
async def create(body: ResponsesRequest, request: Request) -> Response:
    """A response, whole or streamed."""
    served = find_decoder(request, body.model)
    memory = memory_of(request)
    wish, turns = wished(body, memory)
    outputs = body.structured_outputs.constraint() if body.structured_outputs else None
    field, constraint = one_of(text=wish.constraint, structured_outputs=outputs)
    wish = replace(wish, constraint=constraint)
    planned = await asyncio.to_thread(plan, served.loaded.tokenizer, wish, served.calls)
    await compiled(planned.constraint, served.loaded.tokenizer, field or "tools")
    generation = begin(
        request, body, served, [planned.prompt], field="input", max_tokens=body.max_output_tokens,
        constraint=planned.constraint,
    )  # fmt: skip
    making = Making(generation, body, planned, memory if body.store else None, turns)
    if body.stream:
        return EventStream(in_stream(making), named=True)
    return JSONResponse(await while_connected(request.receive, making.whole()))


@router.post("/v1/responses/input_tokens")
async def input_tokens(body: InputTokensRequest, request: Request) -> Json:
    """How long the prompt would be."""
    served = find_decoder(request, body.model)
    wish, _ = wished(body, memory_of(request))
    planned = await asyncio.to_thread(plan, served.loaded.tokenizer, wish, served.calls)
    return {"object": "response.input_tokens", "input_tokens": len(planned.prompt)}


@router.get("/v1/responses/{name}")
async def retrieve(name: str, request: Request) -> Json:
    """A response that is kept."""
    return memory_of(request).find(name)[0]


@router.delete("/v1/responses/{name}")
async def delete(name: str, request: Request) -> Json:
    """Forget one."""
    memory_of(request).forget(name)
    return {"id": name, "object": "response", "deleted": True}


def wished(body: Prompted, memory: Memory) -> tuple[Wish, list[Json]]:
    """What is asked for, and the conversation without instructions, which no later response takes over."""
    before = memory.find(body.previous_response_id, "previous_response_id")[1] if body.previous_response_id else []
    turns = before + turns_of(body.input, before)
    first = [{"role": "system", "content": body.instructions}] if body.instructions else []
    tools = [tool.model_dump(exclude={"type"}) for tool in body.tools]
    choice = f"={body.tool_choice.name}" if isinstance(body.tool_choice, FunctionChoice) else body.tool_choice
    if not tools and choice not in {"none", "auto"}:
        raise ApiError(400, "tool_choice: there are no tools", param="tool_choice", code="invalid_value")
    asked = Wish(first + turns, tools, choice, body.parallel_tool_calls, body.text.format.constraint())
    return asked, turns


def turns_of(items: list[Item], before: list[Json]) -> list[Json]:
    """Items as messages that chat templates know: thoughts, words and calls in a row are one of the assistant's.

    before: the messages that they go on from.
    """
    turns: list[Json] = []
    names = {call["id"]: call["function"]["name"] for turn in before for call in turn.get("tool_calls", ())}
    open_turn: Json | None = None
    for item in items:
        if isinstance(item, OutputItem):
            known = {"name": names[item.call_id]} if item.call_id in names else {}
            turns.append({"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id} | known)
        elif not isinstance(item, CallItem | ReasoningItem) and item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            turns.append({"role": role, "content": text_of(item.content)})
        else:
            if open_turn is None:
                turns.append(open_turn := {"role": "assistant", "content": ""})
            _join(open_turn, item, names)
            continue
        open_turn = None
    return turns


def _join(turn: Json, item: Any, names: dict[str, str]) -> None:
    """Add what the assistant did to its turn. names: of functions, by their calls' ids."""
    if isinstance(item, CallItem):
        names[item.call_id] = item.name
        turn.setdefault("tool_calls", []).append(as_call(item.call_id, item.name, item.arguments))
    elif isinstance(item, ReasoningItem):
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text_of(item.content)
    else:
        turn["content"] += text_of(item.content)


def text_of(pieces: list[Piece]) -> str:
    return "\n".join(piece.text for piece in pieces)
