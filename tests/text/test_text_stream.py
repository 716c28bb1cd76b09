"""Streaming: pushing ids one at a time gives the text of all at once, and never half a character."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cutaway.text import Detokenizer, Tokenizer
from text.samples import TINY, fuzz, saved

KINDS = ["gpt2", "llama 2", "gemma", "unigram with bytes", "wordpiece", "added tokens"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(saved(TINY[request.param](), tmp_path_factory.mktemp("stream")))


def pushed(stream: Detokenizer, ids: list[int]) -> list[str]:
    return [*(stream.push(i) for i in ids), stream.flush()]


def test_stream_gives_the_text_of_decode(tokenizer: Tokenizer) -> None:
    for text in fuzz(1000, seed=21):
        ids = tokenizer.encode(text)
        for skip in (True, False):
            parts = pushed(tokenizer.stream(skip), ids)
            assert "".join(parts) == tokenizer.decode(ids, skip_special=skip)
            if "\ufffd" not in text:
                assert not any("\ufffd" in part for part in parts)


def test_every_prefix_is_a_prefix_of_the_text(tokenizer: Tokenizer) -> None:
    """At any moment, what has been shown is the beginning of the whole text: nothing is taken back."""
    for text in fuzz(100, seed=22):
        ids = tokenizer.encode(text, add_special=False)
        whole = tokenizer.decode(ids)
        stream, shown = tokenizer.stream(), ""
        for i in ids:
            shown += stream.push(i)
            assert whole.startswith(shown)


def bytes_only(tokenizer: Tokenizer) -> dict[int, int]:
    """A token for each single byte, as far as there is one."""
    return {p[0]: i for i in range(tokenizer.vocab_size) if len(p := tokenizer.token_bytes(i)) == 1}


@pytest.mark.parametrize("kind", ["gpt2", "llama 2"])
def test_bytes_that_are_no_text(kind: str, tmp_path: Path) -> None:
    """Ids of arbitrary bytes: U+FFFD exactly where `bytes.decode` puts it."""
    tokenizer = Tokenizer.from_dir(saved(TINY[kind](), tmp_path))
    letters = bytes_only(tokenizer)
    rng = random.Random(23)
    likely = [0x20, 0x41, 0x80, 0xBF, 0xC2, 0xC3, 0xE0, 0xE4, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF, 0xA9, 0x9F]
    for _ in range(5000):
        data = bytes(rng.choice(likely) for _ in range(rng.randrange(12)))
        parts = pushed(tokenizer.stream(continuing=True), [letters[b] for b in data])
        assert "".join(parts) == data.decode("utf-8", "replace")
        assert tokenizer.decode([letters[b] for b in b"." + data]) == "." + data.decode("utf-8", "replace")


def test_half_a_character_waits() -> None:
    stream = Detokenizer({0: "世".encode()[:1], 1: "世".encode()[1:]}.__getitem__)
    assert [stream.push(0), stream.push(1), stream.flush()] == ["", "世", ""]
    assert [stream.push(0), stream.flush()] == ["", "\ufffd"]


def test_leading_space(tmp_path: Path) -> None:
    """A text that begins loses the space the tokenizer put there; one that goes on keeps it."""
    tokenizer = Tokenizer.from_dir(saved(TINY["llama 2"](), tmp_path))
    ids = tokenizer.encode("hello world", add_special=False)
    assert tokenizer.decode(ids) == "hello world"
    assert "".join(pushed(tokenizer.stream(continuing=True), ids)) == " hello world"
    assert tokenizer.decode(tokenizer.encode("  two")) == "  two"


def test_ids_beyond_the_vocabulary_add_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_display(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(saved(TINY["gpt2"](), tmp_path))
    letters = bytes_only(tokenizer)
    shown = {b: tokenizer.display(letters[b]) for b in (0x20, 0x0A, 0x09, 0x41, 0xE4, 0x00)}
    assert shown == {0x20: "␣", 0x0A: "⏎", 0x09: "⇥", 0x41: "A", 0xE4: "⟨E4⟩", 0x00: "⟨U+0000⟩"}
    assert tokenizer.display(3) == "<|im_start|>"
    assert tokenizer.display(10**6) == "⟨#1000000⟩"
