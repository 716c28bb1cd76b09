"""Attention in tiles and softmax in pieces; the proofs compare with PyTorch, here is what else must hold."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.nn.flash import Tile, Traffic, flash, naive
from cutaway.nn.patterns import Everything
from kit.proofs.attention_forms import PROOFS


@pytest.mark.parametrize("name", [name for name in PROOFS if name.split()[0] == "flash"])
def test_tiles_change_nothing_but_the_traffic(name):
    PROOFS[name]()


@pytest.mark.parametrize("name", [name for name in PROOFS if name.split()[0] == "softmax"])
def test_a_softmax_in_pieces_is_a_softmax(name):
    PROOFS[name]()


def test_more_memory_on_the_chip_means_proportionally_less_traffic():
    """Theorem 2 of the paper: n^2 d^2 / M numbers, here as doublings of n, d and M. Formulas for long sequences."""

    def moved(n: int, d: int, memory: int) -> float:
        rows = Tile.fitting(memory, d).rows
        return 2 * n * d + n + 2 * n * d * n / rows

    n, d, memory = 2**20, 64, 2**16
    assert moved(2 * n, d, memory) / moved(n, d, memory) == pytest.approx(4, rel=0.01)
    assert moved(n, 2 * d, memory) / moved(n, d, memory) == pytest.approx(4, rel=0.25)
    assert moved(n, d, 2 * memory) / moved(n, d, memory) == pytest.approx(1 / 2, rel=0.1)


def test_naive_traffic_of_4096_tokens_is_130_mib():
    """Four passes over an n x n matrix in 16 bit, and q, k, v and the output once."""
    q, k, v = (torch.zeros(512, 1, 64, dtype=torch.float16) for _ in range(3))
    traffic = Traffic()
    naive(q, k, v, scale=0.125, rule=Everything(), traffic=traffic)
    n, d = 512, 64
    assert traffic.read + traffic.written == 4 * n * n + 4 * n * d
    n = 4096
    assert (4 * n * n + 4 * n * d) * 2 == 130 * 2**20
    assert 4 * n * d * 2 == 2 * 2**20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_accumulates_in_single(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(300, 2, 16, generator=generator).to(dtype).requires_grad_(True) for _ in range(3))
    found = flash(q, k, v, scale=0.25)
    exact = flash(*(x.detach().double().requires_grad_(True) for x in (q, k, v)), scale=0.25)
    assert found.out_QHV.dtype == dtype
    assert found.logsumexp_QH.dtype == torch.float32
    rounding = torch.finfo(dtype).eps * exact.out_QHV.abs().max()
    assert (found.out_QHV - exact.out_QHV).abs().max() < 2 * rounding
    assert (found.logsumexp_QH - exact.logsumexp_QH).abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(found.out_QHV.float().sum(), k)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("memory", [100, 257])
def test_a_chip_that_holds_nothing_is_refused(memory):
    with pytest.raises(CutawayError, match="does not hold a row and a key of width 64"):
        Tile.fitting(memory, 64)


def test_heads_that_do_not_share_evenly_are_refused():
    q, k = torch.zeros(2, 5, 4), torch.zeros(2, 2, 4)
    with pytest.raises(CutawayError, match="2 key/value heads do not divide 5"):
        flash(q, k, k, scale=1.0)


def test_empty_tiles_are_refused():
    with pytest.raises(CutawayError, match="at least 1 row and 1 key"):
        Tile(0, 4)
