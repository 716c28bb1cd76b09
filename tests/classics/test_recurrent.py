"""Recurrent networks against torch.nn's, and the language model made of them."""

from __future__ import annotations

import pytest
import torch

from cutaway.classics.ragged import steps_of
from cutaway.classics.recurrent import CELLS, RecurrentLM, RecurrentSpec
from cutaway.errors import CutawayError
from kit.proofs import classics
from kit.proofs.classics import ids, loud


@pytest.mark.parametrize("kind", CELLS)
def test_values_states_and_gradients_are_those_of_pytorch(kind):
    classics.recurrent(kind)


@pytest.mark.parametrize("kind", CELLS)
def test_sequences_can_be_read_in_parts_and_do_not_hear_each_other(kind):
    model = loud(RecurrentLM(11, RecurrentSpec(kind, 6, layers=2)))
    tokens_T = ids(9, 11)
    with torch.no_grad():
        together, _ = model(tokens_T, [5, 4])
        first, state = model(tokens_T[:2], [2])
        second, state = model(tokens_T[2:5], [3], state)
        other, _ = model(tokens_T[5:], [4])
    torch.testing.assert_close(together, torch.cat([first, second, other]), rtol=0, atol=1e-13)
    assert model.logits(together).shape == (9, 11)


def test_steps_take_the_longest_sequence_first():
    steps = steps_of([3, 1, 2])  # a0 a1 a2 b0 c0 c1
    assert steps.order_T.tolist() == [0, 4, 3, 1, 5, 2]
    assert steps.counts == [3, 2, 1]
    assert steps.order_N.tolist() == [0, 2, 1]


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_empty_sequences_are_refused(lengths):
    with pytest.raises(CutawayError, match="lengths"):
        steps_of(lengths)
