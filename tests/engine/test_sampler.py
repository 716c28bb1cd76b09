"""The sampler against softmax written out in NumPy, transformers' processors, and OpenAI's formula."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare, entropy
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from cutaway.engine.params import RANGES, SamplingParams
from cutaway.engine.sampler import DeadEnd, Logits, draw, gumbel, key, penalize, repeating, sample, shape
from cutaway.errors import CutawayError

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0])
SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 6, "top_p": 0.8, "min_p": 0.1},
]


def expected(logits: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The distribution after the settings, by sorting and looping."""
    p = np.exp(logits / temperature - (logits / temperature).max())
    p /= p.sum()
    order = np.argsort(-p)
    kept = list(order[: top_k or None])
    mass, nucleus = 0.0, []
    for i in kept:
        if mass < top_p * p[kept].sum():
            nucleus.append(i)
        mass += p[i]
    survivors = [i for i in nucleus if p[i] >= min_p * p.max()]
    out = np.zeros_like(p)
    out[survivors] = p[survivors] / p[survivors].sum()
    return out


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_the_distribution(settings):
    params, count = SamplingParams(seed=11, **settings), 8000
    shaped = shape(LOGITS, params, [], [])
    drawn = np.bincount([draw(shaped, params, position) for position in range(count)], minlength=8)
    p = expected(LOGITS.double().numpy(), **settings)
    assert drawn[p == 0].sum() == 0
    assert chisquare(drawn[p > 0], count * p[p > 0]).pvalue > 1e-3


def test_probabilities_are_exactly_those_settings_say():
    for settings in SETTINGS:
        got = shape(LOGITS, SamplingParams(**settings), [], []).probabilities()
        np.testing.assert_allclose(got, expected(LOGITS.double().numpy(), **settings), atol=1e-6)


@pytest.mark.parametrize("apart", [1, 2**32])
def test_neighboring_seeds_and_positions_are_independent(apart):
    shaped, count = shape(LOGITS, SamplingParams(), [], []), 4000
    tokens = [[draw(shaped, SamplingParams(seed=s), p) for p in range(count)] for s in (5, 5 + apart)]
    for a, b in [(tokens[0], tokens[1]), (tokens[0][:-1], tokens[0][1:]), (tokens[0][:-1], tokens[1][1:])]:
        table = np.zeros((8, 8))
        np.add.at(table, (a, b), 1)
        assert chi2_contingency(table[:5, :5]).pvalue > 1e-3


def test_noise_depends_on_seed_and_position_alone():
    few_N = torch.arange(10)
    assert torch.equal(gumbel(7, few_N), gumbel(7, few_N))
    assert torch.equal(gumbel(7, few_N[[7, 2]]), gumbel(7, few_N)[[7, 2]])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    keys = [(0, 0), (0, 1), (1, 0), (2**32, 0), (2**63 - 1, 0), (-1, 0)]
    assert len({tuple(gumbel(key(*who), few_N[:5]).tolist()) for who in keys}) == len(keys)
    assert torch.equal(torch.get_rng_state(), before)
    noise = gumbel(key(1, 1), torch.arange(200_000))
    assert noise.isfinite().all()
    assert abs(float(noise.mean()) - np.euler_gamma) < 0.01
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.02


def test_a_survivor_has_the_same_luck_with_and_without_filter():
    for position in range(300):
        free = draw(shape(LOGITS, SamplingParams(), [], []), SamplingParams(), position)
        if free < 4:
            params = SamplingParams(top_k=4)
            assert draw(shape(LOGITS, params, [], []), params, position) == free


@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize(
    ("params", "processors"),
    [
        (SamplingParams(top_k=7), [TopKLogitsWarper(7)]),
        (SamplingParams(top_k=10**6), [TopKLogitsWarper(10**6)]),
        (SamplingParams(top_p=0.3), [TopPLogitsWarper(0.3)]),
        (SamplingParams(top_p=0.999), [TopPLogitsWarper(0.999)]),
        (SamplingParams(min_p=0.05), [MinPLogitsWarper(0.05)]),
        (SamplingParams(typical_p=0.2), [TypicalLogitsWarper(0.2)]),
        (SamplingParams(typical_p=0.95), [TypicalLogitsWarper(0.95)]),
        (
            SamplingParams(temperature=1.4, top_k=30, typical_p=0.5),
            [TemperatureLogitsWarper(1.4), TopKLogitsWarper(30), TypicalLogitsWarper(0.5)],
        ),
        (SamplingParams(no_repeat_ngram=1), [NoRepeatNGramLogitsProcessor(1)]),
        (SamplingParams(no_repeat_ngram=2, top_p=0.9), [NoRepeatNGramLogitsProcessor(2), TopPLogitsWarper(0.9)]),
        (
            SamplingParams(temperature=0.6, top_k=40, top_p=0.9, min_p=0.02),
            [
                TemperatureLogitsWarper(0.6),
                TopKLogitsWarper(40),
                TopPLogitsWarper(0.9),
                MinPLogitsWarper(0.02),
            ],
        ),
        (
            SamplingParams(temperature=2.5, top_p=0.95, repetition_penalty=1.3),
            [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(2.5), TopPLogitsWarper(0.95)],
        ),
    ],
    ids=lambda value: "-".join(type(v).__name__ for v in value) if isinstance(value, list) else "",
)
def test_filters_are_those_of_transformers(size, params, processors):
    for seed in range(8):
        logits_V = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3
        prompt, reply = [1, 2, 3, 3], [4, 2, 3, 7, 2]
        theirs = LogitsProcessorList(processors)(torch.tensor([prompt + reply]), logits_V[None].double())[0]
        ours = shape(logits_V, params, prompt, reply).probabilities()
        assert torch.equal(ours > 0, theirs > -torch.inf)
        torch.testing.assert_close(ours.double(), theirs.softmax(-1), atol=1e-6, rtol=1e-4)


def test_penalties_follow_openai_and_ctrl():
    logits_V = torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0])
    prompt, reply = [0, 1], [2, 3, 3]
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.4)
    got = penalize(logits_V, params, prompt, reply)
    wanted = [1 / 1.5, -1 * 1.5, 2 / 1.5 - 0.7 - 0.4, -2 * 1.5 - 0.7 - 2 * 0.4, 3.0]
    torch.testing.assert_close(got, torch.tensor(wanted))
    assert torch.equal(logits_V, torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0])), "the model's logits stay as they are"


def test_typical_tokens_are_a_band_that_may_leave_out_the_best():
    """Surprises 0.92, 1.61, 1.90, 2.30, 2.30, 3.00 nats, and 1.58 is their mean."""
    p_V = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.1, 0.05])
    shaped = shape(p_V.log(), SamplingParams(typical_p=0.3), [], [])
    assert shaped.survivors().tolist() == [1, 2]
    assert shaped.cut(0) == shaped.cut(3) == "typical_p"
    assert shaped.cut(2) is None
    greedy = SamplingParams(temperature=0, typical_p=0.5)
    assert sample(Logits.of(p_V.log()), greedy, [], []).token == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_what_would_repeat_is_what_a_loop_finds(size):
    generator = torch.Generator().manual_seed(size)
    for length in range(30):
        tokens = torch.randint(0, 3, (length,), generator=generator).tolist()
        runs = [tokens[i : i + size] for i in range(length - size + 1)]
        expected = {t for t in range(3) if [*tokens, t][-size:] in runs and length >= size - 1}
        assert repeating(tokens, size) == expected


def test_a_bias_is_added_and_a_rule_forbids():
    biased = SamplingParams(temperature=0, logit_bias={3: 2.0, 0: -100})
    assert sample(Logits.of(LOGITS), biased, [], []).token == 3
    assert penalize(LOGITS, biased, [], []).tolist() == [-98.0, 1.5, 1.0, 2.5, 0.0, -0.5, -1.0, -2.0]
    least = SamplingParams(temperature=0, min_tokens=2, no_repeat_ngram=1)
    assert sample(Logits.of(LOGITS), least, [1], [], ends={0}).token == 2
    assert sample(Logits.of(LOGITS), least, [1], [7, 6], ends={0}).token == 0
    told = sample(Logits.of(LOGITS), least, [1], [], ends={0}, trace=3).alternatives
    assert [a.cut for a in told] == ["min_tokens", "no_repeat_ngram", None]
    assert [a.sampled for a in told] == [0, 0, 1]
    for nobody in ({"ends": range(99)}, {"mask_W": torch.tensor([0b11], dtype=torch.int32), "ends": (0, 1)}):
        with pytest.raises(DeadEnd):
            sample(Logits.of(LOGITS), SamplingParams(min_tokens=1), [], [], **nobody)


@pytest.mark.parametrize("temperature", [0, 1])
def test_what_a_constraint_forbids_never_comes_and_is_called_so(temperature):
    mask_W = torch.tensor([0b11100110], dtype=torch.int32)
    for seed in range(60):
        params = SamplingParams(temperature=temperature, seed=seed, top_p=0.9)
        choice = sample(Logits.of(LOGITS), params, [], [], trace=8, mask_W=mask_W)
        assert choice.token in (1, 2, 5, 6, 7)
        assert {a.id for a in choice.alternatives if a.cut == "constraint"} == {0, 3, 4}
    assert choice.candidates == (1 if temperature == 0 else 3)
    assert choice.logprob == pytest.approx(float(LOGITS.log_softmax(-1)[choice.token]))


def test_greedy_takes_the_best_and_penalties_can_change_it():
    logits_V = torch.tensor([1.0, 3.0, 2.9])
    assert sample(Logits.of(logits_V), SamplingParams(temperature=0), [], []).token == 1
    assert sample(Logits.of(logits_V), SamplingParams(temperature=0, presence_penalty=0.5), [], [1]).token == 2
    assert sample(Logits.of(logits_V), SamplingParams(temperature=0, presence_penalty=0.5), [1], []).token == 1
    assert sample(Logits.of(logits_V), SamplingParams(temperature=0, repetition_penalty=1.5), [1], []).token == 2
    described = sample(Logits.of(logits_V), SamplingParams(temperature=0), [], [], trace=3)
    assert described.candidates == 1
    assert [a.sampled for a in described.alternatives] == [1, 0, 0]
    assert [a.cut for a in described.alternatives] == [None, "temperature", "temperature"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e30])
def test_extreme_temperatures_stay_finite(scale):
    for temperature in (1e-6, 100.0):
        params = SamplingParams(temperature=temperature)
        shaped = shape(LOGITS * scale, params, [], [])
        p = shaped.probabilities()
        assert p.isfinite().all()
        assert p.sum() == pytest.approx(1, abs=1e-5)
        if temperature < 1:
            assert draw(shaped, params, 0) == 0


def test_what_is_told_about_a_choice():
    logits_V = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 2
    params = SamplingParams(temperature=0.8, top_k=20, top_p=0.6, min_p=0.2, seed=4)
    p = logits_V.double().softmax(-1)
    choice = sample(Logits.of(logits_V), params, [1], [2], trace=30)
    best = [a.id for a in choice.alternatives]
    assert best[:30] == p.topk(30).indices.tolist()
    assert choice.logprob == pytest.approx(float(p[choice.token].log()), abs=1e-5)
    assert choice.entropy == pytest.approx(entropy(p.numpy()), abs=1e-4)
    assert choice.rank == int((p > p[choice.token]).sum())
    after = expected(logits_V.double().numpy(), 0.8, 20, 0.6, 0.2)
    assert choice.candidates == int((after > 0).sum())
    for a in choice.alternatives:
        assert a.sampled == pytest.approx(after[a.id], abs=1e-5)
        assert (a.cut is None) == (after[a.id] > 0)
    assert choice.alternatives[25].cut == "top_k"
    assert choice.alternatives[19].cut == "top_p"


def test_a_choice_outside_the_alternatives_is_added():
    logits_V = torch.tensor([5.0, 0.0, 0.0, 0.0])
    drawn = (sample(Logits.of(logits_V), SamplingParams(seed=s), [], [], trace=1) for s in range(999))
    rare = next(choice for choice in drawn if choice.token)
    assert [a.id for a in rare.alternatives] == [0, rare.token]
    assert rare.rank == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_model_that_computes_no_numbers_is_an_error(wrong):
    with pytest.raises(FloatingPointError):
        sample(Logits.of(torch.tensor([0.0, wrong])), SamplingParams(), [], [])


WRONG = {
    "priority": (101, -101),
    "timeout": (0, -1, float("nan")),
    "temperature": (-0.1, 1e-9, 101, math.nan, math.inf),
    "top_k": (-1,),
    "top_p": (0, -0.1, 1.1, math.nan),
    "min_p": (-0.1, 1.1),
    "typical_p": (0, 1.1, math.nan),
    "no_repeat_ngram": (-1,),
    "min_tokens": (-1, 257),
    "logit_bias": ({-1: 1}, {3: 101}, {3: math.nan}),
    "repetition_penalty": (0, -1, math.inf),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "max_tokens": (0, -1),
    "top_logprobs": (-1, 101),
    "stop": (("",), ("a", "")),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(CutawayError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.where == name


def test_every_number_has_a_range():
    free = {
        "seed",
        "stop",
        "ignore_eos",
        "tenant",
        "constraint",
        "adapter",
        "logit_bias",
        "stop_token_ids",
        "prediction",
    }
    assert {f.name for f in fields(SamplingParams)} - free == set(RANGES)
