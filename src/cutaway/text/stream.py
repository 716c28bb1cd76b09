"""Turning token ids back into text while they arrive, never showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection


class Detokenizer:
    """Push ids one at a time; what comes out, joined, is what decoding them at once gives.

    bytes_of: the bytes of an id. skip: ids that add nothing. trim: how many spaces to drop where the text
    begins. A character whose bytes are spread over several tokens is held back until its last byte is there;
    bytes that can no longer become a character turn into U+FFFD, exactly as `bytes.decode(errors="replace")`
    has it.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], skip: Collection[int] = (), trim: int = 0) -> None:
        self._bytes_of, self._skip, self._trim = bytes_of, skip, trim
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that this id completes; may be empty."""
        return "" if id in self._skip else self._utf8.decode(self._trimmed(self._bytes_of(id)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", final=True)

    def _trimmed(self, piece: bytes) -> bytes:
        kept = piece
        while self._trim and kept.startswith(b" "):
            kept, self._trim = kept[1:], self._trim - 1
        if kept:
            self._trim = 0
        return kept
