"""The engine behind an asynchronous server: one thread steps, any number of coroutines listen."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import Event, Sequence
from cutaway.errors import CutawayError


class Busy(CutawayError):
    """More sequences wait than the service accepts."""


class Service:
    """Owns an `Engine` and the thread that steps it. `stream` may be called from any event loop.

    max_waiting: requests that may queue beyond those running; one more is refused.
    """

    def __init__(self, engine: Engine, max_waiting: int = 64) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self._commands: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._listeners: dict[Sequence, Callable[[Event | Exception], None]] = {}
        self._thread = threading.Thread(target=self._run, name="cutaway-engine", daemon=True)
        self._thread.start()

    async def stream(self, prompt: list[int], params: SamplingParams, trace: int = 0) -> AsyncIterator[Event]:
        """Events of one sequence. Leaving the iteration, for whatever reason, aborts the sequence."""
        self.engine.check(prompt)
        if len(self.engine.waiting) >= self.max_waiting:
            raise Busy(f"{len(self.engine.waiting)} requests are waiting already", hint="try again later")
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        started: list[Sequence] = []

        def start() -> None:
            started.append(self.engine.add(prompt, params, trace))
            self._listeners[started[0]] = lambda event: loop.call_soon_threadsafe(events.put_nowait, event)

        self._commands.put(start)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish:
                    return
        finally:
            self._commands.put(lambda: self._stop(started))

    async def complete(self, prompt: list[int], params: SamplingParams, trace: int = 0) -> list[Event]:
        """All events of one sequence."""
        async with aclosing(self.stream(prompt, params, trace)) as events:
            return [event async for event in events]

    def close(self) -> None:
        """Finish the current step and end the thread."""
        self._commands.put(None)
        self._thread.join()

    def _stop(self, started: list[Sequence]) -> None:
        for sequence in started:
            self._listeners.pop(sequence, None)
            self.engine.abort(sequence)

    def _run(self) -> None:
        while self._obey():
            try:
                for sequence, event in self.engine.step():
                    self._listeners[sequence](event)
            except Exception as error:  # whoever waits must hear of it, and the service must outlive it
                for sequence, listener in list(self._listeners.items()):
                    listener(error)
                    self._stop([sequence])

    def _obey(self) -> bool:
        """Carry out what was asked meanwhile; wait for it if there is nothing else to do. False to end."""
        while not self._commands.empty() or not self.engine.busy:
            command = self._commands.get()
            if command is None:
                return False
            command()
        return True
