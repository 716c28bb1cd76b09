"""Pages and the scheduler, without a model: against a list of prefixes, what must happen, and random traffic."""

from __future__ import annotations

import random

from cutaway.engine.pages import Chain, Pages
from cutaway.engine.scheduler import Scheduler
from engine.fuzz import Toy, fuzz

SIZE = 4


def finished(pages: Pages, tokens: list[int], salt: bytes = b"") -> list[int]:
    """Compute a text, leave it to the cache, and tell its pages."""
    chain = Chain(salt)
    table = pages.match(tokens, chain)
    start = len(table) * pages.size
    assert pages.grow(table, len(tokens)), "it does not fit"
    pages.seal(table, tokens, start, len(tokens), chain)
    kept = [*table]
    pages.release(table)
    pages.check([])
    return kept


def reuse() -> None:
    """A text's full pages are found by whoever begins like it, with the same salt; the last token is computed anew."""
    pages, text = Pages(8, SIZE), [*range(10)]
    kept = finished(pages, text)
    assert len(kept) == 3
    for tokens, salt, expected in [
        ([*text, 99], b"", kept[:2]),
        (text[:8], b"", kept[:1]),
        ([*text[:8], 99], b"", kept[:2]),
        ([*text[:7], 99, 99], b"", kept[:1]),
        ([99, *text[1:]], b"", []),
        ([9, 9, 9, 9, *text[4:]], b"", []),
        (text[:4], b"", []),
        (text, b"other", []),
    ]:
        assert pages.find(tokens, Chain(salt)) == expected, f"{tokens} {salt!r}"
    pages.lookups = pages.hits = 0
    table = pages.match([*text, 99], Chain())
    assert (table, pages.lookups, pages.hits) == (kept[:2], 11, 8)
    assert (pages.free, pages.cached, pages.held) == (6, 0, 2)
    pages.check([table])
    pages.release(table)
    other = finished(pages, [*range(50, 54), 99])
    assert pages.find([*range(50, 54), *text[4:]], Chain()) == other[:1], "a page was found behind another beginning"


def sealing() -> None:
    """Only full and computed pages are published; who computed the same at the same time keeps its own."""
    pages, text, one, two = Pages(9, SIZE), [*range(12)], Chain(), Chain()
    first, second = pages.match(text, one), pages.match(text, two)
    assert pages.grow(first, 12)
    assert pages.grow(second, 12)
    pages.seal(first, text, 0, 7, one)
    assert pages.find(text, Chain()) == first[:1], "a page was published before it was full"
    pages.seal(first, text, 7, 8, one)
    assert pages.find(text, Chain()) == first[:2], "a page was not published when it was full"
    pages.seal(second, text, 0, 12, two)
    assert pages.find([*text, 1], Chain()) == [*first[:2], second[2]]
    pages.seal(first, text, 8, 12, one)
    assert pages.find([*text, 1], Chain()) == [*first[:2], second[2]]
    pages.check([first, second])
    pages.release(first)
    assert (pages.cached, pages.free) == (2, 4)


def giving_away() -> None:
    """Free pages go first, then whole texts by last use; of a text its end before its beginning."""
    pages = Pages(6, SIZE)
    old, new = finished(pages, [*range(9)]), finished(pages, [*range(50, 59)])
    table = pages.match([*range(9)], Chain())
    pages.release(table)  # used again: now the other one is the oldest
    assert pages.grow(table, 2 * SIZE)
    assert pages.evictions == 0, "a page was given away while others were free"
    assert pages.grow(table, 3 * SIZE)
    assert pages.find([*range(50, 59)], Chain()) == new[:1]
    assert pages.find([*range(9)], Chain()) == old[:2]
    before = [*table]
    assert not pages.grow(table, 7 * SIZE)
    assert table == before, "a refused request changed the table"
    pages.check([table])
    assert pages.grow(table, 6 * SIZE)
    assert pages.evictions == 4
    pages.check([table])


def forks() -> None:
    """A fork shares full pages, and has its own copy of the one that both go on writing."""
    pages, text, chain = Pages(5, SIZE), [*range(10)], Chain()
    table: list[int] = []
    assert pages.grow(table, 14)
    pages.seal(table, text, 0, 10, chain)
    forked = pages.fork(table, 10)
    assert forked is not None
    other, copies = forked
    assert (other[:2], copies) == (table[:2], [(table[2], other[2])])
    assert len(other) == 3
    assert other[2] not in table
    pages.check([table, other])
    assert pages.fork(table, 10) is None, "a page was found where there is none"
    whole = pages.fork(table, 8)
    assert whole == (table[:2], [])
    pages.check([table, other, whole[0]])
    pages.release(table)
    pages.check([other, whole[0]])
    assert pages.held == 3


def naive(steps: int = 1500) -> None:
    """The same as a list of published prefixes, from the one unused longest to the one used last."""
    rng, pages, held = random.Random(0), Pages(12, 2), []
    published: dict[tuple[int, ...], int] = {}  # prefix -> how often it is held
    unused: list[tuple[int, ...]] = []
    for _ in range(steps):
        if held and rng.random() < 0.5:
            table, prefixes = held.pop(rng.randrange(len(held)))
            pages.release(table)
            for prefix in reversed(prefixes):
                published[prefix] -= 1
                unused += [prefix] * (published[prefix] == 0)
            continue
        tokens, chain = [rng.randrange(2) for _ in range(rng.randint(1, 9))], Chain()
        prefixes = [tuple(tokens[:n]) for n in range(2, len(tokens), 2)]
        known = next((i for i, prefix in enumerate(prefixes) if prefix not in published), len(prefixes))
        table = pages.match(tokens, chain)
        assert len(table) == known, f"{tokens}: {len(table)} pages were found, {known} are there"
        for prefix in prefixes[:known]:
            published[prefix] += 1
        unused = [prefix for prefix in unused if not published[prefix]]
        free = pages.free
        if pages.grow(table, len(tokens)):
            for _ in range(len(table) - known - free):
                del published[unused.pop(0)]
            pages.seal(table, tokens, known * 2, len(tokens), chain)
            full = [tuple(tokens[:n]) for n in range(2, len(tokens) + 1, 2)]
            fresh = [prefix for prefix in full[known:] if prefix not in published]
            published |= dict.fromkeys(fresh, 1)
            held.append((table, prefixes[:known] + fresh))
        else:
            held.append((table, prefixes[:known]))
        pages.check([table for table, _ in held])
    assert pages.evictions > 100, "too little happened"


def commit(scheduler: Scheduler[Toy], luck: int = 0) -> None:
    """A model that says 7 again and again, and agrees with the first `luck` drafts."""
    for span in [*scheduler.spans.values()]:
        sequence, accepted = span.sequence, min(luck, len(span.sequence.drafts))
        if span.start + span.count >= len(sequence.tokens):
            sequence.extend([*sequence.drafts[:accepted], 7])
            sequence.finish = "stop" if len(sequence.tokens) >= sequence.limit else None
        scheduler.commit(span, accepted)
    scheduler.pages.check([s.table for s in scheduler.running])


def run(scheduler: Scheduler[Toy], steps: int = 1000) -> list[dict[Toy, int]]:
    """Steps until all is done, and how many tokens each computed for whom."""
    history: list[dict[Toy, int]] = []
    while scheduler.busy:
        assert len(history) < steps, "it does not end"
        history.append({sequence: count for sequence, _, count in scheduler.plan()})
        commit(scheduler)
    return history


def toys(scheduler: Scheduler[Toy], *lengths: int, reply: int = 1, **fields: object) -> list[Toy]:
    """Added sequences with prompts of these lengths, no two alike."""
    added = []
    for length in lengths:
        start = 1000 * scheduler.arrivals
        added.append(Toy([*range(start, start + length)], length + reply, **fields))
        scheduler.add(added[-1])
    return added


def chunks() -> None:
    """A long prompt is computed beside replies, which miss no step; the budget is used up, and never exceeded."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(100, SIZE), places=3, budget=10)
    talker, other = toys(scheduler, 3, 4, reply=20)
    assert scheduler.plan() == [(talker, 0, 3), (other, 0, 4)]
    commit(scheduler)
    (reader,) = toys(scheduler, 35, reply=2)
    history = run(scheduler)
    assert history[:5] == [{talker: 1, other: 1, reader: 8}] * 4 + [{talker: 1, other: 1, reader: 3}]
    assert history[5] == {talker: 1, other: 1, reader: 1}
    assert len(history) == 19


def drafts() -> None:
    """A span is what is lacking and its drafts, as far as budget, limit and pages allow; computed goes back."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(6, SIZE), places=2, budget=7)
    first, second = toys(scheduler, 3, 2, reply=8)
    scheduler.plan()
    commit(scheduler)
    first.drafts, second.drafts = [7, 7, 7, 5, 5, 5, 5], [7]
    assert scheduler.plan() == [(first, 3, 6), (second, 2, 1)], "a token is kept for everyone"
    assert (first.drafts, second.drafts) == ([7, 7, 7, 5, 5], [])
    commit(scheduler, luck=3)
    assert (first.computed, first.tokens, first.drafts) == (7, [0, 1, 2, 7, 7, 7, 7, 7], [])
    assert second.computed == 3
    assert len(scheduler.pages.find([*first.tokens, 1], Chain())) == 1, "a page with wrong drafts was published"
    first.drafts = [7] * 5
    assert scheduler.plan() == [(first, 7, 3), (second, 3, 1)], "drafts reach beyond the limit"
    commit(scheduler, luck=2)
    assert (first.finish, len(first.tokens)) == ("stop", 11)
    scheduler = Scheduler(Pages(3, SIZE), places=2, budget=20)
    first, second = toys(scheduler, 3, 3, reply=9)
    scheduler.plan()
    commit(scheduler)
    first.drafts = [7] * 6
    assert scheduler.plan() == [(first, 3, 1), (second, 3, 1)], "drafts take pages that are not there"
    assert (first.drafts, scheduler.preemptions) == ([], 0)


def preemption() -> None:
    """If pages run out, the lowest priority, then the newest, gives way; its tokens stay, and its pages if they can."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(6, SIZE), places=3, budget=64, patience=10)
    (low,) = toys(scheduler, 7, reply=9, priority=-1)
    old, new = toys(scheduler, 3, 3, reply=9)
    while not scheduler.preemptions:
        scheduler.plan()
        commit(scheduler)
    assert [*scheduler.running] == [old, new]
    assert (low.preempted, low.computed, low.table) == (1, 0, [])
    said = len(low.tokens)
    while low in scheduler.waiting:
        scheduler.plan()
        if low not in scheduler.running:
            commit(scheduler)
    assert (old.preempted, new.preempted) == (0, 0)
    assert len(low.tokens) == said
    run_on = scheduler.spans[low]
    assert run_on.start + run_on.count == said
    commit(scheduler)
    run(scheduler)
    assert {s.finish for s in (low, old, new)} == {"stop"}


def room() -> None:
    """Nobody is let in who would take the pages that a prompt still needs, and the small do not overtake the large."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(6, SIZE), places=3, budget=4)
    (reader,) = toys(scheduler, 17, reply=3)
    scheduler.plan()
    commit(scheduler)
    large, small = toys(scheduler, 12, 1)
    history = run(scheduler)
    assert scheduler.preemptions == 0, "somebody was let in and thrown out again"
    begun = [next(i for i, step in enumerate(history) if s in step) for s in (reader, large, small)]
    assert begun == sorted(begun)
    assert begun[1] > 0


def again() -> None:
    """Who was preempted finds its own pages, as long as nobody took them, and goes on before who came later."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(7, SIZE), places=2, budget=64)
    first, second = toys(scheduler, 8, 14, reply=9)
    (third,) = toys(scheduler, 3)
    history = []
    while not second.preempted:
        history.append(scheduler.plan())
        commit(scheduler)
    scheduler.cancel(first)
    assert [span.sequence for span in scheduler.plan()] == [second, third]
    assert scheduler.spans[second].start >= 2 * SIZE, "what it had computed is computed again"
    commit(scheduler)
    run(scheduler)


def sharing() -> None:
    """A prefix that is being computed is waited for, and computed once; but not if nothing comes of it."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(100, SIZE), places=8, budget=8)
    same = [Toy([*range(40), 100 + i], 42) for i in range(4)]
    other = Toy([*range(500, 506)], 7)
    for sequence in (*same, other):
        scheduler.add(sequence)
    total = sum(sum(step.values()) for step in run(scheduler))
    assert total == 40 + 4 + 6, f"{total} tokens were computed"
    assert max(s.awaited for s in same) <= 41
    leader, follower = Toy([*range(40)], 41), Toy([*range(40)], 41, chain=Chain(b"x"))
    leader.chain = Chain(b"x")
    scheduler = Scheduler(Pages(100, SIZE), places=2, budget=2)
    scheduler.add(leader)
    scheduler.add(follower)
    for _ in range(8):  # the step fails: nothing is ever computed
        spans = scheduler.plan()
    assert {span.sequence for span in spans} == {leader, follower}, "one waits for what does not come"


def priorities() -> None:
    """The higher priority comes first, even takes the place of a lower one; but everyone's time comes."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(40, SIZE), places=1, budget=8, patience=50)
    (running,) = toys(scheduler, 4, reply=30)
    scheduler.plan()
    commit(scheduler)
    (low,) = toys(scheduler, 5)
    (high,) = toys(scheduler, 5, priority=1)
    assert [span.sequence for span in scheduler.plan()] == [high]
    commit(scheduler)
    assert running.preempted == 1
    for _ in range(60):
        toys(scheduler, 5, priority=1)
        scheduler.plan()
        commit(scheduler)
    assert (running.finish, low.finish) == ("stop", "stop"), "a stream of others keeps them out"


def shares() -> None:
    """Two tenants get the same, however many sequences each has; who comes back to an idle server owes nothing."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(100, SIZE), places=1, budget=8, queue=99, patience=1000)
    many = toys(scheduler, *[8] * 30, reply=2, tenant="many")
    for _ in range(10):
        scheduler.plan()
        commit(scheduler)
    few = toys(scheduler, *[8] * 10, reply=2, tenant="few")
    while not all(s.finish for s in few):
        scheduler.plan()
        commit(scheduler)
    between = sum(s.finish is not None for s in many) - 5
    assert 9 <= between <= 11, f"one tenant had {between} turns while the other had 10"
    run(scheduler)
    assert not scheduler._tenants
    toys(scheduler, 3, tenant="new")
    assert scheduler._due.keys() <= {"many", "new"}


def deadlines() -> None:
    """Who is late ends, running or waiting, and is told of once; its pages are free."""
    scheduler: Scheduler[Toy] = Scheduler(Pages(20, SIZE), places=1, budget=8)
    running, waiting = toys(scheduler, 5, 5, reply=9, deadline=3.0)
    (patient,) = toys(scheduler, 5, deadline=9.0)
    assert [span.sequence for span in scheduler.plan(2.9)] == [running]
    commit(scheduler)
    assert [span.sequence for span in scheduler.plan(3.0)] == [patient]
    assert scheduler.late == [running, waiting]
    assert (running.finish, waiting.finish, running.table) == ("timeout", "timeout", [])
    commit(scheduler)
    assert not scheduler.plan(4.0)
    assert not scheduler.late


def traffic() -> None:
    """Random arrivals, forks, drafts, cancellations: see `engine.fuzz`."""
    report = fuzz(1500, 2)
    assert min(report.preemptions, report.evictions, report.copies, report.accepted) > 10, f"little happened: {report}"
    assert report.shared > 100, f"little was shared: {report}"
    assert report.longest < 1000, f"somebody waited for {report.longest} steps"


PROOFS = {
    **{f"pages {proof.__name__}": proof for proof in (reuse, sealing, giving_away, forks, naive)},
    **{
        f"scheduler {proof.__name__}": proof
        for proof in (chunks, drafts, preemption, room, again, sharing, priorities, shares, deadlines, traffic)
    },
}
