"""Pages: the cache is cut into pages of equal size, and a sequence's table lists the ones that hold its tokens.

Only bookkeeping, no tensors (Kwon et al. 2023, "PagedAttention", arXiv:2309.06180). A full page may be published under
a name that stands for its tokens and all that came before; whoever begins with the same tokens holds the same page
instead of computing it again. A page is in one of three states:

    free ──grow──► held ──release, if published──► cached ──match──► held
      ▲              └────release, if not──► free    └──grow, when none is free: least recently used first──► held
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice

KEY = os.urandom(16)  # nobody outside this process can construct two texts with one name


def name_of(parent: bytes, content: bytes) -> bytes:
    """128 bits; the parent's name is the key, so that a name stands for the whole text up to its page's end."""
    return blake2b(content, key=parent, digest_size=16).digest()


class Chain:
    """The names of one sequence's pages, each computed once. salt: what else the cached values depend on.

    It holds for one growing list of tokens: those that it has seen must not change.
    """

    def __init__(self, salt: bytes = b"", names: Iterable[bytes] = ()) -> None:
        self.salt, self.names = salt, list(names)

    def reach(self, tokens: list[int], size: int, pages: int) -> list[bytes]:
        """The names known, at least those of the first `pages` pages."""
        for i in range(len(self.names), pages):
            parent = self.names[-1] if self.names else name_of(KEY, self.salt)
            self.names.append(name_of(parent, array("q", tokens[i * size : (i + 1) * size]).tobytes()))
        return self.names


class Pages:
    """`count` pages of `size` tokens each, numbered 0 ... count - 1.

    holders: how many tables contain each page. lookups, hits: tokens that `match` was asked for, and that it found.
    evictions: published pages given away.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.lookups = self.hits = self.evictions = 0
        self._free = [*reversed(range(count))]
        self.holders = [0] * count
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Pages that nobody holds and that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Published pages that nobody holds; they are given away when none is free."""
        return len(self._cached)

    @property
    def held(self) -> int:
        return self.count - self.available

    @property
    def available(self) -> int:
        """How many `grow` could hand out."""
        return len(self._free) + len(self._cached)

    def states(self) -> list[int]:
        """Per page how many tables hold it; 0 if it is free, -1 if it is cached."""
        return [-1 if page in self._cached else holders for page, holders in enumerate(self.holders)]

    def needed(self, tokens: int) -> int:
        """Pages that so many tokens fill or begin."""
        return -(-tokens // self.size)

    def find(self, tokens: list[int], chain: Chain) -> list[int]:
        """The longest run of published pages that `tokens` begin with. At least one token is left to compute."""
        most, found = (len(tokens) - 1) // self.size, []
        for name in islice(chain.reach(tokens, self.size, most), most):
            if name not in self._page_of:
                break
            found.append(self._page_of[name])
        return found

    def match(self, tokens: list[int], chain: Chain) -> list[int]:
        """A table that holds what `find` finds."""
        table = self.find(tokens, chain)
        for page in table:
            self._cached.pop(page, None)
            self.holders[page] += 1
        self.lookups += len(tokens)
        self.hits += len(table) * self.size
        return table

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extend the table in place until it holds `tokens` tokens; False, and nothing changes, if it cannot be."""
        more = self.needed(tokens) - len(table)
        if more > self.available:
            return False
        table.extend(self._take() for _ in range(more))
        return True

    def seal(self, table: list[int], tokens: list[int], start: int, end: int, chain: Chain) -> None:
        """Publish the pages that computing tokens start ... end - 1 has filled.

        A page whose content is published already stays private: tables never change under those who read them.
        """
        names = chain.reach(tokens, self.size, end // self.size)
        for i in range(start // self.size, end // self.size):
            if names[i] not in self._page_of:
                self._page_of[names[i]], self._name_of[table[i]] = table[i], names[i]

    def fork(self, table: list[int], computed: int) -> tuple[list[int], list[tuple[int, int]]] | None:
        """A second table for the first `computed` tokens, and the copies (from, to) to make; None if it cannot be.

        Full pages are shared. One that is partly filled is copied, for both will write their own tokens into it.
        """
        full = computed // self.size
        copied = table[full : self.needed(computed)]
        if len(copied) > self.available:
            return None
        for page in table[:full]:
            self.holders[page] += 1
        copies = [(page, self._take()) for page in copied]
        return table[:full] + [to for _, to in copies], copies

    def release(self, table: list[int]) -> None:
        """Empty the table. The last page goes first, so that a text's end is forgotten before its beginning."""
        while table:
            page = table.pop()
            self.holders[page] -= 1
            if self.holders[page] == 0 and page in self._name_of:
                self._cached[page] = None
            elif self.holders[page] == 0:
                self._free.append(page)

    def check(self, tables: Iterable[list[int]]) -> None:
        """Errors: AssertionError that says which invariant is broken. tables: all that hold pages."""
        counted = Counter(page for table in tables for page in table)
        free, cached = {*self._free}, {*self._cached}
        rules = {
            "a table lists a page that does not exist": all(0 <= page < self.count for page in counted),
            "a page's holders are not the tables that list it": self.holders == [counted[i] for i in range(self.count)],
            "a page is free twice": len(free) == len(self._free),
            "a page is free and cached": not free & cached,
            "a page is held and may be given away": not counted.keys() & (free | cached),
            "a page is lost": len(counted) + self.free + self.cached == self.count,
            "a cached page has no name, or a free one has": cached <= self._name_of.keys() <= cached | counted.keys(),
            "names and pages disagree": {n: p for p, n in self._name_of.items()} == self._page_of,
        }
        if broken := [what for what, holds in rules.items() if not holds]:
            raise AssertionError("; ".join(broken))

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            del self._page_of[self._name_of.pop(page)]
            self.evictions += 1
        self.holders[page] = 1
        return page
