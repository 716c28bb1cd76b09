"""Merges ↔ scores: two ways to say which pair BPE joins first.

tokenizer.json lists pairs, first to last; SentencePiece and GGUF score the tokens that pairs make. Writing a
tokenizer into the other kind of file needs the one made from the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from cutaway.text.bpe import Pair
from cutaway.text.recipe import Recipe


def merges_from_scores(recipe: Recipe) -> list[Pair]:
    """The merges that rank pairs as the scores do: every way to make a token of two, best token first."""
    scores, vocab = recipe.scores or {}, recipe.vocab.keys() - recipe.hidden
    ranked = sorted(vocab & scores.keys(), key=lambda token: (-scores[token], recipe.vocab[token]))
    return [pair for token in ranked for pair in _ways(token, vocab)]


def scores_from_merges(recipe: Recipe) -> dict[str, float] | None:
    """Scores that rank pairs as the merges do, or None if no scores can.

    Scores rank a token, merges a pair: they agree only if all ways to make a token of two are in the list,
    and stand together.
    """
    vocab = recipe.vocab.keys() - recipe.hidden
    made = [left + right for left, right in recipe.merges or []]
    listed = Counter(made)
    together = sum(1 for _ in groupby(made)) == len(listed)
    if not together or any(sum(1 for _ in _ways(token, vocab)) != listed[token] for token in vocab):
        return None
    best_first = {token: -float(rank) for rank, token in enumerate(dict.fromkeys(made))}
    return dict.fromkeys(recipe.vocab, -float(len(listed))) | best_first


def _ways(token: str, vocab: set[str]) -> Iterator[Pair]:
    """The pairs of tokens that make `token`."""
    for cut in range(1, len(token)):
        if token[:cut] in vocab and token[cut:] in vocab:
            yield token[:cut], token[cut:]
