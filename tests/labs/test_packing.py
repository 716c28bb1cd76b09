"""Packed documents: what keeps them apart, each of it left out."""

from __future__ import annotations

import pytest
import torch

from cutaway.labs.attention import packing
from cutaway.labs.lab import Run
from cutaway.labs.training import IGNORED
from kit.proofs.attention_forms import PROOFS
from kit.threads import one_thread

__all__ = ["one_thread"]

TEXTS = [torch.arange(n) + 10 * n for n in (4, 2, 9)]


def outcome(positions: str, arm: str) -> packing.Outcome:
    return packing.outcome(positions, arm, packing.model(positions, 15, Run()), TEXTS)


def test_packed_documents_are_separate_documents():
    PROOFS["packing separate"]()


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_without_the_block_mask_documents_change_each_other(positions):
    found = outcome(positions, "without the block mask")
    assert found.logits > 0.01
    assert found.gradient > 0.01


def test_without_the_position_reset_a_learned_table_gives_other_logits():
    found = outcome("learned", "without the position reset")
    assert found.logits > 0.01
    assert found.gradient > 0.01
    assert outcome("rotary", "without the position reset").gradient < 1e-10


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_without_the_boundary_label_mask_gradients_are_others_although_logits_are_not(positions):
    found = outcome(positions, "without the boundary-label mask")
    assert found.logits < 1e-10
    assert found.gradient > 0.01


def test_labels_by_hand():
    texts = [torch.tensor([1, 2, 3]), torch.tensor([7]), torch.tensor([8, 9])]
    assert packing.next_tokens(texts, True).tolist() == [2, 3, IGNORED, IGNORED, 9, IGNORED]
    assert packing.next_tokens(texts, False).tolist() == [2, 3, 7, 8, 9, IGNORED]


def test_wasted_slots_by_hand():
    """Rows of 10: [6, 4], [5, 3]."""
    found = packing.waste([3, 6, 4, 5], 10)
    assert found == {
        "a padded row each": pytest.approx(22 / 40),
        "packed into rows": pytest.approx(0.1),
        "end to end": 0,
    }
