"""Drafters: cheap guesses at the next tokens, which one step then checks all at once.

Checking k guesses takes one step, about as long as computing one token, for reading the weights is what takes time. A
guess is right if it is the very token that the sampler draws there, with noise that only seed and position decide; so
what comes out does not depend on the guesses, at any temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Drafter(Protocol):
    """Proposes what may follow."""

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """Guesses at the tokens after `tokens`, perhaps none."""
        ...


class PromptLookup:
    """What followed when the last tokens stood there before (Saxena 2023, "Prompt Lookup Decoding").

    longest, shortest: of the run of tokens to find. count: of guesses.
    """

    def __init__(self, count: int = 8, longest: int = 4, shortest: int = 2) -> None:
        self.count, self.longest, self.shortest = count, longest, shortest

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """The latest earlier place where the longest run stands decides."""
        for length in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            last = list(tokens[-length:])
            for at in range(len(tokens) - length - 1, -1, -1):
                if tokens[at] == last[0] and list(tokens[at : at + length]) == last:
                    return list(tokens[at + length : at + length + self.count])
        return []
