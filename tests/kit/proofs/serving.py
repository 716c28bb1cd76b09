"""What listeners of the engine's thread hear, against what the engine says to each request alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.service import Request, Service
from engine.tiny import decoder, tokenizer

REQUESTS: list[Request] = [
    (list(range(5 + n, 12 + 2 * n)), SamplingParams(seed=n, max_tokens=12, ignore_eos=True)) for n in range(4)
]


def alone(prompt: list[int], params: SamplingParams) -> list[int]:
    """The reply without company."""
    return [event.choice.token for event in Engine(decoder(), tokenizer()).generate(prompt, params)]


async def heard(service: Service, requests: list[Request]) -> tuple[list[list[int]], int]:
    """What is said to each, and how often the event loop was woken for it."""
    loop, replies, wakes = asyncio.get_running_loop(), [list[int]() for _ in requests], 0
    wake = loop.call_soon_threadsafe

    def counted(*args: object, **how: object) -> asyncio.Handle:
        nonlocal wakes
        wakes += 1
        return wake(*args, **how)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    async for index, event in service.stream_all(requests):
        replies[index].append(event.choice.token)
    return replies, wakes


def told() -> None:
    """Each hears its own, and a step wakes those who listen once."""
    service = Service(Engine(decoder(), tokenizer()))
    try:
        replies, wakes = asyncio.run(asyncio.wait_for(heard(service, REQUESTS), 20))
    finally:
        service.close()
    assert replies == [alone(*request) for request in REQUESTS]
    assert wakes <= service.engine.stats.steps


PROOFS: dict[str, Callable[[], object]] = {"service told": told}
