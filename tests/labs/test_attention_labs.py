"""Known values of the labs on attention: bills, memory, shares, crossings."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.labs.attention import (
    attention_cost,
    causal_mask,
    flash_traffic,
    linear_form,
    linear_recall,
    multi_head,
    online_softmax,
    window_and_sinks,
)
from cutaway.labs.attention import softmax_choice as choice
from cutaway.labs.lab import Run
from cutaway.labs.memory import peak_bytes
from cutaway.labs.training import fresh, small_spec
from cutaway.models.cost import Cost
from kit.threads import one_thread

__all__ = ["one_thread"]


# ---- memory


def test_peak_counts_what_lives_at_once():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x + 1) == 4000
    assert peak_bytes(lambda: (x + 1) + (x + 2)) == 12_000
    assert peak_bytes(lambda: ((x + 1) + 1) + 1) == 8000
    assert peak_bytes(lambda: [None for _ in range(9) if (x + 1).sum() < 0]) == 4004
    assert peak_bytes(lambda: (x + 1)[:10] * 2) == 4040


def test_views_and_changes_in_place_take_no_memory():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.view(10, 100).T.add_(1)) == 0
    assert peak_bytes(lambda: (x + 1).mul_(2).view(10, 100)) == 4000


# ---- flash-traffic, attention-cost


def test_published_traffic():
    """4,096 tokens of width 64 in 16 bit: 130 MiB naively, 2 MiB if everything moved once."""
    assert flash_traffic.naive_formula(4096, 64) == 130
    assert flash_traffic.once_mib(4096, 64) == 2


def test_tiled_traffic_by_hand():
    """A chip of 51,200 numbers holds 64 keys and 221 rows of width 64: 19 tiles of rows for 4,096."""
    rows = (51_200 - 2 * 64 * 64) // (2 * 64 + 64 + 2)
    n = 4096
    numbers = 2 * n * 64 + n + math.ceil(n / rows) * 2 * n * 64
    assert flash_traffic.tiled_formula(n, 64, 51_200) == 2 * numbers / 2**20


def test_llama_3_8b_is_itself():
    assert Cost(attention_cost.LLAMA_3_8B).parameters == 8_030_261_248


def test_shares_of_attention():
    """Per pair of tokens 4 x 32 layers x 4,096; beside it 2 FLOPs for each of 8.03e9 parameters and token."""
    for context, wanted in attention_cost.CONTEXTS.items():
        pairs = 4 * 32 * 4096 * context * (context + 1) / 2
        found = attention_cost.share(context)
        assert found.usual == pytest.approx(pairs / (pairs + 2 * 8_030_261_248 * context))
        assert found.usual == pytest.approx(wanted, abs=5e-4)
        embedding = 128_256 * 4096 + (2 * 32 + 1) * 4096  # a lookup and norms multiply no matrix
        assert found.counted == pytest.approx(pairs / (pairs + 2 * (8_030_261_248 - embedding) * context))
    assert attention_cost.share(attention_cost.half_way()).counted == pytest.approx(0.5, abs=1e-4)


def test_exponents_of_known_growth():
    measured = [attention_cost.Measured(n, [n**1.5, n, n], [n**2 + 7, 3 * n + 5, n]) for n in (512, 1024, 2048, 4096)]
    assert attention_cost.exponents(measured) == [pytest.approx(pair) for pair in ((1.5, 2), (1, 1), (1, 1))]


# ---- linear-attention


def bill(tokens: int, slow: float, fast: float) -> linear_form.Bill:
    return linear_form.Bill(tokens, 0, 0, 0, slow, fast, 0, 0, 0)


def test_crossover_lies_where_lines_meet():
    bills = [bill(16, 1.0, 4.0), bill(32, 4.0, 4.0**1.5), bill(64, 16.0, 8.0)]
    assert linear_form.crossover(bills, "quadratic_ms", "linear_ms") == pytest.approx(32 * math.sqrt(2))
    assert linear_form.crossover(bills[1:], "linear_ms", "quadratic_ms") is None
    assert linear_form.crossover(bills[2:], "quadratic_ms", "linear_ms") == 64


def test_flops_of_both_orders():
    """2 n n d twice, against 2 n d d twice and 2 n d for the norm."""
    found = linear_form.bill(256, 32, 1, Run())
    assert found.quadratic == 2 * 2 * 256 * 256 * 32
    assert found.linear == 2 * 2 * 256 * 32 * 32 + 2 * 256 * 32


def test_questions_have_their_answers_among_the_pairs():
    asked = linear_recall.questions(5, 20, torch.Generator().manual_seed(0))
    for b in range(20):
        pairs = dict(zip(asked.keys_BN[b].tolist(), asked.values_BN[b].tolist(), strict=True))
        assert len(pairs) == 5
        assert [pairs[key] for key in asked.asked_BM[b].tolist()] == asked.answers_BM[b].tolist()


def test_states_are_as_large_as_told():
    states = [linear_recall.state(spec) for spec in linear_recall.MAPS.values()]
    assert states == ["all pairs", "64 × 64", "57 × 64", "64 × 64"]


# ---- multi-head


def test_answers_are_what_the_named_places_hold():
    for kind in multi_head.KINDS:
        asked = multi_head.questions(kind, 3, torch.Generator().manual_seed(0))
        for b, q, i in [(0, 0, 0), (2, 5, 1), (1, 7, 0)]:
            assert torch.equal(asked.answers_BQ2C[b, q, i], asked.items_BIC[b, asked.places_BQ2[b, q, i]])


def test_a_head_taken_out_says_nothing():
    model = multi_head.TwoLookups(2, torch.Generator().manual_seed(0))
    asked = multi_head.questions("numbers", 4, torch.Generator().manual_seed(1))
    before = model(asked)
    bare = multi_head.without(multi_head.without(model, 0), 1)
    assert torch.equal(model(asked), before)
    other = asked._replace(items_BIC=asked.items_BIC + 1)
    assert not torch.equal(model(other), before)
    assert torch.equal(bare(other), bare(asked)), "without heads nothing reaches a question from the items"


@pytest.mark.parametrize(
    ("pruned", "wanted"),
    [([(0.1, 0.9), (1.0, 0.0)], True), ([(0.1, 0.9), (0.2, 0.9)], False), ([(0.6, 0.6), (0.6, 0.6)], False)],
)
def test_what_counts_as_divided(pruned, wanted):
    assert multi_head.divided(multi_head.Outcome("numbers", 2, 0, 1, (1.0, 0.9), pruned)) is wanted


# ---- softmax-choice, causal-mask, online-softmax


def test_softmax_by_its_own_context_is_the_models_attention():
    model = fresh(small_spec(width=32, kv_heads=4), 0, std=0.3)
    bytes_T = torch.arange(48) * 5 % 256
    with torch.no_grad():
        positions_T = torch.arange(24).repeat(2)
        found = model(bytes_T, positions_T, choice.Weighted([24, 24], "softmax"))
        wanted = model(bytes_T, positions_T, choice.BlockDiagonal([24, 24]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_sparsemax_and_no_other_point_is_optimal(monkeypatch):
    assert choice.optimality(Run()) < 1e-12
    monkeypatch.setattr(choice, "sparsemax", lambda scores, seen: scores.softmax(-1))
    assert choice.optimality(Run()) > 0.1


def test_masks_are_told_apart():
    """A wrong mask would be noticed: the causal rule against attention that sees everything."""
    assert causal_mask.differences(causal_mask.RULES["nobody sees anything"], Run()) == 0
    assert causal_mask.differences(causal_mask.RULES["prefix of 16"], Run()) < 1e-12


def test_changed_tokens_move_nothing_before_them():
    assert causal_mask.moved(fresh(small_spec(width=32), 0, std=0.3), torch.arange(20)) == 0
    open_spec = causal_mask.with_layers(small_spec(width=32), causal_mask.unmasked)
    assert causal_mask.moved(fresh(open_spec, 0, std=0.3), torch.arange(20)) > 0.01


def test_cuts_leave_no_piece_empty():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        at = online_softmax.cuts(9, generator)
        assert at == sorted(set(at))
        assert all(0 < cut < 9 for cut in at)


def test_a_window_lab_that_is_too_long_says_how_long_it_may_be():
    class Tiny:
        name = "tiny"

        class tokenizer:
            @staticmethod
            def encode(text: str) -> list[int]:
                return [len(text), 2, 3]

        class model:
            class spec:
                context = 100

    (first, tokens_T), (second, others_T) = window_and_sinks.chapters(Tiny, 3, 2)
    assert first != second
    assert tokens_T[0] > others_T[0], "the longest first"
    with pytest.raises(CutawayError, match="knob length: 4 tokens are too many \\(at most 3 with tiny\\)"):
        window_and_sinks.chapters(Tiny, 4, 2)


def test_rises_are_taken_text_by_text():
    Cut = window_and_sinks.Cut
    found = [Cut("a", None, 0, 9, 1.0), Cut("b", None, 0, 9, 2.0), Cut("a", 8, 0, 9, 1.5), Cut("b", 8, 0, 9, 4.0)]
    assert window_and_sinks.rises([*found, Cut("a", 8, 4, 9, 1.25)], 8, 0) == [0.5, 2.0]
    assert window_and_sinks.rises([*found, Cut("a", 8, 4, 9, 1.25)], 8, 4) == [0.25]
