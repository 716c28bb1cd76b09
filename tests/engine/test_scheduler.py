"""The scheduler: who computes what, who waits and who gives way, without a model."""

from __future__ import annotations

import pytest

from cutaway.engine.pages import Chain, Pages
from cutaway.engine.scheduler import Busy, Scheduler
from cutaway.errors import CutawayError
from engine.fuzz import Toy, fuzz
from kit.proofs.pages import PROOFS, commit, run, toys


@pytest.mark.parametrize("name", [name for name in PROOFS if name.startswith("scheduler")])
def test_proof(name: str) -> None:
    PROOFS[name]()


@pytest.mark.parametrize("seed", range(10, 14))
def test_random_traffic(seed: int) -> None:
    fuzz(1000, seed)


def scheduler(count: int = 50, **options: float) -> Scheduler[Toy]:
    return Scheduler(Pages(count, 4), **{"places": 2, "budget": 8} | options)


def test_the_queue_is_bounded() -> None:
    few = scheduler(queue=2)
    toys(few, 3, 3)
    with pytest.raises(Busy, match="2 sequences wait already"):
        toys(few, 3)
    few.plan()
    toys(few, 3)


def test_what_can_never_fit_is_refused_at_once() -> None:
    small = scheduler(count=3)
    with pytest.raises(CutawayError, match=r"max_tokens: may need 4 pages of 4 tokens, there are 3"):
        toys(small, 5, reply=8)
    assert not small.busy
    toys(small, 5, reply=7)
    run(small)


def test_every_place_has_a_token() -> None:
    with pytest.raises(CutawayError, match="budget: has 3 tokens for 4 sequences"):
        scheduler(places=4, budget=3)


def test_cancelling_at_any_moment_frees_everything() -> None:
    some = scheduler()
    waiting, running, computing = (toys(some, 9, reply=5)[0] for _ in range(3))
    some.cancel(waiting)
    assert (waiting.finish, [*some.waiting]) == ("abort", [running, computing])
    some.plan()
    commit(some)
    some.cancel(running)
    assert (running.table, [*some.running]) == ([], [computing])
    (span,) = some.plan()
    some.cancel(computing)
    assert computing.table, "its pages are taken away while it is computed"
    some.commit(span)
    assert not some.busy
    assert some.pages.held == 0
    some.cancel(computing)  # once more does no harm
    assert computing.finish == "abort"


def test_a_step_that_failed_is_planned_again() -> None:
    some = scheduler()
    (toy,) = toys(some, 6)
    assert some.plan() == some.plan() == [(toy, 0, 6)]
    some.cancel(toy)
    assert some.plan() == []
    assert not some.busy
    assert some.pages.held == 0


def test_what_was_computed_is_charged_and_prefixes_are_not() -> None:
    some = scheduler()
    some.add(Toy([*range(9)], 10, tenant="a"))
    run(some)
    assert some.time == 9
    some.add(Toy([*range(9)], 10, tenant="a"))
    run(some)
    assert some.time == 10
    assert (some.pages.lookups, some.pages.hits) == (18, 8)


def test_tenants_that_are_gone_are_forgotten() -> None:
    some = scheduler(patience=5)
    for i in range(100):
        toys(some, 3, tenant=str(i))
        run(some)
    assert len(some._due) < 10


def test_a_fork_goes_on_from_its_parents_tokens() -> None:
    some = scheduler()
    (parent,) = toys(some, 6, reply=4)
    some.plan()
    commit(some)
    child = Toy([*parent.tokens[:6], 8], 10)
    ((start, to),) = some.fork(parent, child)
    assert (start, child.table, child.computed) == (parent.table[1], [parent.table[0], to], 6)
    assert some.plan() == [(parent, 6, 1), (child, 6, 1)]
    commit(some)
    third = Toy([*parent.tokens[:6], 9], 10)
    assert some.fork(parent, third) == [], "there is no place for it"
    assert third in some.waiting
    run(some)
    assert {s.finish for s in (parent, child, third)} == {"stop"}
    assert some.pages.hits == 4, "the third finds the page that it could not take over"


def test_a_prefix_with_another_salt_is_not_waited_for() -> None:
    some = scheduler()
    first, second = (Toy([*range(12)], 13, chain=Chain(salt)) for salt in (b"a", b"b"))
    some.add(first)
    some.add(second)
    assert {span.sequence for span in some.plan()} == {first, second}


def test_who_lacks_nothing_is_left_alone() -> None:
    some = scheduler()
    first, second = toys(some, 4, 4, reply=3)
    some.plan()
    for span in [*some.spans.values()]:
        some.commit(span)
    second.tokens.append(7)
    assert some.plan() == [(second, 4, 1)]
    assert first in some.running
