"""Unigram language model: of all ways to cut a word into tokens, the most probable (Kudo 2018,
arXiv:1804.10959).

Viterbi over positions: best[end] = max over tokens text[start:end] of best[start] + log p(token).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

from cutaway.text.alphabet import fallback_tokens

UNKNOWN_PENALTY = 10.0  # below the least probable token, as in SentencePiece


class Unigram:
    """Encode one pre-token.

    scores: log-probability of each token; vocab: its id. hidden: control tokens, which text can never make.
    An unknown run of characters becomes its bytes (`byte_fallback`, if all byte tokens exist) or one `unk`.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        scores: Mapping[str, float],
        *,
        unk: str | None = None,
        byte_fallback: bool = False,
        hidden: Collection[str] = (),
    ) -> None:
        self.vocab, self.unk, self.byte_fallback = vocab, unk, byte_fallback
        self.scores = {token: score for token, score in scores.items() if token and token not in hidden}
        self.unknown = min(scores.values(), default=0.0) - UNKNOWN_PENALTY
        self._reach: dict[str, int] = {}  # longest token by its first character: where to stop looking
        for token in self.scores:
            self._reach[token[0]] = max(self._reach.get(token[0], 1), len(token))

    def tokens(self, word: str) -> list[str]:
        """The tokens of one pre-token."""
        return [token for piece in self._pieces(word) for token in self._known(piece)]

    def ids(self, word: str) -> list[int]:
        """The token ids of one pre-token."""
        return [self.vocab[token] for token in self.tokens(word)]

    def _starts(self, word: str) -> list[tuple[int, bool]]:
        """For each end position, where its best last token starts and whether it is a known token."""
        best = [0.0] + [-inf] * len(word)
        back = [(0, True)] * (len(word) + 1)
        for start, letter in enumerate(word):
            here, longest = best[start], min(self._reach.get(letter, 1), len(word) - start)
            for end in range(start + 1, start + longest + 1):
                score = self.scores.get(word[start:end])
                if score is not None and here + score > best[end]:
                    best[end], back[end] = here + score, (start, True)
            if letter not in self.scores and here + self.unknown > best[start + 1]:
                best[start + 1], back[start + 1] = here + self.unknown, (start, False)
        return back

    def _pieces(self, word: str) -> list[str]:
        """The best cut, with neighboring unknown characters fused."""
        back, end = self._starts(word), len(word)
        pieces: list[tuple[str, bool]] = []
        while end > 0:
            start, known = back[end]
            if pieces and not known and not pieces[-1][1]:
                pieces[-1] = (word[start:end] + pieces[-1][0], False)
            else:
                pieces.append((word[start:end], known))
            end = start
        return [piece for piece, _ in reversed(pieces)]

    def _known(self, piece: str) -> list[str]:
        if piece in self.scores:
            return [piece]
        spelled = fallback_tokens(piece.encode())
        if self.byte_fallback and all(token in self.vocab for token in spelled):
            return spelled
        return [] if self.unk is None else [self.unk]
