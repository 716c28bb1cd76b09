"""Byte-pair encoding: start from characters, keep joining the best adjacent pair.

Sennrich, Haddow and Birch 2016 (arXiv:1508.07909) rank pairs by a learnt list of merges. SentencePiece's BPE
(Kudo and Richardson 2018, arXiv:1808.06226) ranks them by the score of the token they would make. Both are
the same loop with another `priority`.

    l o w e r      heap: (lo, er, we, ow …)
    └┬┘
     lo w e r      join the best, offer its new neighbors, skip what has gone stale
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush

from cutaway.text.alphabet import fallback_tokens

Pair = tuple[str, str]
Priority = Callable[[Pair], float | None]
Join = Callable[[str, str], str]

SPACE = "▁"


def by_rank(merges: Iterable[Pair]) -> Priority:
    """Earlier in the list of merges means sooner."""
    return {pair: rank for rank, pair in enumerate(merges)}.get


def by_score(scores: Mapping[str, float], hidden: Collection[str] = ()) -> Priority:
    """The pair whose joint token scores highest goes first; one that makes no token, or a hidden one, never does."""

    def priority(pair: Pair) -> float | None:
        token = pair[0] + pair[1]
        return -scores[token] if token in scores and token not in hidden else None

    return priority


def merge(
    symbols: list[str], priority: Priority, join: Join = str.__add__, trace: list[Pair] | None = None
) -> list[str]:
    """Join adjacent symbols, lowest priority first and leftmost on a tie, until no pair has a priority.

    O(n log n): the symbols form a doubly linked list over their positions, the candidates a heap. `trace`
    receives the pairs in the order they were joined.
    """
    n = len(symbols)
    text: list[str | None] = [*symbols, None]
    before, after = list(range(-1, n)), list(range(1, n + 2))

    def candidate(i: int) -> tuple[float, int, str, str] | None:
        left, right = text[i], text[after[i]]
        if left is None or right is None or (rank := priority((left, right))) is None:
            return None
        return rank, i, left, right

    heap = [found for i in range(n) if (found := candidate(i))]
    heapify(heap)
    while heap:
        _, i, left, right = heappop(heap)
        j = after[i]
        if text[i] != left or text[j] != right:
            continue  # one of the two has been joined to something else since
        text[i], text[j] = join(left, right), None
        after[i] = after[j]
        before[after[i]] = i
        if trace is not None:
            trace.append((left, right))
        for k in (before[i], i):
            if k >= 0 and (found := candidate(k)):
                heappush(heap, found)
    return [symbol for symbol in text if symbol is not None]


class BPE:
    """Encode one pre-token.

    priority: which pair joins first (see `by_rank`, `by_score`).
    unk:      token for a character the vocabulary lacks; None drops it. `byte_fallback` tries its bytes first.
    fuse_unk: neighboring unknown characters make one `unk`.
    whole:    a pre-token that is itself a token needs no merging (`ignore_merges` of Llama 3).
    prefix:   marks symbols that continue a word; suffix: marks the last symbol of a word.
    hidden:   tokens that text can never make: the control tokens.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        priority: Priority,
        *,
        unk: str | None = None,
        fuse_unk: bool = False,
        byte_fallback: bool = False,
        whole: bool = False,
        prefix: str = "",
        suffix: str = "",
        hidden: Collection[str] = (),
    ) -> None:
        self.vocab, self.priority = vocab, priority
        self.unk, self.fuse_unk, self.byte_fallback, self.whole = unk, fuse_unk, byte_fallback, whole
        self.prefix, self.suffix, self.hidden = prefix, suffix, hidden
        self._cut = None if prefix or suffix else _boundaries(vocab)

    def tokens(self, word: str, trace: list[Pair] | None = None) -> list[str]:
        """The tokens of one pre-token; `trace` receives the merges in order."""
        if self.whole and word in self.vocab and word not in self.hidden:
            return [word]
        merged: list[str] = []
        for part in self._cut.split(word) if self._cut else [word]:
            merged += merge(self.spell(part), self.priority, self._join, trace)
        return self._known(merged)

    def ids(self, word: str) -> list[int]:
        """The token ids of one pre-token."""
        return [self.vocab[token] for token in self.tokens(word)]

    def spell(self, word: str) -> list[str]:
        """The symbols that merging starts from."""
        symbols = [*word[:1], *(self.prefix + letter for letter in word[1:])]
        return [*symbols[:-1], symbols[-1] + self.suffix] if symbols else []

    def _join(self, left: str, right: str) -> str:
        return left + right.removeprefix(self.prefix)

    def _known(self, symbols: list[str]) -> list[str]:
        """Replace what the vocabulary lacks by bytes, by `unk`, or by nothing."""
        tokens: list[str] = []
        fusing = False
        for symbol in symbols:
            known = symbol in self.vocab
            found = [symbol] if known else self._bytes(symbol)
            if not found and self.unk is not None and not (fusing and self.fuse_unk):
                tokens.append(self.unk)
            tokens += found
            fusing = not found
        return tokens

    def _bytes(self, symbol: str) -> list[str]:
        spelled = fallback_tokens(symbol.encode()) if self.byte_fallback else []
        return spelled if all(token in self.vocab for token in spelled) else []


def _boundaries(vocab: Mapping[str, int]) -> re.Pattern[str] | None:
    """Where text may be cut before "▁" without changing the result, so that words are short and repeat.

    If no token contains "x▁", nothing is ever joined across "x▁", and the two sides merge independently.
    Only the letters x that some token has before "▁" are exempt.
    """
    if SPACE not in vocab:
        return None
    crossing = {match[0] for match in re.findall(rf"[^{SPACE}\0]{SPACE}", "\0".join(vocab))}
    return re.compile(f"(?<=[^{re.escape(''.join(sorted(crossing | {SPACE})))}])(?={SPACE})", re.DOTALL)
