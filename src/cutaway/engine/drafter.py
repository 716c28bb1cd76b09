"""Drafters: cheap guesses at the next tokens, which one step then checks all at once.

Checking k guesses takes one step, about as long as computing one token, for reading the weights is what takes time. A
guess is right if it is the very token that the sampler draws there, with noise that only seed and position decide; so
what comes out does not depend on the guesses, at any temperature.
"""

from __future__ import annotations

from array import array
from typing import Protocol

from cutaway.engine.sequence import Sequence

MOST = 8  # guesses of a step
AGAIN = 16  # tokens after which one who guessed wrong may try again
WEIGHT = 0.3  # of the last step, in a sequence's trust


class Drafter(Protocol):
    """Proposes what may follow."""

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """At most so many guesses at the tokens after `tokens`, perhaps none."""
        ...


class PromptLookup:
    """What followed when the last tokens stood there before (Saxena 2023, "Prompt Lookup Decoding").

    longest, shortest: of the run of tokens to find.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.longest, self.shortest = longest, shortest

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """The latest earlier place where the longest run stands decides."""
        numbers = array("q", tokens)
        text, size = numbers.tobytes(), numbers.itemsize
        for length in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            last, end = text[-size * length :], len(text) - 1
            while (at := text.rfind(last, 0, end)) % size:  # between two tokens
                end = at + len(last) - 1
                if at < 0:
                    break
            if at >= 0:
                return tokens[at // size + length :][:most]
        return []


def worth(sequence: Sequence) -> int:
    """How many guesses a sequence's next step is worth: a wrong one costs time, so trust is what it earned lately."""
    most = round(MOST * sequence.trust)
    return most or int(len(sequence.tokens) % AGAIN == 0)


def learn(sequence: Sequence, drafted: int, accepted: int) -> None:
    """So many of a step's guesses were right."""
    if drafted:
        sequence.trust += WEIGHT * (accepted / drafted - sequence.trust)
