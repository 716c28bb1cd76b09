"""Cross-entropy and its chunked form, KL divergence: against PyTorch's, by finite differences, and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cutaway.errors import CutawayError
from cutaway.nn.losses import IGNORED, cross_entropy, linear_cross_entropy, mean_loss
from kit.proofs import losses as proofs


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_value_and_gradient_are_those_of_pytorch(z_loss):
    proofs.plain(z_loss)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_give_what_the_whole_gives(bias, softcap, z_loss):
    proofs.chunked(bias, softcap, z_loss)


def test_gradient_is_what_was_said_minus_what_is_true():
    logits_TV = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets_T = torch.tensor([0, 6, 3, 3, 1])
    cross_entropy(logits_TV, targets_T).sum().backward()
    torch.testing.assert_close(logits_TV.grad, logits_TV.softmax(-1) - F.one_hot(targets_T, 7), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets_T, 0.1), logits_TV, atol=1e-8)


def test_logits_beyond_the_range_of_exp():
    logits_TV = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], dtype=torch.float64)
    found_T = linear_cross_entropy(torch.eye(2).double(), logits_TV.T, torch.tensor([1, 1]))
    assert found_T.tolist() == cross_entropy(logits_TV, torch.tensor([1, 1])).tolist() == [1000.0, 0.0]


def test_only_what_wants_a_gradient_gets_one():
    hidden_TD, table_VD = torch.randn(5, 3), torch.randn(7, 3)
    targets_T = torch.tensor([1, 2, IGNORED, 0, 6])
    for trained, frozen in ((hidden_TD, table_VD), (table_VD, hidden_TD)):
        trained.requires_grad_(True)
        mean_loss(linear_cross_entropy(hidden_TD, table_VD, targets_T, chunk=2), targets_T).backward()
        assert trained.grad is not None
        assert frozen.grad is None
        trained.requires_grad_(False).grad = None


def test_ignored_rows_get_no_gradient_and_may_be_all():
    hidden_TD, table_VD = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    losses_T = linear_cross_entropy(hidden_TD, table_VD, torch.tensor([IGNORED, 2, IGNORED]))
    losses_T.sum().backward()
    assert losses_T[[0, 2]].tolist() == [0, 0]
    assert hidden_TD.grad.abs().sum(-1).ne(0).tolist() == [False, True, False]
    nothing_T = torch.full((3,), IGNORED)
    assert linear_cross_entropy(hidden_TD, table_VD, nothing_T).tolist() == [0, 0, 0]
    assert mean_loss(linear_cross_entropy(hidden_TD, table_VD, nothing_T), nothing_T).isnan()


def test_bfloat16_is_summed_in_float32():
    """Against float64 on the same rounded numbers: the loss to float32's rounding, the gradient to bfloat16's."""
    generator = torch.Generator().manual_seed(0)
    hidden_TD, table_VD = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((300, 16), (50, 16)))
    targets_T = torch.randint(50, (300,), generator=generator)
    narrow, exact = table_VD.clone().requires_grad_(True), table_VD.double().requires_grad_(True)
    for table, hidden in ((narrow, hidden_TD), (exact, hidden_TD.double())):
        linear_cross_entropy(hidden, table, targets_T, chunk=1).sum().backward()
    assert narrow.grad.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.grad.double(), exact.grad, rtol=2**-6, atol=2**-4)


def test_uniform_guesses_cost_the_logarithm_of_the_vocabulary():
    for vocab, nats in ((49_152, 10.803), (50_257, 10.825), (128_256, 11.762)):
        loss_T = cross_entropy(torch.zeros(1, vocab), torch.tensor([7]))
        assert loss_T.item() == pytest.approx(math.log(vocab), abs=1e-4) == pytest.approx(nats, abs=5e-4)


@pytest.mark.parametrize(
    ("targets", "said"), [([0, 7], "outside 0 ... 6"), ([0, -1], "outside 0 ... 6"), ([0], r"\[1\] targets for 2 rows")]
)
def test_targets_that_make_no_sense_are_refused(targets, said):
    for loss in (
        lambda t: cross_entropy(torch.zeros(2, 7), t),
        lambda t: linear_cross_entropy(torch.zeros(2, 3), torch.zeros(7, 3), t),
    ):
        with pytest.raises(CutawayError, match=said):
            loss(torch.tensor(targets))


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(CutawayError, match="chunk: must be at least 1"):
        linear_cross_entropy(torch.zeros(2, 3), torch.zeros(7, 3), torch.tensor([0, 1]), chunk=0)


def test_divergence_and_its_estimators():
    proofs.divergence()
