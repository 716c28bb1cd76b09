"""A response of the Responses API in the making: the events of its stream, and the object at its end."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from cutaway.engine.sequence import Event
from cutaway.serve.chat import as_call
from cutaway.serve.dialogue import Delta, Json, Plan, Reader
from cutaway.serve.errors import as_api_error
from cutaway.serve.generation import Generation
from cutaway.serve.memory import Memory
from cutaway.serve.responses_schemas import ResponsesRequest
from cutaway.serve.tool_calls import Part


async def in_stream(making: Making) -> AsyncGenerator[Json, None]:
    """The events of a response; an error after the first becomes the last one."""
    async with aclosing(making.stream()) as items:
        try:
            async for item in items:
                yield item
        except Exception as error:
            if not making.number:
                raise
            told = as_api_error(error)
            yield making.event("error", code=told.code or "server_error", message=str(told.detail), param=told.param)


class Making:
    """A response in the making. memory: where it is kept. turns: the conversation that it answers."""

    def __init__(
        self, generation: Generation, body: ResponsesRequest, plan: Plan, memory: Memory | None, turns: list[Json]
    ) -> None:
        self.generation, self.body, self.plan, self.memory, self.turns = generation, body, plan, memory, turns
        self.reader, self.id, self.created = Reader(plan), f"resp_{uuid4().hex}", int(time.time())
        self.names = list[tuple[str, str]]()
        self.number = self.tokens = 0

    async def whole(self) -> Json:
        """The response."""
        async with aclosing(self.stream()) as items:
            async for item in items:
                last = item
        return last["response"]

    async def stream(self) -> AsyncGenerator[Json, None]:
        """OpenAI's events: of the response, of each of its items the beginning, pieces and end."""
        async with aclosing(self.generation.events()) as events:
            async for _, event in events:
                if not self.tokens:
                    yield self.event("response.created", response=self.response("in_progress"))
                    yield self.event("response.in_progress", response=self.response("in_progress"))
                self.tokens += 1
                for made in self.reader.read(event):
                    for item in self._pieces(made):
                        yield item
        for item in self._closed(len(self.names) - 1, self._status(event)):
            yield item
        status = self._status(event)
        response = self.response(status)
        if self.memory:
            self.memory.keep(response, [*self.turns, self._turn()])
        yield self.event(f"response.{status}", response=response)

    def event(self, kind: str, **fields: Any) -> Json:
        """The next event."""
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **fields}

    def _pieces(self, made: Delta) -> list[Json]:
        """The events of a piece of an item."""
        items: list[Json] = []
        kind = made.part.kind
        if made.first:
            items += self._closed(made.place - 1, "completed")
            self.names.append((f"{PREFIXES[kind]}_{uuid4().hex}", self.plan.new_id()))
            opened = self._item(made.place, "in_progress", part=made.part._replace(text=""))
            items.append(self.event("response.output_item.added", output_index=made.place, item=opened))
            if kind == "content":
                place = self._place(made.place, kind)
                items.append(self.event("response.content_part.added", **place, part=_text("")))
        more: Json = {"delta": made.part.text} | ({"logprobs": []} if kind == "content" else {})
        return [*items, self.event(f"{EVENTS[kind]}.delta", **self._place(made.place, kind), **more)]

    def _closed(self, index: int, status: str) -> list[Json]:
        """The events that end an item; none before the first."""
        if index < 0:
            return []
        part = self.reader.parts[index]
        place = self._place(index, part.kind)
        said: Json = {"arguments": part.text, "name": part.name} if part.kind == "call" else {"text": part.text}
        said |= {"logprobs": []} if part.kind == "content" else {}
        items = [self.event(f"{EVENTS[part.kind]}.done", **place, **said)]
        if part.kind == "content":
            items.append(self.event("response.content_part.done", **place, part=_text(part.text)))
        item = self._item(index, status)
        return [*items, self.event("response.output_item.done", output_index=index, item=item)]

    def _place(self, index: int, kind: str) -> Json:
        place: Json = {"item_id": self.names[index][0], "output_index": index}
        return place if kind == "call" else place | {"content_index": 0}

    def _item(self, index: int, status: str, part: Part | None = None) -> Json:
        """An item of the output. part: what it holds, None for what was read."""
        part = part or self.reader.parts[index]
        name, call_id = self.names[index]
        head = {"id": name, "status": status}
        if part.kind == "call":
            return head | {"type": "function_call", "call_id": call_id, "name": part.name, "arguments": part.text}
        if part.kind == "reasoning":
            return head | {"type": "reasoning", "summary": [], "content": [_thought(part.text)] if part.text else []}
        return head | {"type": "message", "role": "assistant", "content": [_text(part.text)] if part.text else []}

    def _status(self, event: Event) -> str:
        return "incomplete" if event.finish == "length" else "completed"

    def _turn(self) -> Json:
        """The reply as chat templates know it."""
        said = {k: "".join(p.text for p in self.reader.parts if p.kind == k) for k in ("content", "reasoning")}
        calls = [as_call(self.names[i][1], part.name, part.text)
                 for i, part in enumerate(self.reader.parts) if part.kind == "call"]  # fmt: skip
        turn: Json = {"role": "assistant", "content": said["content"]}
        turn |= {"reasoning_content": said["reasoning"]} if said["reasoning"] else {}
        return turn | ({"tool_calls": calls} if calls else {})

    def response(self, status: str) -> Json:
        """The response as it stands."""
        body, done = self.body, status != "in_progress"
        last = len(self.names) - 1
        output = [self._item(i, status if i == last else "completed") for i in range(last + 1)] if done else []
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.generation.served.called,
            "output": output,
            "usage": self._usage() if done else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "store": body.store,
            "temperature": body.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_defaults=True) or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools],
            "top_p": body.top_p,
            "truncation": "disabled",
        }

    def _usage(self) -> Json:
        prompt = self.generation.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.generation.cached_tokens},
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": self.reader.reasoned},
            "total_tokens": prompt + self.tokens,
        }


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _thought(text: str) -> Json:
    return {"type": "reasoning_text", "text": text}


PREFIXES = {"content": "msg", "reasoning": "rs", "call": "fc"}
EVENTS = {
    "content": "response.output_text",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}
