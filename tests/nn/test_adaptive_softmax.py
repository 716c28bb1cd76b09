"""The adaptive softmax against PyTorch's; that it is a distribution; what it saves."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.nn.adaptive_softmax import AdaptiveSoftmax
from kit.proofs import losses as proofs


def test_values_and_gradients_are_those_of_pytorch():
    proofs.adaptive()


def test_probabilities_sum_to_one_and_training_sees_the_same_ones():
    head = AdaptiveSoftmax(16, 50, [4, 20], factor=2).double()
    hidden_TD, targets_T = torch.randn(50, 16, dtype=torch.float64), torch.arange(50)
    log_probs_TV = head.log_probs(hidden_TD)
    torch.testing.assert_close(log_probs_TV.exp().sum(-1), torch.ones(50).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head(hidden_TD, targets_T), log_probs_TV.diagonal(), rtol=1e-12, atol=1e-12)


def test_a_tenth_of_the_tokens_in_a_tail_of_a_quarter_of_the_width():
    """2,000 rows for all, 98,000 rows of a quarter of the width for a tenth: 4.45 % of 100,000 rows, and the way in."""
    width, vocab = 1024, 100_000
    found = AdaptiveSoftmax(width, vocab, [2000]).products([0.1])
    rows = 2000 * width + 0.1 * 98_000 * width / 4
    assert rows / (vocab * width) == pytest.approx(0.0445)
    assert found == rows + width + 0.1 * width * width / 4  # one logit for the cluster, and D -> D/4
    assert vocab * width / found == pytest.approx(22.5, abs=0.2)


def test_only_clusters_that_are_asked_compute():
    head, seen = AdaptiveSoftmax(8, 30, [10, 20], factor=2), []
    for tail in head.tails:
        tail.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    head(torch.randn(5, 8), torch.tensor([3, 25, 9, 11, 29]))
    assert seen == [1, 2]


@pytest.mark.parametrize("cutoffs", [[], [0], [5, 5], [9, 5], [30], [5, 31]])
def test_cutoffs_that_do_not_rise_are_refused(cutoffs):
    with pytest.raises(CutawayError, match="must rise between 0 and the vocabulary of 30"):
        AdaptiveSoftmax(8, 30, cutoffs)


def test_a_cluster_without_dimensions_and_a_token_beyond_the_last_are_refused():
    with pytest.raises(CutawayError, match="no dimension of 8 for cluster 2"):
        AdaptiveSoftmax(8, 30, [10, 20])
    with pytest.raises(CutawayError, match=r"outside 0 \.\.\. 29"):
        AdaptiveSoftmax(8, 30, [10])(torch.zeros(1, 8), torch.tensor([30]))
