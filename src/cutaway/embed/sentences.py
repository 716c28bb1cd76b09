"""Sentence vectors from an encoder (Reimers & Gurevych 2019, "Sentence-BERT", arXiv:1908.10084), or from a decoder,
whose last token alone has read them whole (Zhang et al. 2025, "Qwen3 Embedding", arXiv:2506.05176)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.nn.attention import BlockDiagonal
from cutaway.text.tokenizer import Tokenizer


@torch.inference_mode()
def encode(model: Encoder | Decoder, tokenizer: Tokenizer, texts: list[str], batch_tokens: int = 4096) -> Tensor:
    """Vectors of N texts, [N, D]. Batches are ragged: no text is padded to another's length.

    Errors: a text longer than the model's context, by its index.
    """
    return encode_ids(model, [tokenizer.encode(text) for text in texts], batch_tokens)


@torch.inference_mode()
def encode_ids(model: Encoder | Decoder, rows: list[list[int]], batch_tokens: int = 4096) -> Tensor:
    """Vectors of N token sequences, [N, D]; sequences of like length are computed together."""
    for i, row in enumerate(rows):
        if not 0 < len(row) <= model.spec.context:
            raise CutawayError(
                f"has {len(row)} tokens, the model takes 1 to {model.spec.context}", f"input[{i}]", "split the text"
            )
    vectors_ND = torch.empty(len(rows), model.spec.width, dtype=model.dtype)
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and sum(len(rows[j]) for j in batch) + len(rows[i]) > batch_tokens:
            vectors_ND[batch] = _encode_batch(model, [rows[j] for j in batch])
            batch = []
        batch.append(i)
    if batch:
        vectors_ND[batch] = _encode_batch(model, [rows[j] for j in batch])
    return vectors_ND


def instructed(task: str, query: str) -> str:
    """A query with the task in front of it, as Qwen3's embedders are asked; documents stay as they are."""
    return f"Instruct: {task}\nQuery:{query}"


def read(model: Encoder | Decoder, rows: list[list[int]]) -> tuple[Tensor, list[int]]:
    """Last hidden states of token sequences laid end to end, and their lengths."""
    lengths = [len(row) for row in rows]
    tokens_T = torch.tensor([t for row in rows for t in row], device=model.device)
    return model(tokens_T, positions_of(lengths, model.device), BlockDiagonal(lengths)), lengths


def last_tokens(hidden_TD: Tensor, lengths: list[int]) -> Tensor:
    """The hidden state of each sequence's last token, [N, D]."""
    return hidden_TD[torch.tensor(lengths, device=hidden_TD.device).cumsum(0) - 1]


def _encode_batch(model: Encoder | Decoder, rows: list[list[int]]) -> Tensor:
    hidden_TD, lengths = read(model, rows)
    if isinstance(model, Encoder):
        return model.pool(hidden_TD, lengths).cpu()
    return F.normalize(last_tokens(hidden_TD, lengths), dim=-1).cpu()
