"""How well texts fit each other: against the models themselves."""

from __future__ import annotations

import httpx
import pytest
import torch
import torch.nn.functional as F

import cutaway.serve.rerank
from cutaway.embed.reranking import rerank
from cutaway.embed.sentences import encode
from cutaway.serve.app import serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import encoder, loaded, serving

TEXTS = ["abc", "b", "abcd", "zz top"]


def cosines(query: str, texts: list[str]) -> list[float]:
    vectors_ND = encode(encoder(), tokenizer(), [query, *texts])
    return F.cosine_similarity(vectors_ND[:1], vectors_ND[1:]).tolist()


def test_an_encoder_ranks_by_cosine(http):
    body = {"model": "vectors", "query": "abc", "documents": [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]}
    found = http.post("/v1/rerank", json=body).json()
    scores = cosines("abc", TEXTS)
    order = sorted(range(4), key=lambda i: -scores[i])
    assert [r["index"] for r in found["results"]] == order
    assert [r["relevance_score"] for r in found["results"]] == pytest.approx([scores[i] for i in order], abs=1e-5)
    assert [r["document"]["text"] for r in found["results"]] == [TEXTS[i] for i in order]
    assert order[0] == 0
    assert found["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert found["usage"]["total_tokens"] == sum(map(len, TEXTS))  # the query is one of them, and read once
    for path in ("/rerank", "/v2/rerank"):
        few = http.post(path, json=body | {"top_n": 2, "return_documents": False}).json()["results"]
        assert few == [{k: v for k, v in r.items() if k != "document"} for r in found["results"][:2]]


def test_pairs_are_scored(http):
    def scores(first, second, path="/v1/score", names=("text_1", "text_2")):
        body = {"model": "vectors", names[0]: first, names[1]: second}
        data = http.post(path, json=body).json()["data"]
        assert [d["index"] for d in data] == [*range(len(data))]
        return [d["score"] for d in data]

    assert scores("abc", TEXTS) == pytest.approx(cosines("abc", TEXTS), abs=1e-5)
    assert scores(["abc"], TEXTS, "/score", ("queries", "documents")) == scores("abc", TEXTS)
    both = [cosines(a, [b])[0] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert scores(TEXTS, TEXTS[::-1]) == pytest.approx(both, abs=1e-5)


def test_a_decoder_judges(monkeypatch):
    monkeypatch.setattr(cutaway.serve.rerank, "judge", lambda *args: rerank(*args, answers=("n", "y")))
    served = serve_model(loaded("judge", decoder(context=2048), tokenizer()))
    with serving(served) as url:
        body = {"model": "judge", "query": "a", "documents": TEXTS}
        found = httpx.post(f"{url}/v1/rerank", json=body, timeout=20).json()
        long = httpx.post(f"{url}/v1/rerank", json=body | {"documents": ["b", "c" * 2000]}, timeout=20)
    with torch.inference_mode():
        wanted = rerank(decoder(context=2048), tokenizer(), "a", TEXTS, answers=("n", "y")).tolist()
    assert {r["index"]: r["relevance_score"] for r in found["results"]} == pytest.approx(dict(enumerate(wanted)))
    assert (long.status_code, long.json()["error"]["param"]) == (400, "documents[1]")


WRONG = [
    ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
    ("/v1/rerank", {"query": "a", "documents": [{"image": "b"}]}, "documents"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ("/v1/rerank", {"query": "a", "documents": ["b" * 100]}, "input[1]"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "made_up": 1}, "made_up"),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
    ("/v1/score", {"text_1": [], "text_2": "a"}, "text_1"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG)
def test_the_field_at_fault_is_named(http, path, body, param):
    answer = http.post(path, json={"model": "vectors"} | body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(param)
