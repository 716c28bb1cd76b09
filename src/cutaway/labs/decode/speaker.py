"""The engine that a lab lets speak: the model as it is stored, and many replies at once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import Sequence
from cutaway.labs.subject import MODEL
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import STORED, load

CONTEXT = 512
STARTS = (
    "The capital of France is", "Once upon a time, in a village by the sea,", "To make bread you need",
    "The most important thing in life is", "My name is", "The list of colors is:", "In 1841 the town built",
    "A good teacher always", "The weather today is", "First we went to the market, then",
    "The president said that", "I think that", "There are many reasons why", "The results show that",
    "In this paper we", "She opened the door and", "The dog and the cat", "Water boils when",
    "1, 2, 3, 4,", "The history of the city", "He was a man who", "The best way to learn is",
    "Scientists have found that", "On the table there was", "The sun, the moon and", "Every morning he",
    "The company announced", "If you want to be happy,", "The train left the station", "Music is",
)  # fmt: skip


class Speaker(NamedTuple):
    """An engine and what it reads and writes with."""

    engine: Engine
    tokenizer: Tokenizer

    def prompts(self, count: int) -> list[list[int]]:
        """The first of `STARTS`, over again if there are too few."""
        return [self.tokenizer.encode(STARTS[i % len(STARTS)]) for i in range(count)]

    def say(self, requests: Iterable[tuple[list[int], SamplingParams]]) -> list[Sequence]:
        """All replies, computed side by side."""
        sequences = [self.engine.add(prompt, params) for prompt, params in requests]
        while self.engine.busy:
            self.engine.step()
        return sequences


@lru_cache(2)
def speaker(source: str = MODEL) -> Speaker:
    """Of the model that `source` names, kept. Errors: loading's."""
    loaded = load(source, STORED)
    return Speaker(engine_of(loaded, context=CONTEXT, running=32), loaded.tokenizer)


def repeated(tokens: list[int], size: int = 4) -> float:
    """The share of runs of `size` tokens that stood there before."""
    runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
