"""The sampler against transformers' processors, OpenAI's formula, and the distribution that it must draw from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from cutaway.engine import sampler
from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Logits, draw, penalize, sample, shape

VOCAB = 300
PROMPT, REPLY = [3, 7, 7, 250], [7, 9, 9, 9, 20]
FILTERS = [
    {"temperature": 0.6},
    {"temperature": 2.5, "top_k": 20},
    {"temperature": 1.7, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.03},
    {"temperature": 1.6, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.9, "top_k": 120, "top_p": 0.95, "min_p": 0.02},
    {"top_p": 0.02},
    {"temperature": 1.2, "typical_p": 0.3},
    {"temperature": 1.5, "top_k": 60, "typical_p": 0.8},
]


def logits(seed: int = 0) -> Tensor:
    """Of both signs, all different."""
    return 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def _theirs(scores_V: Tensor, settings: dict[str, float]) -> Tensor:
    steps: dict[str, Any] = {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper}
    steps |= {"top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper, "typical_p": TypicalLogitsWarper}
    for name, value in settings.items():
        scores_V = steps[name](value)(None, scores_V[None])[0]
    return scores_V.softmax(-1)


def filters() -> None:
    """The same tokens survive, with the same probabilities."""
    for seed, settings in enumerate(FILTERS):
        found_V = shape(logits(seed), SamplingParams(**settings), [], []).probabilities()
        expected_V = _theirs(logits(seed), settings)
        assert torch.equal(found_V > 0, expected_V > 0), f"other survivors with {settings}"
        assert torch.allclose(found_V, expected_V, atol=1e-6), f"other probabilities with {settings}"


def penalties() -> None:
    """Repetition as transformers has it, presence and frequency as OpenAI's documentation writes them."""
    seen = torch.tensor([PROMPT + REPLY])
    for factor in (1.3, 0.8):
        found_V = penalize(logits(), SamplingParams(repetition_penalty=factor), PROMPT, REPLY)
        expected_V = RepetitionPenaltyLogitsProcessor(factor)(seen, logits()[None])[0]
        assert torch.allclose(found_V, expected_V), f"repetition {factor}"
    for presence, frequency in [(0.7, 0.0), (0.0, 0.4), (-0.5, 1.1)]:
        params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
        found_V = penalize(logits(), params, PROMPT, REPLY)
        count_V = torch.bincount(torch.tensor(REPLY), minlength=VOCAB)
        expected_V = logits() - count_V * frequency - (count_V > 0) * presence
        assert torch.allclose(found_V, expected_V), f"presence {presence}, frequency {frequency}"


def _free(logits_V: Tensor, seed: int, count: int) -> list[int]:
    params = SamplingParams(seed=seed)
    return [draw(shape(logits_V, params, [], []), params, i) for i in range(count)]


def draws() -> None:
    """Draws follow the distribution; they depend on the seed and on the position, and on nothing else."""
    few_V, count = torch.tensor([1.5, 1.0, 0.5, 0.0, -1.0]), 3000
    shaped = shape(few_V, SamplingParams(top_k=4), [], [])
    tokens = {seed: [draw(shaped, SamplingParams(seed=seed), i) for i in range(count)] for seed in (1, 2)}
    expected_V = few_V[:4].softmax(-1) * count
    for drawn in tokens.values():
        counts_V = torch.bincount(torch.tensor(drawn), minlength=5)
        assert counts_V[4] == 0, "a token was drawn that a filter had removed"
        assert ((counts_V[:4] - expected_V) ** 2 / expected_V).sum() < 16.3, "other frequencies"  # p = 0.001
    assert tokens[1] != tokens[2], "the seed makes no difference"
    assert len(set(tokens[1])) > 1, "the position makes no difference"
    few = SamplingParams(seed=1, top_k=2)
    lucky = [(t, draw(shape(-few_V, few, [], []), few, i)) for i, t in enumerate(_free(-few_V, 1, 99)) if t > 2]
    assert lucky, "nothing to compare"
    assert all(a == b for a, b in lucky), "a survivor's luck depends on the filter"
    assert tokens[1][:99] == [draw(shaped, SamplingParams(seed=1), i) for i in range(99)], "not repeatable"


def reports() -> None:
    """What is said about a choice: the model's own probability, rank and entropy, and what became of the others."""
    params = SamplingParams(temperature=1.4, top_k=12, top_p=0.9, seed=5)
    for seed in range(20):
        choice = sample(Logits.of(logits(seed)), params, PROMPT, [], trace=30)
        settings = {"temperature": 1.4, "top_k": 12, "top_p": 0.9}
        p_V, sampled_V = logits(seed).softmax(-1), _theirs(logits(seed), settings)
        order = p_V.argsort(descending=True).tolist()
        entropy = float(-(p_V * p_V.log()).sum())
        expected = [p_V[choice.token].log(), order.index(choice.token), entropy, (sampled_V > 0).sum()]
        found = [choice.logprob, choice.rank, choice.entropy, choice.candidates]
        assert torch.allclose(torch.tensor(found), torch.tensor([float(x) for x in expected]), atol=1e-4), f"{found}"
        assert [a.id for a in choice.alternatives][:30] == order[:30]
        for a in choice.alternatives:
            assert abs(a.sampled - sampled_V[a.id]) < 1e-5
            assert (a.cut is None) == bool(sampled_V[a.id] > 0)


def greedy() -> None:
    """At temperature 0 the best token comes, after the penalties."""
    best = int(logits().argmax())
    assert sample(Logits.of(logits()), SamplingParams(temperature=0), [], []).token == best
    punished = SamplingParams(temperature=0, presence_penalty=2, frequency_penalty=2)
    assert sample(Logits.of(logits()), punished, [], [best, best, best]).token == int(logits().topk(2).indices[1])


def rules() -> None:
    """Bias is added; n-grams, early ends and what a constraint forbids never come."""
    scores_V = penalize(logits(), SamplingParams(logit_bias={5: 1.5, 9: -2.0}), [], [])
    expected_V = logits()
    expected_V[5] += 1.5
    expected_V[9] -= 2
    assert torch.allclose(scores_V, expected_V)
    for prompt, reply in [(PROMPT, REPLY), ([1, 2, 3, 9, 2, 4, 1], [2])]:
        kept_V = shape(logits(), SamplingParams(no_repeat_ngram=3), prompt, reply).probabilities() > 0
        processed = NoRepeatNGramLogitsProcessor(3)(torch.tensor([prompt + reply]), logits()[None])[0]
        assert torch.equal(kept_V, processed > -torch.inf), "other n-grams"
    for told in range(5):
        p_V = shape(logits(), SamplingParams(min_tokens=3), PROMPT, REPLY[:told], ends={7, 8}).probabilities()
        assert bool(p_V[7] > 0) == bool(p_V[8] > 0) == (told >= 3), "an end at the wrong time"
    mask_W = torch.full((10,), 0b1010, dtype=torch.int32)
    p_V = shape(logits(), SamplingParams(), [], [], mask_W=mask_W).probabilities()
    assert p_V.nonzero()[:, 0].tolist() == [t for t in range(VOCAB) if t % 32 in (1, 3)]


def both_ways(proof: Callable[[], None]) -> Callable[[], None]:
    """Without the kernels, and with them."""

    def each() -> None:
        with patch.object(sampler, "kernels", lambda: None):
            proof()
        proof()

    return each


def _named() -> Iterator[tuple[str, Callable[[], None]]]:
    for proof in (filters, penalties, rules, draws, reports, greedy):
        yield f"sampler {proof.__name__}", both_ways(proof)


PROOFS = dict(_named())
