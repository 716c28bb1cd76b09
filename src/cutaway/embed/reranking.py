"""A decoder as a judge of relevance: how likely it says yes (Zhang et al. 2025, "Qwen3 Embedding", arXiv:2506.05176).

It reads a query and a document together, so that each word of one can look at each of the other, and is asked whether
the document answers. Of all logits at the last position two are looked at: score = p(yes) / (p(yes) + p(no)).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.embed.sentences import last_tokens, read
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.text.tokenizer import Tokenizer

TASK = "Given a web search query, retrieve relevant passages that answer the query"
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
ANSWERS = ("no", "yes")


def rerank(
    model: Decoder,
    tokenizer: Tokenizer,
    query: str,
    documents: list[str],
    *,
    task: str = TASK,
    answers: tuple[str, str] = ANSWERS,
) -> Tensor:
    """How well each of N documents answers the query, scores_N between 0 and 1; answers: the words for no and yes.

    The prompt is a chat without thinking, as Qwen3's rerankers know it. Errors: an answer that is not one token; a
    prompt longer than the model's context, by the document's index; those of `Tokenizer.chat`.
    """
    words = [_token(tokenizer, answer) for answer in answers]
    rows = [judged(tokenizer, query, document, task) for document in documents]
    for i, row in enumerate(rows):
        if len(row) > model.spec.context:
            what = f"has {len(row)} tokens with the query, the model takes {model.spec.context}"
            raise CutawayError(what, f"documents[{i}]", "split the text")
    return yes(model, rows, *words)


def judged(tokenizer: Tokenizer, query: str, document: str, task: str = TASK) -> list[int]:
    """The prompt about one document."""
    asked = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
    return tokenizer.chat(messages, enable_thinking=False)


@torch.inference_mode()
def yes(model: Decoder, rows: list[list[int]], no_id: int, yes_id: int) -> Tensor:
    """The probability of one of two tokens after each prompt, the others left out: scores_N."""
    scores = [model.logits(last_tokens(*read(model, [row])))[:, [no_id, yes_id]].softmax(-1)[:, 1] for row in rows]
    return torch.cat([torch.empty(0, dtype=model.dtype), *(score_N.cpu() for score_N in scores)])


def _token(tokenizer: Tokenizer, word: str) -> int:
    ids = tokenizer.encode(word, add_special=False)
    if len(ids) != 1:
        raise CutawayError(f"{word!r} is {len(ids)} tokens", "answers", "name a word that is one")
    return ids[0]
