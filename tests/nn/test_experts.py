"""Mixtures of experts: the grouped form against the loop, refusals, and loads with known values.

Values and gradients against transformers are proofs of the kit (`experts mixtral`, ...).
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cutaway.errors import CutawayError
from cutaway.nn.balance import balance_loss, balance_step, load_of, recorded
from cutaway.nn.experts import Experts, ExpertsSpec, grouped
from cutaway.nn.feed_forward import FeedForward, FeedForwardSpec
from cutaway.nn.routing import Router, RouterSpec, Routing, places

EXPERT = FeedForwardSpec(16, "silu", gated=True)
SPEC = ExpertsSpec(8, RouterSpec(3), EXPERT)
VARIANTS = {
    "gated": SPEC,
    "plain": replace(SPEC, expert=FeedForwardSpec(24, "relu2", gated=False)),
    "biased": replace(SPEC, expert=replace(EXPERT, bias=True)),
    "shared": replace(SPEC, shared=FeedForwardSpec(8, "gelu", gated=True), shared_gate=True),
    "full": replace(SPEC, capacity=0.6),
    "idle": replace(SPEC, count=64),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(spec: ExpertsSpec, dtype: torch.dtype, width: int = 32) -> Experts:
    torch.manual_seed(0)
    model = Experts(width, spec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.to(dtype)


def looped(model: Experts, x_TD: torch.Tensor) -> torch.Tensor:
    """One expert after the other, each as a feed-forward layer of its own, over the tokens that chose it."""
    routing, spec = model.route(x_TD), model.spec
    kept_TC = torch.ones_like(routing.chosen_TC, dtype=torch.bool) if routing.kept_TC is None else routing.kept_TC
    answers_CTD = x_TD.new_zeros(spec.router.top_k, *x_TD.shape)
    for e in range(spec.count):
        names = {n: p[e] for n, p in model.named_parameters(recurse=False)}
        weights = {
            f"{n.removesuffix('_bias')}.{'bias' if n.endswith('bias') else 'weight'}": p for n, p in names.items()
        }
        t, c = ((routing.chosen_TC == e) & kept_TC).nonzero(as_tuple=True)
        alone = FeedForward(x_TD.shape[1], spec.expert).to(x_TD.dtype)
        answers_CTD = answers_CTD.index_put((c, t), torch.func.functional_call(alone, weights, (x_TD[t],)))
    out_TD = (answers_CTD * routing.weights_TC.T[..., None]).sum(0)
    return out_TD if model.shared is None else out_TD + torch.sigmoid(model.shared_gate(x_TD)) * model.shared(x_TD)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_grouped_form_is_the_loop(name, dtype, atol):
    """Values, and gradients of every stacked tensor, also where an expert has no token or turns some away."""
    model, x_TD = drawn(VARIANTS[name], dtype), torch.randn(21, 32, dtype=dtype)
    found, expected = model(x_TD), looped(model, x_TD)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    probe, stacked = torch.randn_like(found), list(model.parameters(recurse=False))
    ours, theirs = (torch.autograd.grad((y * probe).sum(), stacked) for y in (found, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=10 * atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_fused_product_is_that_of_each_expert_to_the_last_bit(dtype):
    counts_E = torch.tensor([4, 0, 9, 1, 7])
    x_PI, weight_EOI = torch.randn(21, 32, dtype=dtype), torch.randn(5, 16, 32, dtype=dtype)
    alone = [x @ weight_OI.T for x, weight_OI in zip(x_PI.split(counts_E.tolist()), weight_EOI, strict=True)]
    assert torch.equal(grouped(x_PI, weight_EOI, None, counts_E), torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sizes", [(32, 16), (33, 16), (32, 15)])
def test_grouped_products_of_any_shape_and_dtype(dtype, sizes):
    """Shapes that the fused product refuses, experts without rows first, in between and last."""
    counts_E, (columns, rows) = torch.tensor([0, 3, 0, 5, 1, 0]), sizes
    x_PI, weight_EOI, bias_EO = (torch.randn(s, dtype=dtype) for s in ((9, columns), (6, rows, columns), (6, rows)))
    found = grouped(x_PI.requires_grad_(), weight_EOI.requires_grad_(), bias_EO.requires_grad_(), counts_E)
    expert = torch.arange(6).repeat_interleave(counts_E)
    expected = torch.stack([F.linear(x, weight_EOI[e], bias_EO[e]) for x, e in zip(x_PI, expert, strict=True)])
    tolerance = {"rtol": 0, "atol": 0.25 if dtype == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(found, expected, **tolerance)
    probe = torch.randn_like(found)
    leaves = (x_PI, weight_EOI, bias_EO)
    for ours, theirs in zip(*(torch.autograd.grad((y * probe).sum(), leaves) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_no_expert_works_for_nothing(monkeypatch):
    """Counted: rows that go through experts are the T * C pairs and no more, whatever the number of experts."""
    rows = []
    monkeypatch.setattr("cutaway.nn.experts.F.linear", lambda x, w, b=None: rows.append(len(x)) or x @ w.T)
    drawn(VARIANTS["idle"], torch.float64)(torch.randn(5, 32, dtype=torch.float64))
    assert sum(rows) == 3 * 5 * 3 + 5  # three matrices, five tokens, three experts each; and the router
    assert 0 not in rows


def test_a_token_in_any_batch_goes_the_same_way():
    model, x_TD = drawn(SPEC, torch.float64), torch.randn(17, 32, dtype=torch.float64)
    together, routing = model(x_TD), model.route(x_TD)
    for t in range(17):
        assert torch.equal(model.route(x_TD[t : t + 1]).chosen_TC[0], routing.chosen_TC[t])
        torch.testing.assert_close(model(x_TD[t : t + 1])[0], together[t], rtol=1e-13, atol=1e-13)


def test_a_router_of_a_bfloat16_model_decides_in_float32():
    router, x_TD = Router(32, 8, RouterSpec(3, "sigmoid", choice_bias=True)).bfloat16(), torch.randn(50, 32).bfloat16()
    routing, same = router(x_TD), router.float()(x_TD.float())
    assert routing.weights_TC.dtype == torch.float32
    assert torch.equal(routing.chosen_TC, same.chosen_TC)
    assert torch.equal(routing.logits_TE, same.logits_TE)


def test_weights_that_have_all_vanished_are_not_divided_by():
    router = Router(4, 6, RouterSpec(2, "sigmoid", bias=True))
    with torch.no_grad():
        router.bias.fill_(-200.0)
    assert torch.equal(router(torch.randn(3, 4)).weights_TC, torch.zeros(3, 2))


# ---- load and its remedies


def routing_of(chosen_TC: list[list[int]], count: int, kept_TC: torch.Tensor | None = None) -> Routing:
    chosen = torch.tensor(chosen_TC)
    even_TE = torch.full((len(chosen), count), 1 / count)
    return Routing(even_TE.log(), even_TE, chosen, torch.full(chosen.shape, 0.5), kept_TC)


def test_the_load_of_known_routings():
    even = load_of(routing_of([[0, 1], [2, 3]], 4))
    assert (even.counts_E, even.busiest, even.idle, even.dropped) == ([1, 1, 1, 1], 1.0, 0, 0.0)
    assert even.entropy == pytest.approx(math.log(4))
    kept_TC = torch.tensor([[True, True], [False, True]])
    worst = load_of(routing_of([[0, 1], [0, 1]], 4, kept_TC))
    assert (worst.counts_E, worst.busiest, worst.idle, worst.dropped) == ([2, 2, 0, 0], 2.0, 2, 0.25)
    assert worst.entropy == pytest.approx(math.log(2))
    assert load_of(routing_of([[0, 1]], 4), routing_of([[0, 2], [0, 3]], 4)).counts_E == [3, 1, 1, 1]


def test_a_perfect_balance_costs_as_much_as_experts_are_chosen():
    assert balance_loss(routing_of([[0, 1], [2, 3]], 4)).item() == pytest.approx(2)
    assert balance_loss(routing_of([[0], [1], [2], [3]], 4)).item() == pytest.approx(1)


def test_the_bias_moves_by_its_speed_against_the_load():
    bias_E = torch.tensor([0.5, 0.0, -0.25, 0.0])
    balance_step(bias_E, torch.tensor([10, 4, 0, 6]), 0.125)  # the mean is 5
    assert bias_E.tolist() == [0.375, 0.125, -0.125, -0.125]


def test_steps_of_the_bias_even_a_load_out():
    """A router that prefers some experts by far, its weights never trained: the bias alone spreads the tokens."""
    router, x_TD = Router(16, 8, RouterSpec(2, "sigmoid", bias=True, choice_bias=True)), torch.randn(512, 16)
    with torch.no_grad():
        router.bias.copy_(torch.linspace(-2, 2, 8))
    before = load_of(router(x_TD))
    for _ in range(400):
        balance_step(router.choice_bias, router(x_TD).counts_E, 0.01)
    after = load_of(router(x_TD))
    assert before.busiest > 2
    assert after.busiest < 1.15


def test_places_in_the_queue():
    chosen_TC = torch.tensor([[0, 1], [0, 2], [1, 0], [0, 1]])
    assert places(chosen_TC).tolist() == [[0, 1], [1, 0], [0, 3], [2, 2]]


def test_every_routing_is_recorded_while_somebody_looks():
    model = torch.nn.Sequential(drawn(SPEC, torch.float32), torch.nn.Tanh(), drawn(SPEC, torch.float32))
    with recorded(model) as found:
        model(torch.randn(5, 32))
        model(torch.randn(2, 32))
    model(torch.randn(3, 32))
    assert {name: [len(r.chosen_TC) for r in made] for name, made in found.items()} == {
        "0.router": [5, 2],
        "2.router": [5, 2],
    }


def test_what_is_recorded_trains_the_router():
    """The balance loss of what was recorded reaches the router's weights, and the logits before it."""
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), drawn(SPEC, torch.float32))
    with recorded(model) as found:
        model(torch.randn(9, 32))
    balance_loss(*found["1.router"]).backward()
    assert model[1].router.weight.grad.abs().sum() > 0
    assert model[0].weight.grad.abs().sum() > 0


# ---- refusals


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("count", {"count": 0}),
        ("router.top_k", {"router": RouterSpec(9)}),
        ("router.top_k", {"router": RouterSpec(0)}),
        ("router.top_k", {"router": RouterSpec(3, groups=4, kept_groups=1)}),
        ("router.groups", {"router": RouterSpec(3, groups=3)}),
        ("router.groups", {"router": RouterSpec(3, groups=0)}),
        ("router.kept_groups", {"router": RouterSpec(3, groups=4, kept_groups=5)}),
        ("router.kept_groups", {"router": RouterSpec(3, groups=4, kept_groups=0)}),
        ("router.group_score", {"router": RouterSpec(3, groups=8, kept_groups=4, group_score="top2")}),
        ("router.group_score", {"router": RouterSpec(3, group_score="best")}),
        ("router.score", {"router": RouterSpec(3, "cosine")}),
        ("shared_gate", {"shared_gate": True}),
        ("capacity", {"capacity": 0.0}),
        ("expert.width", {"expert": FeedForwardSpec(0, "silu", True)}),
        ("expert.activation", {"expert": FeedForwardSpec(4, "swoosh", True)}),
        ("expert.limit", {"expert": FeedForwardSpec(4, "silu", False, limit=7.0)}),
        ("expert.limit", {"expert": FeedForwardSpec(4, "silu", True, limit=0.0)}),
        ("shared.activation", {"shared": FeedForwardSpec(4, "swoosh", True)}),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(field, change):
    with pytest.raises(CutawayError, match=rf"ExpertsSpec\.{field}"):
        replace(SPEC, **change)
