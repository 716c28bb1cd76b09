"""What a reply may be, as something that can be sent along with a request: a kind and its source, nothing compiled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from cutaway.engine.constraints.choices import Choices
from cutaway.engine.constraints.constraint import Constraint, Grammar, vocabulary
from cutaway.engine.constraints.grammars import GRAMMARS, LIMITS, OPTIONS, reason, words_memory
from cutaway.errors import CutawayError
from cutaway.text.tokenizer import Tokenizer

BETWEEN_WORDS = " \n.,;:!?'\"()-"
LARGEST = {
    "choices": 1 << 16,
    "words": 1 << 20,
    "regex": 1 << 14,
    "grammar": 1 << 15,
    "schema": 1 << 18,
    "tools": 1 << 18,
}


@dataclass(frozen=True)
class ConstraintSpec:
    """kind: a key of `LARGEST`. source: text; JSON for all kinds but "regex" and "grammar".

    Make one with the methods named like the kinds. Errors, here and in `compile`: too large, unsupported,
    contradictory; where it went wrong is named.
    """

    kind: str
    source: str

    def __post_init__(self) -> None:
        if self.kind not in LARGEST:
            raise CutawayError(f"there is no constraint of kind {self.kind!r}", "kind", ", ".join(LARGEST))
        if len(self.source) > LARGEST[self.kind]:
            what = f"has {len(self.source):,} characters, {LARGEST[self.kind]:,} are allowed"
            raise CutawayError(what, self.kind, "make it smaller")
        if "\0" in self.source or not _is_unicode(self.source):
            raise CutawayError("holds a null character or a lone surrogate", self.kind)

    @classmethod
    def choices(cls, texts: Iterable[str]) -> ConstraintSpec:
        """The reply is one of these texts, in the tokenizer's own spelling. (A `regex` lets every spelling come.)"""
        return cls("choices", _dumped("choices", _texts("choices", texts)))

    @classmethod
    def regex(cls, pattern: str) -> ConstraintSpec:
        """The whole reply matches a regular expression of Rust's `regex` syntax: no lookaround, no back-reference."""
        return cls("regex", pattern)

    @classmethod
    def words(cls, words: Iterable[str], between: str = BETWEEN_WORDS, capital: bool = True) -> ConstraintSpec:
        """The reply is made of these words, at least one, with one to four characters of `between` between them.

        Nothing outside the list can be said; only where max_tokens cuts a reply off, its last word may be unfinished.
        capital: a word may also begin with a capital letter.
        """
        listed = _texts("words", words)
        if not between:
            raise CutawayError("is empty: words would run together", "words.between", "allow at least a space")
        return cls("words", _dumped("words", {"words": listed, "between": between, "capital": capital}))

    @classmethod
    def json(cls) -> ConstraintSpec:
        """The reply is one JSON value, whatever its type."""
        return cls.schema({})

    @classmethod
    def schema(cls, schema: Mapping[str, Any] | bool | str) -> ConstraintSpec:
        """The reply is JSON that the schema (2020-12) allows, properties in its order; no keyword is ignored."""
        return cls("schema", schema if isinstance(schema, str) else _dumped("schema", schema))

    @classmethod
    def grammar(cls, text: str) -> ConstraintSpec:
        """The reply follows a grammar: Lark (from `start`), or EBNF as llama.cpp writes it (`root ::= ...`)."""
        return cls("grammar", text)

    @classmethod
    def tools(
        cls,
        tools: Sequence[Mapping[str, Any]],
        begin: str,
        end: str,
        *,
        arguments: str = "arguments",
        free: bool = False,
        several: bool = False,
    ) -> ConstraintSpec:
        """The reply calls tools: begin, {"name": ..., arguments: {...}}, end.

        tools: {"name", "parameters": a schema} each. free: any text may come before, between and after calls, or no
        call at all. several: more than one call. Names of control tokens in begin and end stand for these tokens.
        """
        if not tools or not begin:
            raise CutawayError("needs at least one tool, and a text that begins a call", "tools")
        given = {"begin": begin, "end": end, "arguments": arguments, "free": free, "several": several}
        return cls("tools", _dumped("tools", {"tools": [*tools], **given}))

    def compile(self, tokenizer: Tokenizer) -> Constraint:
        """The constraint at the beginning of a reply. What was compiled is kept for the next who asks for it."""
        return _compiled(self, tokenizer).fork()


@lru_cache(64)
def _compiled(spec: ConstraintSpec, tokenizer: Tokenizer) -> Constraint:
    vocab = vocabulary(tokenizer)
    if spec.kind == "choices":
        return Choices.of(json.loads(spec.source), vocab)
    try:
        grammar = GRAMMARS[spec.kind](spec.source, vocab)
    except RecursionError:
        raise CutawayError("is nested too deeply", spec.kind) from None
    matcher = LLMatcher(vocab.engine, grammar + OPTIONS, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise CutawayError(
            reason(matcher, placed=spec.kind == "grammar"), spec.kind, "llguidance documents what it can"
        )
    compiled = Grammar(vocab, matcher, words_memory(spec.source) if spec.kind == "words" else None)
    try:
        compiled.fork().mask()
    except CutawayError as error:
        raise CutawayError(f"no reply can begin: {error.what}", spec.kind) from None
    return compiled


def _texts(kind: str, texts: Iterable[str]) -> list[str]:
    """Distinct, in order. Errors: none, or one that is no text or empty."""
    found = list(dict.fromkeys(texts))
    if not found:
        raise CutawayError("are none", kind, "give at least one")
    for i, text in enumerate(found):
        if not isinstance(text, str) or not text:
            raise CutawayError("should be a text that is not empty", f"{kind}[{i}]")
    return found


def _dumped(kind: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CutawayError(f"is not JSON: {error}", kind) from None


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
