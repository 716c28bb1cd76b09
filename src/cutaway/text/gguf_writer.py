"""A tokenizer as GGUF metadata (`tokenizer.ggml.*`), the other way round from `gguf_reader.py`.

GGUF says less than tokenizer.json: a pre-tokenizer is a name, SentencePiece's merges are scores, added
tokens have no flags. What cannot be said is refused, so that a converted model never cuts text differently
without notice.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cutaway.errors import CutawayError
from cutaway.text import pretokenizers
from cutaway.text.alphabet import fallback_tokens
from cutaway.text.bpe import SPACE
from cutaway.text.frame import template_ids
from cutaway.text.gguf_reader import ONE_SPACE, ROLE_KEYS, TO_MARKER, TRIM, TokenType
from cutaway.text.pieces import is_byte_level
from cutaway.text.ranking import scores_from_merges
from cutaway.text.recipe import Json, Recipe

_STAY = "keep the model in safetensors, or convert its tokenizer with a tool of its own"


def write(recipe: Recipe, rows: int = 0) -> dict[str, Any]:
    """The metadata that says the same in GGUF. CutawayError if GGUF cannot say it.

    rows: how many tokens to list at least; those that have no token are unused.
    Not kept: whether an added token is sought in the normalized text, and, with a warning, a "▁" that
    belongs at the very beginning of a text only (GGUF puts one after every added token as well).
    """
    for token in recipe.added:
        if token.lstrip or token.rstrip or token.single_word:
            raise _refusal(f"that {token.content!r} takes white space with it, or only stands between words")
    tokens = recipe.tokens()
    names = [tokens.get(i, f"[PAD{i}]") for i in range(max([rows - 1, *tokens]) + 1)]
    own = _common(recipe, names) | _WRITERS[recipe.kind](recipe, names)
    metadata: dict[str, Any] = {f"tokenizer.ggml.{key}": value for key, value in own.items()}
    if recipe.chat_template is not None:
        metadata["tokenizer.chat_template"] = recipe.chat_template
    return metadata


def _refusal(what: str) -> CutawayError:
    return CutawayError(f"GGUF cannot hold {what}", "tokenizer", _STAY)


def _common(recipe: Recipe, names: list[str]) -> Json:
    roles, flags = _frame(recipe)
    return {
        "tokens": names,
        "token_type": np.array(_types(recipe, names), dtype=np.int32),
        **{ROLE_KEYS[role]: i for role, i in roles.items()},
        **flags,
    }


def _types(recipe: Recipe, names: list[str]) -> list[TokenType]:
    """What each token is, in llama.cpp's terms."""
    types = dict.fromkeys(names, TokenType.UNUSED) | dict.fromkeys(recipe.vocab, TokenType.NORMAL)
    if recipe.options.get("byte_fallback"):
        types |= dict.fromkeys(fallback_tokens(bytes(range(256))), TokenType.BYTE)
    for token in recipe.added:
        types[token.content] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return [types[name] for name in names]


def _frame(recipe: Recipe) -> tuple[dict[str, int], dict[str, bool]]:
    """The roles, and which of them stand before and after a text."""
    before, after = template_ids(recipe.post_processor)
    if len(before) > 1 or len(after) > 1:
        raise _refusal("more than one token before or after a text")
    roles, flags = dict(recipe.roles), dict[str, bool]()
    unk = recipe.options.get("unk_token")
    if unk in recipe.vocab:
        roles["unk"] = recipe.vocab[unk]
    for side, names in ((before, ("bos", "cls")), (after, ("eos", "sep"))):
        if side and side[0] not in (roles.get(name) for name in names):
            roles[names[0]] = side[0]
        flags |= {f"add_{name}_token": roles[name] in side for name in names if name in roles}
    return roles, flags


def _bpe(recipe: Recipe, names: list[str]) -> Json:
    if recipe.options.get("continuing_subword_prefix") or recipe.options.get("end_of_word_suffix"):
        raise _refusal("BPE with marks inside or at the end of words")
    if not is_byte_level(recipe.pre_tokenizer):
        return _sentencepiece(recipe, names)
    nfc, whole = recipe.normalizer == {"type": "NFC"}, bool(recipe.options.get("ignore_merges"))
    if recipe.normalizer and not nfc:
        raise _refusal(f"the normalizer {recipe.normalizer['type']!r} before byte-level BPE")
    pre = pretokenizers.name_of(recipe.pre_tokenizer, nfc=nfc, whole=whole)
    return {"model": "gpt2", "pre": pre, "merges": [f"{left} {right}" for left, right in recipe.merges or []]}


def _sentencepiece(recipe: Recipe, names: list[str]) -> Json:
    scores = recipe.scores if recipe.scores is not None else scores_from_merges(recipe)
    if scores is None or not recipe.options.get("byte_fallback"):
        raise _refusal("BPE whose merges cannot be told as scores with byte fallback")
    space = _space_prefix(recipe)
    return {"model": "llama", "pre": "default", "scores": _values(names, scores), "add_space_prefix": space}


def _values(names: list[str], scores: Mapping[str, float]) -> np.ndarray:
    return np.array([scores.get(name, -1000.0) for name in names], dtype=np.float32)


def _space_prefix(recipe: Recipe) -> bool:
    """Whether "▁" is put before a text; refused if anything is done to it besides writing its spaces "▁"."""
    steps = _steps(recipe.normalizer, "normalizers") + _steps(recipe.pre_tokenizer, "pretokenizers")
    steps = [step for step in steps if step != TO_MARKER and step.get("pattern") != {"String": " "}]
    if not steps:
        return False
    if len(steps) > 1 or steps[0]["type"] not in ("Prepend", "Metaspace"):
        raise _refusal(f"{', '.join(step['type'] for step in steps)} before SentencePiece's BPE")
    if steps[0]["type"] == "Prepend":
        return True
    if steps[0].get("prepend_scheme") == "never":
        return False
    warnings.warn(f"in GGUF, {SPACE!r} goes before every stretch of text, not only where it begins", stacklevel=2)
    return True


def _steps(piece: Json | None, inner: str) -> list[Json]:
    if not piece:
        return []
    return list(piece[inner]) if piece["type"] == "Sequence" else [piece]


def _wordpiece(recipe: Recipe, names: list[str]) -> Json:
    normal = recipe.normalizer or {}
    if (normal.get("type"), (recipe.pre_tokenizer or {}).get("type")) != (
        "BertNormalizer",
        "BertPreTokenizer",
    ):
        raise _refusal("WordPiece without BERT's normalizer and pre-tokenizer")
    if any(name.startswith("##" + SPACE) for name in names):
        raise _refusal(f"WordPiece with {SPACE!r} inside words")
    accents = normal.get("strip_accents")
    return {
        "model": "bert",
        "pre": "default",
        "token_type_count": 2,  # BERT's segments, which llama.cpp looks for here
        "tokens": [name if name in recipe.hidden else _phantom(name) for name in names],
        "normalizer.lowercase": bool(normal.get("lowercase", True)),
        **({"bos_token_id": recipe.roles["cls"]} if "cls" in recipe.roles else {}),
        **({} if accents is None else {"normalizer.strip_accents": accents}),
    }


def _phantom(token: str) -> str:
    """GGUF marks what begins a word, WordPiece what continues one."""
    return token[2:] if token.startswith("##") else SPACE + token


def _unigram(recipe: Recipe, names: list[str]) -> Json:
    own: Json = {"model": "t5", "pre": "default", "scores": _values(names, recipe.scores or {})}
    steps = _steps(recipe.normalizer, "normalizers")
    if steps and steps[0]["type"] == "Precompiled":
        packed = base64.b64decode(steps.pop(0)["precompiled_charsmap"])
        own["precompiled_charsmap"] = np.frombuffer(packed, np.uint8)
    splits = _steps(recipe.pre_tokenizer, "pretokenizers")
    kinds = [step["type"] for step in splits]
    on_white_space = not steps and kinds == ["WhitespaceSplit", "Metaspace"]
    tidy = on_white_space or (steps == [TRIM, ONE_SPACE] and kinds == ["Metaspace"])
    if not tidy and (steps or kinds != ["Metaspace"]):
        raise _refusal(f"{', '.join(step['type'] for step in [*steps, *splits])} before a Unigram model")
    space = splits[-1].get("prepend_scheme", "always") != "never"
    return own | {"remove_extra_whitespaces": tidy, "add_space_prefix": space}


_WRITERS: dict[str, Callable[[Recipe, list[str]], Json]] = {
    "BPE": _bpe,
    "WordPiece": _wordpiece,
    "Unigram": _unigram,
}
