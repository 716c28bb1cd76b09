"""What the labs on encoders are built of: gaps whose answer is known, masks that repeat or do not."""

from __future__ import annotations

import torch

from cutaway.labs.arch.dynamic_masking import ROWS as READ
from cutaway.labs.arch.dynamic_masking import different, masker, shuffled, texts_of
from cutaway.labs.arch.encoder_vs_decoder import FILLERS, GAP, ROWS, gap_batch
from cutaway.labs.training import IGNORED


def test_a_gap_asks_for_what_the_rule_says() -> None:
    batch = gap_batch(torch.Generator().manual_seed(0))
    inputs, targets = batch.inputs_T.view(ROWS, -1), batch.targets_T.view(ROWS, -1)
    rule = inputs[:, 0] - GAP - 1
    assert set(rule.tolist()) == {0, 1}
    assert (inputs[:, 1 + FILLERS] == GAP).all()
    asked = targets != IGNORED
    assert asked.sum() == ROWS
    expected = torch.where(rule == 0, inputs[:, -2], inputs[:, -1])
    assert torch.equal(targets[asked], expected)


def test_static_masks_repeat_and_dynamic_ones_do_not() -> None:
    reading, held = texts_of(32, seed=0)
    assert reading.shape[1] == held.shape[1] == 64
    assert [different(masker(reading, kind, 0), 6) for kind in ("static", "dynamic")] == [1, 6]


def test_an_epoch_reads_every_text_once() -> None:
    reading, _ = texts_of(READ * 2 + 5, seed=0)
    text = masker(reading, "static", 0)(0)
    batches = list(shuffled(text, 3))
    assert len(batches) == 2
    rows = torch.cat([batch.inputs_T.view(READ, -1) for batch in batches])
    assert all(any(torch.equal(row, whole) for whole in text.inputs_T) for row in rows)
    assert len(torch.unique(rows, dim=0)) == 2 * READ
