"""Where the time of an engine goes: clocks around its parts, for as long as a `with` lasts.

    with profiling(engine) as profile:
        ...  # add, step
    profile.steps[0].seconds, profile.request(sequence).seconds

A step is split into weights (products with them, and the norms before), attention (rotations too), sampling (sums and
maxima over the vocabulary too, and spelling what was drawn) and Python (plans, layout, calls, notes). A request has
queueing beside these: from `add` until its first span is planned, and between steps. Each part has clocks of its own
and none is what the others leave of the whole, so that a sum which falls short of it tells of time that nobody
accounts for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from time import monotonic
from typing import Any, NamedTuple

import torch

from cutaway.engine.engine import Engine
from cutaway.engine.runner import Native
from cutaway.engine.sequence import Sequence
from cutaway.engine.span import Span
from cutaway.errors import CutawayError
from cutaway.native.tape import Batch, Kind

WEIGHTS, ATTENTION, SAMPLING, PYTHON, QUEUEING = PARTS = ("weights", "attention", "sampling", "Python", "queueing")
OPERATIONS = {
    **dict.fromkeys((Kind.EMBED, Kind.NORM, Kind.LINEAR, Kind.FEED, Kind.SHRINK), WEIGHTS),
    **dict.fromkeys((Kind.TURN, Kind.ATTEND, Kind.MERGE), ATTENTION),
    Kind.WEIGH: SAMPLING,
}


class Split(NamedTuple):
    """Seconds by the clock around the whole, and by those around its parts."""

    whole: float
    seconds: Mapping[str, float]

    @property
    def accounted(self) -> float:
        """Parts over the whole."""
        return sum(self.seconds.values()) / self.whole


class Profile:
    """steps: each as it was split. times: when each began and ended. asked: when each sequence was added.

    took: numbers of the steps that it took part in.
    """

    def __init__(self) -> None:
        self.steps: list[Split] = []
        self.times: list[tuple[float, float]] = []
        self.asked: dict[Sequence, float] = {}
        self.took: dict[Sequence, list[int]] = {}
        self.parts, self._inner = defaultdict[str, float](float), [0.0]
        self._ran = 0.0

    def request(self, sequence: Sequence) -> Split:
        """From `add` to the end of the last step that it took part in; it must have been in one."""
        asked, first, last = self.asked[sequence], self.took[sequence][0], self.took[sequence][-1] + 1
        times, steps = self.times[first:last], self.steps[first:last]
        between = sum(begun - ended for (_, ended), (begun, _) in pairwise(times))
        assert sequence.began is not None
        parts = {part: sum(step.seconds.get(part, 0.0) for step in steps) for part in PARTS}
        return Split(times[-1][1] - asked, parts | {QUEUEING: sequence.began - asked + between})

    def clocked(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call; what it takes, less what calls inside it take that are clocked too, goes to `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = monotonic()
            self._inner.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                took = monotonic() - began
                self.parts[part] += took - self._inner.pop()
                self._inner[-1] += took

        return timed

    def stepped(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """The same steps; those that compute something are noted."""

        def timed() -> Any:
            self.parts, began = defaultdict(float), monotonic()
            told, ended = step(), monotonic()
            if self.parts[WEIGHTS]:
                self.steps.append(Split(ended - began, self.parts))
                self.times.append((began, ended))
            return told

        return timed

    def operations(self, runner: Native) -> Callable[..., None]:
        """The runner's tape with a clock for each operation."""
        tape, run = runner.graph.tape, runner.graph.tape.run
        seconds = torch.zeros(len(tape.ops), dtype=torch.float64)

        def timed(batch: Batch, threads: int, _: None = None) -> None:
            run(batch, threads, seconds)
            for op, took in zip(tape.ops, seconds.tolist(), strict=True):
                self.parts[OPERATIONS[op.kind]] += took
            self._inner[-1] += float(seconds.sum())
            seconds.zero_()
            self._ran = monotonic()

        return timed

    def ran(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The same; what follows the tape is sums and maxima over the vocabulary."""

        def timed(*args: Any) -> Any:
            logits, tail = run(*args), monotonic() - self._ran
            self.parts[SAMPLING] += tail
            self._inner[-1] += tail
            return logits

        return timed

    def noted(self, add: Callable[[Sequence], None]) -> Callable[[Sequence], None]:
        """The same; when that was."""

        def timed(sequence: Sequence) -> None:
            add(sequence)
            self.asked[sequence] = monotonic()

        return timed

    def counted(self, commit: Callable[..., None]) -> Callable[..., None]:
        """The same; in which step that was."""

        def timed(span: Span[Sequence], accepted: int = 0) -> None:
            self.took.setdefault(span.sequence, []).append(len(self.steps))
            commit(span, accepted)

        return timed


@contextmanager
def profiling(engine: Engine) -> Iterator[Profile]:
    """Profile an engine on native kernels; no other thread may step it as this begins or ends. Errors: others."""
    runner, profile = engine.runner, Profile()
    if not isinstance(runner, Native):
        raise CutawayError("has no clocks inside", "runner", "only native kernels can be profiled")
    python, scheduler = partial(profile.clocked, PYTHON), engine.scheduler
    watched: list[tuple[object, str, Callable[..., Any]]] = [
        (runner.graph.tape, "run", lambda _: python(profile.operations(runner))),
        (runner, "run", lambda run: python(profile.ran(run))),
        (engine, "_draw", partial(profile.clocked, SAMPLING)),
        *((engine, name, python) for name in ("_advance", "_draft", "_note")),
        (scheduler, "plan", python),
        (scheduler, "commit", profile.counted),
        (scheduler, "add", profile.noted),
        (engine, "step", profile.stepped),
    ]
    with ExitStack() as stack:
        for owner, name, clock in watched:
            stack.enter_context(replaced(owner, name, clock(getattr(owner, name))))
        yield profile


@contextmanager
def replaced(owner: object, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """One object's method, for a while."""
    before = vars(owner).get(name)
    setattr(owner, name, call)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)
