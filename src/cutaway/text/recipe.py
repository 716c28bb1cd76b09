"""What a tokenizer file says, whichever file said it: between tokenizer.json, GGUF and the algorithms.

The normalizer, pre-tokenizer, post-processor and decoder are kept as the JSON of tokenizer.json, which is
the field's common language for them; `pieces.py` brings them to life.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from cutaway.errors import CutawayError
from cutaway.text.added import AddedToken
from cutaway.text.bpe import BPE, Pair, by_rank, by_score
from cutaway.text.unigram import Unigram
from cutaway.text.wordpiece import WordPiece

Json = dict[str, Any]
Kind = Literal["BPE", "Unigram", "WordPiece"]

# What ends a turn or a text in some model family; such a token stops generation if it is a control token.
END_TOKENS = frozenset((
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<|end_of_turn|>", "<end_of_turn>", "<turn|>", "<|return|>", "<|call|>", "<end_of_utterance>",
    "</s>", "<eos>", "<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
))  # fmt: skip


@dataclass
class Recipe:
    """A tokenizer's content.

    vocab:   id of each of the algorithm's tokens.
    merges:  BPE's pairs, first to last; None if `scores` rank the pairs instead (SentencePiece).
    scores:  log-probability (Unigram) or rank (SentencePiece BPE) of each token.
    options: the algorithm's settings, named as in tokenizer.json's "model".
    roles:   ids of "bos", "eos", "unk", "pad", "cls", "sep", "mask", as far as they exist.
    stop:    ids that end generation, besides those known by name.
    """

    kind: Kind
    vocab: dict[str, int]
    merges: list[Pair] | None = None
    scores: Mapping[str, float] | None = None
    options: Json = field(default_factory=dict)
    normalizer: Json | None = None
    pre_tokenizer: Json | None = None
    post_processor: Json | None = None
    decoder: Json | None = None
    added: list[AddedToken] = field(default_factory=list)
    roles: dict[str, int] = field(default_factory=dict)
    stop: frozenset[int] = frozenset()
    chat_template: str | None = None
    max_length: int | None = None

    @cached_property
    def added_by_content(self) -> dict[str, AddedToken]:
        """The added tokens by their text."""
        return {token.content: token for token in self.added}

    @property
    def hidden(self) -> frozenset[str]:
        """The control tokens, which no text can make."""
        return frozenset(token.content for token in self.added if token.special)

    def tokens(self) -> dict[int, str]:
        """Every token by id, added ones included; ids need not be contiguous."""
        return {i: t for t, i in self.vocab.items()} | {t.id: t.content for t in self.added}


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Turn what goes wrong over odd content of a file into a CutawayError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        what = f"this is not a tokenizer of a known layout: {type(error).__name__} {error}"
        raise CutawayError(what, where, "fetch the file again, or check what it is") from None


def build_model(recipe: Recipe) -> BPE | Unigram | WordPiece:
    """The algorithm that a recipe describes."""
    return _BUILDERS[recipe.kind](recipe)


def _bpe(recipe: Recipe) -> BPE:
    options, hidden = recipe.options, recipe.hidden
    prefix = options.get("continuing_subword_prefix") or ""
    if recipe.merges is not None:
        priority = by_rank(_possible(recipe.merges, recipe.vocab, prefix, hidden))
    else:
        priority = by_score(recipe.scores or {}, hidden)
    return BPE(
        recipe.vocab,
        priority,
        unk=options.get("unk_token"),
        fuse_unk=bool(options.get("fuse_unk")),
        byte_fallback=bool(options.get("byte_fallback")),
        whole=bool(options.get("ignore_merges")),
        prefix=prefix,
        suffix=options.get("end_of_word_suffix") or "",
        hidden=hidden,
    )


def _possible(merges: list[Pair], vocab: Collection[str], prefix: str, hidden: Collection[str]) -> Iterator[Pair]:
    """The merges that text may make use of: not those that make a control token."""
    for pair in merges:
        token = pair[0] + pair[1].removeprefix(prefix)
        if token not in vocab:
            raise ValueError(f"merges make {token!r}, which is no token")
        if token not in hidden:
            yield pair


def _unigram(recipe: Recipe) -> Unigram:
    return Unigram(
        recipe.vocab,
        recipe.scores or {},
        unk=recipe.options.get("unk_token"),
        byte_fallback=bool(recipe.options.get("byte_fallback")),
        hidden=recipe.hidden,
    )


def _wordpiece(recipe: Recipe) -> WordPiece:
    options = recipe.options
    return WordPiece(
        recipe.vocab,
        unk=options.get("unk_token", "[UNK]"),
        prefix=options.get("continuing_subword_prefix", "##"),
        longest_word=options.get("max_input_chars_per_word", 100),
        hidden=recipe.hidden,
    )


_BUILDERS: dict[str, Callable[[Recipe], BPE | Unigram | WordPiece]] = {
    "BPE": _bpe,
    "Unigram": _unigram,
    "WordPiece": _wordpiece,
}
