"""Unicode plumbing around the algorithms: normalizing, splitting into pre-tokens, and turning tokens back into bytes.

Normalizers and pre-tokenizers are those of the `tokenizers` library, made from the JSON in a tokenizer file; the
byte-level alphabet, which that JSON counts among the pre-tokenizers, and the decoders are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from cutaway.errors import CutawayError
from cutaway.text.alphabet import fallback_byte, from_letters
from cutaway.text.bpe import SPACE

Json = dict[str, Any]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _from_json(kind: str, piece: Json | None) -> Any:
    """The library's component, by way of an otherwise empty tokenizer; None for None."""
    empty = {"model": {"type": "BPE", "vocab": {}, "merges": []}, kind: piece}
    try:
        return getattr(Tokenizer.from_str(json.dumps(empty)), kind)
    except Exception as error:  # the library raises bare Exception
        name = piece.get("type") if isinstance(piece, dict) else piece
        raise CutawayError(f"{kind} {name!r} cannot be read: {error}", "tokenizer.json") from None


def normalizer(piece: Json | None) -> Callable[[str], str]:
    """A function from text to normalized text."""
    component = _from_json("normalizer", piece)
    return component.normalize_str if component else str


@dataclass(frozen=True)
class PreTokenizer:
    """Cuts normalized text into pre-tokens.

    letters:      whether pre-tokens are then written in the byte-level alphabet.
    space_before: whether a space is put before text that does not begin with one (GPT-2's add_prefix_space).
    """

    head: Any
    rest: Any
    letters: bool
    space_before: bool

    def split(self, text: str, at_start: bool) -> list[str]:
        """The pre-tokens of a segment; `at_start` says that it begins the whole text."""
        if self.space_before and not text.startswith(" "):
            text = " " + text
        component = self.head if at_start else self.rest
        return [word for word, _ in component.pre_tokenize_str(text)] if component else [text]


def pre_tokenizer(piece: Json | None) -> PreTokenizer:
    """The pre-tokenizer that tokenizer.json describes."""
    steps = flatten(piece)
    letters = bool(steps) and steps[-1]["type"] == "ByteLevel"
    space_before = False
    if letters:
        level = steps.pop()
        space_before = bool(level.get("add_prefix_space", True))
        if level.get("use_regex", True):
            steps.append(split_on(GPT2_PATTERN))
        if space_before and len(steps) > 1:
            raise CutawayError("ByteLevel with add_prefix_space must be the only pre-tokenizer", "tokenizer.json")
    whole: Json | None = {"type": "Sequence", "pretokenizers": steps} if steps else None
    head = _from_json("pre_tokenizer", whole)
    first = any(step.get("prepend_scheme") == "first" for step in steps)
    rest = _from_json("pre_tokenizer", _never_prepend(whole)) if whole and first else head
    return PreTokenizer(head, rest, letters, space_before)


def split_on(pattern: str) -> Json:
    """The pre-tokenizer that makes each match of a regular expression a pre-token of its own."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def flatten(piece: Json | None) -> list[Json]:
    """The steps of a pre-tokenizer, sequences of sequences included."""
    if not piece:
        return []
    parts = piece["pretokenizers"] if piece["type"] == "Sequence" else [piece]
    return [step for part in parts for step in (flatten(part) if part["type"] == "Sequence" else [part])]


def _never_prepend(sequence: Json) -> Json:
    """The same for text that does not begin the whole: Metaspace's scheme "first" adds nothing there."""
    steps = [{**s, "prepend_scheme": "never"} if s.get("prepend_scheme") == "first" else s for s in flatten(sequence)]
    return {"type": "Sequence", "pretokenizers": steps}


@dataclass(frozen=True)
class Decoder:
    """Turns one token into bytes. trim: how many spaces are dropped where a text begins."""

    bytes_of: Callable[[str], bytes]
    trim: int


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

    return Decoder(bytes_of, sum(_trim(part) for part in parts))


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
    """English spacing as tokenizer.json's WordPiece decoder cleans it up, as far as it shows within one token."""
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
