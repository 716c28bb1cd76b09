"""POST /v1/rerank and /v1/score: how well texts fit each other, in the shapes of Jina, Cohere and vLLM.

An encoder answers with the cosine of two sentence vectors, -1 ... 1; a decoder is asked to judge, and answers with the
probability of yes, 0 ... 1 (`cutaway.embed.reranking`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, ClassVar
from uuid import uuid4

import torch.nn.functional as F
from annotated_types import Len
from fastapi import APIRouter, Request
from pydantic import AliasChoices, Field

from cutaway.embed.reranking import judged
from cutaway.embed.reranking import rerank as judge
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.serve.connection import while_connected
from cutaway.serve.embeddings import check, encode
from cutaway.serve.errors import ApiError
from cutaway.serve.generation import Json, find
from cutaway.serve.schemas import EVERYWHERE, MAX_INPUTS, Body, Inert, Utf8, expected
from cutaway.serve.served import Served

router = APIRouter()

Pair = tuple[str, str]
ONE_OR_MANY = expected(f"a string, or a list of 1 to {MAX_INPUTS} strings, of valid Unicode")


class Document(Body):
    """A text, as some clients wrap it."""

    text: Utf8


Documents = Annotated[
    Annotated[list[Utf8 | Document], Len(1, MAX_INPUTS)],
    expected(f'a list of 1 to {MAX_INPUTS} strings, or of {{"text": ...}}, of valid Unicode'),
]
Texts = Annotated[Utf8 | Annotated[list[Utf8], Len(1, MAX_INPUTS)], ONE_OR_MANY]


class RerankRequest(Body):
    """top_n: how many of the best to tell, all by default."""

    inert: ClassVar[Inert] = EVERYWHERE | {"truncation": (False,), "max_tokens_per_doc": ()}
    model: str
    query: Utf8
    documents: Documents
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True


class ScoreRequest(Body):
    """One text with each of several, or several with as many. Jina calls them queries and documents."""

    inert: ClassVar[Inert] = EVERYWHERE
    model: str
    text_1: Texts = Field(validation_alias=AliasChoices("text_1", "queries"))
    text_2: Texts = Field(validation_alias=AliasChoices("text_2", "documents", "items"))

    def pairs(self) -> list[Pair]:
        """Errors: the numbers of texts do not go together."""
        first, second = ([t] if isinstance(t, str) else t for t in (self.text_1, self.text_2))
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            message = f"text_2: {len(second)} texts for {len(first)} in text_1; give as many, or one text_1 for all"
            raise ApiError(400, message, param="text_2", code="invalid_value")
        return [*zip(first, second, strict=True)]


@router.post("/v1/rerank")
@router.post("/v2/rerank")
@router.post("/rerank")
async def rerank(body: RerankRequest, request: Request) -> Json:
    """The documents, the one that fits the query best first."""
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    served = find(request, body.model)
    scores, tokens = await scored(request, served, [(body.query, text) for text in texts])
    best = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n]
    told = [{"document": {"text": text}} if body.return_documents else {} for text in texts]
    results = [{"index": i, "relevance_score": scores[i]} | told[i] for i in best]
    return {"id": f"rerank-{uuid4().hex}", "model": served.name, "usage": used(tokens), "results": results}


@router.post("/v1/score")
@router.post("/score")
async def score(body: ScoreRequest, request: Request) -> Json:
    """A number for each pair of texts."""
    served = find(request, body.model)
    scores, tokens = await scored(request, served, body.pairs())
    head = {"id": f"score-{uuid4().hex}", "object": "list", "created": int(time.time()), "model": served.name}
    data = [{"index": i, "object": "score", "score": one} for i, one in enumerate(scores)]
    return head | {"data": data, "usage": used(tokens)}


def used(tokens: int) -> Json:
    """What was read; nothing is generated."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}


async def scored(request: Request, served: Served, pairs: list[Pair]) -> tuple[list[float], int]:
    """Scores of pairs, and how many tokens were read for them."""
    work = compare(served, pairs) if served.encoder else judge_all(served, pairs)
    with served.gate.enter():
        scores, tokens = await while_connected(request.receive, work)
    request.app.state.metrics.read(served.name, tokens)
    return scores, tokens


async def compare(served: Served, pairs: list[Pair]) -> tuple[list[float], int]:
    """By an encoder, which reads every text once, however many pairs it is in."""
    encoder, tokenizer = served.encoder, served.loaded.tokenizer
    assert encoder is not None
    texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
    rows = await asyncio.to_thread(lambda: [*map(tokenizer.encode, texts)])
    check(rows, encoder)
    vectors_ND = F.normalize(await encode(served, encoder, rows), dim=-1)
    place = {text: i for i, text in enumerate(texts)}
    first, second = ([place[pair[side]] for pair in pairs] for side in (0, 1))
    return (vectors_ND[first] * vectors_ND[second]).sum(-1).tolist(), sum(map(len, rows))


async def judge_all(served: Served, pairs: list[Pair]) -> tuple[list[float], int]:
    """By a decoder, a pair at a time: others get their turn, and a departure of the client is noticed."""
    tokenizer, scores, tokens = served.loaded.tokenizer, [], 0
    for i, (query, document) in enumerate(pairs):
        async with served.turn:
            scores.append(await asyncio.to_thread(judge_one, served, i, query, document))
        tokens += len(judged(tokenizer, query, document))
    return scores, tokens


def judge_one(served: Served, index: int, query: str, document: str) -> float:
    """Errors: those of `rerank`, blamed on the document's own index."""
    model = served.loaded.model
    assert isinstance(model, Decoder)
    try:
        return judge(model, served.loaded.tokenizer, query, [document]).item()
    except CutawayError as error:
        raise type(error)(error.what, error.where.replace("[0]", f"[{index}]"), error.hint) from None
