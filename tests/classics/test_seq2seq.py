"""Encoder and decoder against loops over single cells."""

from __future__ import annotations

import pytest
import torch

from cutaway.classics.seq2seq import Seq2Seq
from kit.proofs import classics
from kit.proofs.classics import SOURCES, WORDS, drawn, ids, loud


@pytest.mark.parametrize("attention", [False, True])
def test_values_and_gradients_are_those_of_single_cells(attention):
    classics.seq2seq(attention)


def test_writing_is_teacher_forcing_with_its_own_words():
    classics.seq2seq_writing()


def test_shares_sum_to_one_over_the_source_alone():
    model = loud(Seq2Seq(WORDS, 4, True))
    with torch.no_grad():
        memory = model.read(ids(sum(SOURCES), WORDS), SOURCES)
        shares_BS = model.attention.shares(drawn(3, 4), memory)
    torch.testing.assert_close(shares_BS.sum(1), torch.ones(3, dtype=torch.float64))
    assert [int((row > 0).sum()) for row in shares_BS] == SOURCES
