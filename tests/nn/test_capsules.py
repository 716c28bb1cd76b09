"""Routing by agreement against a loop that spells out the paper's procedure."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.nn.capsules import CapsulePooling, route, squash
from kit.proofs import losses as proofs


def test_routing_is_the_papers_procedure():
    proofs.capsules()


def test_attention_pooling_is_attention_with_one_query():
    proofs.attention_pooling()


def test_a_squashed_vector_keeps_its_direction_and_is_shorter_than_one():
    x_NJK = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    out_NJK = squash(x_NJK)
    assert out_NJK[0].norm(dim=-1).tolist() == pytest.approx([25 / 26, 0.25 / 1.25, 0])
    assert (out_NJK[0, 0] / out_NJK[0, 0].norm()).tolist() == pytest.approx([0.6, 0.8])
    out_NJK.sum().backward()
    assert x_NJK.grad.isfinite().all()


def test_weights_sum_to_one_over_parents_and_follow_agreement():
    """Two tokens agree on parent 0, each has its own view of parent 1: the voices move to parent 0."""
    votes_TJK = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]]) * 3
    shares = [route(votes_TJK, [2], rounds)[1] for rounds in (1, 2, 5)]
    for weights_TJ in shares:
        torch.testing.assert_close(weights_TJ.sum(-1), torch.ones(2))
    assert shares[0].tolist() == [[0.5, 0.5]] * 2
    assert 0.5 < shares[1][0, 0] < shares[2][0, 0]


def test_sequences_are_blind_to_each_other():
    pooling, x_TD = CapsulePooling(6, 3, 4), torch.randn(9, 6)
    together = pooling(x_TD, [4, 5])
    alone = torch.cat([pooling(x_TD[:4], [4]), pooling(x_TD[4:], [5])])
    torch.testing.assert_close(together, alone)


def test_routing_takes_a_round():
    with pytest.raises(CutawayError, match="rounds: must be at least 1"):
        route(torch.zeros(2, 2, 2), [2], 0)
