"""Tokens that are found in the raw text before any algorithm runs: control tokens and user-defined ones.

At each position the longest token wins, from left to right, as in Hugging Face's `tokenizers` and in
SentencePiece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class AddedToken:
    """One such token. The fields are those of tokenizer.json.

    special:        a control token: skipped when decoding, and only found where `parse_special` allows it.
    normalized:     sought in the normalized text rather than in the raw one. Control tokens always are sought in
                    the raw text, so that nothing a normalizer makes can become one.
    single_word:    not inside a word. lstrip, rstrip: takes the white space on that side with it.
    """

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Segment:
    """A stretch of text from `start`: an added token, or text that is still to be encoded."""

    start: int
    text: str
    token: AddedToken | None = None


class Finder:
    """Cuts a text at added tokens.

    With thousands of tokens an alternation would be tried one by one at each position, so the regular
    expression only looks for the tokens' first two characters; a table then holds the tokens that begin so,
    longest first.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._by_head: dict[str, list[AddedToken]] = {}
        for token in sorted(tokens, key=lambda t: -len(t.content)):
            if token.content:
                self._by_head.setdefault(token.content[:2], []).append(token)
        heads = sorted(self._by_head, key=len, reverse=True)
        self._head = re.compile("|".join(map(re.escape, heads))) if heads else None

    def split(self, text: str, parse_special: bool = True) -> Iterator[Segment]:
        """Cut `text` into segments; with `parse_special` off, control tokens are plain text."""
        done = 0
        for found, token in self._matches(text, parse_special):
            start, end = found, found + len(token.content)
            if token.lstrip:
                start = max(done, len(text[:start].rstrip()))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip())
            if done < start:
                yield Segment(done, text[done:start])
            yield Segment(start, text[start:end], token)
            done = end
        if done < len(text):
            yield Segment(done, text[done:])

    def occurrences(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        """All places where a token begins, overlapping ones too."""
        head = self._head.search(text) if self._head else None
        while self._head and head:
            for token in self._candidates(text, head.start()):
                yield head.start(), token
            head = self._head.search(text, head.start() + 1)

    def _matches(self, text: str, parse_special: bool) -> Iterator[tuple[int, AddedToken]]:
        if self._head is None:
            return
        position = 0
        while head := self._head.search(text, position):
            position = head.start() + 1
            for token in self._candidates(text, head.start()):
                if token.special and not parse_special:
                    continue
                position = head.start() + len(token.content)
                if not token.single_word or _stands_alone(text, head.start(), position):
                    yield head.start(), token
                break

    def _candidates(self, text: str, start: int) -> Iterator[AddedToken]:
        """The tokens that begin at `start`, longest first."""
        longer, single = (self._by_head.get(text[start : start + n], []) for n in (2, 1))
        yield from (t for t in longer if text.startswith(t.content, start))
        if len(text) - start > 1:
            yield from single


def _stands_alone(text: str, start: int, end: int) -> bool:
    return not _WORD.match(text[start - 1 : start]) and not _WORD.match(text[end : end + 1])
