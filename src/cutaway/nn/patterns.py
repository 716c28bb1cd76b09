"""Which pairs of positions attention may use: rules about (query, key), and how many pairs each allows.

A rule can be asked about any part of the score matrix, so an algorithm that works in tiles (`cutaway.nn.flash`) never
needs the whole mask; `mask` makes it whole for those who want to look at it. Seven tokens:

    Causal         Window(3)      Prefix(3)      Blocks((3, 4))  Longformer(1, (0,))  Strided(3)     Fixed(4, 1)
    x . . . . . .  x . . . . . .  x x x . . . .  x x x . . . .   x x x x x x x        x . . . . . .  x . . . . . .
    x x . . . . .  x x . . . . .  x x x . . . .  x x x . . . .   x x x . . . .        x x . . . . .  x x . . . . .
    x x x . . . .  x x x . . . .  x x x . . . .  x x x . . . .   x x x x . . .        x x x . . . .  x x x . . . .
    x x x x . . .  . x x x . . .  x x x x . . .  . . . x x x x   x . x x x . .        x x x x . . .  x x x x . . .
    x x x x x . .  . . x x x . .  x x x x x . .  . . . x x x x   x . . x x x .        . x x x x . .  . . . x x . .
    x x x x x x .  . . . x x x .  x x x x x x .  . . . x x x x   x . . . x x x        . . x x x x .  . . . x x x .
    x x x x x x x  . . . . x x x  x x x x x x x  . . . x x x x   x . . . . x x        x . . x x x x  . . . x x x x

Prefix-LM: Raffel et al. 2019 (arXiv:1910.10683). Longformer: Beltagy et al. 2020 (arXiv:2004.05150). Strided and
fixed: Child et al. 2019 (arXiv:1904.10509). BigBird: Zaheer et al. 2020 (arXiv:2007.14062). Window with first tokens
kept: Xiao et al. 2023 (arXiv:2309.17453).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from cutaway.errors import CutawayError

Rule = Callable[[Tensor, Tensor], Tensor]
"""rule(q_Q1, s_1S) -> seen_QS: may the query at position q look at the key at position s?"""


def mask(rule: Rule, queries: int, keys: int | None = None) -> Tensor:
    """The rule written out for the first positions, seen_QS; as many keys as queries unless told."""
    return rule(torch.arange(queries)[:, None], torch.arange(keys or queries)[None])


def both(*rules: Rule) -> Rule:
    """What all rules allow: the causal mask within documents, say, and not on padding."""
    return lambda q_Q1, s_1S: torch.stack([rule(q_Q1, s_1S) for rule in rules]).all(0)


@dataclass(frozen=True)
class Pattern:
    """A rule with a known number of pairs. Errors: negative numbers; zero where something must be covered."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), int(field.name in ("size", "stride", "block"))
            if any(number < least for number in (value if isinstance(value, tuple) else (value,))):
                raise CutawayError(f"must be at least {least}, got {value}", f"{type(self).__name__}.{field.name}")

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        """See `Rule`."""
        raise NotImplementedError

    def pairs(self, n: int) -> int:
        """How many (query, key) pairs n tokens make."""
        raise NotImplementedError


@dataclass(frozen=True)
class Everything(Pattern):
    """Bidirectional attention."""

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        return (q_Q1 >= 0) | (s_1S >= 0)

    def pairs(self, n: int) -> int:
        return n * n


@dataclass(frozen=True)
class Causal(Pattern):
    """Itself and what came before."""

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        return s_1S <= q_Q1

    def pairs(self, n: int) -> int:
        return n * (n + 1) // 2


CAUSAL = Causal()


@dataclass(frozen=True)
class Window(Pattern):
    """The last `size` tokens, itself included, and the first `anchors` however far away."""

    size: int
    anchors: int = 0

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        return (s_1S <= q_Q1) & ((q_Q1 - s_1S < self.size) | (s_1S < self.anchors))

    def pairs(self, n: int) -> int:
        size, late = min(self.size, n), max(n - self.size, 0)  # late: queries that have lost sight of the first token
        part = min(self.anchors, late)
        return n * size - size * (size - 1) // 2 + late * part - part * (part - 1) // 2


@dataclass(frozen=True)
class Prefix(Pattern):
    """Everybody sees the first `length` tokens, what follows is causal: prefix language modeling."""

    length: int

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        return (s_1S <= q_Q1) | (s_1S < self.length)

    def pairs(self, n: int) -> int:
        length = min(self.length, n)
        return n * (n + 1) // 2 + length * (length - 1) // 2


@dataclass(frozen=True)
class Padded(Pattern):
    """Only the first `real` keys exist; the rest fills a rectangle."""

    real: int

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        return (s_1S < self.real) & (q_Q1 >= 0)

    def pairs(self, n: int) -> int:
        return n * min(self.real, n)


@dataclass(frozen=True)
class Blocks(Pattern):
    """Documents of these lengths laid end to end, blind to each other; what follows the last is one more."""

    lengths: tuple[int, ...]

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        ends = torch.tensor(self.lengths, device=q_Q1.device).cumsum(0)
        return torch.bucketize(q_Q1, ends, right=True) == torch.bucketize(s_1S, ends, right=True)

    def pairs(self, n: int) -> int:
        rest = n - sum(self.lengths)
        if rest < 0:
            raise CutawayError(f"{sum(self.lengths)} tokens of documents are more than {n}", "Blocks.lengths")
        return sum(length**2 for length in (*self.lengths, rest))


@dataclass(frozen=True)
class Longformer(Pattern):
    """`reach` tokens to either side; tokens at `everywhere` see all and are seen by all."""

    reach: int
    everywhere: tuple[int, ...] = ()

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        chosen = torch.tensor(self.everywhere, device=q_Q1.device, dtype=torch.long)
        return ((q_Q1 - s_1S).abs() <= self.reach) | torch.isin(q_Q1, chosen) | torch.isin(s_1S, chosen)

    def pairs(self, n: int) -> int:
        reach, g = min(self.reach, n - 1), self.everywhere
        near = n * (2 * reach + 1) - reach * (reach + 1)
        counted = 2 * sum(min(at + reach, n - 1) - max(at - reach, 0) + 1 for at in g)  # near pairs in global rows,
        counted -= sum(abs(a - b) <= reach for a in g for b in g)  # in global columns, less where those cross
        return near + 2 * len(g) * n - len(g) ** 2 - counted


@dataclass(frozen=True)
class Strided(Pattern):
    """The last `stride` tokens before it, and every `stride`-th before those: two steps reach everything."""

    stride: int

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        age_QS = q_Q1 - s_1S
        return (age_QS >= 0) & ((age_QS <= self.stride) | (age_QS % self.stride == 0))

    def pairs(self, n: int) -> int:
        whole = n // self.stride
        multiples = self.stride * whole * (whole - 1) // 2 + n % self.stride * whole
        return Window(self.stride + 1).pairs(n) + multiples - max(n - self.stride, 0)


@dataclass(frozen=True)
class Fixed(Pattern):
    """Its own stretch of `stride` tokens so far, and the last `summary` tokens of every earlier stretch."""

    stride: int
    summary: int

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        own_QS = q_Q1 // self.stride == s_1S // self.stride
        return (s_1S <= q_Q1) & (own_QS | (s_1S % self.stride >= self.stride - self.summary))

    def pairs(self, n: int) -> int:
        whole, rest, summary = n // self.stride, n % self.stride, min(self.summary, self.stride)
        own = whole * self.stride * (self.stride + 1) // 2 + rest * (rest + 1) // 2
        return own + summary * (self.stride * whole * (whole - 1) // 2 + rest * whole)


@dataclass(frozen=True)
class BigBird(Pattern):
    """Blocks of tokens: each sees itself, its neighbors, the first, the last and `random` others.

    The first and the last block see everything. Errors also: blocks that do not tile `length` or are too few.
    """

    length: int
    block: int
    random: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length % self.block or self.length // self.block < 5 + self.random:
            what = f"{self.length} tokens are not {5 + self.random} or more whole blocks of {self.block}"
            raise CutawayError(what, "BigBird.length")

    @cached_property
    def blocks(self) -> Tensor:
        """Which block sees which: seen_bb, the rule without its tokens."""
        b_b, count = torch.arange(self.length // self.block), self.length // self.block
        edge_b = (b_b == 0) | (b_b == count - 1)
        seen_bb = ((b_b[:, None] - b_b).abs() <= 1) | edge_b[:, None] | edge_b
        lots_bb = torch.rand(count, count, generator=torch.Generator().manual_seed(self.seed))
        drawn_bb = torch.zeros_like(seen_bb)
        drawn_bb.scatter_(1, lots_bb.masked_fill(seen_bb, -1).topk(self.random).indices, True)
        return seen_bb | drawn_bb

    def __call__(self, q_Q1: Tensor, s_1S: Tensor) -> Tensor:
        return self.blocks.to(q_Q1.device)[q_Q1 // self.block, s_1S // self.block]

    def pairs(self, n: int) -> int:
        count = self.length // self.block
        return self.block**2 * (2 * count + 2 * (4 + self.random) + (count - 4) * (5 + self.random))
