"""The tokenizer in a GGUF file's metadata (`tokenizer.ggml.*`).

The format and its defaults are llama.cpp's. Where llama.cpp leaves out a step of the model's own tokenizer
(Qwen's NFC, for one), the model's own is followed: that is what it was trained with.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np

from cutaway.errors import CutawayError
from cutaway.text import pretokenizers
from cutaway.text.added import AddedToken
from cutaway.text.bpe import SPACE
from cutaway.text.frame import template
from cutaway.text.recipe import Json, Kind, Recipe

Metadata = Mapping[str, Any]


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "sep": "seperator_token_id",  # the format spells it so
    "mask": "mask_token_id",
    "cls": "cls_token_id",
}
_MORE_STOPS = ("eot_token_id", "eom_token_id")
_CONTROL = (TokenType.CONTROL, TokenType.UNKNOWN)
_MERGED_SCORE = {TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED}
TO_MARKER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_FROM_MARKER = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
_LEVEL_DECODER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ONE_SPACE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
TRIM = {"type": "Strip", "strip_left": True, "strip_right": True}


def _metaspace(prepend: str) -> Json:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": prepend, "split": True}


def read(metadata: Metadata) -> Recipe:
    """The tokenizer in a GGUF file's metadata, a plain dict. CutawayError if it has none that is known."""
    ggml = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")}
    kind = ggml.get("model")
    if kind is None or "tokens" not in ggml:
        hint = "take a GGUF file with a vocabulary, or point to the model's directory"
        raise CutawayError("the file holds no tokenizer", "tokenizer.ggml.model", hint)
    if kind not in _READERS:
        hint = f"known are {', '.join(_READERS)}"
        raise CutawayError(f"unknown tokenizer {kind!r}", "tokenizer.ggml.model", hint)
    tokens = [str(token) for token in ggml["tokens"]]
    types = np.asarray(ggml.get("token_type", np.ones(len(tokens))), dtype=np.int64)
    if len(types) != len(tokens) or len(ggml.get("scores", tokens)) != len(tokens):
        raise CutawayError(f"{len(tokens)} tokens, but not as many types and scores", "tokenizer.ggml.token_type")
    recipe = _READERS[kind](ggml, tokens, types)
    chat_template = metadata.get("tokenizer.chat_template")
    recipe.chat_template = None if chat_template is None else str(chat_template)
    return recipe


def _start(kind: Kind, ggml: Json, tokens: list[str], types: np.ndarray, defaults: dict[str, int]) -> Recipe:
    """What all kinds have in common: vocabulary, added tokens, roles, stops."""
    roles = defaults | {role: int(ggml[key]) for role, key in ROLE_KEYS.items() if ggml.get(key) is not None}
    roles = {role: i for role, i in roles.items() if 0 <= i < len(tokens)}
    recipe = Recipe(kind, dict(zip(tokens, range(len(tokens)), strict=True)), roles=roles)
    recipe.stop = frozenset(int(ggml[key]) for key in _MORE_STOPS if ggml.get(key) is not None)
    ends = {roles[role] for role in ("bos", "eos") if role in roles}
    control = {*np.flatnonzero(np.isin(types, _CONTROL)).tolist(), *ends, *recipe.stop}
    user_defined = np.flatnonzero(types == TokenType.USER_DEFINED).tolist()
    added = sorted({i for i in (*control, *user_defined) if 0 <= i < len(tokens)})
    recipe.added = [AddedToken(i, tokens[i], special=i in control) for i in added]
    if "unk" in roles:
        recipe.options["unk_token"] = tokens[roles["unk"]]
    return recipe


def _framed(recipe: Recipe, ggml: Json, before: dict[str, bool], after: dict[str, bool]) -> Recipe:
    """Put the roles before and after a text that the file's flags, or else these defaults, ask for."""
    names = recipe.tokens()

    def side(wanted: dict[str, bool]) -> list[tuple[str, int]]:
        roles = [role for role, default in wanted.items() if ggml.get(f"add_{role}_token", default)]
        return [(names[recipe.roles[role]], recipe.roles[role]) for role in roles if role in recipe.roles]

    recipe.post_processor = template(side(before), side(after), once=recipe.kind == "WordPiece")
    return recipe


def _byte_level(ggml: Json, tokens: list[str], types: np.ndarray) -> Recipe:
    family = pretokenizers.by_name(ggml.get("pre") or "default")
    recipe = _start("BPE", ggml, tokens, types, {})
    if "merges" not in ggml:
        raise CutawayError("byte-level BPE needs merges", "tokenizer.ggml.merges", "convert the model again")
    parts = (str(merge).partition(" ") for merge in ggml["merges"])
    own = dict(zip(tokens, tokens, strict=True)).get  # the vocabulary's strings again, not 100,000 equal ones
    recipe.merges = [(own(left, left), own(right, right)) for left, _, right in parts]
    recipe.options["ignore_merges"] = family.whole
    recipe.normalizer = {"type": "NFC"} if family.nfc else None
    recipe.pre_tokenizer, recipe.decoder = family.pieces(), _LEVEL_DECODER
    return _framed(recipe, ggml, {"bos": family.bos}, {"eos": False})


def _scores(ggml: Json, tokens: list[str], types: np.ndarray, kinds: set[TokenType]) -> dict[str, float]:
    if "scores" not in ggml:
        raise CutawayError("this tokenizer needs scores", "tokenizer.ggml.scores", "convert the model again")
    scores = np.asarray(ggml["scores"], dtype=np.float64)
    chosen = np.flatnonzero(np.isin(types, list(kinds))).tolist()
    return {tokens[i]: score for i, score in zip(chosen, scores[chosen].tolist(), strict=True)}


def _sentencepiece(ggml: Json, tokens: list[str], types: np.ndarray) -> Recipe:
    recipe = _start("BPE", ggml, tokens, types, {"bos": 1, "eos": 2, "unk": 0})
    recipe.scores = _scores(ggml, tokens, types, _MERGED_SCORE)
    recipe.options |= {"byte_fallback": True, "fuse_unk": True}
    space = bool(ggml.get("add_space_prefix", True))
    prepend = [{"type": "Prepend", "prepend": SPACE}] if space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    recipe.normalizer = {"type": "Sequence", "normalizers": [*prepend, TO_MARKER]}
    steps = [_FROM_MARKER, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    recipe.decoder = {"type": "Sequence", "decoders": steps}
    return _framed(recipe, ggml, {"bos": True}, {"eos": False})


def _wordpiece(ggml: Json, tokens: list[str], types: np.ndarray) -> Recipe:
    """GGUF marks the beginning of a word with "▁" where WordPiece marks what continues one with "##"."""
    written = [token if types[i] in _CONTROL else _from_phantom(token) for i, token in enumerate(tokens)]
    recipe = _start("WordPiece", ggml, written, types, {"cls": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103})
    recipe.roles.setdefault("cls", recipe.roles.get("bos", 101))
    recipe.options |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    lower = bool(ggml.get("normalizer.lowercase", True))
    accents = ggml.get("normalizer.strip_accents")
    recipe.normalizer = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": accents, "lowercase": lower,
    }  # fmt: skip
    recipe.pre_tokenizer = {"type": "BertPreTokenizer"}
    recipe.decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    return _framed(recipe, ggml, {"cls": True}, {"sep": True})


def _from_phantom(token: str) -> str:
    return token[1:] if token.startswith(SPACE) else "##" + token


def _unigram(ggml: Json, tokens: list[str], types: np.ndarray) -> Recipe:
    recipe = _start("Unigram", ggml, tokens, types, {"eos": 1, "unk": 2, "pad": 0})
    recipe.scores = _scores(ggml, tokens, types, set(TokenType))
    recipe.options["byte_fallback"] = bool(np.any(types == TokenType.BYTE))
    charsmap = ggml.get("precompiled_charsmap")
    steps: list[Json] = []
    if charsmap is not None and len(charsmap):
        packed = base64.b64encode(np.asarray(charsmap).astype(np.uint8).tobytes()).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": packed})
    if ggml.get("remove_extra_whitespaces"):
        steps += [TRIM, ONE_SPACE]
    recipe.normalizer = {"type": "Sequence", "normalizers": steps} if steps else None
    recipe.pre_tokenizer = _metaspace("always" if ggml.get("add_space_prefix", True) else "never")
    recipe.decoder = recipe.pre_tokenizer
    return _framed(recipe, ggml, {"bos": False}, {"eos": True})


_READERS: dict[str, Callable[[Json, list[str], np.ndarray], Recipe]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "bert": _wordpiece,
    "t5": _unigram,
}
