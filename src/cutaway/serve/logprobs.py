"""Log-probabilities in the two shapes of OpenAI's API: an entry per token, the end token's included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cutaway.engine.sequence import Event
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


def completion_logprobs(tokenizer: Tokenizer, events: Iterable[Event], count: int) -> dict[str, Any]:
    """{tokens, token_logprobs, top_logprobs, text_offset}; the chosen token is always among the top ones."""
    events = list(events)

    def top(event: Event) -> dict[str, float]:
        pairs = [(a.id, a.logprob) for a in event.choice.alternatives[:count]]
        pairs.append((event.choice.token, event.choice.logprob))
        return {spelled(tokenizer, token): max(logprob, LOWEST) for token, logprob in reversed(pairs)}

    return {
        "tokens": [spelled(tokenizer, e.choice.token) for e in events],
        "token_logprobs": [max(e.choice.logprob, LOWEST) for e in events],
        "top_logprobs": [top(e) for e in events] if count else None,
        "text_offset": [e.offset for e in events],
    }


def spelled(tokenizer: Tokenizer, token: int) -> str:
    r"""A token's text, or for part of a character "bytes:\xe4\xbd" as OpenAI has it, so that names differ."""
    piece = tokenizer.token_bytes(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
