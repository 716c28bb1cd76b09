"""The scheduler: which sequences compute how many tokens in the next step, and in which pages.

There is no prefill phase and no decode phase. A sequence lacks the tokens beyond `computed`; each step gives it a span
of them (Yu et al. 2022, "Orca", OSDI; chunks: Agrawal et al. 2023, "SARATHI", arXiv:2308.16369). Two orders decide:

- Importance, fixed on arrival: the earlier the better, a level of priority counts like `patience` of waiting. If pages
  run out, the least important running sequence gives up its own and computes again later. After a while all that comes
  is less important; so everyone is the most important one day, and that one always goes on.
- The queue: importance again, but whose tenant had more than its share comes later, by `patience` at most (start-time
  fair queueing, Goyal et al. 1996; counting tokens: Sheng et al. 2024, arXiv:2401.00588).

Time is virtual: tokens computed, divided by the tenants that share them. It stands still when nothing is computed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Generic

from cutaway.engine.pages import Chain, Pages
from cutaway.engine.span import S, Span
from cutaway.errors import CutawayError


class Busy(CutawayError):
    """More sequences wait than are accepted."""


class Scheduler(Generic[S]):
    """Every sequence waits, and holds no pages, or runs, until it has a `finish`.

    places: sequences that run at a time. budget: tokens per step, at least one for each place. queue: sequences
    that may wait. patience: virtual time that a level of priority is worth. most: tokens of a sequence's next span.
    Errors: `CutawayError` if budget < places.
    """

    def __init__(
        self, pages: Pages, *, places: int = 16, budget: int = 512, queue: int = 64, patience: float = 4096,
        most: Callable[[S], int] = lambda _: sys.maxsize,
    ) -> None:  # fmt: skip
        if not 0 < places <= budget:
            raise CutawayError(f"has {budget} tokens for {places} sequences", "budget", "give each at least one")
        self.pages, self.places, self.budget, self.queue, self.patience = pages, places, budget, queue, patience
        self.most = most
        self.waiting: dict[S, None] = {}
        self.running: dict[S, None] = {}
        self.spans: dict[S, Span[S]] = {}  # planned, and not committed
        self.late: list[S] = []  # whose deadline the last plan found passed
        self.time, self.arrivals, self.preemptions = 0.0, 0, 0
        self._tenants: Counter[str] = Counter()  # how many sequences each has
        self._due: dict[str, float] = {}  # the time at which a tenant has had no more than its share
        self._left = budget  # of this step
        self._underway: dict[bytes, int] = {}  # pages that this step computes, and where their spans end

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: S) -> None:
        """Queue it. Errors: `Busy`; `CutawayError` if it might outgrow all pages together."""
        if len(self.waiting) >= self.queue:
            raise Busy(f"{len(self.waiting)} sequences wait already", hint="try again later")
        if (needed := self.pages.needed(sequence.limit)) > self.pages.count:
            what = f"may need {needed} pages of {self.pages.size} tokens, there are {self.pages.count}"
            raise CutawayError(what, "max_tokens", "ask for fewer tokens, or give the cache more memory")
        self._enter(sequence)
        self.waiting[sequence] = None

    def fork(self, parent: S, child: S) -> list[tuple[int, int]]:
        """Let `child`, which begins with the parent's computed tokens, go on there: the page copies (from, to) to make.

        Call it between `commit` and `plan`. If there is no place or no page, the child waits and finds what it can.
        """
        self._enter(child)
        child.chain = Chain(parent.chain.salt, parent.chain.names[: parent.computed // self.pages.size])
        forked = self.pages.fork(parent.table, parent.computed) if len(self.running) < self.places else None
        (self.waiting if forked is None else self.running)[child] = None
        if forked is None:
            return []
        child.table, child.computed = forked[0], parent.computed
        return forked[1]

    def cancel(self, sequence: S) -> None:
        """Forget it, now or, if it is being computed, when that is committed."""
        sequence.finish = sequence.finish or "abort"
        if sequence not in self.spans:
            self._leave(sequence)

    def fail(self, sequence: S) -> None:
        """It could not be computed: it ends, and what it was to compute counts for nothing."""
        self.spans.pop(sequence, None)
        sequence.finish = "error"
        self._leave(sequence)

    def plan(self, now: float = 0.0) -> list[Span[S]]:
        """The spans of a step, each with pages for all its tokens; together at most `budget` tokens.

        Replies come before prompts. Everyone who runs gets at least one token, kept back as long as it is not planned.
        now: on the clock of the deadlines.
        """
        self.spans.clear()  # a step that failed has computed nothing
        self._left, self._underway = self.budget, {}
        self._dismiss(now)
        for sequence in sorted(self.running, key=lambda s: (len(s.tokens) - s.computed > 1, s.rank)):
            if sequence in self.running and len(sequence.tokens) > sequence.computed:  # not preempted meanwhile
                self._serve(sequence)
        self._admit()
        return [*self.spans.values()]

    def commit(self, span: Span[S], accepted: int = 0) -> None:
        """A span is computed, and `accepted` of its drafts were right; these are among the tokens by now."""
        sequence, start, count = span
        del self.spans[sequence]
        sequence.computed = start + count - len(sequence.drafts) + accepted
        sequence.drafts.clear()  # the others' slots are written anew; their pages are needed soon, and stay
        self.pages.seal(sequence.table, sequence.tokens, start, sequence.computed, sequence.chain)
        self.time += count / len(self._tenants)
        self._due[sequence.tenant] = min(self._due[sequence.tenant] + count, self.time + self.patience)
        if sequence.finish:
            self._leave(sequence)

    def _enter(self, sequence: S) -> None:
        tenant, self.arrivals = sequence.tenant, self.arrivals + 1
        sequence.rank = self.time - self.patience * sequence.priority, self.arrivals
        self._due = {t: due for t, due in self._due.items() if due > self.time or t in self._tenants}
        if not any(s.tenant == tenant for s in self.waiting):  # who did not want its share has not saved it
            self._due[tenant] = max(self._due.get(tenant, 0), self.time)
        self._tenants[tenant] += 1

    def _leave(self, sequence: S) -> None:
        if sequence in self.waiting or sequence in self.running:
            self.waiting.pop(sequence, None)
            self.running.pop(sequence, None)
            self.pages.release(sequence.table)
            self._tenants -= Counter([sequence.tenant])

    def _dismiss(self, now: float) -> None:
        self.late = []
        for sequence in [*self.running, *self.waiting]:
            if not sequence.finish and sequence.deadline is not None and sequence.deadline <= now:
                sequence.finish = "timeout"
                self.late.append(sequence)
            if sequence.finish:
                self._leave(sequence)

    def _serve(self, sequence: S) -> None:
        """Plan a span, as long as the budget allows. If pages run out its drafts give way, then the least important."""
        lacking, room = len(sequence.tokens) - sequence.computed, sequence.limit - len(sequence.tokens) - 1
        others = min(self.places, len(self.running) + len(self.waiting)) - len(self.spans) - 1
        count = min(lacking + max(0, min(len(sequence.drafts), room)), self._left - others)
        count = min(count, self.most(sequence))
        if not self.pages.grow(sequence.table, sequence.computed + count):
            count = min(count, lacking)
        while not self.pages.grow(sequence.table, sequence.computed + count):
            self._preempt(victim := max(self.running, key=lambda s: s.rank))
            if victim is sequence:
                return
        del sequence.drafts[max(0, count - lacking) :]
        start, end = sequence.computed, sequence.computed + count
        self._underway |= dict.fromkeys(sequence.chain.names[start // self.pages.size : self.pages.needed(end)], end)
        self.spans[sequence] = Span(sequence, start, count)
        self._left -= count

    def _preempt(self, victim: S) -> None:
        """Its tokens stay, and so does what it published, as long as nobody needs the pages."""
        if span := self.spans.pop(victim, None):
            self._left += span.count
        del self.running[victim]
        self.waiting[victim] = None
        self.pages.release(victim.table)
        victim.computed, victim.preempted = 0, victim.preempted + 1
        self.preemptions += 1

    def _admit(self) -> None:
        """Start those who wait, in order. If the first finds no room, those behind it must not take what it needs."""
        for sequence in self._queue():
            if self._awaits(sequence):
                continue
            while not self._fits(sequence):
                victim = max(self.running, key=lambda s: s.rank)
                if victim.priority >= sequence.priority or victim.rank < sequence.rank:
                    return
                self._preempt(victim)
            sequence.table = self.pages.match(sequence.tokens, sequence.chain)
            sequence.computed = sequence.cached = len(sequence.table) * self.pages.size
            del self.waiting[sequence]
            self.running[sequence] = None
            self._serve(sequence)

    def _queue(self) -> list[S]:
        """Who waits, in turn: a tenant's by importance. Who was preempted has had its turn, and is not put back."""
        turn: dict[S, float] = {}
        last: dict[str, float] = {}  # of a tenant, for nobody overtakes a more important one of the same
        for sequence in sorted(self.waiting, key=lambda s: s.rank):
            rank, tenant = sequence.rank[0], sequence.tenant
            due = rank if sequence.preempted else self._due[tenant] - self.patience * sequence.priority
            turn[sequence] = last[tenant] = max(rank, due, last.get(tenant, rank))
        return sorted(turn, key=lambda s: turn[s])

    def _awaits(self, sequence: S) -> bool:
        """Whether this step computes the next page that the sequence could share: then it waits for that.

        Each time the page's span must reach further than the last time: it waits no more often than it has tokens.
        """
        length, before = len(sequence.tokens), sequence.awaited
        shared = len(self.pages.find(sequence.tokens, sequence.chain))
        for name in sequence.chain.names[shared : (length - 1) // self.pages.size][:1]:
            sequence.awaited = max(before, min(self._underway.get(name, 0), length))
        return sequence.awaited > before

    def _fits(self, sequence: S) -> bool:
        """Whether there is a place, and pages for all its tokens beside those that the others soon need."""
        pages = self.pages
        held = sum(pages.holders[page] > 0 for page in pages.find(sequence.tokens, sequence.chain))
        owed = sum(max(0, pages.needed(len(s.tokens)) + 1 - len(s.table)) for s in self.running)
        wanted = pages.needed(len(sequence.tokens)) - held + owed
        return len(self.running) < self.places and wanted <= pages.available
