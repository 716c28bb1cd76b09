"""Tokenizers, tiny ones trained for the purpose, against the library that trained them."""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path

from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cutaway.text import Tokenizer
from text.samples import TINY, edited, fuzz, saved

WORDS = "he hello ##llo ##l run ##n ##ing ##in un ##believ ##able ##ab token ##iz ##izer ##ize the it do ##n't 20 ##24"
TEXTS = [*fuzz(60, seed=5), "the unbelievable tokenizers are running", "hello helloing unhello hellö tokenizing 2024!"]


def wordpiece() -> Reference:
    """Words that can be cut in several ways, and words that cannot be covered."""
    letters = [c for letter in "abcdefghiklnoprstuvwxyz0123456789.,!?'" for c in (letter, f"##{letter}")]
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *WORDS.split()])}
    t = Reference(models.WordPiece(vocab, unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    t.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return t


def unreachable() -> Reference:
    """Llama 3's kind with tokens that no merge makes: only looking up the whole word finds them."""
    return edited(TINY["llama 3"](), lambda content: content["model"].update(merges=content["model"]["merges"][:60]))


REFERENCES = {
    **{k: TINY[k] for k in ("smollm", "llama 2", "gemma", "unigram", "unigram with bytes", "marked bpe, fused")},
    **{"added tokens": TINY["added tokens"], "llama 3": unreachable, "wordpiece": wordpiece},
}
BYTE_LEVEL = ("smollm", "llama 3")


@cache
def _reference(kind: str) -> Reference:
    return REFERENCES[kind]()


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
    """The same text, at once and token by token; at byte level also where it ends in the middle of a character.

    (With byte fallback the library then writes one U+FFFD per byte, ours as many as UTF-8 decoders do.)
    """
    ours = _ours(kind)
    for whole in _expected(kind):
        for ids in (whole, whole[: len(whole) // 2], whole[:-1]) if kind in BYTE_LEVEL else (whole,):
            expected = _reference(kind).decode(ids, skip_special_tokens=True)
            stream = ours.stream()
            streamed = "".join([*(stream.push(id) for id in ids), stream.flush()])
            assert ours.decode(ids) == expected, f"{ours.decode(ids)[:30]!r} is not {expected[:30]!r}"
            assert streamed == expected, f"streamed {streamed[:30]!r}, not {expected[:30]!r}"


PROOFS = {
    **{f"encoding {kind}": partial(encoding, kind) for kind in REFERENCES},
    # The library loses the bytes of added tokens that are no letters of the byte-level alphabet; ours keeps them.
    **{f"text of {kind}": partial(decoding, kind) for kind in REFERENCES if kind != "added tokens"},
}
