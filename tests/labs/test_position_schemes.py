"""Parts of the labs on kinds of positions that have known values, or must notice what is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.labs.lab import Run
from cutaway.labs.position import alibi, rotary_shift, shifting, without_positions
from cutaway.labs.position.schemes import SCHEMES, logits_at, told_by
from cutaway.labs.training import fresh, small_spec
from cutaway.models.decoder import Decoder

ROWS, WIDTH = 48, 64
TEXTS_NT = torch.arange(36).view(3, 12) * 7 % 256


def loud(name: str, causal: bool = True, layers: int = 2) -> Decoder:
    """An untrained model whose every matrix matters, in float64."""
    return fresh(told_by(name, small_spec(context=ROWS, layers=layers), causal), 0, std=0.3).double()


# ---- schemes


def test_a_scheme_has_its_own_parameters_and_no_others():
    size = {name: sum(p.numel() for p in loud(name).parameters()) for name in SCHEMES}
    added = {name: count - size["no positions"] for name, count in size.items()}
    assert added == dict.fromkeys(SCHEMES, 0) | {"learned table": ROWS * WIDTH, "T5 buckets": 32 * 4}


def test_an_offset_reads_later_rows_of_a_table():
    """The same as a table that begins later."""
    model, later = loud("learned table"), loud("learned table")
    assert later.embedding.positions is not None
    with torch.no_grad():
        later.embedding.positions.weight.copy_(later.embedding.positions.weight.roll(-5, 0))
    assert torch.equal(logits_at(model, TEXTS_NT, 5), logits_at(later, TEXTS_NT))


@pytest.mark.parametrize("name", SCHEMES)
def test_relative_schemes_do_not_notice_an_offset(name):
    model = loud(name)
    plain_NTV = logits_at(model, TEXTS_NT)
    found = shifting.shifted(model, TEXTS_NT, TEXTS_NT, plain_NTV, 30)
    assert (found.moved > 0.1) == (SCHEMES[name].kind == "absolute")
    assert found.moved > 0.1 or found.moved < 1e-10


def test_positions_matter_to_every_scheme_but_none():
    """No scheme is relative merely because it does nothing: the order of what came before counts."""
    swapped_NT = TEXTS_NT[:, [1, 0, *range(2, 12)]]
    for name in SCHEMES:
        model = loud(name, layers=1)
        moved = (logits_at(model, swapped_NT) - logits_at(model, TEXTS_NT))[:, 2:].abs().max()
        assert (moved > 1e-3) == (name != "no positions"), name


def test_a_table_ends_with_its_last_row():
    assert shifting.readable(loud("learned table"), ROWS - 1)
    assert not shifting.readable(loud("learned table"), ROWS)
    assert shifting.readable(loud("sinusoids"), 10 * ROWS)
    found = shifting.shifted(loud("learned table"), TEXTS_NT, TEXTS_NT, torch.zeros(1), ROWS - 11)
    assert found == (ROWS - 11, None, None, None)


# ---- without-positions


def test_order_reaches_an_encoder_only_through_positions():
    assert without_positions.unlike(loud("no positions", causal=False), Run().generator()) < 1e-12
    for model in (loud("rotary", causal=False), loud("learned table", causal=False), loud("no positions")):
        assert without_positions.unlike(model, Run().generator()) > 0.01


def test_the_task_asks_which_of_two_came_first():
    text_NT, answer_N = without_positions.texts(50, Run().generator())
    first, second = without_positions.FIRST, without_positions.SECOND
    for text, answer in zip(text_NT.tolist(), answer_N.tolist(), strict=True):
        assert text.count(first) == text.count(second) == 1
        assert text[-1] == without_positions.QUESTION
        assert answer == (first if text.index(first) < text.index(second) else second)
    assert torch.equal(without_positions.exchanged(without_positions.exchanged(text_NT)), text_NT)
    assert not (without_positions.exchanged(answer_N) == answer_N).any()


@pytest.mark.parametrize(
    ("name", "causal", "layers", "same"),
    [
        ("no positions", False, 2, True),
        ("no positions", True, 1, True),
        ("no positions", True, 2, False),
        ("rotary", False, 2, False),
    ],
)
def test_exchanging_the_two_is_seen_only_by_who_knows_order(name, causal, layers, same):
    """One layer of a causal decoder does not: its last row sums embeddings."""
    text_NT, _ = without_positions.texts(50, Run().generator())
    model = loud(name, causal, layers)
    there, back = (logits_at(model, text)[:, -1] for text in (text_NT, without_positions.exchanged(text_NT)))
    assert ((there - back).abs().max() < 1e-10) == same
    assert not same or without_positions.tested(model) <= 0.5


# ---- rotary-shift


def test_a_cached_text_moves_by_one_turn_of_its_keys():
    model, text_T = loud("rotary"), TEXTS_NT[0]
    with torch.inference_mode():
        here, there = (rotary_shift.cached(model, text_T, offset) for offset in (0, 20))
        rotary_shift.turn_keys(model, here, len(text_T), 20)
        assert max(rotary_shift.differences(here, there, len(text_T))) < 1e-12
        rotary_shift.turn_keys(model, here, len(text_T), 1)
        keys, values = rotary_shift.differences(here, there, len(text_T))
        assert keys > 0.1
        assert values < 1e-12


def test_what_a_table_put_into_a_cache_cannot_be_turned():
    found = rotary_shift.measured("", loud("learned table"), TEXTS_NT, [20])
    assert found.positional == ROWS * WIDTH
    assert found.step < 1e-10
    assert found.kept.keys == found.kept.turned > 0.1
    assert found.kept.values > 0.1


def test_an_offset_beyond_the_context_is_refused():
    with pytest.raises(CutawayError, match="do not fit the context"):
        rotary_shift.measured("", loud("rotary"), TEXTS_NT, [ROWS - 11])


# ---- alibi


def test_the_penalty_by_hand():
    assert alibi.from_formula(9) == 0
    assert alibi.penalty(3)[1].tril().tolist() == [[0, 0, 0], [-0.25, 0, 0], [-0.5, -0.25, 0]]


def test_a_layer_adds_the_penalty_and_hides_the_future():
    """The last of three equal keys and the one before it: weights 1, 1/sqrt(e), 1/e for the first head, by hand."""
    w = alibi.work(3, Run().generator())
    q = torch.zeros_like(w.q)
    v_HSV = torch.eye(3).expand(1, alibi.HEADS, 3, 3)
    found_QS = alibi.unfused(q, w.k, v_HSV, w.asking(w.bias_1HQS))[0, 0]
    raw = torch.tensor([[1, 0, 0], [math.exp(-0.5), 1, 0], [math.exp(-1), math.exp(-0.5), 1]])
    assert torch.allclose(found_QS, raw / raw.sum(-1, keepdim=True))
    assert torch.allclose(
        alibi.unfused(w.q, w.k, w.v, w.asking(w.mask_11QS)), alibi.unfused(w.q, w.k, w.v, alibi.PLAIN)
    )


def test_who_writes_attention_out_is_noticed_to_miss_the_kernel():
    w = alibi.work(16, Run().generator())
    with torch.no_grad():
        assert alibi.fuses(lambda: alibi.attend(w.q, w.k, w.v, w.asking(w.bias_1HQS)))
        assert not alibi.fuses(lambda: alibi.unfused(w.q, w.k, w.v, w.asking(w.bias_1HQS)))


def test_told_by_leaves_the_rest_of_a_spec_alone():
    spec = small_spec()
    assert told_by("rotary", spec) == spec
    blind = told_by("no positions", spec)
    assert [replace(layer, attention=spec.layers[0].attention) for layer in blind.layers] == [*spec.layers]
