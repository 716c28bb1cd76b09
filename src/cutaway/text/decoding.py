"""From tokens back to bytes: tokenizer.json's decoders, one token at a time, so that text can be streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cutaway.errors import CutawayError
from cutaway.text.alphabet import fallback_byte, from_letters
from cutaway.text.bpe import SPACE
from cutaway.text.pieces import Json


@dataclass(frozen=True)
class Decoder:
    """Turns one token into bytes.

    trim: how many spaces are dropped where a text begins. letters: whether tokens, other than added ones, are
    written in the byte-level alphabet.
    """

    bytes_of: Callable[[str], bytes]
    trim: int
    letters: bool = False


def decoder(piece: Json | None) -> Decoder:
    """The decoder that tokenizer.json describes; without one, tokens are separated by spaces."""
    if not piece:
        return Decoder(lambda token: b" " + token.encode(), 1)
    parts = piece["decoders"] if piece["type"] == "Sequence" else [piece]
    for part in parts:
        if part["type"] not in _DECODERS:
            raise CutawayError(f"decoder {part['type']!r} is not supported", "tokenizer.json")
    steps = [_DECODERS[part["type"]](part) for part in parts]
    kinds = {part["type"] for part in parts}

    def bytes_of(token: str) -> bytes:
        byte = fallback_byte(token) if "ByteFallback" in kinds else None
        if byte is not None:
            return byte
        for step in steps:
            token = step(token)
        return from_letters(token) if "ByteLevel" in kinds else token.encode()

    return Decoder(bytes_of, sum(_trim(part) for part in parts), "ByteLevel" in kinds)


def _trim(part: Json) -> int:
    if part["type"] == "Strip":
        return int(part["start"]) if part["content"] == " " else 0
    if part["type"] == "Metaspace":
        return int(part.get("prepend_scheme", "always") != "never")
    return int(part["type"] == "WordPiece")


def _unchanged(_: Json) -> Callable[[str], str]:
    return str


def _replace(part: Json) -> Callable[[str], str]:
    if "String" not in part["pattern"]:
        raise CutawayError("decoder 'Replace' is supported for plain strings only", "tokenizer.json")
    return lambda token: token.replace(part["pattern"]["String"], part["content"])


def _metaspace(part: Json) -> Callable[[str], str]:
    return lambda token: token.replace(part.get("replacement", SPACE), " ")


def _wordpiece(part: Json) -> Callable[[str], str]:
    prefix, cleanup = part.get("prefix", "##"), part.get("cleanup", True)

    def spell(token: str) -> str:
        text = token.removeprefix(prefix) if token.startswith(prefix) else " " + token
        return _attach(text) if cleanup else text

    return spell


def _attach(text: str) -> str:
    """English spacing as tokenizer.json's WordPiece decoder cleans it up, which it does token by token."""
    for loose in (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(loose, loose[1:])
    return text


_DECODERS: dict[str, Callable[[Json], Callable[[str], str]]] = {
    "ByteLevel": _unchanged,
    "ByteFallback": _unchanged,
    "Fuse": _unchanged,
    "Strip": _unchanged,
    "Replace": _replace,
    "Metaspace": _metaspace,
    "WordPiece": _wordpiece,
}
