"""Attention against the definition, written as loops, and against its own softmax written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cutaway.nn.attention import AttentionSpec, BlockDiagonal, Question, attend, attention_weights, visible
from kit.proofs.questions import PROOFS

CPU = torch.device("cpu")
SPEC = AttentionSpec(heads=6, kv_heads=2, head_dim=5, scale=0.3)


def asked(spec: AttentionSpec) -> Question:
    return Question(spec.scale, spec.causal, spec.window)


MASKS = [(True, None), (True, 3), (True, 1), (False, None), (False, 3), (True, 50)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(q_QHK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Each query alone: which keys may it see, what are their shares, what do they say."""
    queries, keys, group = len(q_QHK), len(k_SGK), spec.heads // spec.kv_heads
    out_QHK = torch.zeros_like(q_QHK)
    for i in range(queries):
        at = keys - queries + i
        seen = [s for s in range(keys) if (s <= at or not spec.causal) and abs(at - s) < (spec.window or math.inf)]
        for h in range(spec.heads):
            shares = torch.stack([q_QHK[i, h] @ k_SGK[s, h // group] * spec.scale for s in seen]).exp()
            shares = shares / shares.sum()
            out_QHK[i, h] = sum(p * v_SGK[s, h // group] for p, s in zip(shares, seen, strict=True))
    return out_QHK


@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7), (1, 1)])
def test_attend_is_the_definition(causal, window, queries, keys):
    spec = replace(SPEC, causal=causal, window=window)
    q_QHK, k_SGK, v_SGK = drawn(queries, 6, 5), drawn(keys, 2, 5, seed=1), drawn(keys, 2, 5, seed=2)
    out_BHQK = attend(
        q_QHK.transpose(0, 1)[None], k_SGK.transpose(0, 1)[None], v_SGK.transpose(0, 1)[None], asked(spec)
    )
    expected = by_definition(q_QHK, k_SGK, v_SGK, spec)
    torch.testing.assert_close(out_BHQK[0].transpose(0, 1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_the_softmax_written_out_gives_the_same(causal, window):
    spec = replace(SPEC, causal=causal, window=window)
    q_QHK, k_SGK, v_SGK = drawn(4, 6, 5), drawn(7, 2, 5, seed=1), drawn(7, 2, 5, seed=2)
    weights_HQS = attention_weights(q_QHK.transpose(0, 1), k_SGK.transpose(0, 1), asked(spec))
    torch.testing.assert_close(weights_HQS.sum(-1), torch.ones(6, 4, dtype=torch.float64))
    out_QHK = torch.einsum("hqs,shk->qhk", weights_HQS, v_SGK.repeat_interleave(3, dim=1))
    torch.testing.assert_close(out_QHK, by_definition(q_QHK, k_SGK, v_SGK, spec), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [[4, 1, 6], [5, 5], [1, 1, 1], [7]])
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_sequences_of_a_ragged_batch_are_blind_to_each_other(lengths, causal, window):
    spec, total = replace(SPEC, causal=causal, window=window), sum(lengths)
    q_THK, k_TGK, v_TGK = drawn(total, 6, 5), drawn(total, 2, 5, seed=1), drawn(total, 2, 5, seed=2)
    out = BlockDiagonal(lengths).attend(0, q_THK, k_TGK, v_TGK, asked(spec)).split(lengths)
    alone = zip(*(t.split(lengths) for t in (q_THK, k_TGK, v_TGK)), strict=True)
    for found, (q, k, v) in zip(out, alone, strict=True):
        torch.testing.assert_close(found, by_definition(q, k, v, spec), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_definition():
    spec, lengths = replace(SPEC, window=3), [4, 2, 5]
    inputs = [drawn(11, 6, 5), drawn(11, 2, 5, seed=1), drawn(11, 2, 5, seed=2)]
    probe = drawn(11, 6, 5, seed=3)
    leaves = [[x.clone().requires_grad_(True) for x in inputs] for _ in range(2)]
    (BlockDiagonal(lengths).attend(0, *leaves[0], asked(spec)) * probe).sum().backward()
    alone = zip(*(t.split(lengths) for t in leaves[1]), strict=True)
    (torch.cat([by_definition(q, k, v, spec) for q, k, v in alone]) * probe).sum().backward()
    for mine, other in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-11, atol=1e-11)


def test_prefixes_of_a_ragged_batch_are_each_sequence_s_own():
    lengths, prefixes, question = [5, 3], [3, 0], Question(0.3)
    q, k, v = drawn(8, 6, 5), drawn(8, 2, 5, seed=1), drawn(8, 2, 5, seed=2)
    found = BlockDiagonal(lengths, prefixes=prefixes).attend(0, q, k, v, question).split(lengths)
    rows = zip(*(t.transpose(0, 1).split(lengths, 1) for t in (q, k, v)), prefixes, found, strict=True)
    for q_HQK, k_GSK, v_GSK, prefix, out in rows:
        expected = attend(q_HQK[None], k_GSK[None], v_GSK[None], question, prefix)[0]
        torch.testing.assert_close(out.transpose(0, 1), expected)


@pytest.mark.parametrize("name", PROOFS)
def test_every_kind_of_question_is_answered_as_defined(name):
    PROOFS[name]()


def test_nothing_hidden_needs_no_mask():
    assert visible(1, 9, Question(1.0), CPU) is None
    assert visible(4, 4, Question(1.0, causal=False), CPU) is None
    assert visible(1, 9, Question(1.0, window=9), CPU) is None
    assert visible(1, 9, Question(1.0, window=8), CPU) is not None
