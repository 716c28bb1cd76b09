"""WordPiece: cut a word greedily into the longest tokens from the left (Schuster and Nakajima 2012).

A token that continues a word is written with a prefix: "embed", "##ding" (BERT, Devlin et al. 2019,
arXiv:1810.04805).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


class WordPiece:
    """Encode one pre-token; a word that cannot be covered, or is longer than `longest_word`, is one `unk`.

    hidden: tokens that text can never make (control tokens).
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        unk: str = "[UNK]",
        prefix: str = "##",
        longest_word: int = 100,
        hidden: Collection[str] = (),
    ) -> None:
        self.vocab, self.unk, self.prefix = vocab, unk, prefix
        self.longest_word, self.hidden = longest_word, hidden
        self._longest = max(map(len, vocab), default=0)

    def tokens(self, word: str) -> list[str]:
        """The tokens of one pre-token."""
        if len(word) > self.longest_word:
            return [self.unk]
        tokens: list[str] = []
        start = 0
        while start < len(word):
            token, start = self._longest_match(word, start)
            if token is None:
                return [self.unk]
            tokens.append(token)
        return tokens

    def ids(self, word: str) -> list[int]:
        """The token ids of one pre-token."""
        return [self.vocab[token] for token in self.tokens(word)]

    def _longest_match(self, word: str, start: int) -> tuple[str | None, int]:
        prefix = self.prefix if start else ""
        for end in range(min(len(word), start + self._longest), start, -1):
            token = prefix + word[start:end]
            if token in self.vocab and token not in self.hidden:
                return token, end
        return None, start
