"""Tokenizer files: what is read from model directories and GGUF, what is written, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, pre_tokenizers
from transformers import AutoTokenizer

from cutaway.errors import CutawayError, NotFound
from cutaway.text import Tokenizer
from cutaway.text.pretokenizers import FAMILIES, name_of
from text.samples import (
    BYTES,
    TINY,
    byte_level,
    edited,
    fuzz,
    metaspace_bpe,
    saved,
    sentencepiece_like,
    wordpiece,
)

GGUF_KINDS = [
    "gpt2",
    "smollm",
    "llama 3",
    "qwen",
    "llama 2",
    "gemma",
    "unigram",
    "unigram with bytes",
    "wordpiece",
]


def tokenizer(directory: Path, kind: str = "gpt2", **config: Any) -> Tokenizer:
    return Tokenizer.from_dir(saved(TINY[kind](), directory, **config))


# ---- directories


@pytest.mark.parametrize("kind", TINY)
def test_saved_loads_in_transformers(kind: str, tmp_path: Path) -> None:
    ours = tokenizer(tmp_path / "a", kind, eos_token="</s>", model_max_length=77, chat_template="{{ 1 }}\n")
    ours.save(tmp_path / "b")
    theirs, again = AutoTokenizer.from_pretrained(tmp_path / "b"), Tokenizer.from_dir(tmp_path / "b")
    texts = fuzz(300, seed=41)
    assert [theirs(t)["input_ids"] for t in texts] == [ours.encode(t) for t in texts]
    assert [again.encode(t) for t in texts] == [ours.encode(t) for t in texts]
    assert (theirs.chat_template, theirs.model_max_length) == ("{{ 1 }}\n", 77)
    assert again.chat_template == "{{ 1 }}\n"
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_roles_come_from_the_companions(tmp_path: Path) -> None:
    root = saved(byte_level(), tmp_path, bos_token={"content": "<s>"}, eos_token="<|im_end|>", unk_token="absent")
    (root / "special_tokens_map.json").write_text('{"eos_token": "</s>", "pad_token": "<unk>"}')
    (root / "generation_config.json").write_text('{"eos_token_id": [4, 300], "bos_token_id": 9}')
    ours = Tokenizer.from_dir(root)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (1, 4, 0, None)
    assert ours.stop_ids == {4, 300, 2}  # </s> is known by name
    assert ours.special_ids == {0, 1, 2, 3, 4}


def test_roles_of_last_resort(tmp_path: Path) -> None:
    root = saved(byte_level(), tmp_path)
    (root / "config.json").write_text('{"eos_token_id": 300, "bos_token_id": 301}')
    ours = Tokenizer.from_dir(root)
    assert (ours.bos_id, ours.eos_id) == (301, 300)
    assert 300 in ours.stop_ids


def test_the_post_processor_overrules_flags(tmp_path: Path) -> None:
    """As in transformers 5: add_bos_token in the configuration counts for files without a tokenizer.json."""
    root = saved(
        TINY["llama 3"](),
        tmp_path,
        bos_token="<s>",
        eos_token="</s>",
        add_bos_token=False,
        add_eos_token=True,
    )
    assert Tokenizer.from_dir(root).encode("a") == AutoTokenizer.from_pretrained(root)("a")["input_ids"]


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template.jinja": "J"}, "J"),
        ({"chat_template.json": '{"chat_template": "K"}'}, "K"),
        ({"tokenizer_config.json": '{"chat_template": "C"}'}, "C"),
        ({"chat_template.jinja": "J", "tokenizer_config.json": '{"chat_template": "C"}'}, "J"),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "a", "template": "A"}]})}, "A"),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": [{"name": "a", "template": "A"}, {"name": "default", "template": "D"}]}
                )
            },
            "D",
        ),
        ({}, None),
    ],
)
def test_where_the_chat_template_is(files: dict[str, str], template: str | None, tmp_path: Path) -> None:
    saved(byte_level(), tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert Tokenizer.from_dir(tmp_path).chat_template == template


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        content = json.loads((root / "tokenizer.json").read_text())
        change(content)
        (root / "tokenizer.json").write_text(json.dumps(content))

    return write


BROKEN = {
    "not JSON": lambda root: (root / "tokenizer.json").write_text("{"),
    "not UTF-8": lambda root: (root / "tokenizer.json").write_bytes(b"\xff{}"),
    "not an object": lambda root: (root / "tokenizer.json").write_text("[]"),
    "deep": lambda root: (root / "tokenizer.json").write_text("[" * 10**6),
    "empty": broken(lambda c: c.clear()),
    "no vocabulary": broken(lambda c: c["model"].pop("vocab")),
    "ids that are no numbers": broken(lambda c: c["model"]["vocab"].update(a="x")),
    "odd merges": broken(lambda c: c["model"].update(merges=[["a"]])),
    "merges without tokens": broken(lambda c: c["model"].update(merges=[["zz", "y"]])),
    "unknown model": broken(lambda c: c["model"].update(type="WordLevel")),
    "unknown normalizer": broken(lambda c: c.update(normalizer={"type": "Magic"})),
    "unknown pre-tokenizer": broken(lambda c: c.update(pre_tokenizer={"type": "Magic"})),
    "unknown post-processor": broken(lambda c: c.update(post_processor={"type": "Magic"})),
    "unknown decoder": broken(lambda c: c.update(decoder={"type": "Magic"})),
    "bad pattern": broken(
        lambda c: c.update(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        )
    ),
    "added token without a name": broken(lambda c: c["added_tokens"].append({"id": 7})),
    "parts of wrong types": broken(lambda c: c.update(pre_tokenizer=[1], added_tokens=3)),
    "broken configuration": lambda root: (root / "tokenizer_config.json").write_text("{"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_directories_are_named(fault: str, tmp_path: Path) -> None:
    root = saved(byte_level(), tmp_path / "model")
    BROKEN[fault](root)
    with pytest.raises(CutawayError) as caught:
        Tokenizer.from_dir(root)
    assert "tokenizer" in str(caught.value)


def test_directory_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)


def test_text_that_is_no_text(tmp_path: Path) -> None:
    ours = tokenizer(tmp_path)
    with pytest.raises(CutawayError, match="surrogate at character 2"):
        ours.encode("ab\ud800")
    with pytest.raises(CutawayError, match="not bytes"):
        ours.encode(b"ab")  # type: ignore[arg-type]


# ---- GGUF


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_through_gguf(kind: str, tmp_path: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ 1 }}"}
    ours = tokenizer(tmp_path, kind, **(names if kind != "wordpiece" else {"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    again = Tokenizer.from_gguf(ours.to_gguf())
    texts = fuzz(1500, seed=42)
    for special in (True, False):
        got = [again.encode(t, add_special=special, parse_special=special) for t in texts]
        assert got == [ours.encode(t, add_special=special, parse_special=special) for t in texts]
    ids = [ours.encode(t) for t in texts[:300]]
    assert [again.decode(i) for i in ids] == [ours.decode(i) for i in ids]
    assert (again.special_ids, again.stop_ids) == (ours.special_ids, ours.stop_ids)
    assert (again.eos_id, again.chat_template) == (ours.eos_id, ours.chat_template)


def write_gguf(metadata: dict[str, Any], path: Path) -> Path:
    """A file that holds nothing but this metadata, written with the format's own library."""
    writer = gguf.GGUFWriter(path, "llama")
    for name in (
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
    ):
        writer.add_uint32(f"llama.{name}", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        if isinstance(value, np.ndarray):
            writer.add_array(key, value.tolist())
        else:
            adders = {
                bool: writer.add_bool,
                int: writer.add_uint32,
                str: writer.add_string,
                list: writer.add_array,
            }
            adders[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LLAMA_CPP = """
import json, sys
from llama_cpp import Llama
texts, plain = json.load(sys.stdin)
llama = Llama(sys.argv[1], vocab_only=True, verbose=False)
print(json.dumps([llama.tokenize(t.encode(), add_bos=True, special=True) for t in texts]))
print(json.dumps([llama.tokenize(t.encode(), add_bos=False, special=False) for t in plain]))
"""


@pytest.mark.parametrize("kind", [k for k in GGUF_KINDS if "unigram" not in k])
def test_llama_cpp_reads_what_is_written(kind: str, tmp_path: Path) -> None:
    """In a process of its own: llama.cpp aborts where it finds a fault."""
    pytest.importorskip("llama_cpp")
    config = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if kind == "wordpiece" else {"bos_token": "<s>"}
    ours = tokenizer(tmp_path, kind, eos_token="</s>", unk_token="<unk>", **config)
    path = write_gguf(ours.to_gguf(), tmp_path / "tiny.gguf")
    # llama.cpp has its own Unicode tables: it neither composes (Qwen) nor normalizes as BERT does.
    texts = [t for t in fuzz(1500, seed=43) if kind not in ("qwen", "wordpiece") or t.isascii()]
    texts = [t for t in texts if kind != "wordpiece" or (t.isprintable() and len(t) < 100)]
    # From plain text its SentencePiece may still put control tokens' names together into the tokens.
    plain = [t for t in texts if not any(name in t for name in ours.recipe.hidden)]
    assert len(plain) > 150
    command = [sys.executable, "-c", LLAMA_CPP, str(path)]
    run = subprocess.run(command, input=json.dumps([texts, plain]), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-1000:]
    assert [json.loads(line) for line in run.stdout.splitlines()] == [
        [ours.encode(t) for t in texts],
        [ours.encode(t, add_special=False, parse_special=False) for t in plain],
    ]


def test_rows_beyond_the_vocabulary(tmp_path: Path) -> None:
    ours = tokenizer(tmp_path)
    metadata = ours.to_gguf(rows=ours.vocab_size + 3)
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{ours.vocab_size + 2}]"
    assert metadata["tokenizer.ggml.token_type"][-3:].tolist() == [5, 5, 5]
    assert len(ours.to_gguf(rows=5)["tokenizer.ggml.tokens"]) == ours.vocab_size


def test_families_are_told_apart() -> None:
    """Every name leads to pieces that lead back to a name with the same pieces."""
    for family in FAMILIES.values():
        name = name_of(family.pieces(), nfc=family.nfc, whole=family.whole)
        again = FAMILIES[name]
        assert (again.patterns, again.nfc, again.whole) == (family.patterns, family.nfc, family.whole)


REFUSED = {
    "unknown pre-tokenizer": lambda: byte_level(pre_tokenizers.Punctuation()),
    "prefix space": lambda: byte_level(prefix_space=True),
    "marks inside words": TINY["marked bpe"],
    "merges that are no scores": TINY["open merges"],
    "added token that strips": TINY["added tokens"],
    "wordpiece with another normalizer": lambda: edited(wordpiece(), lambda c: c.update(normalizer={"type": "NFC"})),
    "sentencepiece with another normalizer": lambda: edited(
        sentencepiece_like(), lambda c: c["normalizer"]["normalizers"].append({"type": "NFKC"})
    ),
    "byte-level with another normalizer": lambda: edited(byte_level(), lambda c: c.update(normalizer={"type": "NFKC"})),
    "unigram with another normalizer": lambda: edited(
        TINY["unigram"](), lambda c: c.update(normalizer={"type": "NFC"})
    ),
    "no byte fallback": lambda: edited(sentencepiece_like(), lambda c: c["model"].update(byte_fallback=False)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gguf_cannot_say_is_refused(case: str, tmp_path: Path) -> None:
    ours = Tokenizer.from_dir(saved(REFUSED[case](), tmp_path))
    with pytest.raises(CutawayError, match="GGUF"):
        ours.to_gguf()


def test_a_space_only_at_the_start_is_told(tmp_path: Path) -> None:
    ours = Tokenizer.from_dir(saved(metaspace_bpe("first"), tmp_path))
    with pytest.warns(UserWarning, match="not only where it begins"):
        metadata = ours.to_gguf()
    assert Tokenizer.from_gguf(metadata).encode("hello world") == ours.encode("hello world")


def minimal(**changes: Any) -> dict[str, Any]:
    base = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "ab"],
        "token_type": [1, 1, 1],
        "merges": ["a b"],
    }
    return {f"tokenizer.ggml.{k}": v for k, v in (base | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"model": None}, "tokenizer.ggml.model"),
        ({"tokens": None}, "tokenizer.ggml.model"),
        ({"model": "rwkv"}, "tokenizer.ggml.model"),
        ({"pre": "martian"}, "tokenizer.ggml.pre"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"merges": ["a x"]}, "tokenizer.ggml"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type"),
        ({"token_type": ["x", "y", "z"]}, "tokenizer.ggml"),
        ({"model": "llama"}, "tokenizer.ggml.scores"),
        ({"model": "t5", "scores": [0.0]}, "tokenizer.ggml.token_type"),
        ({"tokens": 7}, "tokenizer.ggml"),
        ({"bos_token_id": "x"}, "tokenizer.ggml"),
    ],
)
def test_broken_metadata_is_named(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(CutawayError) as caught:
        Tokenizer.from_gguf(minimal(**changes))
    assert caught.value.where == where


def test_minimal_metadata() -> None:
    ours = Tokenizer.from_gguf(minimal(token_type=None, bos_token_id=99, pre=None))
    assert ours.encode("ab") == [2]
    assert ours.bos_id is None


def test_damaged_metadata_never_crashes(tmp_path: Path) -> None:
    """Whatever the values are, it is a tokenizer or a CutawayError."""
    rng = random.Random(44)
    metadata = [tokenizer(tmp_path / kind, kind).to_gguf() for kind in ("gpt2", "llama 2", "unigram", "wordpiece")]
    junk = [None, -1, 10**9, "x", "", [], [None], {}, 1.5, b"\xff", [["a"]], np.zeros(3), True]
    for _ in range(400):
        damaged = dict(rng.choice(metadata))
        for key in rng.sample(sorted(damaged), 2):
            damaged[key] = rng.choice(junk)
        try:
            Tokenizer.from_gguf(damaged).encode("hello <s> 世界")
        except CutawayError:
            continue


def test_byte_tokens_are_bytes(tmp_path: Path) -> None:
    metadata = tokenizer(tmp_path, "llama 2").to_gguf()
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist(), strict=True))
    assert {types[b] for b in BYTES} == {6}
    assert (types["<s>"], types["▁"]) == (3, 1)


def test_user_defined_tokens(tmp_path: Path) -> None:
    """Not control tokens: found in any text, kept when decoding."""
    tiny = byte_level()
    tiny.add_tokens([AddedToken("<think>", normalized=False)])
    ours = Tokenizer.from_dir(saved(tiny, tmp_path))
    again = Tokenizer.from_gguf(ours.to_gguf())
    for t in (ours, again):
        ids = t.encode("a<think>b", parse_special=False)
        assert t.token_bytes(ids[1]) == b"<think>"
        assert t.decode(ids) == "a<think>b"
        assert ids[1] not in t.special_ids
