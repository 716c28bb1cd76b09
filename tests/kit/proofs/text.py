"""Tokenizers, tiny ones trained for the purpose, against the library that trained them."""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path

from text.samples import TINY, fuzz, saved
from tokenizers import Tokenizer as Reference

from cutaway.text import Tokenizer

KINDS = ("smollm", "llama 3", "llama 2", "gemma", "unigram with bytes", "wordpiece", "marked bpe, fused", "added tokens")
TEXTS = fuzz(60, seed=5)


@cache
def _reference(kind: str) -> Reference:
    return TINY[kind]()


@cache
def _expected(kind: str) -> list[list[int]]:
    return [_reference(kind).encode(text).ids for text in TEXTS]


def _ours(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.from_dir(saved(_reference(kind), Path(folder)))


def encoding(kind: str) -> None:
    """The same ids."""
    ours = _ours(kind)
    for text, expected in zip(TEXTS, _expected(kind), strict=True):
        found = ours.encode(text)
        assert found == expected, f"{text[:30]!r} gives {found[:20]}, not {expected[:20]}"


def decoding(kind: str) -> None:
    """The same text, at once and token by token, and no half character on the way."""
    ours = _ours(kind)
    for ids in _expected(kind):
        expected = _reference(kind).decode(ids, skip_special_tokens=True)
        stream = ours.stream()
        pieces = [*(stream.push(id) for id in ids), stream.flush()]
        assert ours.decode(ids) == expected, f"{ours.decode(ids)[:30]!r} is not {expected[:30]!r}"
        assert "".join(pieces) == expected, f"streamed {''.join(pieces)[:30]!r}, not {expected[:30]!r}"
        assert "\ufffd" in expected or not any("\ufffd" in piece for piece in pieces), "half a character came out"


PROOFS = {
    **{f"encoding {kind}": partial(encoding, kind) for kind in KINDS},
    # The library loses the bytes of added tokens that are no letters of the byte-level alphabet; ours keeps them.
    **{f"text of {kind}": partial(decoding, kind) for kind in KINDS if kind != "added tokens"},
}
