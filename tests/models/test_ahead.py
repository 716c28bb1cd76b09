"""Multi-token prediction: the formula written out, cached against not, and which tokens it may depend on."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from cutaway.engine.cache import KVCache, Spans
from cutaway.labs.training import small_spec
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal

TOKENS = torch.tensor([5, 9, 31, 7, 2, 40])
T = len(TOKENS) - 1  # positions whose next token is known


def drawn() -> Decoder:
    spec = small_spec(vocab=41, width=24, layers=2, heads=3, kv_heads=1)
    model = build(replace(spec, ahead=(spec.layers[0], spec.layers[1])))
    assert isinstance(model, Decoder)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * drawn if parameter.dim() == 1 else 2 * drawn / parameter.shape[-1] ** 0.5
    return model.double()


def test_a_step_is_the_formula():
    model, positions = drawn(), torch.arange(T)
    hidden = model(TOKENS[:-1], positions, BlockDiagonal([T]))
    found, onward = model.look_ahead(hidden, TOKENS[1:], positions, BlockDiagonal([T]))
    w = dict(model.named_parameters())

    def rms(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

    rows = w["embedding.tokens.weight"][TOKENS[1:]]
    both = torch.cat([rms(rows, "ahead.0.token_norm.weight"), rms(hidden, "ahead.0.hidden_norm.weight")], -1)
    x = both @ w["ahead.0.project.weight"].T
    (place,) = model.places([model.spec.ahead[0]], positions, x)
    expected = model.ahead[0].block(x, 0, place, BlockDiagonal([T]))
    torch.testing.assert_close(onward, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, rms(expected, "ahead.0.final_norm.weight"), rtol=1e-12, atol=1e-12)
    logits = F.linear(found, w["head.weight"])
    torch.testing.assert_close(model.logits(found), logits, rtol=1e-12, atol=1e-12)


def test_steps_follow_each_other_and_only_the_known_tokens_matter():
    model, positions = drawn(), torch.arange(T - 1)

    def second(tokens):
        context = BlockDiagonal([T - 1])
        hidden = model(tokens[:-2], positions, context)
        _, onward = model.look_ahead(hidden, tokens[1:-1], positions, context)
        return model.look_ahead(onward, tokens[2:], positions, context, step=1)[0]

    other = TOKENS.clone()
    other[-1] = 3
    changed = (second(TOKENS) - second(other)).abs().amax(-1)
    assert (changed[:-1] == 0).all()
    assert changed[-1] > 1e-3


def test_one_position_at_a_time_gives_the_same():
    model, positions = drawn(), torch.arange(T)
    hidden = model(TOKENS[:-1], positions, BlockDiagonal([T]))
    whole, _ = model.look_ahead(hidden, TOKENS[1:], positions, BlockDiagonal([T]))
    cache = KVCache(model.spec, model.dtype, model.device, 2)
    for t in range(T):
        at, span = positions[t : t + 1], Spans([(cache, t, 1)])
        now = model(TOKENS[t : t + 1], at, span)
        step, _ = model.look_ahead(now, TOKENS[t + 1 : t + 2], at, span)
        torch.testing.assert_close(step[0], whole[t], rtol=1e-10, atol=1e-10)


def test_its_parameters_are_counted():
    model = drawn()
    model.cost.check(model)
