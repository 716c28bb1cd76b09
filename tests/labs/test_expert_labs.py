"""Known values of the labs on experts and on shared keys and values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cutaway.engine.cache import KVCache, Spans
from cutaway.labs.attention import shared_kv
from cutaway.labs.lab import Run
from cutaway.labs.moe import dense_first, expert_balance, fine_grained_experts
from cutaway.labs.moe.sparse import Remedy, Trained, experts_like, favor, routers, sparse, train
from cutaway.labs.training import fresh, small_spec
from cutaway.models.cost import Cost
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.balance import load_of
from cutaway.nn.experts import Experts, ExpertsSpec
from cutaway.nn.feed_forward import FeedForward, FeedForwardSpec
from cutaway.nn.routing import Routing
from kit.threads import one_thread

__all__ = ["one_thread"]

SMALL = sparse(small_spec(width=16, layers=2), experts_like(8, 4, "sigmoid"))


def routing(chosen: list[list[int]], experts: int) -> Routing:
    chosen_TC = torch.tensor(chosen)
    even_TE = torch.full((len(chosen), experts), 1 / experts)
    return Routing(even_TE.log(), even_TE, chosen_TC, torch.full(chosen_TC.shape, 0.5))


# ---- small models with experts


def test_dense_layers_are_as_wide_as_the_experts_of_a_token() -> None:
    spec = sparse(small_spec(width=16, layers=4), experts_like(8, 4, "softmax"), dense=3)
    assert [type(layer.ffn) for layer in spec.layers] == [FeedForwardSpec] * 3 + [ExpertsSpec]
    assert spec.layers[0].ffn.width == 2 * 8
    whole = sparse(small_spec(width=16, layers=4), experts_like(8, 4, "softmax"))
    routers_of_three = 3 * (4 * 16 + 4 + 4)  # weights and both biases
    assert 0 <= Cost(whole).active - Cost(spec).active <= routers_of_three


def test_the_load_of_pooled_steps() -> None:
    counts_SLE = torch.tensor([[[4, 0], [2, 2]], [[0, 4], [3, 1]]])
    trained = Trained(fresh(SMALL, 0), counts_SLE, 0.0, [])
    assert trained.busiest(0, 1) == (2 + 1) / 2
    assert trained.busiest(0, 2) == (1 + 1.25) / 2


@pytest.mark.parametrize("speed", [0.0, 0.5])
def test_the_bias_of_the_choice_moves_by_its_speed_and_by_nothing_else(speed: float) -> None:
    """Two steps: the whole speed, then half of it, up or down; or not at all where the load is even."""
    trained = train(SMALL, Remedy(speed=speed), 2, 0, Run(), note="", lr=1e-3)
    for layer, router in enumerate(routers(trained.model)):
        expected_E = torch.zeros(4)
        for step, counts_E in enumerate(trained.counts_SLE[:, layer].double()):
            expected_E += speed * (1 - step / 2) * (counts_E.mean() - counts_E).sign()
        torch.testing.assert_close(router.choice_bias, torch.nn.Parameter(expected_E, requires_grad=False))


def test_every_choice_of_every_step_is_counted() -> None:
    trained = train(SMALL, Remedy(auxiliary=0.1), 3, 0, Run(), note="", lr=1e-3)
    assert trained.counts_SLE.shape == (3, 2, 4)
    assert set(trained.counts_SLE.sum(-1).flatten().tolist()) == {64 * 8 * 2}


def test_a_head_start_takes_everything() -> None:
    model = fresh(SMALL, 0)
    favor(model, 50.0)
    for router in routers(model):
        assert load_of(router(torch.randn(30, 16))).counts_E == [30, 30, 0, 0]


# ---- expert-balance


def test_dropped_at_a_capacity_by_hand() -> None:
    """Eight choices of four experts, 5, 2, 1 and 0 of them; two batches count each on its own."""
    uneven = routing([[0, 1], [0, 1], [0, 2], [0, 0]], 4)
    assert uneven.counts_E.tolist() == [5, 2, 1, 0]
    assert [expert_balance.dropped([uneven], factor) for factor in (1.0, 1.5, 2.0, 4.0)] == [3 / 8, 2 / 8, 1 / 8, 0]
    other = routing([[1, 1], [1, 1], [1, 2], [1, 3]], 4)
    assert expert_balance.dropped([uneven, other], 1.0) == (3 + 4) / 16


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.3])
def test_dropped_is_what_the_layer_drops(factor: float) -> None:
    spec = experts_like(8, 4, "softmax")
    layer, x_TD = Experts(16, spec), torch.randn(37, 16)
    limited = Experts(16, experts_like(8, 4, "softmax", factor))
    limited.load_state_dict(layer.state_dict())
    assert expert_balance.dropped([layer.route(x_TD)], factor) == pytest.approx(load_of(limited.route(x_TD)).dropped)


def test_weights_with_the_bias_in_them_are_noticed() -> None:
    trained = train(SMALL, Remedy(speed=1.0), 1, 0, Run(), note="", lr=1e-3)
    assert expert_balance.never_weighs(trained).holds
    wrong = [[r._replace(weights_TC=r.weights_TC + 0.01) for r in batches] for batches in trained.routings]
    assert not expert_balance.never_weighs(trained._replace(routings=wrong)).holds


# ---- dense-first


def test_how_much_the_token_explains() -> None:
    tokens_T = torch.arange(4000) % 40
    assert dense_first.ratio(tokens_T, tokens_T % 5) == pytest.approx(1)
    assert dense_first.ratio(tokens_T, torch.zeros(4000, dtype=torch.long)) == 0
    half_T = (tokens_T % 2) * 2 + (torch.arange(4000) // 40) % 2  # one bit of the two is the token's
    assert dense_first.ratio(tokens_T, half_T) == pytest.approx(0.5)
    assert dense_first.explained(tokens_T, half_T) == pytest.approx(0.5, abs=0.02)


def test_tokens_are_those_that_were_routed() -> None:
    """What the measure pairs with a choice is the token that made it: a router that sees nothing else is explained."""
    spec = sparse(small_spec(width=16, layers=1), experts_like(8, 4, "softmax"))
    trained = train(spec, Remedy(), 1, 0, Run(), note="", lr=1e-9)
    tokens_T = dense_first.held_out_tokens()
    chosen_T = torch.cat([r.chosen_TC[:, 0] for r in trained.routings[0]])
    assert dense_first.explained(tokens_T, chosen_T) > 0.5
    assert dense_first.explained(tokens_T.roll(1), chosen_T) < dense_first.explained(tokens_T, chosen_T) - 0.2


# ---- fine-grained-experts


def test_overlap_of_known_answers() -> None:
    same_ETD = torch.randn(1, 6, 5).expand(4, -1, -1)
    assert fine_grained_experts.overlap(same_ETD) == pytest.approx(1)
    apart_ETD = torch.eye(3)[:, None].expand(-1, 6, -1)
    assert fine_grained_experts.overlap(apart_ETD) == pytest.approx(0, abs=1e-6)
    any_ETD = torch.randn(3, 7, 5)
    cosines = [F.cosine_similarity(any_ETD[a], any_ETD[b], dim=-1).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert fine_grained_experts.overlap(any_ETD) == pytest.approx(float(sum(cosines)) / 3, abs=1e-6)


def test_every_expert_answers_every_token() -> None:
    layer, x_TD = (
        Experts(6, ExpertsSpec(3, experts_like(8, 3, "softmax").router, FeedForwardSpec(8, "silu", True))),
        (torch.randn(5, 6)),
    )
    answers_ETD = fine_grained_experts.answers(layer, x_TD)
    for e in range(3):
        alone = FeedForward(6, FeedForwardSpec(8, "silu", True))
        alone.load_state_dict({f"{n}.weight": layer.get_parameter(n)[e] for n in ("gate", "up", "down")})
        torch.testing.assert_close(answers_ETD[e], alone(x_TD))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_common_part_makes_its_share(share: float) -> None:
    task = fine_grained_experts.planted(share, torch.Generator().manual_seed(0))
    x_TD, y_TD, common_TD = task.draw(torch.Generator().manual_seed(1), 4000)
    assert float(common_TD.square().mean()) == pytest.approx(share, abs=1e-3)
    assert float((y_TD - common_TD).square().mean()) == pytest.approx(1 - share, abs=1e-3)
    assert len(x_TD[:, -fine_grained_experts.CODE :].unique(dim=0)) == fine_grained_experts.GROUPS


def test_all_layouts_are_of_one_active_size() -> None:
    hidden = 32
    for layout in fine_grained_experts.LAYOUTS.values():
        spec = layout.spec(hidden)
        shared = spec.shared.width if spec.shared else 0
        assert spec.router.top_k * spec.expert.width + shared == layout.active(hidden) == 2 * hidden
        assert spec.count * spec.expert.width + shared == 16 * hidden


# ---- shared-kv


def test_models_of_one_size_keep_what_their_heads_say() -> None:
    specs = shared_kv.matched(8, 2)
    sizes = [Cost(spec).parameters for spec in specs.values()]
    assert max(sizes) - min(sizes) <= 2 * 3 * 72 / 2 * 2
    kept = {name: Cost(spec).kv_bytes_per_token("bfloat16").value for name, spec in specs.items()}
    each = 2 * 2 * 8 * 2  # layers, keys and values, width, bytes
    assert kept == dict(zip(specs, (9 * each, 3 * each, each, 3 * each, 2 * (24 + 4) * 2), strict=True))


def test_a_timed_step_reads_the_whole_cache() -> None:
    """The cache that is timed holds as many rows as it says, and the step looks at all of them."""
    for spec in (shared_kv.alike(mixer, 8, 1) for mixer in shared_kv.ARMS.values()):
        model, cache = fresh(spec, 0, std=0.5), shared_kv._filled(spec, 30)
        with torch.inference_mode():
            before = shared_kv._decode(model, cache, 30)
            assert torch.equal(before, shared_kv._decode(model, cache, 30))
            cache.buffers[0][0][:, 0] += 3
            assert not torch.equal(before, shared_kv._decode(model, cache, 30))


def test_a_cached_step_of_every_kind_is_the_whole_text_again() -> None:
    tokens_T = torch.randint(256, (12,))
    for spec in (shared_kv.alike(mixer, 8, 2) for mixer in shared_kv.ARMS.values()):
        model, cache = fresh(spec, 0, std=0.3).double(), KVCache(spec, torch.float64, torch.device("cpu"))
        with torch.inference_mode():
            whole_TD = model(tokens_T, torch.arange(12), BlockDiagonal([12]))
            model(tokens_T[:11], torch.arange(11), Spans([(cache, 0, 11)]))
            last_1D = model(tokens_T[11:], torch.tensor([11]), Spans([(cache, 11, 1)]))
        torch.testing.assert_close(last_1D[0], whole_TD[11])


def test_the_loss_of_nothing_learned_is_that_of_256_bytes() -> None:
    spec = shared_kv.alike(shared_kv.plain(9, 3), 4, 1)
    assert shared_kv.losses_of("9q / 3kv", spec, 1, [0], Run())[0] == pytest.approx(math.log(256), rel=0.1)
