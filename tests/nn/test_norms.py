"""Norms against PyTorch's own, written by others, and against transformers where rounding matters."""

from __future__ import annotations

import pytest
import torch

from cutaway.nn.norms import NormSpec, make_norm
from kit.proofs import PROOFS


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize(("kind", "reference"), [("rms", torch.nn.RMSNorm), ("layer", torch.nn.LayerNorm)])
def test_values_and_gradients_are_those_of_pytorch(kind, reference, eps):
    x_TD, probe_TD = drawn(7, 24), drawn(7, 24, seed=1)
    x_TD[3] *= 1e-3  # a row so small that eps decides
    ours, theirs = make_norm(NormSpec(kind, eps), 24).double(), reference(24, eps=eps).double()
    ours.load_state_dict({name: drawn(24, seed=2 + i) for i, name in enumerate(theirs.state_dict())})
    theirs.load_state_dict(ours.state_dict())
    results = []
    for norm in (ours, theirs):
        x = x_TD.clone().requires_grad_(True)
        out = norm(x)
        (out * probe_TD).sum().backward()
        results.append([out, x.grad, *(p.grad for p in norm.parameters())])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_unit_offset_stores_the_distance_from_one():
    plain, offset = make_norm(NormSpec("rms", 1e-6), 24).double(), make_norm(NormSpec("rms", 1e-6, True), 24).double()
    weight_D, x_TD = drawn(24), drawn(5, 24, seed=1)
    plain.load_state_dict({"weight": weight_D})
    offset.load_state_dict({"weight": weight_D - 1})
    torch.testing.assert_close(plain(x_TD), offset(x_TD))


@pytest.mark.parametrize("unit_offset", [False, True])
def test_a_fresh_norm_leaves_the_scale_to_its_weight(unit_offset):
    x_TD = make_norm(NormSpec("rms", 1e-9, unit_offset), 24)(drawn(5, 24).float())
    torch.testing.assert_close(x_TD.pow(2).mean(-1), torch.ones(5))


def test_bfloat16_rounds_where_transformers_rounds():
    PROOFS["bfloat16 norms"]()
