"""An embedding layer is a product with one-hot rows that nobody computes: values, gradients, what starts where."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cutaway.labs.training import Batch, fresh, loss_of, small_spec
from cutaway.nn.embedding import Embedding, EmbeddingSpec
from cutaway.nn.losses import cross_entropy

TOKENS_T = torch.tensor([3, 8, 3, 0, 3])


def embedding() -> Embedding:
    torch.manual_seed(0)
    return Embedding(9, 4, EmbeddingSpec()).double()


def test_looking_up_is_multiplying_by_one_hot_rows():
    layer = embedding()
    assert torch.equal(layer(TOKENS_T, torch.arange(5)), F.one_hot(TOKENS_T, 9).double() @ layer.tokens.weight)


def test_the_gradient_is_a_scatter_add_of_upstream_rows():
    layer, upstream_TD = embedding(), torch.randn(5, 4, dtype=torch.float64)
    layer(TOKENS_T, torch.arange(5)).backward(upstream_TD)
    expected_VD = torch.zeros(9, 4, dtype=torch.float64)
    for token, row_D in zip(TOKENS_T.tolist(), upstream_TD, strict=True):
        expected_VD[token] += row_D
    torch.testing.assert_close(layer.tokens.weight.grad, expected_VD, rtol=1e-12, atol=1e-12)
    unused = [token for token in range(9) if token not in Counter(TOKENS_T.tolist())]
    assert layer.tokens.weight.grad[unused].abs().max() == 0


def test_the_gradient_by_finite_differences():
    layer = embedding()
    names = dict(layer.named_parameters())

    def through(table_VD: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"tokens.weight": table_VD}, (TOKENS_T, torch.arange(5))).tanh()

    assert torch.autograd.gradcheck(through, names["tokens.weight"].detach().requires_grad_(True), atol=1e-8)


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_reaches_every_row_an_untied_one_only_those_used(tied: bool) -> None:
    spec = small_spec(vocab=31, width=16, layers=1)
    model = fresh(replace(spec, head=replace(spec.head, tied=tied)), 0)
    loss_of(model, Batch(TOKENS_T[:-1], TOKENS_T[1:], [4])).backward()
    touched = model.embedding.tokens.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist()
    assert touched == (list(range(31)) if tied else [0, 3, 8])


@pytest.mark.parametrize("std", [0.5, 1.0])
def test_the_first_loss_is_the_logarithm_of_the_vocabulary_and_half_the_variance_of_the_logits(std: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = std * torch.randn(64, 50_000, generator=generator)
    targets_T = torch.randint(50_000, (64,), generator=generator)
    loss = float(cross_entropy(logits_TV, targets_T).mean() + logits_TV.gather(-1, targets_T[:, None]).mean())
    assert loss == pytest.approx(math.log(50_000) + std**2 / 2, abs=2e-3)
