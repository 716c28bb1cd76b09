"""Decoders as embedders and rerankers, against a tiny random Qwen3 of transformers, saved and read as a checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from cutaway.embed.reranking import judged, rerank, yes
from cutaway.embed.sentences import encode, instructed
from cutaway.models.decoder import Decoder
from cutaway.weights.checkpoint import open_checkpoint
from engine.tiny import VOCAB, tokenizer
from kit.precision import all_float64
from kit.twins import LLAMA_SHAPES, make_loud

PAD = 0
TEXTS = ["a", "the dog sleeps", "a much longer text about something else", "is it"]
ROOM = {"vocab_size": VOCAB, "max_position_embeddings": 512}


@cache
def models() -> tuple[Any, Decoder]:
    """Theirs and ours, with the same weights."""
    with all_float64(), tempfile.TemporaryDirectory() as folder:
        theirs = Qwen3ForCausalLM(Qwen3Config(**LLAMA_SHAPES | ROOM, attn_implementation="eager")).eval()
        make_loud(theirs)
        theirs.save_pretrained(folder)
        ours = open_checkpoint(Path(folder)).model(torch.float64)
    assert isinstance(ours, Decoder)
    return theirs, ours


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each [N, S]."""
    longest = max(map(len, rows))
    fills = [[PAD] * (longest - len(row)) for row in rows]
    left = side == "left"
    ids = [fill + row if left else row + fill for row, fill in zip(rows, fills, strict=True)]
    mask = [
        [0] * len(fill) + [1] * len(row) if left else [1] * len(row) + [0] * len(fill)
        for row, fill in zip(rows, fills, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def last_real(values_NSX: torch.Tensor, mask_NS: torch.Tensor) -> torch.Tensor:
    """Of each row, the values at the last place where the mask is one."""
    ends = [int(mask.nonzero().max()) for mask in mask_NS]
    return torch.stack([row[end] for row, end in zip(values_NSX, ends, strict=True)])


def vectors(side: str) -> None:
    """The last real token is the vector, however theirs is padded."""
    theirs, ours = models()
    ids_NS, mask_NS = padded([tokenizer().encode(text) for text in TEXTS], side)
    with torch.no_grad(), all_float64():
        hidden_NSD = theirs.model(input_ids=ids_NS, attention_mask=mask_NS).last_hidden_state
    expected_ND = F.normalize(last_real(hidden_NSD, mask_NS), dim=-1)
    for budget in (4096, 1):
        torch.testing.assert_close(encode(ours, tokenizer(), TEXTS, budget), expected_ND, atol=1e-6, rtol=0)


def instruction() -> None:
    """It changes the query's vector alone."""
    _, ours = models()
    query, *documents = TEXTS
    plain = encode(ours, tokenizer(), [query, *documents])
    asked = encode(ours, tokenizer(), [instructed("find the animal", query), *documents])
    torch.testing.assert_close(asked[1:], plain[1:], atol=1e-12, rtol=0)
    assert (asked[0] - plain[0]).norm() > 0.1
    assert instructed("find the animal", "dog") == "Instruct: find the animal\nQuery:dog"


def reranking(side: str) -> None:
    """A score is the softmax over two words' logits at the last position."""
    theirs, ours = models()
    words = [tokenizer().encode(word)[0] for word in ("n", "y")]
    rows = [judged(tokenizer(), "what sleeps?", text, "find") for text in TEXTS]
    ids_NS, mask_NS = padded(rows, side)
    with torch.no_grad(), all_float64():
        logits_NV = last_real(theirs(input_ids=ids_NS, attention_mask=mask_NS).logits, mask_NS)
    expected_N = logits_NV[:, words].softmax(-1)[:, 1]
    found_N = rerank(ours, tokenizer(), "what sleeps?", TEXTS, task="find", answers=("n", "y"))
    torch.testing.assert_close(found_N, expected_N, atol=1e-6, rtol=0)
    torch.testing.assert_close(yes(ours, rows, *words[::-1]), 1 - expected_N, atol=1e-6, rtol=0)
    assert expected_N.std() > 1e-3


PROOFS: dict[str, Callable[[], object]] = {
    **{f"decoder vectors, {side}": partial(vectors, side) for side in ("left", "right")},
    "query instruction": instruction,
    **{f"reranking, {side}": partial(reranking, side) for side in ("left", "right")},
}
