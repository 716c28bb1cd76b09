"""The pre-tokenizers that GGUF knows by a name only (`tokenizer.ggml.pre`), as the tokenizer.json pieces
they stand for.

GGUF stores the name of a family instead of its regular expressions; they are given here as the families' own
tokenizer.json have them. The table serves both directions: name → pieces, and pieces → name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cutaway.errors import CutawayError
from cutaway.text.pieces import GPT2_PATTERN, flatten, split_on

Json = dict[str, Any]

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"]
_O200K_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = "|".join([*(cased + _CONTRACTION + "?" for cased in _CASED), r"\p{N}{1,3}", _O200K_TAIL])
TEKKEN = "|".join([*_CASED, r"\p{N}", _O200K_TAIL])
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GGML_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True)
class Family:
    """How models of one kind cut text.

    patterns: each cuts what the ones before left. nfc: text is normalized to NFC first.
    whole: `ignore_merges`. bos: whether a text begins with BOS unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    bos: bool = False

    def pieces(self) -> Json:
        """The pre-tokenizer in tokenizer.json's form."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [*map(split_on, self.patterns), level]}


_DIGITS = Family((r"\p{N}", GPT2_PATTERN))
_GPT2 = Family((GPT2_PATTERN,))
_LLAMA3 = Family((LLAMA3,), whole=True, bos=True)

FAMILIES: dict[str, Family] = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "llama-bpe": _LLAMA3,
    "qwen2": Family((QWEN2,), nfc=True),
    "qwen35": Family((QWEN35,)),
    "deepseek-r1-qwen": Family((QWEN2,)),
    "deepseek-v3": Family((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK3)),
    "deepseek-coder": Family(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "falcon": Family((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]")),
    "dbrx": Family((LLAMA3,)),
    "olmo": Family((GPT2_PATTERN,), nfc=True),
    "command-r": Family((r"\p{N}", GPT2_PATTERN), nfc=True),
    "tekken": Family((TEKKEN,), whole=True, bos=True),
    "gpt-4o": Family((GPT4O,)),
    "stablelm2": Family((QWEN2,)),
    "default": Family((_GGML_PUNCTUATION, GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]")),
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "minerva-7b": _DIGITS,
    "phi-2": _GPT2,
    "mpt": Family((GPT2_PATTERN,), nfc=True),
    "jais": _GPT2,
    "trillion": _GPT2,
    "exaone4": _GPT2,
    "smaug-bpe": Family((LLAMA3,)),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "lfm2": _LLAMA3,
    "glm4": Family((LLAMA3,), whole=True),
    "chatglm-bpe": Family((LLAMA3,)),
    "megrez": Family((QWEN2,), nfc=True),
    "llama4": Family((GPT4O,)),
}


def by_name(name: str) -> Family:
    """The family that GGUF calls `name`; CutawayError if it is unknown."""
    if name not in FAMILIES:
        hint = f"known are {', '.join(sorted(FAMILIES))}"
        raise CutawayError(f"unknown pre-tokenizer {name!r}", "tokenizer.ggml.pre", hint)
    return FAMILIES[name]


def name_of(pre_tokenizer: Json | None, *, nfc: bool, whole: bool) -> str:
    """GGUF's name for a byte-level pre-tokenizer of tokenizer.json; CutawayError if it has none."""
    patterns = tuple(_pattern(step) for step in flatten(pre_tokenizer))
    wanted = tuple(pattern for pattern in patterns if pattern)
    for name, family in FAMILIES.items():
        if (family.patterns, family.nfc, family.whole) == (wanted, nfc, whole):
            return name
    hint = "llama.cpp would cut the text elsewhere; keep the model in safetensors"
    what = f"GGUF has no name for this pre-tokenizer: {wanted} (NFC: {nfc}, ignore_merges: {whole})"
    raise CutawayError(what, "tokenizer", hint)


def _pattern(step: Json) -> str:
    """The regular expression a pre-tokenizer comes to; "" if it cuts nothing; its type if it has none."""
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        return GPT2_PATTERN if step.get("use_regex", True) else ""
    if kind == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    isolated = (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True))
    return step["pattern"].get("Regex", f"({kind})") if kind == "Split" and isolated else f"({kind})"
