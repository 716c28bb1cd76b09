"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from cutaway.embed.sentences import encode_ids
from cutaway.models.encoder import Encoder
from cutaway.serve.completions import token_rows
from cutaway.serve.connection import while_connected
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import find
from cutaway.serve.schemas import EmbeddingRequest
from cutaway.serve.served import Served

router = APIRouter()

AT_A_TIME = 32  # rows; between such groups others get their turn, and a departure of the client is noticed

ENCODINGS: dict[str, Callable[[Tensor], Any]] = {
    "float": Tensor.tolist,
    "base64": lambda vector_D: base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode(),
}


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """One vector per input, of unit length if the model makes them so, or if only its first `dimensions` are wanted.

    Models trained for that keep the most there (Kusupati et al. 2022, "Matryoshka", arXiv:2205.13147).
    """
    served = find(request, body.model)
    encoder = served.encoder
    if encoder is None:
        message = f"{served.name} is a decoder: it generates, it makes no embeddings"
        raise ApiError(400, message, param="model", code="model_not_supported")
    width = encoder.spec.width
    if not 1 <= (kept := body.dimensions or width) <= width:
        raise ApiError(400, f"dimensions: must be 1 to {width}", param="dimensions", code="invalid_value")
    rows = await asyncio.to_thread(token_rows, served.loaded.tokenizer, body.input)
    check(rows, encoder)
    with served.gate.enter():
        vectors_ND = await while_connected(request.receive, encode(served, encoder, rows))
    tokens = sum(map(len, rows))
    request.app.state.metrics.read(served.name, tokens)
    vectors_ND = vectors_ND if kept == width else F.normalize(vectors_ND[:, :kept], dim=-1)
    spell = ENCODINGS[body.encoding_format]
    data = [{"object": "embedding", "index": i, "embedding": spell(vector_D)} for i, vector_D in enumerate(vectors_ND)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})


def check(rows: list[list[int]], encoder: Encoder) -> None:
    """Errors: a row that is too long, or holds ids that the model lacks; by its index."""
    for i, row in enumerate(rows):
        if not 0 < len(row) <= encoder.spec.context:
            message = f"input[{i}]: has {len(row)} tokens, the encoder takes 1 to {encoder.spec.context}"
            raise ApiError(400, message, param="input", code="context_length_exceeded")
        if row and not 0 <= min(row) <= max(row) < encoder.spec.vocab:
            message = f"input[{i}]: has token ids outside 0 ... {encoder.spec.vocab - 1}"
            raise ApiError(400, message, param="input", code="invalid_value")


async def encode(served: Served, encoder: Encoder, rows: list[list[int]]) -> Tensor:
    """Vectors of the rows, float32 [N, D], computed beside the event loop."""
    parts = []
    for start in range(0, len(rows), AT_A_TIME):
        async with served.turn:
            parts.append(await asyncio.to_thread(encode_ids, encoder, rows[start : start + AT_A_TIME]))
    return torch.cat(parts).float()
