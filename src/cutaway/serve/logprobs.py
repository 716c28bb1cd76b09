"""Log-probabilities in the two shapes of OpenAI's API: an entry per token, the end token's included."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from cutaway.engine.sampler import Choice
from cutaway.engine.sequence import Event, Sequence
from cutaway.text.tokenizer import Tokenizer

LOWEST = -9999.0  # instead of minus infinity, which JSON lacks


def chat_logprobs(tokenizer: Tokenizer, events: Iterable[Event], count: int) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs}]} with the `count` most probable tokens each."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        piece = tokenizer.token_bytes(token)
        return {"token": piece.decode("utf-8", "replace"), "logprob": max(logprob, LOWEST), "bytes": list(piece)}

    def described(event: Event) -> dict[str, Any]:
        best = [entry(a.id, a.logprob) for a in event.choice.alternatives[:count]]
        return entry(event.choice.token, event.choice.logprob) | {"top_logprobs": best}

    return {"content": [described(event) for event in events], "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, told: list[tuple[Choice, int]], count: int) -> dict[str, Any]:
    """{tokens, token_logprobs, top_logprobs, text_offset} of tokens and where their text begins.

    The token that came is always among the top ones. Nothing is said of a text's first token, which nothing precedes.
    """

    def top(choice: Choice) -> dict[str, float] | None:
        pairs = [(a.id, a.logprob) for a in choice.alternatives[:count]]
        pairs.append((choice.token, choice.logprob))
        if math.isnan(choice.logprob):
            return None
        return {spelled(tokenizer, token): max(logprob, LOWEST) for token, logprob in reversed(pairs)}

    return {
        "tokens": [spelled(tokenizer, choice.token) for choice, _ in told],
        "token_logprobs": [None if math.isnan(c.logprob) else max(c.logprob, LOWEST) for c, _ in told],
        "top_logprobs": [top(choice) for choice, _ in told] if count else None,
        "text_offset": [offset for _, offset in told],
    }


def of_prompt(tokenizer: Tokenizer, sequence: Sequence, text: str) -> list[tuple[Choice, int]]:
    """What was thought of a prompt's tokens, not a number for the first, and where in `text` each begins."""
    stream, at, told = tokenizer.stream(), 0, list[tuple[Choice, int]]()
    for choice in [Choice(sequence.prompt[0], math.nan), *sequence.seen]:
        told.append((choice, min(at, len(text))))
        at += len(stream.push(choice.token))
    return told


def spelled(tokenizer: Tokenizer, token: int) -> str:
    r"""A token's text, or for part of a character "bytes:\xe4\xbd" as OpenAI has it, so that names differ."""
    piece = tokenizer.token_bytes(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
