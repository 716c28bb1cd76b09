"""What enters the first block."""

from __future__ import annotations

import torch

from cutaway.nn.embedding import Embedding, EmbeddingSpec
from cutaway.nn.norms import NormSpec


def test_rows_are_scaled_and_summed_and_normalized():
    torch.manual_seed(0)
    embedding = Embedding(9, 4, EmbeddingSpec(positions=6, types=2, scale=3.0, norm=NormSpec("layer", 1e-3))).double()
    tokens_T, positions_T = torch.tensor([8, 0, 8]), torch.tensor([5, 0, 1])
    rows = {name: p.detach() for name, p in embedding.named_parameters()}
    sum_TD = 3 * rows["tokens.weight"][tokens_T] + rows["positions.weight"][positions_T] + rows["types.weight"][0]
    centered_TD = sum_TD - sum_TD.mean(-1, keepdim=True)
    expected_TD = centered_TD / (centered_TD.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(embedding(tokens_T, positions_T), expected_TD)


def test_the_scale_is_rounded_to_the_dtype_as_gemma_was_trained():
    embedding = Embedding(9, 4, EmbeddingSpec(scale=640**0.5)).bfloat16()
    found = embedding(torch.arange(9), torch.arange(9))
    assert torch.equal(found, embedding.tokens.weight * torch.tensor(25.25, dtype=torch.bfloat16))
