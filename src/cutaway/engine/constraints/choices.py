"""The constraint of a list of texts: a trie over their tokens.

A text can be cut into tokens in many ways. Here it is said in one, the tokenizer's own, which is the one that the model
was trained on; so the probability of each reply is what `cutaway.engine.labels` says of a walk.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from cutaway.engine.constraints.constraint import Vocabulary, packed, remaining
from cutaway.errors import CutawayError

Trie = dict[int, "Trie"]  # token that may come -> what may come after it


class Choices:
    """The `Constraint` of a trie that ends with end tokens. path: the nodes from the root to where it is."""

    def __init__(self, vocabulary: Vocabulary, *path: Trie) -> None:
        self.vocabulary, self._path = vocabulary, [*path]

    @staticmethod
    def of(texts: Iterable[str], vocabulary: Vocabulary) -> Choices:
        """One of these texts. Errors: one that the tokenizer cannot spell."""
        root, ended = Trie(), Trie()
        ended |= dict.fromkeys(vocabulary.end_ids, ended)
        for i, text in enumerate(texts):
            if not (ids := vocabulary(text)):
                raise CutawayError("has no spelling in the model's tokens", f"choices[{i}]", "take another text")
            node = root
            for token in ids:
                node = node.setdefault(token, {})
            node |= ended
        return Choices(vocabulary, root)

    @property
    def done(self) -> bool:
        return self._path[-1].keys() <= self.vocabulary.end_ids

    def mask(self, row_W: Tensor | None = None) -> Tensor:
        row_W = self.vocabulary.row(row_W)
        row_W[: self.vocabulary.words] = packed(self._path[-1], self.vocabulary.words)
        return row_W

    def advance(self, token: int) -> None:
        if token not in self._path[-1]:
            raise self.vocabulary.forbidden(token)
        self._path.append(self._path[-1][token])

    def rollback(self, count: int) -> None:
        del self._path[1 + remaining(len(self._path) - 1, count) :]

    def forced(self) -> list[int]:
        node, tokens = self._path[-1], list[int]()
        while len(node) == 1 and not node.keys() <= self.vocabulary.end_ids:
            ((token, node),) = node.items()
            tokens.append(token)
        return tokens

    def fork(self) -> Choices:
        return Choices(self.vocabulary, *self._path)
