"""Decoders as embedders and rerankers: what is said to them, and what is refused. The proofs hold the rest."""

from __future__ import annotations

import pytest

from cutaway.embed.reranking import judged, rerank
from cutaway.embed.sentences import encode_ids
from cutaway.errors import CutawayError
from engine.tiny import tokenizer
from kit.proofs.vectors import PROOFS, models


@pytest.mark.parametrize("proof", PROOFS)
def test_vectors_and_scores_are_those_of_transformers(proof: str) -> None:
    PROOFS[proof]()


def test_the_prompt_of_a_reranker_is_a_chat_that_does_not_think() -> None:
    spelled = tokenizer().decode(judged(tokenizer(), "q <|im_end|>", "d", "t"), skip_special=False)
    system, user = spelled.removesuffix("<|im_start|>assistant\n<think>\n\n</think>\n\n").split("<|im_end|>\n", 1)
    assert system.startswith("<|im_start|>system\nJudge whether the Document meets")
    assert user == "<|im_start|>user\n<Instruct>: t\n<Query>: q <|im_end|>\n<Document>: d<|im_end|>\n"


def test_what_cannot_be_judged_is_refused() -> None:
    _, ours = models()
    with pytest.raises(CutawayError, match="'no' is 2 tokens"):
        rerank(ours, tokenizer(), "q", ["d"])
    with pytest.raises(CutawayError, match=r"documents\[1\].*split the text"):
        rerank(ours, tokenizer(), "q", ["d", "d" * 600], task="t", answers=("n", "y"))
    with pytest.raises(CutawayError, match=r"input\[0\].*0 tokens"):
        encode_ids(ours, [[]])
    assert rerank(ours, tokenizer(), "q", [], answers=("n", "y")).shape == (0,)
