"""Merges ↔ scores: two ways to say which pair BPE joins first.

tokenizer.json lists pairs, first to last; SentencePiece and GGUF score the tokens that pairs make. Writing a
tokenizer into the other kind of file needs the one made from the other.
"""

from __future__ import annotations

from cutaway.text.bpe import Pair
from cutaway.text.recipe import Recipe


def merges_from_scores(recipe: Recipe) -> list[Pair]:
    """The merges that rank pairs as the scores do: every way to make a token of two, best token first.

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

    Scores rank a token, merges a pair: they agree only if all ways to make a token of two stand together in
    the list.
    """
    ranks: dict[str, int] = {}
    for left, right in recipe.merges or []:
        ranks.setdefault(left + right, len(ranks))
    scores = {token: -float(ranks.get(token, len(ranks))) for token in recipe.vocab}
    closed = Recipe(recipe.kind, recipe.vocab, scores={t: scores[t] for t in ranks}, added=recipe.added)
    joined = [left + right for left, right in recipe.merges or []]
    together = joined == sorted(joined, key=ranks.__getitem__)
    return scores if together and set(merges_from_scores(closed)) == set(recipe.merges or []) else None
