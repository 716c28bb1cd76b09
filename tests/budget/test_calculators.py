"""Calculators on every published shape: their formulas come to their values, and they agree with real tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cutaway.budget import choosing, counting, price, roofline, running, shape, training
from cutaway.budget.chips import CHIPS, chip, measured
from cutaway.budget.figures import Figure, evaluate, named
from cutaway.budget.published import PUBLISHED, spec_named
from cutaway.errors import CutawayError, NotFound
from cutaway.models.build import build
from cutaway.models.cost import Cost
from cutaway.nn.experts import Experts, ExpertsSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.routing import RouterSpec
from weights import checkpoints

H100 = CHIPS["h100-sxm"]


def cost(name: str) -> Cost:
    return Cost(PUBLISHED[name].spec)


def everything(c: Cost) -> Iterator[Figure]:
    """Every calculator's figures."""
    yield from counting.parameters(c)
    yield from counting.by_part(c)
    yield from counting.pairwise(c, 1000, 128, 10)
    yield from counting.rows(c.spec.vocab, c.spec.width, 128)
    yield from counting.adaptive_softmax(100_000, 2000, 0.1)
    yield from running.flops(c, 300, 20 if c.spec.encoder else 0)
    yield from running.attention_share(c, 300)
    yield from running.kv(c, 5000, 3, "bfloat16", 20 if c.spec.encoder else 0)
    yield from running.kv_by_sharing(c, "float32")
    yield from running.fit(c, H100, 5000, "bfloat16")
    yield from running.generating(64, 512)
    yield from roofline.roofline(c, H100, "bfloat16", batch=3, context=300)
    yield from roofline.latency(c, H100, "bfloat16", 1000)
    yield from roofline.latency(c, H100, "bfloat16", 1000, width=0.5625)
    yield from choosing.candidate(c, H100, "bfloat16", context=500, prompt=100, tokens=1e12)
    yield price.per_million(2, 127)
    yield from training.training_memory(c, 512)
    yield from training.training_time(c.parameters, 1e12, H100, "bfloat16")
    if any(layer.attention.rope for layer in c.spec.layers):
        yield from shape.context_of(c, 4, "bfloat16")
    if any(isinstance(layer.ffn, ExpertsSpec) for layer in c.spec.layers):
        yield from shape.experts_of(c, 7)
    yield from shape.attention_traffic(512, 64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_in_a_formula_come_to_its_value(name: str) -> None:
    for f in everything(cost(name)):
        assert evaluate(f.numbers) == pytest.approx(f.value, rel=1e-9), f


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_those_of_built_models(name: str) -> None:
    c = cost(name)
    c.check(build(c.spec, "meta"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_close_to_what_their_makers_say(name: str) -> None:
    """BERT large is 335M, not 340M; 12M stands for ALBERT's 11.7M."""
    said, found = PUBLISHED[name].said, named(counting.parameters(cost(name)))
    rounded = {"albert-base": 0.03, "bert-large": 0.015}
    assert found["parameters"] / 1e9 == pytest.approx(said[0], rel=rounded.get(name, 0.01))
    for active in said[1:]:
        within = (found["active per token"] / 1e9, found["active, with the input table"] / 1e9)
        assert min(abs(a / active - 1) for a in within) < 0.02


def test_active_parameters_are_those_that_get_a_gradient() -> None:
    """One token through a small expert model: of the experts those that were chosen."""
    spec = spec_named("mixtral-8x7b")
    ffn = ExpertsSpec(6, RouterSpec(2), FeedForwardSpec(10, "silu", True))
    attention = replace(spec.layers[0].attention, heads=2, kv_heads=1, head_dim=4)
    layer = replace(spec.layers[0], ffn=ffn, attention=attention)
    small = replace(spec, vocab=31, width=8, layers=(layer,) * 2)
    torch.manual_seed(0)
    experts = Experts(8, ffn)
    experts(torch.randn(1, 8)).sum().backward()
    used = [p for name, p in experts.named_parameters() if not name.startswith("router")]
    rows = sum(int((p.grad.flatten(1).abs().sum(1) > 0).sum()) * p[0].numel() for p in used if p.grad is not None)
    dense = replace(layer, ffn=FeedForwardSpec(10, "silu", True))
    without = Cost(replace(small, layers=(dense,) * 2)).active - 2 * 3 * 8 * 10
    assert Cost(small).active == without + 2 * (rows + 6 * 8)


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_distinct_experts_are_those_of_a_random_router(tokens: int) -> None:
    """Expected count against 4,000 draws of k different experts for each token: within 3 %."""
    count, chosen = 32, 3
    drawn = torch.rand(4000, tokens, count, generator=torch.Generator().manual_seed(0)).topk(chosen).indices
    found = torch.zeros(4000, count).scatter_(1, drawn.flatten(1), 1.0).sum(1).mean()
    assert shape.distinct(count, chosen, tokens).value == pytest.approx(float(found), rel=0.03)
    spec = spec_named("mixtral-8x7b")
    one, all_of_them = Cost(spec).read(1), Cost(spec).read(10_000)
    assert one == Cost(spec).active
    assert all_of_them == pytest.approx(Cost(spec).parameters - spec.vocab * spec.width)


def test_at_the_balance_computing_takes_as_long_as_reading() -> None:
    c, context = cost("llama-3-8b"), 256
    batch = named(roofline.balance(c, H100, "bfloat16", context))["batch at balance"]
    a = c.flops_per_token(2) - c.flops_per_token(1)
    computing = batch * (2 * c.parameters + a * context) / H100.rate("bfloat16")
    reading = (2 * c.parameters + c.kv_bytes(context, 1, "bfloat16").value * batch) / H100.bandwidth
    assert computing == pytest.approx(reading, rel=1e-12)
    longest = named(roofline.balance(c, H100, "bfloat16", 1000))
    assert "batch at balance" not in longest
    assert roofline.step(c, H100, "bfloat16", 10**6, 1000).bottleneck == "cache"
    assert roofline.step(c, H100, "bfloat16", 1, 1000).bottleneck == "weights"
    assert roofline.step(c, H100, "bfloat16", 10**4, 10).bottleneck == "compute"


def test_replies_share_the_reading_of_the_weights() -> None:
    """Tokens per second are those of the step that the exact cost model times, its input table added."""
    c, length = cost("llama-3-8b"), 8192
    found = named(price.of_replies(c, H100, "bfloat16", length, price=2))
    at_best = roofline.step(c, H100, "bfloat16", 52, length // 2)
    table = 2 * c.spec.vocab * c.spec.width / H100.bandwidth
    assert found["reading, a step"] == pytest.approx(at_best.weights + at_best.cache + table)
    assert found["tokens per second, at most"] == pytest.approx(52 / (at_best.seconds + table))
    hour = 3600 * found["tokens per second, at most"]
    assert found["cost per million tokens"] * hour / 1e6 == pytest.approx(2)


def test_weights_of_fewer_bits_move_the_balance_and_the_latency() -> None:
    c = cost("llama-3-8b")
    whole, quarter = (named(roofline.balance(c, H100, "bfloat16", 0, width=w)) for w in (None, 0.5))
    assert quarter["batch at balance"] == pytest.approx(whole["batch at balance"] / 4)
    assert quarter["no batch reaches it past"] == whole["no batch reaches it past"], "the cache is as it was"
    slow, fast = (named(roofline.latency(c, H100, "bfloat16", 100, width=w)) for w in (None, 0.5))
    assert fast["next token, at least"] == pytest.approx(slow["next token, at least"] / 4)
    assert fast["first token"] == slow["first token"]
    steps = [roofline.step(c, H100, "bfloat16", 3, 100, width=w) for w in (None, 0.5)]
    assert steps[1].weights == pytest.approx(steps[0].weights / 4)
    assert steps[1].cache == steps[0].cache


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(NotFound, match=r"no chip 'h100'.*h100-sxm"):
        chip("h100")
    with pytest.raises(NotFound, match="known: a100-40gb"):
        chip("?")
    with pytest.raises(CutawayError, match="published shapes: llama-3-8b"):
        spec_named("llama-3-9b")
    with pytest.raises(NotFound, match="m1-max has no figure for 'bfloat16'"):
        CHIPS["m1-max"].ridge("bfloat16")


def test_a_checkpoint_on_disk_has_a_budget_too(tmp_path: Path) -> None:
    folder = checkpoints.directory(tmp_path / "tiny")
    assert Cost(spec_named(str(folder))).parameters > 0


def test_senseless_questions_are_refused_by_name() -> None:
    c = cost("gpt-2-small")
    for ask, named_ in (
        (lambda: shape.context_of(c, 4, "float32"), "no rotary positions"),
        (lambda: shape.experts_of(c, 4), "has no experts"),
        (lambda: shape.context(0.5, 1e4, 128), "factor 0.5"),
        (lambda: running.fit(c, H100, 10, "float32", usable=1.5), "usable"),
        (lambda: running.kv(c, 10, 1, "int3"), "dtype"),
        (lambda: price.of_replies(cost("deepseek-v3"), H100, "bfloat16", 4096, price=2), "not one reply"),
    ):
        with pytest.raises(CutawayError, match=named_):
            ask()


def test_this_machine_is_measured() -> None:
    here = measured(size=64, megabytes=1, repeats=3)
    assert here.memory > 2**28
    assert min(*here.flops.values(), here.bandwidth) > 1e6
