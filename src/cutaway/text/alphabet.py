"""Two ways to write bytes as tokens, so that no text is ever out of vocabulary.

Byte-level alphabet: each of the 256 bytes is shown as one printable character, and tokens are strings of
these (Radford et al. 2019, GPT-2). Printable Latin-1 characters stand for themselves; the other 68 bytes
borrow the code points from U+0100 on, which is why a space reads "Ġ" and a line feed "Ċ".

Byte fallback: characters that the vocabulary lacks become tokens named <0x00> … <0xFF>
(Kudo and Richardson 2018, arXiv:1808.06226).
"""

from __future__ import annotations

import re

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [b for b in range(256) if b not in _PRINTABLE]

LETTER_OF_BYTE: dict[int, str] = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_HIDDEN)}
BYTE_OF_LETTER: dict[str, int] = {letter: b for b, letter in LETTER_OF_BYTE.items()}

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def to_letters(text: str) -> str:
    """The UTF-8 bytes of `text`, one letter each: "é" → "Ã©"."""
    return text.encode().decode("latin-1").translate(LETTER_OF_BYTE)


def from_letters(token: str) -> bytes:
    """The bytes that a byte-level token stands for; one with foreign letters stands for its own UTF-8."""
    try:
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    except KeyError:
        return token.encode()


def fallback_tokens(data: bytes) -> list[str]:
    """The byte tokens that spell these bytes: those of "é" → ["<0xC3>", "<0xA9>"]."""
    return [f"<0x{b:02X}>" for b in data]


def fallback_byte(token: str) -> bytes | None:
    """The byte that "<0xC3>" stands for; None for any other token."""
    match = _FALLBACK.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None
