"""The real tokenizers: SmolLM2 and Gemma 3 from GGUF, MiniLM from tokenizer.json, against references built apart."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Reference
from transformers import AutoTokenizer

from cutaway.text import Tokenizer
from text.samples import fuzz, gguf_metadata


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> dict[str, Any]:
    return gguf_metadata(smollm2_gguf)


@pytest.fixture(scope="module")
def gemma3(gemma3_gguf: Path) -> dict[str, Any]:
    return gguf_metadata(gemma3_gguf)


def smollm2_reference(metadata: dict[str, Any]) -> Reference:
    """What SmolLM2's own tokenizer.json says: each digit apart, then GPT-2's pre-tokens.

    (transformers' conversion of GGUF files leaves the digits together, so it is no reference.)
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
    t = Reference(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    t.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    t.add_special_tokens([AddedToken(x, normalized=False) for x, k in zip(tokens, types, strict=True) if k == 3])
    return t


def _field(number: int, wire: int, payload: bytes) -> bytes:
    size = _varint(len(payload)) if wire == 2 else b""
    return _varint(number << 3 | wire) + size + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def sentencepiece_reference(metadata: dict[str, Any]) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece's own model file, written from the vocabulary: pieces, BPE with byte fallback, no normalization."""
    proto = bytearray()
    rows = zip(*(metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")), strict=True)
    for token, score, kind in rows:
        piece = _field(1, 2, token.replace(" ", "▁").encode()) + _field(2, 5, struct.pack("<f", score))
        unknown = token == "<unk>"
        proto += _field(1, 2, piece + _field(3, 0, _varint(2 if unknown else kind)))
    ids = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
    trainer = _field(3, 0, _varint(2)) + _field(35, 0, _varint(1))
    for number, role in ids.items():
        trainer += _field(number, 0, _varint(metadata[f"tokenizer.ggml.{role}_token_id"]))
    normalizer = _field(3, 0, _varint(0)) + _field(4, 0, _varint(0)) + _field(5, 0, _varint(1))
    proto += _field(2, 2, trainer) + _field(3, 2, normalizer)
    return sentencepiece.SentencePieceProcessor(model_proto=bytes(proto))


def test_smollm2_ids(smollm2: dict[str, Any]) -> None:
    ours, reference = Tokenizer.from_gguf(smollm2), smollm2_reference(smollm2)
    texts = fuzz(5000, seed=11)
    assert [t for t in texts if ours.encode(t) != reference.encode(t).ids] == []
    assert [t for t in texts if ours.decode(ours.encode(t), skip_special=False) != t] == []
    reference.encode_special_tokens = True
    assert [t for t in texts if ours.encode(t, parse_special=False) != reference.encode(t).ids] == []


def test_gemma3_ids(gemma3: dict[str, Any]) -> None:
    """SentencePiece never reads a control token's name as the token, so ours is asked not to either."""
    ours, reference = Tokenizer.from_gguf(gemma3), sentencepiece_reference(gemma3)
    # SentencePiece's own decoding and encoding stop at NUL, and it has no literal "▁" other than the space.
    texts = [t for t in fuzz(5000, seed=12) if not {"\0", "▁"} & set(t)]
    encoded = [ours.encode(t, add_special=False, parse_special=False) for t in texts]
    assert [t for t, ids in zip(texts, encoded, strict=True) if ids != reference.encode(t)] == []
    assert [t for t, ids in zip(texts, encoded, strict=True) if ours.decode(ids) != t] == []
    assert ours.encode("Hello")[0] == ours.bos_id == 2


def minilm_reference(directory: Path) -> Reference:
    reference = Reference.from_file(str(directory / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    return reference


def test_minilm_ids(minilm_dir: Path) -> None:
    ours, reference = Tokenizer.from_dir(minilm_dir), minilm_reference(minilm_dir)
    texts = fuzz(5000, seed=13)
    assert [t for t in texts if ours.encode(t) != reference.encode(t).ids] == []
    decoded = [t for t in texts if ours.decode(ours.encode(t)) != reference.decode(reference.encode(t).ids)]
    assert decoded == []


def test_roles_and_stops(smollm2: dict[str, Any], gemma3: dict[str, Any], minilm_dir: Path) -> None:
    smol, gemma, minilm = (
        Tokenizer.from_gguf(smollm2),
        Tokenizer.from_gguf(gemma3),
        Tokenizer.from_dir(minilm_dir),
    )
    assert (smol.bos_id, smol.eos_id, smol.unk_id, smol.pad_id, smol.vocab_size) == (1, 2, 0, 2, 49152)
    assert smol.stop_ids == {0, 2}  # <|endoftext|>, <|im_end|>
    assert smol.special_ids == frozenset(range(17))
    assert (gemma.bos_id, gemma.eos_id, gemma.unk_id, gemma.pad_id, gemma.vocab_size) == (2, 1, 3, 0, 262144)
    assert gemma.stop_ids == {1, 106}  # <eos>, <end_of_turn>; not </s>, which is HTML here
    assert (minilm.unk_id, minilm.pad_id, minilm.bos_id, minilm.vocab_size) == (100, 0, None, 30522)
    assert minilm.recipe.max_length == 512


@pytest.mark.parametrize("model", ["smollm2", "minilm_dir"])
def test_saved_directory_loads_in_transformers(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(model)
    ours = Tokenizer.from_gguf(source) if model == "smollm2" else Tokenizer.from_dir(source)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = fuzz(1000, seed=14)
    assert [t for t in texts if ours.encode(t) != theirs(t)["input_ids"]] == []
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (
        ours.eos_id,
        ours.pad_id,
        ours.unk_id,
    )
    assert theirs.chat_template == ours.chat_template


def test_gemma3_saved_and_read_again(gemma3: dict[str, Any], tmp_path: Path) -> None:
    """Scores become merges in tokenizer.json, and scores again in GGUF, without a difference in the ids."""
    ours = Tokenizer.from_gguf(gemma3)
    ours.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_dir(tmp_path)
    back = Tokenizer.from_gguf(again.to_gguf())
    texts = fuzz(1000, seed=15)
    expected = [ours.encode(t) for t in texts]
    for encode in (again.encode, back.encode, lambda t: theirs(t)["input_ids"]):
        assert [encode(t) for t in texts] == expected
    assert (again.stop_ids, again.special_ids, again.bos_id) == (ours.stop_ids, ours.special_ids, ours.bos_id)


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_gguf_round_trip(model: str, request: pytest.FixtureRequest) -> None:
    metadata = request.getfixturevalue(model)
    ours = Tokenizer.from_gguf(metadata)
    written = ours.to_gguf()
    again = Tokenizer.from_gguf(written)
    assert written["tokenizer.ggml.tokens"] == metadata["tokenizer.ggml.tokens"]
    assert list(written["tokenizer.ggml.token_type"]) == metadata["tokenizer.ggml.token_type"]
    assert written.get("tokenizer.chat_template") == metadata.get("tokenizer.chat_template")
    texts = fuzz(500, seed=16)
    assert [again.encode(t) for t in texts] == [ours.encode(t) for t in texts]
    assert (again.stop_ids, again.special_ids) == (ours.stop_ids, ours.special_ids)


def test_minilm_through_gguf(minilm_dir: Path) -> None:
    ours = Tokenizer.from_dir(minilm_dir)
    again = Tokenizer.from_gguf(ours.to_gguf())
    texts = fuzz(1000, seed=17)
    assert [again.encode(t) for t in texts] == [ours.encode(t) for t in texts]
    words = ours.to_gguf()["tokenizer.ggml.tokens"]
    assert (words[101], words[2088], words[2075]) == ("[CLS]", "▁world", "ing")


def test_llama_cpp_agrees(smollm2_gguf: Path, gemma3_gguf: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    texts = fuzz(1000, seed=18)
    for path in (smollm2_gguf, gemma3_gguf):
        theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        ours = Tokenizer.from_gguf(gguf_metadata(path))
        for special in (True, False):
            # llama.cpp takes Gemma's "</s>", the end of struck-out HTML, for a control token by its looks.
            chosen = [t for t in texts if "</s>" not in t]
            got = [ours.encode(t, add_special=special, parse_special=special) for t in chosen]
            assert got == [theirs.tokenize(t.encode(), add_bos=special, special=special) for t in chosen]


def test_recorded_ids(smollm2: dict[str, Any], gemma3: dict[str, Any], minilm_dir: Path) -> None:
    """A few ids as they are, so that a change in any library below shows."""
    text = "Hello, 世界! 12"
    recorded = [
        [19556, 28, 216, 7906, 240, 178, 239, 230, 17, 216, 33, 34],
        [2, 9259, 236764, 84679, 236888, 236743, 236770, 236778],
        [101, 7592, 1010, 1745, 100, 999, 2260, 102],
    ]
    ours = [Tokenizer.from_gguf(smollm2), Tokenizer.from_gguf(gemma3), Tokenizer.from_dir(minilm_dir)]
    assert [t.encode(text) for t in ours] == recorded
