"""Norms against PyTorch's own, written by others, and against transformers where rounding matters."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.nn.norms import NormSpec, make_norm
from kit.proofs import PROOFS
from kit.proofs.norms import PROOFS as NORM_PROOFS


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


@pytest.mark.parametrize("name", [name for name in NORM_PROOFS if "norm" in name])
def test_batch_norm_and_norms_without_bias(name):
    NORM_PROOFS[name]()


def test_batch_norm_takes_the_heads_of_all_tokens_together():
    x_THK = drawn(6, 3, 8)
    norm = make_norm(NormSpec("batch", 1e-9), 8).double()
    torch.testing.assert_close(norm(x_THK).mean((0, 1)), torch.zeros(8).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(norm(x_THK).var((0, 1), correction=0), torch.ones(8).double())


def test_one_token_has_no_variance():
    norm = make_norm(NormSpec("batch", 1e-5), 8)
    with pytest.raises(CutawayError, match="no variance"):
        norm(torch.ones(1, 8))
    assert norm.eval()(torch.ones(1, 8)).shape == (1, 8)


def test_without_a_spec_nothing_is_normalized():
    x_TD = drawn(5, 24)
    assert make_norm(None, 24)(x_TD) is x_TD
