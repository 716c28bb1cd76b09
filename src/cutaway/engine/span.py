"""A span: tokens of one sequence that a step computes. And what a sequence must tell to be given one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

from cutaway.engine.pages import Chain


class Schedulable(Hashable, Protocol):
    """What a sequence must tell. The first group is its own, the second the scheduler's to change.

    tokens only grows; at most to `limit`. drafts: proposed tokens that follow; the scheduler may drop the last ones.
    chain: names its pages, and holds its salt. finish: why it ended, None as long as it has not.
    """

    tokens: list[int]
    limit: int
    drafts: list[int]
    chain: Chain
    priority: int
    tenant: str
    deadline: float | None
    finish: str | None

    computed: int
    cached: int  # computed when it began, or began again
    table: list[int]
    rank: tuple[float, int]  # the smaller, the more important
    awaited: int  # as far as others were to compute its prefix when it waited for them
    preempted: int  # how often


S = TypeVar("S", bound=Schedulable)


class Span(NamedTuple, Generic[S]):
    """Compute `count` tokens from position `start` on: what the sequence lacks, then its drafts."""

    sequence: S
    start: int
    count: int  # type: ignore[assignment]  # hides the method of tuples
