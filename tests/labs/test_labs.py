"""Every lab in its quick profile: it runs, its claims hold, its evidence is whole. Known values of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.labs.arch.where_parameters import by_group
from cutaway.labs.attention import sqrt_d, why_kv_not_q
from cutaway.labs.catalogue import LABS, find
from cutaway.labs.engine import kv_cache, sampling
from cutaway.labs.evidence import Evidence
from cutaway.labs.lab import Run
from cutaway.labs.norm import rms_vs_layer
from cutaway.labs.statistics import chi_square, growth, summed
from cutaway.labs.subject import last_logits, logits_of
from cutaway.labs.timing import interleaved
from cutaway.labs.training import small_spec
from cutaway.models.build import build
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder
from cutaway.nn.norms import NormSpec, RMSNorm


@cache
def quick(id: str) -> Evidence:
    return find(id).run(profile="quick")


def column(evidence: Evidence, name: str) -> list:
    i = [c.name for c in evidence.table.columns].index(name)
    return [row[i] for row in evidence.table.rows]


@pytest.fixture(autouse=True)
def _one_thread(smollm2_gguf: Path) -> Iterator[None]:
    """All look at the default model; small matrices gain nothing from threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("id", LABS)
def test_quick_profile_holds(id: str) -> None:
    evidence = quick(id)
    assert [check.claim.en for check in evidence.checks if not check.holds] == []
    assert evidence.holds
    assert evidence.profile == "quick"
    numbers = [cell for row in evidence.table.rows for cell in row if isinstance(cell, int | float)]
    assert numbers
    assert all(math.isfinite(number) for number in numbers)
    assert Evidence.from_json(evidence.to_json()) == evidence


# ---- where-parameters


def test_every_parameter_is_in_one_row() -> None:
    evidence = quick("where-parameters")
    assert sum(column(evidence, "parameters")) == 134_515_008
    assert sum(column(evidence, "share")) == pytest.approx(100)
    v, d, f, layers, q, k = 49152, 576, 1536, 30, 576, 192
    by_hand = v * d + layers * (2 * d * q + 2 * d * k + 3 * d * f + 2 * d) + d
    assert by_hand == 134_515_008
    rows = dict(zip(column(evidence, "module"), column(evidence, "parameters"), strict=True))
    assert rows["embedding.tokens"] == v * d
    assert rows["layers.*.attention.k"] == layers * d * k
    assert rows["layers.*.ffn.down"] == layers * d * f


def test_groups_sum_to_all_with_an_untied_head() -> None:
    cost = Cost(small_spec(norm=NormSpec("layer", 1e-5), width=32, kv_heads=2))
    groups = by_group(cost)
    assert sum(groups.values()) == cost.parameters
    assert groups["head"] == groups["embedding"] == 256 * 32
    assert groups["norms"] == 5 * 2 * 32


# ---- attention-steps


def test_three_tokens_by_hand() -> None:
    """The last query scores 1, 3 and 0, which are divided by the square root of 2."""
    evidence = quick("attention-steps")
    powers = [math.exp(score / math.sqrt(2)) for score in (1, 3, 0)]
    weights = [power / sum(powers) for power in powers]
    assert column(evidence, "weight")[-4:] == pytest.approx([*weights, 1])
    assert evidence.table.rows[-1][-2:] == pytest.approx([weights[0] + 2 * weights[2], weights[1] + 2 * weights[2]])
    assert f"{weights[1]:.4f}" in evidence.verdict.en


@pytest.mark.parametrize("knobs", [{"causal": False}, {"scaled": False}, {"causal": False, "scaled": False}])
def test_the_table_follows_its_knobs(knobs: dict) -> None:
    evidence = find("attention-steps").run(knobs, "quick")
    assert evidence.holds
    assert len(evidence.table.rows) == (9 if knobs.get("causal", True) else 12)


# ---- sqrt-d


def test_sharpness_of_known_scores() -> None:
    seen = torch.ones(1, 4, dtype=torch.bool)
    flat = sqrt_d.sharpness(torch.zeros(1, 4), seen, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert flat == pytest.approx((0, math.log(4), 0.25, 0.5, 0.25 * 0.75))
    masked = sqrt_d.sharpness(torch.tensor([[2.0, 0.0, 99.0]]), torch.tensor([[True, True, False]]), torch.ones(3))
    p = 1 / (1 + math.exp(-2))
    assert masked == pytest.approx((1, -p * math.log(p) - (1 - p) * math.log(1 - p), p, 0, p * (1 - p)), abs=1e-6)


def test_sharpness_gradient_is_the_softmax_gradient() -> None:
    scores = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(9, dtype=torch.float64)
    (scores.softmax(-1) @ upstream).sum().backward()
    found = sqrt_d.sharpness(scores.detach(), torch.ones(3, 9, dtype=torch.bool), upstream)
    assert found.gradient == pytest.approx(float(scores.grad.norm(dim=-1).median()))


def test_published_values_at_d_64_and_256_keys() -> None:
    """A median largest weight of 0.04 with the scale and 0.79 without."""
    scaled, plain = sqrt_d.random_pair(64, 4000, 256, torch.Generator().manual_seed(1))
    assert scaled.largest == pytest.approx(0.04, abs=0.005)
    assert plain.largest == pytest.approx(0.79, abs=0.03)
    assert plain.std == pytest.approx(8, rel=0.02)


def test_watching_changes_nothing() -> None:
    model = tiny()
    tokens = torch.arange(40) % 256
    watched = sqrt_d.Watched(40, True, torch.ones(40))
    assert torch.equal(logits_of(model, tokens, watched), logits_of(model, tokens))
    assert len(watched.layers) == len(model.spec.layers)


# ---- rms-vs-layer


def test_written_out_norms_are_pytorchs() -> None:
    x, w, b = torch.randn(7, 33), torch.randn(33), torch.randn(33)
    rms, layer = (way(x, w, b) for way in rms_vs_layer.WRITTEN_OUT)
    torch.testing.assert_close(rms, F.rms_norm(x, (33,), w, rms_vs_layer.EPS))
    torch.testing.assert_close(layer, F.layer_norm(x, (33,), w, b, rms_vs_layer.EPS))


@pytest.mark.parametrize("unit_offset", [False, True])
def test_subtracting_the_mean_makes_a_layer_norm(unit_offset: bool) -> None:
    norm, x = RMSNorm(32, 1e-5, unit_offset), 3 * torch.randn(7, 32) + 1
    weight = torch.nn.init.normal_(norm.weight).detach() + unit_offset
    wanted = F.layer_norm(x, (32,), weight, None, 1e-5)
    torch.testing.assert_close(norm(rms_vs_layer.subtract_mean("", x)), wanted)


def test_hooks_see_the_norms_of_a_twin_and_leave_the_model_alone() -> None:
    model, tokens = tiny(), torch.arange(20)
    before = logits_of(model, tokens)
    seen: list[str] = []
    watched = rms_vs_layer.hooked(model, "all norms", lambda name, x: seen.append(name))
    assert torch.equal(logits_of(watched, tokens), before)
    assert seen == [f"layers.{i}.{kind}_norm" for i in (0, 1) for kind in ("attention", "ffn")] + ["final_norm"]
    twin = rms_vs_layer.hooked(model, "ffn_norm", rms_vs_layer.subtract_mean)
    assert (logits_of(twin, tokens) - before).abs().max() > 1e-4
    assert torch.equal(logits_of(model, tokens), before)
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_training_depends_on_the_seed_alone() -> None:
    spec = small_spec(width=32, layers=1, kv_heads=2)
    losses = [rms_vs_layer.train("rms", spec, 3, seed, Run()).held_out for seed in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]


# ---- why-kv-not-q


def test_q_is_three_times_as_wide_and_nobody_reads_it() -> None:
    evidence = quick("why-kv-not-q")
    assert column(evidence, "numbers") == [3 * 5760, 5760, 5760]
    sizes = column(evidence, "16-bit size")
    assert sizes[1] + sizes[2] == 22.5
    assert column(evidence, "largest change")[0] == 0
    read = column(evidence, "read by the last step")
    assert read[0] == 0
    assert read[1] == read[2] == (12 + 8 - 1) * 5760 * 4


def test_a_step_with_memory_is_a_step_of_the_whole_sequence() -> None:
    model, tokens = tiny().double(), torch.tensor([5, 9, 200, 31, 7])
    with torch.no_grad():
        _, memory = why_kv_not_q.step(model, tokens[:3], {})
        _, memory = why_kv_not_q.step(model, tokens[3:4], memory)
        logits, memory = why_kv_not_q.step(model, tokens[4:], memory)
        torch.testing.assert_close(logits, last_logits(model, tokens))
    assert {name: len(past[0]) for name, past in memory.items()} == {"q": 5, "k": 5, "v": 5}


def test_cache_sizes_of_known_models() -> None:
    """2 x layers x K/V heads x head width x 2 bytes per token, from published shapes."""
    kib = {name: kv_kib(*shape) for name, shape in PUBLISHED_SHAPES.items()}
    assert kib == {"Llama-3-8B": 128, "Llama-3-70B": 320, "GPT-3": 4608, "SmolLM2-135M": 22.5}


PUBLISHED_SHAPES = {
    "Llama-3-8B": (32, 32, 8, 128),
    "Llama-3-70B": (80, 64, 8, 128),
    "GPT-3": (96, 96, 96, 128),
    "SmolLM2-135M": (30, 9, 3, 64),
}


def kv_kib(layers: int, heads: int, kv_heads: int, head_dim: int) -> float:
    small = small_spec(width=32, layers=1, kv_heads=2)
    attention = replace(small.layers[0].attention, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    spec = replace(small, layers=(replace(small.layers[0], attention=attention),) * layers)
    return Cost(spec).kv_bytes_per_token("bfloat16").value / 1024


# ---- kv-cache


def test_work_ratios_known_by_hand() -> None:
    assert round(kv_cache.work(512, 512).ratio) == 384
    assert round(kv_cache.work(64, 512).ratio) == 284
    assert kv_cache.work(10, 1) == (10, 10)


def test_counted_work_is_in_the_table() -> None:
    evidence = quick("kv-cache")
    assert column(evidence, "tokens") == [16, 32, 64]
    ratios = column(evidence, "positions so far, ratio")
    assert ratios == pytest.approx([1, sum(range(16, 33)) / 32, sum(range(16, 65)) / 64])


def test_costs_between_samples_lie_on_straight_lines() -> None:
    assert summed([10, 20], [1.0, 2.0], 10, 20) == pytest.approx(sum(n / 10 for n in range(10, 21)))
    seconds = [kv_cache.Both(2.0, 1.0), kv_cache.Both(4.0, 1.0)]
    assert kv_cache.so_far([4, 6], seconds, 4) == (2.0, 2.0)
    assert kv_cache.so_far([4, 6], seconds, 6) == (2.0 + 3.0 + 4.0, 2.0 + 1.0 + 1.0)


def test_growth_is_the_exponent() -> None:
    assert growth([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_ways_are_timed_in_turns() -> None:
    calls: list[str] = []
    seconds = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert calls == ["a", "b"] * 4
    assert all(s >= 0 for s in seconds)


@pytest.mark.parametrize("knobs", [{"prompt": 64, "longest": 64}, {"longest": 20}])
def test_lengths_that_do_not_fit_are_refused(knobs: dict) -> None:
    with pytest.raises(CutawayError, match="knob longest"):
        find("kv-cache").run(knobs, "quick")


# ---- sampling


def test_temperature_on_three_logits() -> None:
    shapes = {
        t: sampling.by(temperature=t)(torch.tensor([2.0, 1.0, 0.0])).probabilities().tolist() for t in (0.5, 1, 2)
    }
    assert shapes[0.5] == pytest.approx([0.867, 0.117, 0.016], abs=5e-4)
    assert shapes[1] == pytest.approx([0.665, 0.245, 0.090], abs=5e-4)
    assert shapes[2] == pytest.approx([0.506, 0.307, 0.186], abs=6e-4)


def test_chi_square_accepts_the_right_distribution_and_no_other() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    rng = np.random.default_rng(0)
    found = [chi_square(torch.from_numpy(rng.multinomial(2000, p.numpy())).double(), p) for _ in range(400)]
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09
    wrong = torch.from_numpy(rng.multinomial(2000, [0.5, 0.2, 0.25, 0.05])).double()
    assert chi_square(wrong, p) < 1e-6


def test_chi_square_known_value() -> None:
    """A fair die thrown 60 times: 5, 8, 9, 8, 10, 20 has statistic 13.4, p = 0.0199."""
    counts, p = torch.tensor([5.0, 8, 9, 8, 10, 20]).double(), torch.full((6,), 1 / 6).double()
    assert chi_square(counts, p) == pytest.approx(0.0199, abs=2e-4)


def test_chi_square_of_rare_and_impossible_tokens() -> None:
    p = torch.tensor([0.999, 0.0005, 0.0005, 0.0]).double()
    assert chi_square(torch.tensor([100.0, 0, 0, 0]), p) == 1.0
    assert chi_square(torch.tensor([99.0, 0, 0, 1]), p) == 0.0


def test_the_oracle_by_hand() -> None:
    logits = [math.log(v) for v in (0.5, 0.2, 0.2, 0.1)]
    assert sampling.oracle(logits, 1.0, 2, 1.0, 0.0) == {0, 1, 2}
    assert sampling.oracle(logits, 1.0, 0, 0.6, 0.0) == {0, 1, 2}
    assert sampling.oracle(logits, 1.0, 0, 0.45, 0.0) == {0}
    assert sampling.oracle(logits, 1.0, 0, 1.0, 0.3) == {0, 1, 2}


def test_a_wrong_sampler_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """If top-p were applied before temperature, the oracle would notice."""
    right = sampling.shape

    def wrong(logits: torch.Tensor, params: SamplingParams, *rest: list) -> sampling.Shaped:
        cut = right(logits, SamplingParams(top_p=params.top_p), *rest)
        return right(logits.masked_fill(~sampling.kept(cut), -torch.inf), params, *rest)

    assert sampling.disagreements(200, Run()) == 0
    monkeypatch.setattr(sampling, "shape", wrong)
    assert sampling.disagreements(200, Run()) > 0


def tiny() -> Decoder:
    torch.manual_seed(0)
    model = build(small_spec(width=32, kv_heads=2))
    assert isinstance(model, Decoder)
    return model
