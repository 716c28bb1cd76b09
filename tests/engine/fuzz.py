"""The scheduler and its pages without a model: random traffic, and every claim checked after every step.

    PYTHONPATH=tests python -m engine.fuzz --steps 100000 --seed 0

In place of keys and values, computing a token writes down what they depend on: the salt, the token, and what the
sequence's own table holds of the token before. A page shared, kept or given away wrongly holds the wrong thing.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from dataclasses import dataclass, field, fields

from cutaway.engine.pages import Chain, Pages
from cutaway.engine.scheduler import Busy, Scheduler
from cutaway.engine.span import Span
from cutaway.errors import CutawayError


@dataclass(eq=False)
class Toy:
    """What the scheduler asks of a sequence, and what its cache must hold."""

    tokens: list[int]
    limit: int
    drafts: list[int] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)
    priority: int = 0
    tenant: str = ""
    deadline: float | None = None
    finish: str | None = None
    computed: int = 0
    table: list[int] = field(default_factory=list)
    rank: tuple[float, int] = (0.0, 0)
    awaited: int = 0
    preempted: int = 0
    born: int = 0

    def __post_init__(self) -> None:
        self.values = [hash(self.chain.salt)]
        self.extend([])

    def extend(self, tokens: list[int]) -> None:
        self.tokens += tokens
        for token in self.tokens[len(self.values) - 1 :]:
            self.values.append(hash((self.values[-1], token)))


@dataclass
class Report:
    """What happened in a run."""

    steps: int = 0
    added: int = 0
    refused: int = 0
    stop: int = 0
    abort: int = 0
    timeout: int = 0
    forks: int = 0
    copies: int = 0
    drafted: int = 0
    accepted: int = 0
    computed: int = 0
    shared: int = 0
    preemptions: int = 0
    evictions: int = 0
    longest: int = 0

    def __str__(self) -> str:
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


class World:
    """A scheduler with its memory and its traffic. Sizes are random, and small, so that everything runs out."""

    def __init__(self, rng: random.Random, report: Report) -> None:
        self.rng, self.report = rng, report
        self.size = rng.choice([1, 2, 3, 4, 8])
        self.longest = rng.choice([8, 20, 40])
        count = -(-self.longest // self.size) + rng.choice([0, 1, 3, 10, 40])
        places = rng.choice([1, 2, 4, 8])
        self.pages = Pages(count, self.size)
        self.scheduler: Scheduler[Toy] = Scheduler(
            self.pages,
            places=places,
            budget=places + rng.choice([0, 1, 5, 20]),
            queue=rng.choice([4, 12]),
            patience=rng.choice([0, 10, 100]),
        )
        self.memory = [0] * (count * self.size)
        self.alive: set[Toy] = set()
        self.now = 0
        self.load, self.vocab, self.luck = rng.choice([0.05, 0.3, 1.0]), rng.choice([1, 2, 5]), rng.random()

    def step(self, arrivals: bool = True) -> None:
        """Random arrivals, forks, drafts and cancellations, then a plan, its computation, and the checks."""
        self.now += 1
        self.report.steps += 1
        if arrivals:
            self._arrive()
        self._disturb(forks=arrivals)
        going_on = [s for s in self.alive if not self._expired(s)]
        first = min(going_on, key=lambda s: s.rank, default=None)
        runs = first in self.scheduler.running
        spans = self.scheduler.plan(self.now)
        self._check_plan(spans)
        self._check()
        assert not runs or first in self.scheduler.running, "the most important one was preempted"
        for span in spans:
            if self.rng.random() < 0.005:  # its reader goes away while it is being computed
                self.scheduler.cancel(span.sequence)
            self._compute(span)
        for span in spans:
            self._commit(span)
        self._check()

    def drain(self) -> None:
        """No more arrivals: everyone ends, in no more steps than there are tokens to compute, each once in vain."""
        bound = 2 * sum(s.limit for s in self.alive) + 100
        for _ in range(bound):
            if not self.scheduler.busy:
                break
            self.step(arrivals=False)
        assert not self.scheduler.busy, f"{len(self.alive)} sequences have not ended after {bound} steps"
        assert not self.alive, "a sequence is lost"
        assert self.pages.held == 0, "pages leak"
        self.report.preemptions += self.scheduler.preemptions
        self.report.evictions += self.pages.evictions
        self.report.shared += self.pages.hits

    def _expired(self, sequence: Toy) -> bool:
        return sequence.deadline is not None and sequence.deadline <= self.now

    def _arrive(self) -> None:
        rng = self.rng
        while rng.random() < self.load:
            prompt = [rng.randrange(self.vocab) for _ in range(rng.randint(1, self.longest - 1))]
            sequence = self._toy(prompt, Chain(rng.choice([b"", b"a"])))
            if sequence.limit > self.longest:
                self._refused(sequence)
                continue
            try:
                self.scheduler.add(sequence)
            except Busy:
                self.report.refused += 1
                assert len(self.scheduler.waiting) >= self.scheduler.queue, "refused without need"
                return
            self._added(sequence)

    def _refused(self, sequence: Toy) -> None:
        if self.pages.needed(sequence.limit) > self.pages.count and len(self.scheduler.waiting) < self.scheduler.queue:
            try:
                self.scheduler.add(sequence)
            except CutawayError:
                self.report.refused += 1
            else:
                raise AssertionError("what can never fit was accepted")

    def _toy(self, tokens: list[int], chain: Chain) -> Toy:
        rng = self.rng
        return Toy(
            tokens=tokens,
            limit=len(tokens) + rng.randint(1, max(1, self.longest - len(tokens))) + (rng.random() < 0.02) * 400,
            chain=chain,
            priority=rng.choice([0, 0, 0, 1, 3]),
            tenant=rng.choice("aaabc"),
            deadline=self.now + rng.randint(1, 200) if rng.random() < 0.1 else None,
            born=self.now,
        )

    def _added(self, sequence: Toy) -> None:
        self.report.added += 1
        self.alive.add(sequence)

    def _disturb(self, forks: bool) -> None:
        rng, scheduler = self.rng, self.scheduler
        if rng.random() < 0.02 and self.alive:
            scheduler.cancel(rng.choice(sorted(self.alive, key=lambda s: s.rank[1])))
            self._bury()
        if forks and rng.random() < 0.05 and scheduler.running:
            self._fork(rng.choice([*scheduler.running]))
        for sequence in scheduler.running:
            if rng.random() < 0.5:
                sequence.drafts = [rng.randrange(self.vocab) for _ in range(rng.randint(0, 6))]

    def _fork(self, parent: Toy) -> None:
        child = self._toy([*parent.tokens[: parent.computed], self.rng.randrange(self.vocab)], Chain(parent.chain.salt))
        child.limit = parent.limit
        copies = self.scheduler.fork(parent, child)
        for start, to in copies:
            for slot in range(self.size):
                self.memory[to * self.size + slot] = self.memory[start * self.size + slot]
        self.report.forks += 1
        self.report.copies += len(copies)
        self._added(child)
        self._check()

    def _check_plan(self, spans: list[Span[Toy]]) -> None:
        scheduler = self.scheduler
        assert sum(span.count for span in spans) <= scheduler.budget, "more tokens than the budget"
        assert max(Counter(span.sequence for span in spans).values(), default=1) == 1, "a sequence twice"
        assert {span.sequence for span in spans} == {*scheduler.running}, "one that runs gets nothing, or the reverse"
        assert bool(spans) == scheduler.busy, "there is work, and nothing is done"
        for sequence, start, count in spans:
            assert count > 0, "an empty span"
            assert start == sequence.computed, "a span begins elsewhere"
            assert start + count <= len(sequence.table) * self.size, "a span has no pages"
            assert start + count <= len(sequence.tokens) + len(sequence.drafts), "more than there is"
            assert start + count + bool(sequence.drafts) <= sequence.limit, "more than there may be"

    def _holds(self, sequence: Toy, count: int) -> bool:
        """What attention would read is what the sequence's own first tokens have left."""
        size, memory = self.size, self.memory
        read = [value for page in sequence.table for value in memory[page * size : (page + 1) * size]][:count]
        return read == sequence.values[1 : count + 1]

    def _compute(self, span: Span[Toy]) -> None:
        sequence, start, count = span
        assert self._holds(sequence, start), "the table holds what others have computed"
        value = sequence.values[start]
        for position, token in enumerate((sequence.tokens + sequence.drafts)[start : start + count], start):
            value = hash((value, token))
            self.memory[sequence.table[position // self.size] * self.size + position % self.size] = value
        self.report.computed += count

    def _commit(self, span: Span[Toy]) -> None:
        sequence, rng, accepted = span.sequence, self.rng, 0
        if span.start + span.count >= len(sequence.tokens) and not sequence.finish:
            while accepted < len(sequence.drafts) and rng.random() < self.luck:
                accepted += 1
            self.report.drafted += len(sequence.drafts)
            self.report.accepted += accepted
            sequence.extend([*sequence.drafts[:accepted], rng.randrange(self.vocab)])
            if len(sequence.tokens) >= sequence.limit or rng.random() < 0.02:
                sequence.finish = "stop"
        self.scheduler.commit(span, accepted)
        assert sequence.finish or self._holds(sequence, sequence.computed), "computing has spoilt the table"

    def _check(self) -> None:
        self._bury()
        scheduler = self.scheduler
        self.pages.check([s.table for s in scheduler.running])
        assert len(scheduler.running) <= scheduler.places, "more run than there are places"
        assert not scheduler.waiting.keys() & scheduler.running.keys(), "a sequence waits and runs"
        assert not any(s.table or s.computed for s in scheduler.waiting), "a waiting sequence holds pages"
        assert scheduler.spans.keys() <= scheduler.running.keys(), "a span belongs to nobody"
        assert all(self._holds(s, s.computed) for s in self.scheduler.running), "a table was spoilt by others"
        assert {*self.scheduler.running, *self.scheduler.waiting} == self.alive, "a sequence is lost"

    def _bury(self) -> None:
        for sequence in [s for s in self.alive if s.finish and s not in self.scheduler.spans]:
            assert not sequence.table, "it ended, and holds pages"
            self.alive.remove(sequence)
            setattr(self.report, sequence.finish, getattr(self.report, sequence.finish) + 1)
            self.report.longest = max(self.report.longest, self.now - sequence.born)


def fuzz(steps: int, seed: int) -> Report:
    """Worlds one after the other, until there were so many steps."""
    rng, report = random.Random(seed), Report()
    while report.steps < steps:
        world = World(rng, report)
        for _ in range(min(rng.choice([50, 300]), steps - report.steps)):
            world.step()
        world.drain()
    assert report.added == report.stop + report.abort + report.timeout
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    print(fuzz(arguments.steps, arguments.seed), f"seconds={time.perf_counter() - begun:.1f}")
