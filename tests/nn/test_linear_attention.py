"""Kernel feature maps in all their forms; the proofs compare with sums written as loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cutaway.engine.cache import KVCache, Spans
from cutaway.errors import CutawayError
from cutaway.labs.subject import logits_of
from cutaway.labs.training import fresh, small_spec, with_layers
from cutaway.nn.attention import BlockDiagonal, Place
from cutaway.nn.linear_attention import LinearAttention, LinearSpec, chunked, elu_features, random_features
from cutaway.nn.positions import RopeSpec, rotation
from kit.proofs.attention_forms import PROOFS, drawn


@pytest.mark.parametrize("name", [name for name in PROOFS if name.split()[0] == "linear"])
def test_every_form_is_the_definition(name):
    PROOFS[name]()


def test_the_state_does_not_grow():
    spec = LinearSpec(3, 4)
    layer = LinearAttention(12, spec)
    shapes = set()
    for n in (1, 7, 300):
        _, state = layer.step(None, *(torch.randn(n, 3, 4) for _ in range(3)))
        shapes.add(tuple(tuple(x.shape) for x in state))
    assert shapes == {spec.state}


@pytest.mark.parametrize("spec", [LinearSpec(2, 4), LinearSpec(2, 4, "taylor"), LinearSpec(2, 4, "random", 10)])
def test_steps_of_any_size_are_the_whole(spec):
    layer, parts = LinearAttention(8, spec), [drawn(10, 2, 4, seed=i).detach() for i in range(3)]
    whole, last = layer.step(None, *parts)
    outs, state = [], None
    for piece in zip(*(x.split([4, 1, 1, 3, 1]) for x in parts), strict=True):
        out, state = layer.step(state, *piece)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs), whole, rtol=1e-12, atol=1e-12)
    for mine, other in zip(state, last, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [LinearSpec(2, 8, rope=RopeSpec()), LinearSpec(2, 8, "random", 10, chunk=3)])
def test_a_decoder_goes_on_from_its_states(spec):
    """Spans of any size through the engine's cache give the logits of the whole sequence."""
    model = fresh(with_layers(small_spec(width=16), lambda layer: replace(layer, attention=spec)), 0, std=0.3).double()
    tokens_T, cache = torch.arange(20), KVCache(model.spec, model.dtype, model.device, 20)
    ends = [0, 5, 6, 7, 14, 20]
    with torch.no_grad():
        hidden = [model(tokens_T[a:b], torch.arange(a, b), Spans([(cache, a, b - a)])) for a, b in pairwise(ends)]
        torch.testing.assert_close(model.logits(torch.cat(hidden)), logits_of(model, tokens_T), rtol=1e-10, atol=1e-10)
    model.cost.check(model)


def test_rotation_comes_before_the_features():
    spec = LinearSpec(2, 4, rope=RopeSpec())
    layer, x_TD = LinearAttention(8, spec), torch.randn(6, 8)
    turn = rotation(spec.rope, spec.rotated, torch.arange(6), torch.float32)
    moved = rotation(spec.rope, spec.rotated, torch.arange(6) + 3, torch.float32)
    outs = [layer(x_TD, 0, Place(turn=t), BlockDiagonal([6])) for t in (turn, moved, None)]
    assert (outs[0] - outs[2]).abs().max() > 1e-3
    assert torch.isfinite(outs[0]).all()
    assert (outs[0] - outs[1]).abs().max() > 1e-4, "a map of rotated keys is no function of distance, unlike a softmax"


def test_half_precision_sums_in_single():
    layer, parts = LinearAttention(8, LinearSpec(2, 4)), [torch.randn(2000, 2, 4).bfloat16() for _ in range(3)]
    out, state = layer.step(None, *parts)
    assert out.dtype == torch.bfloat16
    assert state[0].dtype == torch.float32
    exact, _ = layer.step(None, *(x.double() for x in parts))
    torch.testing.assert_close(out.double(), exact, rtol=8e-3, atol=1e-3)


def test_features_that_vanish_give_zeros_and_not_nan():
    far = torch.full((1, 1, 4), 60.0).double()
    assert (random_features(far, 8, 0) == 0).all()
    out, _ = chunked(*(random_features(far, 8, 0),) * 2, torch.ones(1, 1, 4).double(), 1)
    assert (out == 0).all()


def test_elu_features_are_positive_and_smooth():
    x = torch.tensor([-2.0, 0.0, 3.0]).double()
    torch.testing.assert_close(elu_features(x), torch.tensor([torch.e**-2, 1.0, 4.0]).double())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 0, "head_dim": 4}, "LinearSpec.heads: must be at least 1"),
        ({"heads": 1, "head_dim": 4, "chunk": 0}, "LinearSpec.chunk: must be at least 1"),
        ({"heads": 1, "head_dim": 4, "feature": "random"}, "LinearSpec.features: random features need a number"),
        ({"heads": 1, "head_dim": 4, "features": 8}, "LinearSpec.features: random features need a number"),
    ],
)
def test_inconsistent_specs_are_refused(fields, message):
    with pytest.raises(CutawayError, match=message):
        LinearSpec(**fields)
