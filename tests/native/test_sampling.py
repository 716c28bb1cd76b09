"""Drawing natively against NumPy and PyTorch, on every kind of processor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import gumbel, key
from cutaway.native.packing import pack_floats
from cutaway.native.sampling import draw, kernels, reach
from cutaway.native.tape import Kind, Matrix, Rows
from native.tapes import AVX2, PORTABLE, flat, has_avx2, play, rows


@pytest.fixture(params=["native", AVX2, PORTABLE])
def march(request) -> str:
    if request.param == AVX2 and not has_avx2():
        pytest.skip("this processor has no AVX2")
    return request.param


def scores(count: int, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    """As the sampler has them: the best is 0."""
    made_V = spread * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return made_V - made_V.max()


@pytest.mark.parametrize("count", [1, 15, 16, 300, 5000])
def test_the_winner_is_that_of_numpy(march, count):
    """Up to ties within rounding, of which there is none here; bands at both ends, nobody left, forbidden tokens."""
    native = kernels(march)
    for position in range(60):
        scores_V, luck = scores(count, seed=position), key(3, position)
        scores_V[position % count :: 7] = -torch.inf
        noisy_V = scores_V + gumbel(luck, torch.arange(count))
        low, high = (-4.0, -0.5) if position % 2 else (-1e30, math.inf)
        noisy_V[~((scores_V >= low) & (scores_V <= high))] = -torch.inf
        wanted = int(noisy_V.argmax()) if noisy_V.max() > -torch.inf else -1
        assert draw(native, scores_V, low, high, luck) == wanted


def test_draws_of_a_large_vocabulary_follow_their_distribution():
    """Noise is compared where it is rare, too: 400,000 draws of one token against a thousand."""
    native, flat_V = kernels(), torch.zeros(1000)
    drawn = np.bincount([draw(native, flat_V, -1.0, 1.0, key(1, i)) for i in range(100_000)], minlength=1000)
    assert drawn.min() > 50
    assert abs(drawn.var() / drawn.mean() - 1) < 0.2  # as of Poisson's


@pytest.mark.parametrize("count", [1, 17, 300, 5000])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_how_far_the_best_reach(march, count, spread):
    native, scores_V = kernels(march), scores(count, spread)
    order_N = scores_V.sort(descending=True).values
    for most in (1, 2, 40, 4999, 10_000):
        found = reach(native, scores_V, -1e30, most=most)
        assert found == float(order_N[most - 1]) if most <= count else found <= float(order_N[-1])
    for low in (-1e30, float(order_N[count // 2])):
        alive_N = order_N[order_N >= low].double()
        mass_N = alive_N.exp().cumsum(0) / alive_N.exp().sum()
        for share in (1e-6, 0.3, 0.9, 0.999):
            wanted = float(alive_N[int((mass_N < share).sum().clamp(max=len(alive_N) - 1))])
            assert reach(native, scores_V, low, share=share) == wanted


def test_equal_scores_survive_together():
    native, scores_V = kernels(), torch.tensor([0.0, -1.0, -1.0, -1.0, -2.0])
    assert reach(native, scores_V, -1e30, most=2) == -1.0
    assert reach(native, scores_V, -1e30, share=0.6) == -1.0


@pytest.mark.parametrize(("count", "scale", "cap"), [(5, 1.0, 0.0), (8192, 0.5, 0.0), (20_001, 2.0, 30.0)])
def test_logits_and_their_sums(march, count, scale, cap):
    """WEIGH: scaled and capped as the model says; the largest of each piece, and the mass of all."""
    logits_RV = 5 * torch.randn(3, count)
    pieces = -(-count // 8192)
    given, out = rows(logits_RV), Rows.of(3, 2 * pieces)
    matrix = Matrix.of(pack_floats(torch.zeros(count, 32)))
    play(flat(3), Kind.WEIGH, march, in_=given, out=out, matrix=matrix, of_rows=1, scale=scale, softcap=cap)
    wanted_RV = logits_RV * scale if not cap else cap * torch.tanh(logits_RV * scale / cap)
    found_RV = given.floats[:, :count]
    assert torch.allclose(found_RV, wanted_RV, atol=1e-5)
    most_RP, mass_RP = out.floats[:, : 2 * pieces].unflatten(1, (-1, 2)).unbind(-1)
    for p, piece_RV in enumerate(found_RV.split(8192, 1)):
        assert torch.equal(most_RP[:, p], piece_RV.amax(1))
        assert torch.allclose((most_RP + mass_RP.log())[:, p], piece_RV.logsumexp(1), atol=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_seen(march, wrong):
    logits_RV = torch.zeros(1, 100)
    logits_RV[0, 71] = wrong
    given, out = rows(logits_RV), Rows.of(1, 2)
    matrix = Matrix.of(pack_floats(torch.zeros(100, 32)))
    play(flat(1), Kind.WEIGH, march, in_=given, out=out, matrix=matrix, of_rows=1, scale=1.0)
    assert math.isnan(float(out.floats[0, 0]))


def test_which_settings_leave_the_best_token_alone():
    assert SamplingParams(temperature=0).plainly_greedy
    for change in ({"presence_penalty": 1}, {"repetition_penalty": 1.1}, {"logit_bias": {1: 1.0}}, {"min_tokens": 1}):
        assert not SamplingParams(temperature=0, **change).plainly_greedy
    assert not SamplingParams(temperature=0.1).plainly_greedy
