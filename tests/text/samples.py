"""What the text tests have in common: texts, fuzz, tiny trained tokenizers, and a GGUF metadata reader of their own."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "",
    " ",
    "Hello world, it's John's 1st  day\n\n\tdef f(x):\n    return x**2  # comment\n",
    "你好，世界！我們今天去吃飯吧。日本語テスト 한국어 नमस्ते สวัสดี مرحبا",
    "👩‍👩‍👧‍👦🏳️‍🌈 café cafe\u0301 ñ ½ ² ③ ४५६ Ω≈ç√∫ ﬁ ﷺ İ ı ẞ ß Ǆ",
    "\x00\x01\x1f\x7f\u200b\ufeff\u00a0\u3000\u2028 \r\n\r x\ty",
    "   leading and trailing   ",
    "1234567890 3.14159 0x1F 1,000,000",
    "<|im_start|>user\nhi<|im_end|>\n<s></s><bos><eos><start_of_turn><unk>",
    "I'LL we'Re don'T ''s \n\n\n\n    \n  \n",
    "𝔘𝔫𝔦 𠜎𠜱 \U0010ffff \ue000 \ufdd0 \uffff \ufffd",
    "▁ ▁▁ a▁b _x_ ##ing <0x41> [UNK] [CLS] </w>",
    "http://a.b/c?d=e&f=g#h foo_bar fooBar __init__ `x` {}[]()",
    "a" * 300,
]
_LETTERS = "".join(TEXTS[:13])
_WORDS = [
    "the",
    "of",
    "hello",
    "World",
    "token",
    "izer",
    "unbelievable",
    "running",
    "2024",
    "don't",
    "I'm",
    "naïve",
    "世界",
    "мир",
]


def _any_unicode(rng: random.Random) -> str:
    planes = [(32, 0x250), (0x250, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]
    return chr(rng.randrange(*rng.choice(planes)))


_MAKERS: list[Callable[[random.Random], str]] = [
    lambda r: "".join(r.choice(_LETTERS) for _ in range(r.randrange(1, 30))),
    lambda r: "".join(r.choice("abcdefgh ABC'\n\t.,!?-_ 0129  ") for _ in range(r.randrange(1, 60))),
    lambda r: "".join(_any_unicode(r) for _ in range(r.randrange(1, 15))),
    lambda r: " ".join(r.choice(_WORDS) for _ in range(r.randrange(1, 12))),
    lambda r: r.choice(TEXTS)[r.randrange(20) :][: r.randrange(40)] + r.choice(TEXTS)[: r.randrange(20)],
]


def fuzz(count: int, seed: int = 0) -> list[str]:
    """The fixed texts and `count` random ones, the same for the same seed."""
    rng = random.Random(seed)
    return TEXTS + [rng.choice(_MAKERS)(rng) for _ in range(count)]


def corpus() -> list[str]:
    """Enough text for a few hundred merges, without names of control tokens, spaces' marks and NULs."""
    return [re.sub("[<[▁\0]", "", t) for t in [" ".join(TEXTS[2:8])] * 3 + fuzz(400, seed=99)]


# ---- tiny tokenizers, trained by the library that they are then compared with

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def byte_level(
    *splits: Any,
    normalizer: Any = None,
    prefix_space: bool = False,
    ignore_merges: bool = False,
    gpt2: bool = True,
) -> Tokenizer:
    """Byte-level BPE; with GPT-2's pre-tokens unless told otherwise, after these."""
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=gpt2)
    t.pre_tokenizer = pre_tokenizers.Sequence([*splits, level]) if splits else level
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(t, trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet))


def smollm_like() -> Tokenizer:
    return byte_level(pre_tokenizers.Digits(individual_digits=True))


def llama3_like() -> Tokenizer:
    t = byte_level(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), ignore_merges=True, gpt2=False)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return t


def qwen_like() -> Tokenizer:
    return byte_level(pre_tokenizers.Split(Regex(QWEN2), "isolated"), normalizer=normalizers.NFC(), gpt2=False)


def edited(tokenizer: Tokenizer, edit: Callable[[dict[str, Any]], None]) -> Tokenizer:
    """The same tokenizer with its JSON changed."""
    content = json.loads(tokenizer.to_str())
    edit(content)
    return Tokenizer.from_str(json.dumps(content))


def _free_bytes(content: dict[str, Any]) -> None:
    """The trainer knows byte tokens only as special ones; they are ordinary."""
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in BYTES]


def _close_merges(content: dict[str, Any]) -> None:
    """All ways to make a token of two stand together, as SentencePiece's scores have it."""
    vocab, made = content["model"]["vocab"], ["".join(m) for m in content["model"]["merges"]]
    merges = [(t[:i], t[i:]) for t in dict.fromkeys(made) for i in range(1, len(t))]
    content["model"]["merges"] = [list(m) for m in merges if m[0] in vocab and m[1] in vocab]


def sentencepiece_like(prefix: bool = True, closed: bool = True) -> Tokenizer:
    """Llama 2's kind, or without prefix Gemma's: spaces as ▁, BPE with byte fallback, no pre-tokens."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if prefix else [replace])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)  # for the training only
    limit = {"limit_alphabet": 120, "vocab_size": 256 + 700, "special_tokens": SPECIAL + BYTES}
    t = _trained(t, trainers.BpeTrainer(**limit))
    t.pre_tokenizer = None  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    t = edited(t, _free_bytes)
    return edited(t, _close_merges) if closed else t


def unigram(scheme: str = "always", byte_fallback: bool = False) -> Tokenizer:
    t = Tokenizer(models.Unigram())
    # The library takes stripped text for text that does not begin the whole, so "first" goes without.
    strip = [] if scheme == "first" else [normalizers.Strip()]
    t.normalizer = normalizers.Sequence([*strip, normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    t.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = SPECIAL + (BYTES if byte_fallback else [])
    t = _trained(t, trainers.UnigramTrainer(vocab_size=3000, special_tokens=special, unk_token="<unk>"))
    t.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )

    def as_gguf_stores_it(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        rounded = [[token, struct.unpack("<f", struct.pack("<f", score))[0]] for token, score in vocab]
        content["model"].update(byte_fallback=byte_fallback, vocab=rounded)

    return edited(edited(t, _free_bytes), as_gguf_stores_it)


def wordpiece(lowercase: bool = True) -> Tokenizer:
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t = _trained(t, trainers.WordPieceTrainer(vocab_size=700, special_tokens=special))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return t


def marked_bpe(fuse: bool = False) -> Tokenizer:
    """Words without a byte alphabet, continued by "##": unknown characters become <unk>."""
    t = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", fuse_unk=fuse))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, continuing_subword_prefix="##", limit_alphabet=60
    )
    return _trained(t, trainer)


def metaspace_bpe(scheme: str = "first", split: bool = False) -> Tokenizer:
    t = sentencepiece_like(prefix=False)
    t.normalizer = None  # type: ignore[assignment]
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return t


def with_added_tokens() -> Tokenizer:
    """All flags of added tokens, and names that overlap."""
    t = qwen_like()
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False), "<|im", "<|im_start|>x"])
    t.add_tokens(
        [
            AddedToken("<r>", rstrip=True, normalized=False),
            AddedToken("and", single_word=True),
            AddedToken("cafe\u0301", normalized=True),
            AddedToken("  ", normalized=False),
            AddedToken("\n", normalized=False),
            AddedToken("世界"),
        ]
    )
    return t


TINY: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "gpt2 with prefix space": lambda: byte_level(prefix_space=True),
    "smollm": smollm_like,
    "llama 3": llama3_like,
    "qwen": qwen_like,
    "llama 2": sentencepiece_like,
    "gemma": lambda: sentencepiece_like(prefix=False),
    "open merges": lambda: sentencepiece_like(closed=False),
    "metaspace first": metaspace_bpe,
    "metaspace always, split": lambda: metaspace_bpe("always", split=True),
    "unigram": unigram,
    "unigram with bytes": lambda: unigram(byte_fallback=True),
    "unigram, first": lambda: unigram("first"),
    "wordpiece": wordpiece,
    "cased wordpiece": lambda: wordpiece(lowercase=False),
    "marked bpe": marked_bpe,
    "marked bpe, fused": lambda: marked_bpe(fuse=True),
    "added tokens": with_added_tokens,
}


def saved(tokenizer: Tokenizer, directory: Path, **config: Any) -> Path:
    """A model directory with this tokenizer and configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


# ---- GGUF metadata, read independently of cutaway.weights

_SCALARS = "BbHhIif?"  # type numbers 0 to 7
_WIDE = {10: "Q", 11: "q", 12: "d"}


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file (version 2 or 3), arrays as lists."""
    data = memoryview(path.read_bytes()[: 1 << 24])
    position = 24
    (count,) = struct.unpack_from("<Q", data, 16)

    def take(code: str) -> Any:
        nonlocal position
        (value,) = struct.unpack_from("<" + code, data, position)
        position += struct.calcsize("<" + code)
        return value

    def string() -> str:
        nonlocal position
        length = take("Q")
        position += length
        return bytes(data[position - length : position]).decode()

    def value(kind: int) -> Any:
        if kind == 8:
            return string()
        if kind == 9:
            inner, length = take("I"), take("Q")
            return [value(inner) for _ in range(length)]
        return take(_WIDE.get(kind) or _SCALARS[kind])

    return {string(): value(take("I")) for _ in range(count)}


def splits(items: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Every way to cut a list in two."""
    return ((items[:i], items[i:]) for i in range(len(items) + 1))
