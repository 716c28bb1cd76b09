"""The engine behind an asynchronous server: one thread steps, any number of coroutines listen.

coroutines ── start, stop ──► commands ──► thread: obey, step, obey, step ...
    ▲                                        │
    └──────────── events ◄───────────────────┘
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeVar

from cutaway.engine.engine import Engine, Step
from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import Event, Sequence
from cutaway.errors import CutawayError

Request = tuple[list[int], SamplingParams]
Item = tuple[int, Event | Exception]
T = TypeVar("T")

LEAST_WAIT, MOST_WAIT = 1, 60  # seconds

log = logging.getLogger(__name__)


class Busy(CutawayError):
    """More sequences wait than are accepted. seconds: after which it may be worth to try again."""

    seconds = 1


class Stopped(RuntimeError):
    """The engine failed, or was shut down, before it had finished a sequence."""


class Listener(NamedTuple):
    """Where the events of a sequence go, and what is its number there."""

    loop: asyncio.AbstractEventLoop
    inbox: asyncio.Queue[Item]
    number: int


class Gate:
    """Lets at most `room` in at a time and refuses, rather than queues, the others. Threads may share it.

    wait: how many seconds who is refused should wait.
    """

    def __init__(self, room: int, wait: Callable[[], int] = lambda: Busy.seconds) -> None:
        self.room, self.inside, self.wait = room, 0, wait
        self._lock = threading.Lock()

    @contextmanager
    def enter(self, count: int = 1) -> Iterator[None]:
        """Hold `count` places. Errors: `Busy`."""
        with self._lock:
            if self.inside + count > self.room:
                taken = f"{self.inside} of {self.room} places are taken, {count} more are wanted"
                busy = Busy(taken, hint="try again later")
                busy.seconds = self.wait()
                raise busy
            self.inside += count
        try:
            yield
        finally:
            with self._lock:
                self.inside -= count


class Service:
    """Owns an `Engine` and the thread that steps it. `stream` may be called from any event loop.

    max_waiting: sequences that may queue beyond those that the engine computes at a time.
    watchers: told of every step, on the engine's thread; they must be quick.
    """

    def __init__(self, engine: Engine, max_waiting: int = 64) -> None:
        self.engine, engine.tolerant = engine, True
        self.gate = Gate(engine.limit + max_waiting, self.wait)
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[Sequence, Listener] = {}
        self.watchers: list[Callable[[Step], None]] = []
        self._closing, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="cutaway-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return not self._closed and self._thread.is_alive()

    async def stream(
        self, prompt: list[int], params: SamplingParams, trace: int = 0, kept: Iterable[int] = ()
    ) -> AsyncGenerator[Event, None]:
        """Events of one sequence, see `Engine.prepare`. Leaving the iteration aborts the sequence.

        Errors: those of `Engine.check`; `Busy`; `Stopped`.
        """
        async with aclosing(self.follow([self.engine.prepare(prompt, params, trace, kept)])) as events:
            async for _, event in events:
                yield event

    async def stream_all(self, requests: list[Request], trace: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of several requests, see `follow`."""
        async with aclosing(self.follow(self.prepare(requests, trace))) as events:
            async for item in events:
                yield item

    def prepare(self, requests: list[Request], trace: int = 0) -> list[Sequence]:
        """A sequence for each request, to be followed; it tells what events do not, such as `cached`."""
        return [self.engine.prepare(prompt, params, trace) for prompt, params in requests]

    async def follow(self, sequences: list[Sequence]) -> AsyncGenerator[tuple[int, Event], None]:
        """Start sequences; their events as they come, each with its sequence's index. All are accepted or none."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Item] = asyncio.Queue()
        with self.gate.enter(len(sequences)):
            self._command(lambda: self._start({s: Listener(loop, inbox, i) for i, s in enumerate(sequences)}))
            try:
                left = len(sequences)
                while left:
                    index, event = await inbox.get()
                    if isinstance(event, Exception):
                        raise event
                    yield index, event
                    left -= event.finish is not None
            finally:
                with suppress(Stopped):
                    self._command(lambda: self._stop(sequences))

    async def complete(self, prompt: list[int], params: SamplingParams, trace: int = 0) -> list[Event]:
        """All events of one sequence."""
        async with aclosing(self.stream(prompt, params, trace)) as events:
            return [event async for event in events]

    async def ask(self, question: Callable[[Engine], T]) -> T:
        """What `question` finds between two steps, when nothing changes. Errors: its own; `Stopped`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def put() -> None:
            try:
                settle = partial(answer.set_result, question(self.engine))
            except Exception as error:  # whoever asked must hear of it
                settle = partial(answer.set_exception, error)
            with suppress(RuntimeError):  # a closed loop: nobody listens any more
                loop.call_soon_threadsafe(lambda: answer.done() or settle())

        self._command(put)
        return await answer

    def wait(self) -> int:
        """Seconds that those who wait (where nobody may: who runs) take at the pace of the latest steps: 1 ... 60.

        They may use all the tokens that they have asked for. Any thread may ask.
        """
        scheduler, steps = self.engine.scheduler, [*self.engine.steps]
        tokens = sum(count for step in steps for _, _, count, _, _ in step.spans)
        left = sum(s.limit - s.computed for s in [*scheduler.waiting] or [*scheduler.running])
        seconds = left * sum(step.seconds[1] for step in steps) / max(1, tokens)
        return round(min(max(LEAST_WAIT, seconds), MOST_WAIT))

    def close(self) -> None:
        """Finish the current step and end the thread; whoever still listens hears `Stopped`."""
        with self._closing:
            self._closed = True
            self._commands.put(None)
        self._thread.join()

    def _command(self, command: Callable[[], None]) -> None:
        with self._closing:  # nothing may be queued behind the end
            if self._closed:
                raise Stopped("the engine was shut down")
            self._commands.put(command)

    def _start(self, listeners: dict[Sequence, Listener]) -> None:
        self._listeners |= listeners
        for sequence in listeners:
            self.engine.scheduler.add(sequence)

    def _stop(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._listeners.pop(sequence, None)
            self.engine.abort(sequence)

    def _run(self) -> None:
        while self._obey():
            try:
                steps, told = self.engine.stats.steps, self.engine.step()
                self._tell(told)
                for watcher in self.watchers if self.engine.stats.steps > steps else ():
                    watcher(self.engine.steps[-1])
            except Exception:  # whoever waits must hear of it, and the service must outlive it
                log.exception("a step of the engine failed")
                self._fail("a step of the engine failed")
        self._fail("the engine was shut down")

    def _obey(self) -> bool:
        """Carry out what was asked meanwhile; wait for it if there is nothing else to do. False to end."""
        while not self._commands.empty() or not self.engine.busy:
            command = self._commands.get()
            if command is None:
                return False
            command()
        return True

    def _fail(self, why: str) -> None:
        self._tell([(sequence, Stopped(why)) for sequence in self._listeners])
        self._stop(list(self._listeners))

    def _tell(self, told: Iterable[tuple[Sequence, Event | Exception]]) -> None:
        """Wake each event loop once, however many listen there."""
        mail: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Item], Item]]] = {}
        for sequence, event in told:
            loop, inbox, number = self._listeners[sequence]
            mail.setdefault(loop, []).append((inbox, (number, event)))
        for loop, letters in mail.items():
            with suppress(RuntimeError):  # a closed loop: nobody listens any more
                loop.call_soon_threadsafe(_deliver, letters)


def _deliver(letters: list[tuple[asyncio.Queue[Item], Item]]) -> None:
    for inbox, item in letters:
        inbox.put_nowait(item)
