"""Constrained decoding: the tokens that keep a reply inside a language, as one bit per token.

A constraint follows the reply byte by byte. A token may come if its bytes lead to a state from which the language can
still be completed (Willard and Louf 2023, arXiv:2307.09702), an end token where the reply is complete. A
`ConstraintSpec` (`spec.py`) says what the language is. Under all but a list of choices (`choices.py`) runs llguidance:
derivatives of regular expressions for the lexemes, Earley's parser above them, and a walk through the vocabulary's trie
that visits only prefixes which are still possible, so that nothing is compiled in advance.

Masks are packed: bit t % 32 of word t // 32 stands for token t. Axis W: the words of a mask.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.text.tokenizer import Tokenizer

LONGEST_FORCED = 256  # bytes looked at; some languages force the same byte for ever
LARGEST_MEMORY = 1 << 22  # words of 32 bits
CONTEXT = 4  # tokens that the forced ones are tokenized together with


class Constraint(Protocol):
    """What the engine asks of a constraint. Not thread-safe; forks are independent of each other."""

    def mask(self, row_W: Tensor | None = None) -> Tensor:
        """The tokens that may come next, written into `row_W` if given (int32, on the CPU, contiguous).

        A wider row than the vocabulary needs is cleared beyond it.
        Errors: no token of the vocabulary can go on, or a step became too much work; the constraint is then spent.
        """
        ...

    def advance(self, token: int) -> None:
        """The token came. Errors: it was not allowed; nothing has changed then."""
        ...

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens. Errors: there are not so many."""
        ...

    @property
    def done(self) -> bool:
        """Whether nothing but an end token may come."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next, as the tokenizer itself would cut them; perhaps none.

        A last token that could have been a longer one is left out: the text decides which one comes.
        """
        ...

    def fork(self) -> Constraint:
        """A second one in the same state."""
        ...


class Vocabulary:
    """A tokenizer as llguidance wants to see it: the bytes of every token, and text cut into tokens.

    Control tokens spell nothing: no text is made of them. Where a tokenizer has no end token, no mask has a bit for the
    end, and a reply is over when its constraint is `done`.
    """

    is_tokenizer_wrapper = True  # how llguidance recognizes one
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        unknown = set() if tokenizer.unk_id is None else {tokenizer.unk_id}
        self.controls = tokenizer.special_ids | tokenizer.stop_ids | unknown
        self.special_token_ids = sorted(self.controls)
        self.end_ids = tokenizer.stop_ids
        self.eos_token_id = min(tokenizer.stop_ids, default=None)  # None: llguidance adds one behind the last id
        self.names = {t.content: t.id for t in tokenizer.recipe.added if t.id in self.controls}
        self.engine = LLTokenizer(self, eos_token=sorted(tokenizer.stop_ids) or None)  # type: ignore[arg-type]
        self.words = -(-self.engine.vocab_size // 32)
        self.end_mask = packed(self.end_ids, self.words)

    def __call__(self, text: str) -> list[int]:
        """The ids of a piece of text, without the space that some tokenizers put first; [] if they cannot say it."""
        for lead in ("", "\n"):
            ids = self._tokenizer.encode(lead + text, add_special=False, parse_special=False)
            spare = sum(len(self.tokens[i]) for i in ids) - len(text.encode())
            start = 0
            while spare > 0 and start < len(ids):
                spare -= len(self.tokens[ids[start]])
                start += 1
            if self.bytes_of(ids[start:]) == text.encode():
                return ids[start:]
        return []

    def bytes_of(self, ids: list[int]) -> bytes:
        """What the tokens spell."""
        return b"".join(self.tokens[i] for i in ids)

    def row(self, row_W: Tensor | None) -> Tensor:
        """Where to write a mask: a new row, or the one given, cleared beyond the mask."""
        if row_W is None:
            return torch.empty(self.words, dtype=torch.int32)
        if not (row_W.is_contiguous() and row_W.is_cpu and row_W.dtype == torch.int32 and len(row_W) >= self.words):
            raise ValueError(f"a mask has at least {self.words} words of 32 bits, one after the other")
        row_W[self.words :] = 0
        return row_W

    def forbidden(self, token: int) -> CutawayError:
        """What to raise when it came nevertheless."""
        text = self.tokens[token] if 0 <= token < len(self.tokens) else b""
        return CutawayError(f"token {token} ({text!r}) is not allowed here", "constraint")


@lru_cache(8)
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer's `Vocabulary`. The first call takes a while: about 0.4 s for 49,000 tokens, 3 s for 262,000."""
    return Vocabulary(tokenizer)


@dataclass(frozen=True)
class Memory:
    """Masks kept by what they depend on, for languages that know: shared by all forks of a constraint.

    state: what of the last `reach` bytes (or more) decides about what may come; the flag says whether they are all.
    """

    state: Callable[[bytes, bool], Hashable]
    reach: int
    masks: dict[Hashable, Tensor] = field(default_factory=dict)


class Grammar:
    """The `Constraint` of a compiled grammar."""

    def __init__(
        self, vocabulary: Vocabulary, matcher: LLMatcher, memory: Memory | None = None, tokens: tuple[int, ...] = ()
    ) -> None:
        self.vocabulary, self._matcher, self._memory, self._tokens = vocabulary, matcher, memory, [*tokens]

    @property
    def _ended(self) -> bool:
        return bool(self._tokens) and self._tokens[-1] in self.vocabulary.end_ids

    @property
    def done(self) -> bool:
        return self._ended or bool(self._matcher.is_stopped())

    def mask(self, row_W: Tensor | None = None) -> Tensor:
        words, size, row_W = self.vocabulary.words, len(self.vocabulary.tokens), self.vocabulary.row(row_W)
        if self._ended:
            row_W[:words] = self.vocabulary.end_mask
        else:
            self._fill(row_W[:words])
        if not self.vocabulary.end_ids:
            row_W[size // 32] &= (1 << size % 32) - 1
        return row_W

    def _fill(self, row_W: Tensor) -> None:
        """The mask of a reply that has not ended, from memory if it is there."""
        memory, key = self._memory, None
        if memory:
            recent = self._tokens[-memory.reach :]
            key = memory.state(self.vocabulary.bytes_of(recent), len(recent) == len(self._tokens))
            if key in memory.masks:
                row_W.copy_(memory.masks[key])
                return
        self._matcher.unsafe_compute_mask_ptr(row_W.data_ptr(), 4 * len(row_W))
        self._check()
        if memory and len(memory.masks) * len(row_W) < LARGEST_MEMORY:
            memory.masks[key] = row_W.clone()

    def advance(self, token: int) -> None:
        if not self._accepts(token):
            raise self.vocabulary.forbidden(token)
        self._tokens.append(token)

    def _accepts(self, token: int) -> bool:
        if token in self.vocabulary.end_ids:
            return self._ended or bool(self._matcher.is_accepting())
        if self._ended or not 0 <= token < len(self.vocabulary.tokens):
            return False
        accepted = self._matcher.try_consume_tokens([token]) == 1
        self._check()
        return accepted

    def rollback(self, count: int) -> None:
        kept = remaining(len(self._tokens), count)
        spelled = sum(t not in self.vocabulary.end_ids for t in self._tokens[kept:])
        self._matcher.rollback(spelled)
        self._check()
        del self._tokens[kept:]

    def forced(self) -> list[int]:
        if self.done:
            return []
        # A copy is asked, because the question leaves traces. The byte 0xFF announces a control token.
        data = self._matcher.deep_copy().compute_ff_bytes()[:LONGEST_FORCED].split(b"\xff")[0]
        if not data:
            return []
        recent = self._tokens[-CONTEXT:]
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(self.vocabulary.bytes_of(recent) + data)
        except UnicodeDecodeError:  # the recent tokens begin within a character
            return []
        ids, _ = self.vocabulary.engine.tokenize_partial(text.encode())
        return ids[len(recent) :] if ids[: len(recent)] == recent else []

    def fork(self) -> Grammar:
        return Grammar(self.vocabulary, self._matcher.deep_copy(), self._memory, tuple(self._tokens))

    def _check(self) -> None:
        """llguidance reports by state, and its masks then allow the end token: say so instead."""
        if self._matcher.is_error():
            message = self._matcher.get_error()
            if "NoExtension" in message:
                raise CutawayError("no token of the vocabulary can go on here", "constraint", "the reply is a dead end")
            raise CutawayError(f"gave up after too much work: {first_line(message)}", "constraint", "simplify it")


def first_line(message: str) -> str:
    """What an error of llguidance says before it shows its state."""
    return message.split("\n", maxsplit=1)[0].strip()


def remaining(tokens: int, count: int) -> int:
    """How many are left without the last `count`. Errors: there are not so many."""
    if not 0 <= count <= tokens:
        raise CutawayError(f"cannot forget {count} of {tokens} tokens", "constraint")
    return tokens - count


def packed(tokens: Collection[int], words: int) -> Tensor:
    """The mask [W] of some tokens."""
    bits = np.zeros(32 * words, np.uint8)
    bits[[*tokens]] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))


def allows(mask_W: Tensor, token: int) -> bool:
    """Whether the mask allows this token."""
    return token < 32 * len(mask_W) and bool(int(mask_W[token // 32]) >> token % 32 & 1)


def allowed(mask_W: Tensor) -> Tensor:
    """The mask as booleans, one per token: [32 W]."""
    return (mask_W[:, None] >> torch.arange(32, dtype=torch.int32) & 1).flatten().bool()
