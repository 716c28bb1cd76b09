"""Initialization against torch.nn.init and the tables of the papers; probes against products of matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.labs.training import small_spec
from cutaway.models.build import build
from cutaway.nn.heads import HeadSpec
from cutaway.nn.init import SCHEMES, initialize, matrices, mup_groups, role
from cutaway.nn.probes import scales
from kit.proofs.norms import PROOFS


@pytest.mark.parametrize("name", [name for name in PROOFS if name.split()[0] in ("init", "mup", "probe")])
def test_proofs(name):
    PROOFS[name]()


def test_published_values():
    """Xavier and Kaiming from 512 to 2,048 features; GPT-2's residual projections."""
    linear = torch.nn.Linear(512, 2048, bias=False)
    (matrix,) = matrices(linear)
    assert SCHEMES["xavier"](matrix, 0.02) == pytest.approx(0.02795, abs=5e-6)
    assert SCHEMES["kaiming"](matrix, 0.02) == 0.0625
    gpt2 = matrix._replace(role="residual", writers=24)
    assert SCHEMES["depth"](gpt2, 0.02) == pytest.approx(0.00408, abs=5e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedding.tokens.weight", "embedding"),
        ("encoder.embedding.positions.weight", "embedding"),
        ("position_bias.table.weight", "embedding"),
        ("layers.3.attention.out.weight", "residual"),
        ("layers.3.attention.kv_down.weight", "hidden"),
        ("layers.3.cross.out.weight", "residual"),
        ("layers.3.ffn.down", "residual"),
        ("layers.3.ffn.shared.down.weight", "residual"),
        ("layers.3.ffn.up.weight", "hidden"),
        ("head.weight", "head"),
        ("head.dense.weight", "hidden"),
    ],
)
def test_roles(name, expected):
    assert role(name) == expected


def test_a_stack_of_experts_is_drawn_by_its_last_two_axes():
    experts = torch.nn.Module()
    experts.up = torch.nn.Parameter(torch.zeros(5, 64, 400))
    experts.up_bias = torch.nn.Parameter(torch.ones(5, 64))
    initialize(experts, "lecun", torch.Generator().manual_seed(0))
    assert float(experts.up.detach().std()) == pytest.approx(0.05, rel=0.02)
    assert not experts.up_bias.any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_seed_fixes_the_numbers(scheme):
    models = [build(small_spec(width=32)) for _ in range(2)]
    for model in models:
        initialize(model, scheme, torch.Generator().manual_seed(0), base=models[0])
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(mine, other)


def test_what_cannot_be_is_refused():
    tied = build(replace(small_spec(width=32), head=HeadSpec(tied=True)))
    with pytest.raises(CutawayError, match="known: normal"):
        initialize(tied, "glorot")
    with pytest.raises(CutawayError, match="head of its own"):
        initialize(tied, "mup", base=tied)
    with pytest.raises(CutawayError, match="head of its own"):
        mup_groups(tied, tied, 0.1)


def test_a_probe_that_fails_leaves_no_hook():
    linear = torch.nn.Linear(4, 4)
    with pytest.raises(ZeroDivisionError):
        scales([linear], lambda: 1 / 0)
    assert not linear._forward_hooks
