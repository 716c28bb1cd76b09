"""Mixtures of experts against the blocks of transformers, values and gradients, every tensor drawn anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from cutaway.nn.balance import balance_loss, balance_step, load_of, recorded, z_loss
from cutaway.nn.experts import Experts, ExpertsSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.routing import Router, RouterSpec
from kit.precision import all_float64
from kit.proofs.models import agree, bound
from kit.twins import make_loud

TOKENS, WIDTH, HIDDEN, COUNT, CHOSEN = 29, 20, 13, 12, 3
SHAPES = {
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "moe_intermediate_size": HIDDEN,
    "num_local_experts": COUNT,
    "num_experts": COUNT,
    "n_routed_experts": COUNT,
    "num_experts_per_tok": CHOSEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERT, SHARED = FeedForwardSpec(HIDDEN, "silu", gated=True), FeedForwardSpec(2 * HIDDEN, "silu", gated=True)
GROUPS = {"n_group": 4, "topk_group": 2}


@dataclass(frozen=True)
class Case:
    """A block of transformers, its settings, and the same in our words."""

    block: type[nn.Module]
    config: str
    settings: dict[str, Any]
    spec: ExpertsSpec


CASES = {
    "mixtral": Case(MixtralSparseMoeBlock, "MixtralConfig", {}, ExpertsSpec(COUNT, RouterSpec(CHOSEN), EXPERT)),
    "qwen2": Case(
        Qwen2MoeSparseMoeBlock,
        "Qwen2MoeConfig",
        {"norm_topk_prob": False, "shared_expert_intermediate_size": 2 * HIDDEN},
        ExpertsSpec(COUNT, RouterSpec(CHOSEN, normalize=False), EXPERT, SHARED, shared_gate=True),
    ),
    "qwen3": Case(
        Qwen3MoeSparseMoeBlock,
        "Qwen3MoeConfig",
        {"norm_topk_prob": True, "hidden_act": "gelu"},
        ExpertsSpec(COUNT, RouterSpec(CHOSEN), FeedForwardSpec(HIDDEN, "gelu", gated=True)),
    ),
    "deepseek2": Case(
        DeepseekV2Moe,
        "DeepseekV2Config",
        {"topk_method": "group_limited_greedy", "routed_scaling_factor": 2.5, "n_shared_experts": 2, **GROUPS},
        ExpertsSpec(COUNT, RouterSpec(CHOSEN, "softmax", False, 2.5, 4, 2, "max"), EXPERT, SHARED),
    ),
    "deepseek3": Case(
        DeepseekV3MoE,
        "DeepseekV3Config",
        {"routed_scaling_factor": 2.5, "n_shared_experts": 2, "norm_topk_prob": True, **GROUPS},
        ExpertsSpec(COUNT, RouterSpec(CHOSEN, "sigmoid", True, 2.5, 4, 2, "top2", choice_bias=True), EXPERT, SHARED),
    ),
    "gpt_oss": Case(
        GptOssMLP,
        "GptOssConfig",
        {},
        ExpertsSpec(
            COUNT, RouterSpec(CHOSEN, bias=True), FeedForwardSpec(HIDDEN, "quick_gelu", True, bias=True, limit=7.0)
        ),
    ),
}

OURS = {  # names of transformers -> ours, where the tensor is the same
    "gate.weight": "router.weight",
    "router.weight": "router.weight",
    "router.bias": "router.bias",
    "gate.e_score_correction_bias": "router.choice_bias",
    "experts.down_proj": "down",
    "experts.down_proj_bias": "down_bias",
    "shared_expert_gate.weight": "shared_gate.weight",
    **{
        f"{shared}.{part}_proj.weight": f"shared.{part}.weight"
        for shared in ("shared_expert", "shared_experts")
        for part in ("gate", "up", "down")
    },
}


def translated(name: str, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, or gradients, under our names; gpt-oss keeps matrices as [in, out], gate and up in turns."""
    found = {OURS[n]: t for n, t in theirs.items() if n in OURS}
    for n in {n for n in theirs if "gate_up" in n}:
        tail = "_bias" if n.endswith("bias") else ""
        halves = (theirs[n][..., ::2], theirs[n][..., 1::2]) if name == "gpt_oss" else theirs[n].chunk(2, 1)
        for ours, half in zip(("gate", "up"), halves, strict=True):
            found[ours + tail] = half.transpose(1, 2) if name == "gpt_oss" and not tail else half
    if name == "gpt_oss":
        found["down"] = found["down"].transpose(1, 2)
    return found


@cache
def reference(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Their tensors, the input, the weights of the outputs in a scalar, the outputs, and that scalar's gradients."""
    case, generator = CASES[name], torch.Generator().manual_seed(5)
    with all_float64():
        torch.manual_seed(0)
        config = getattr(transformers, case.config)(**SHAPES, **case.settings, experts_implementation="eager")
        block = case.block(config)
        make_loud(block)
        for buffer in block.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / 2 - 0.6)  # so that some are below zero
        x_TD, probe_TD = torch.randn(2, TOKENS, WIDTH, generator=generator)
        if name == "gpt_oss":
            x_TD *= 4  # so that many a gate and many an unit reach the limit
        x_TD.requires_grad_()
        out = block(x_TD[None])
        out_TD = (out[0] if isinstance(out, tuple) else out)[0] if name == "gpt_oss" else out[0]
        (out_TD * probe_TD).sum().backward()
        state = {n: t.detach() for n, t in block.state_dict().items()}
        gradients = {n: p.grad for n, p in block.named_parameters()}
    return state, x_TD, probe_TD, out_TD.detach(), gradients  # type: ignore[return-value]


def block(name: str) -> float:
    """Values, and gradients of the input and of every tensor that has one."""
    state, x_TD, probe_TD, expected_TD, gradients = reference(name)
    ours = Experts(WIDTH, CASES[name].spec).double()
    ours.load_state_dict(translated(name, state))
    entered_TD = x_TD.detach().clone().requires_grad_()
    out_TD = ours(entered_TD)
    worst = agree([out_TD], [expected_TD], bound(torch.float64))
    (out_TD * probe_TD).sum().backward()
    expected = {**translated(name, gradients), "x": x_TD.grad}
    found = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None} | {"x": entered_TD.grad}
    assert set(found) == set(expected), f"only one side has a gradient of {sorted(set(found) ^ set(expected))}"
    return max(worst, agree([found[n] for n in found], [expected[n] for n in found], bound(torch.float64)))  # type: ignore[misc]


def capacity() -> float:
    """Tokens queue before their experts, all first choices before all second ones; who finds no room gets nothing.

    The reference is the queue itself, one token at a time: transformers' Switch router of version 5 counts along an
    axis of length one and turns nobody away.
    """
    room = -(-TOKENS * CHOSEN * 2 // (3 * COUNT))
    ours = Experts(WIDTH, replace(CASES["mixtral"].spec, capacity=2 / 3)).double()
    make_loud(ours)
    x_TD = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(5)).double()
    logits_TE = x_TD @ ours.router.weight.T
    best_TC, taken, turned_away = logits_TE.argsort(1, descending=True)[:, :CHOSEN], [0] * COUNT, 0
    out_TD = torch.zeros_like(x_TD)
    for rank in range(CHOSEN):
        for t, x_D in enumerate(x_TD):
            e = int(best_TC[t, rank])
            taken[e] += 1
            turned_away += taken[e] > room
            if taken[e] <= room:
                share = logits_TE[t, best_TC[t]].softmax(0)[rank]
                made_F = torch.nn.functional.silu(ours.gate[e] @ x_D) * (ours.up[e] @ x_D)  # type: ignore[index]
                out_TD[t] += share * (ours.down[e] @ made_F)
    assert 0 < turned_away < TOKENS * CHOSEN / 2, "the case must turn some away"
    found = load_of(ours.route(x_TD))
    assert found.counts_E == taken, f"{found.counts_E} tokens ask for the experts, by definition {taken}"
    assert math.isclose(found.dropped, turned_away / (TOKENS * CHOSEN)), f"{found.dropped} of the choices dropped"
    return agree([ours(x_TD)], [out_TD], bound(torch.float64))


def losses() -> float:
    """Switch's balance loss and its z-loss; and the balance loss of transformers' Mixtral, of two layers at once."""
    x_TD = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(5)).double() * 3
    one = Router(WIDTH, COUNT, RouterSpec(1)).double()(x_TD)
    several = [Router(WIDTH, COUNT, RouterSpec(CHOSEN)).double()(x_TD[i:]) for i in (0, 9)]
    leaves = [r.logits_TE.detach().requires_grad_() for r in (one, *several)]
    with all_float64():
        expected: list[Any] = [
            switch.load_balancing_loss_func(leaves[0][None].softmax(-1), leaves[0][None].argmax(-1)),
            switch.router_z_loss_func(leaves[0][None]),
            load_balancing_loss_func(tuple(leaves[1:]), COUNT, CHOSEN),
        ]
        wanted = torch.autograd.grad(torch.stack(expected).sum(), leaves)
    found = [balance_loss(one), z_loss(one), balance_loss(*several)]
    gradients = torch.autograd.grad(torch.stack(found).sum(), [r.logits_TE for r in (one, *several)])
    return agree([torch.stack(found), *gradients], [torch.stack(expected), *wanted], 1e-12)


def bias_step() -> float:
    """The update of Wang et al. 2024, algorithm 1, an expert at a time: the error is the mean load less its own."""
    bias_E, counts = torch.randn(COUNT, generator=torch.Generator().manual_seed(5)).double(), [*range(0, 6 * COUNT, 6)]
    counts[3] = sum(counts) // COUNT
    expected = []
    for bias, count in zip(bias_E.tolist(), counts, strict=True):
        error = sum(counts) / COUNT - count
        expected.append(bias + 0.01 * (error > 0) - 0.01 * (error < 0))
    balance_step(bias_E, torch.tensor(counts), 0.01)
    return agree([bias_E], [torch.tensor(expected, dtype=torch.float64)], 1e-15)


def recomputed() -> float:
    """Two batches of one optimizer step, the layer computed again in the backward pass: each token counts once.

    Against the same step without recomputation: counts, the bias after it, gradients with the balance loss in them.
    """
    batches = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(5)).double()
    ways: list[Callable[..., Any]] = [
        lambda layer, x_TD: layer(x_TD),
        partial(checkpoint, use_reentrant=False),
        partial(checkpoint, use_reentrant=True),
    ]
    plain, again, reentrant = (_stepped(way, batches) for way in ways)
    assert plain[0] == again[0] == reentrant[0], f"counts {plain[0]}, recomputed {again[0]} and {reentrant[0]}"
    assert sum(plain[0]) == 2 * TOKENS * CHOSEN, f"{sum(plain[0])} choices of {2 * TOKENS * CHOSEN}"
    return agree([*again[1], reentrant[1][0]], [*plain[1], plain[1][0]], 1e-14)


def _stepped(way: Callable[..., Any], batches: Tensor) -> tuple[list[int], list[Tensor]]:
    """Counts of a step; the choice bias after it, and the gradients."""
    ours = Experts(WIDTH, CASES["deepseek3"].spec).double()
    make_loud(ours)
    loss = batches.new_zeros(())
    with recorded(ours) as found:
        for x_TD in batches:
            loss = loss + way(ours, x_TD.requires_grad_()).square().sum()
        assert len(found["router"]) == len(batches), f"{len(found['router'])} routings of {len(batches)} batches"
        loss = loss + balance_loss(*found["router"])
        loss.backward()
    counts_E = torch.stack([r.counts_E for r in found["router"]]).sum(0)
    assert ours.router.choice_bias is not None
    balance_step(ours.router.choice_bias, counts_E, 0.01)
    gradients = [p.grad for p in ours.parameters() if p.grad is not None]
    return counts_E.tolist(), [ours.router.choice_bias.detach(), *gradients]


PROOFS: dict[str, Callable[[], float]] = {f"experts {name}": partial(block, name) for name in CASES} | {
    "experts capacity": capacity,
    "experts losses": losses,
    "experts bias": bias_step,
    "experts recomputed": recomputed,
}
