"""A text as a model reads it, and tokens as a person reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.block import Stack
from cutaway.models.decoder import Decoder
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import Loaded

Each = Callable[[int, int], None]
"""Called with steps done and steps in all."""


def silent(done: int, total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Prompt:
    """tokens: each id for the eye."""

    text: str
    ids: list[int]
    tokens: list[str]

    def tensor(self, device: torch.device | None = None) -> Tensor:
        """The ids, tokens_T."""
        return torch.tensor(self.ids, device=device)


@dataclass(frozen=True)
class Guess:
    """A token that might come next, and how probable it is."""

    id: int
    token: str
    probability: float


def stack(loaded: Loaded) -> Stack:
    """The model, if it reads one text alone. Errors: it needs a source to read as well."""
    if loaded.model.spec.encoder is not None:
        raise CutawayError("reads a source beside the text", loaded.name, "name a decoder or an encoder")
    return loaded.model


def decoder(loaded: Loaded) -> Decoder:
    """The model, if it predicts tokens. Errors: it does not, or it needs a source to read as well."""
    if not isinstance(loaded.model, Decoder) or loaded.model.head is None or loaded.model.spec.encoder is not None:
        raise CutawayError("is not a decoder: it does not predict the next token", loaded.name, "name a decoder")
    return loaded.model


def read(loaded: Loaded, text: str, where: str = "prompt") -> Prompt:
    """The text as ids. Errors: no token at all, or more than the context holds."""
    ids, room = loaded.tokenizer.encode(text), loaded.model.spec.context
    if not 0 < len(ids) <= room:
        raise CutawayError(f"has {len(ids)} tokens, the model takes 1 to {room}", where)
    return Prompt(text, ids, [loaded.tokenizer.display(id) for id in ids])


def place_of(position: int, tokens: int) -> int:
    """The position counted from 0; a negative one counts from the end. Errors: it is not one of the sequence's."""
    if not -tokens <= position < tokens:
        raise CutawayError(f"{position} is not one of {tokens} tokens", "position")
    return position % tokens


def guesses(tokenizer: Tokenizer, logits_V: Tensor, count: int) -> list[Guess]:
    """The most probable next tokens, best first."""
    best = logits_V.float().softmax(-1).topk(min(count, len(logits_V)))
    ids, probabilities = best.indices.tolist(), best.values.tolist()
    return [Guess(id, tokenizer.display(id), p) for id, p in zip(ids, probabilities, strict=True)]
