"""What a tokenizer file says, whichever file said it: the one form between tokenizer.json, GGUF and the algorithms.

The normalizer, pre-tokenizer, post-processor and decoder are kept as the JSON of tokenizer.json, which is the field's
common language for them; `pieces.py` brings them to life.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cutaway.errors import CutawayError
from cutaway.text.added import AddedToken
from cutaway.text.bpe import BPE, SPACE, Pair, by_rank, by_score
from cutaway.text.unigram import Unigram
from cutaway.text.wordpiece import WordPiece

Json = dict[str, Any]
Kind = Literal["BPE", "Unigram", "WordPiece"]

# Tokens that end a turn or a text in some model family. One of them stops generation if it is a control token.
END_TOKENS = frozenset(
    "<|im_end|> <|eot_id|> <|eom_id|> <|end|> <|endoftext|> <|end_of_text|> <|end_of_turn|> <end_of_turn> <|return|>"
    " <|call|> <|eot|> <EOT> [EOT] [EOS] </s> <eos> <turn|> <end_of_utterance> <｜end▁of▁sentence｜>".split()
)


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

    @property
    def hidden(self) -> frozenset[str]:
        """The control tokens, which no text can make."""
        return frozenset(token.content for token in self.added if token.special)

    def tokens(self) -> dict[int, str]:
        """Every token by id, added ones included; ids need not be contiguous."""
        return {i: t for t, i in self.vocab.items()} | {t.id: t.content for t in self.added}


def build_model(recipe: Recipe) -> BPE | Unigram | WordPiece:
    """The algorithm that a recipe describes."""
    return _BUILDERS[recipe.kind](recipe)


def _bpe(recipe: Recipe) -> BPE:
    options, hidden = recipe.options, recipe.hidden
    prefix = options.get("continuing_subword_prefix") or ""
    if recipe.merges is not None:
        priority = by_rank(p for p in recipe.merges if p[0] + p[1].removeprefix(prefix) not in hidden)
    else:
        priority = by_score({t: s for t, s in (recipe.scores or {}).items() if t not in hidden})
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


def _unigram(recipe: Recipe) -> Unigram:
    unk, byte_fallback = recipe.options.get("unk_token"), bool(recipe.options.get("byte_fallback"))
    return Unigram(recipe.vocab, recipe.scores or {}, unk=unk, byte_fallback=byte_fallback, hidden=recipe.hidden)


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


def template_ids(processor: Json | None) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer.json post-processor puts before and after a single text."""
    kind = processor["type"] if processor else None
    if processor is None or kind == "ByteLevel":
        return [], []
    if kind == "Sequence":
        pairs = [template_ids(part) for part in processor["processors"]]
        return sum((before for before, _ in reversed(pairs)), []), sum((after for _, after in pairs), [])
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    if kind != "TemplateProcessing":
        raise CutawayError(f"post-processor {kind!r} is not supported", "tokenizer.json")
    ids: tuple[list[int], list[int]] = ([], [])
    after = 0
    for item in processor["single"]:
        if "Sequence" in item:
            after = 1
        else:
            ids[after].extend(processor["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return ids


def template(before: list[tuple[str, int]], after: list[tuple[str, int]], *, once: bool = False) -> Json:
    """The post-processor that puts these (token, id) before and after a text, and around each text of a pair;
    with `once`, the ones before stand only at the head of the pair, as BERT has it."""

    def marks(side: list[tuple[str, int]], kind: int) -> list[Json]:
        return [{"SpecialToken": {"id": token, "type_id": kind}} for token, _ in side]

    first = [*marks(before, 0), {"Sequence": {"id": "A", "type_id": 0}}, *marks(after, 0)]
    second = [*marks([] if once else before, 1), {"Sequence": {"id": "B", "type_id": 1}}, *marks(after, 1)]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in before + after},
    }


def merges_from_scores(recipe: Recipe) -> list[Pair]:
    """The list of merges that ranks pairs as the scores do: every way to make a token of two, best token first.

    The same pairs in the same order as SentencePiece's scores give, written out for tokenizer.json.
    """
    vocab, scores, hidden = recipe.vocab, recipe.scores or {}, recipe.hidden
    ranked = sorted((t for t in scores if t not in hidden), key=lambda t: -scores[t])
    return [
        (token[:cut], token[cut:])
        for token in ranked
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]


def scores_from_merges(recipe: Recipe) -> dict[str, float] | None:
    """Scores that rank pairs as the merges do, or None if no scores can.

    Scores rank a token, merges a pair: they agree only if all ways to make a token of two stand together in the list.
    """
    ranks: dict[str, int] = {}
    for left, right in recipe.merges or []:
        ranks.setdefault(left + right, len(ranks))
    scores = {token: -float(ranks.get(token, len(ranks))) for token in recipe.vocab}
    closed = Recipe(recipe.kind, recipe.vocab, scores={t: scores[t] for t in ranks}, added=recipe.added)
    joined = [left + right for left, right in recipe.merges or []]
    together = joined == sorted(joined, key=ranks.__getitem__)
    return scores if together and set(merges_from_scores(closed)) == set(recipe.merges or []) else None


def is_byte_level(pre_tokenizer: Json | None) -> bool:
    """Whether the tokens are written in the byte-level alphabet."""
    if not pre_tokenizer:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(map(is_byte_level, pre_tokenizer["pretokenizers"]))
    return pre_tokenizer["type"] == "ByteLevel"


def uses_marker(recipe: Recipe) -> bool:
    """Whether spaces are written "▁" in the tokens."""
    return SPACE in recipe.vocab and not is_byte_level(recipe.pre_tokenizer)
