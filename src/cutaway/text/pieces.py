"""Unicode plumbing before the algorithms: normalizing text and cutting it into pre-tokens.

Normalizers and pre-tokenizers are those of the `tokenizers` library, made from the JSON in a tokenizer file;
the byte-level alphabet, which that JSON counts among the pre-tokenizers, is ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from cutaway.errors import CutawayError

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
            what = "ByteLevel with add_prefix_space must be the only pre-tokenizer"
            raise CutawayError(what, "tokenizer.json")
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


def is_byte_level(pre_tokenizer: Json | None) -> bool:
    """Whether the tokens are written in the byte-level alphabet."""
    return any(step["type"] == "ByteLevel" for step in flatten(pre_tokenizer))


def _never_prepend(sequence: Json) -> Json:
    """The same for text that does not begin the whole: Metaspace's scheme "first" adds nothing there."""
    never = {"prepend_scheme": "never"}
    steps = [step | never if step.get("prepend_scheme") == "first" else step for step in flatten(sequence)]
    return {"type": "Sequence", "pretokenizers": steps}
