"""Parts of the labs on longer texts that have known values, or must notice what is wrong."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.labs.attention import window_and_sinks
from cutaway.labs.lab import Run
from cutaway.labs.position import extend_context, longer_by_training, needle
from cutaway.labs.position.length_extrapolation import HEADS, Slopes, built, slopes_of
from cutaway.labs.position.lengths import beyond, by_place, losses
from cutaway.labs.position.longer_by_training import copying, ending, lengths_of, places
from cutaway.labs.training import IGNORED, Batch, fresh, loss_of, small_spec
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.position_bias import Alibi, alibi_slopes

TRAINED = 32


def tiny(seed: int = 0) -> Decoder:
    return fresh(small_spec(width=32, context=4 * TRAINED), seed, std=0.3)


def texts(length: int, rows: int = 3) -> Batch:
    tokens_NT = torch.randint(256, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return Batch(tokens_NT[:, :-1].flatten(), tokens_NT[:, 1:].flatten(), [length] * rows)


# ---- what the labs share


def test_losses_by_place_average_to_the_loss() -> None:
    model, batch = tiny(), texts(24)
    with torch.no_grad():
        assert float(losses(model, batch).mean()) == pytest.approx(float(loss_of(model, batch)), rel=1e-6)
        expected = float(losses(model, batch).mean())
    parts = by_place(model, [batch], 6)
    assert len(parts) == 4
    assert sum(parts) / 4 == pytest.approx(expected, rel=1e-6)


def test_weight_beyond_the_trained_length_by_hand() -> None:
    """Even weights over 8 visible keys: the last query has 4 keys at a distance of 4 or more, the one before 3 of 7."""
    weights_HTS = (torch.ones(1, 8, 8).tril() / torch.arange(1, 9)[:, None]).double()
    by_hand = sum((t - 4 + 1) / (t + 1) for t in range(4, 8)) / 4
    assert beyond(weights_HTS, 4).tolist() == pytest.approx([by_hand])


# ---- length-extrapolation


def test_given_slopes_are_alibis() -> None:
    q_HQK, distance_QS = torch.zeros(HEADS, 5, 4), torch.arange(5) - torch.arange(5)[:, None]
    given, ours = (bias(q_HQK, q_HQK, distance_QS) for bias in (Slopes(alibi_slopes(HEADS)), Alibi(HEADS)))
    assert torch.equal(given, ours)
    assert slopes_of("ALiBi", Run()).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    assert slopes_of("equal slopes", Run()).tolist() == pytest.approx([2**-5] * HEADS)


def test_slopes_of_zero_are_no_positions() -> None:
    spec = small_spec(heads=HEADS, width=32, context=4 * TRAINED)
    none, alibi = (built(spec, arm, Run(), std=0.3) for arm in ("no positions", "ALiBi"))
    batch = texts(16)
    with torch.no_grad():
        assert not torch.allclose(losses(none, batch), losses(alibi, batch), atol=1e-3)
        alibi.position_bias = Slopes(slopes_of("no positions", Run()))
        torch.testing.assert_close(losses(none, batch), losses(alibi, batch))


# ---- longer-by-training


def test_copies_are_the_symbols_again() -> None:
    batch = copying(12, 5, Run().generator())
    for row, targets in zip(batch.inputs_T.view(5, 12).tolist(), batch.targets_T.view(5, 12).tolist(), strict=True):
        symbols = row[:6]
        assert len(set(symbols)) == 6
        assert min(symbols) >= longer_by_training.SYMBOLS
        assert row[6:] == [0, *symbols[:-1]]
        assert targets == [IGNORED] * 6 + symbols


def test_curricula_are_of_equal_tokens() -> None:
    batches = {
        arm: [
            longer_by_training.mixed(length, 1024, Run().generator()) for length in sorted({*lengths_of(arm, 32, 30)})
        ]
        for arm in longer_by_training.TRAINED
    }
    assert all(len(batch.inputs_T) == 1024 for found in batches.values() for batch in found)
    assert lengths_of("length curriculum", 32, 6) == [8, 8, 16, 16, 32, 32]
    assert lengths_of("longer at the end", 32, 20) == [32] * 18 + [128] * 2
    assert lengths_of("baseline", 32, 3) == [32] * 3


def test_drawn_positions_keep_their_order() -> None:
    generator, batch = Run().generator(), texts(16, rows=40)
    drawn_NT = places("random positions", 16, batch, generator).view(40, 16)
    assert (drawn_NT.diff() > 0).all()
    assert (int(drawn_NT.min()), int(drawn_NT.max())) == (0, 63)
    assert drawn_NT.float().mean() == pytest.approx(31.5, abs=2)
    assert torch.equal(places("random positions", 16, texts(64), generator), positions_of([64] * 3))
    assert torch.equal(places("baseline", 16, batch, generator), positions_of([16] * 40))


def test_endings_end_alike() -> None:
    batch = texts(12)
    cut = ending(batch, 5)
    assert torch.equal(cut.targets_T.view(3, 5), batch.targets_T.view(3, 12)[:, 7:])
    assert torch.equal(cut.inputs_T.view(3, 5)[:, 1:], cut.targets_T.view(3, 5)[:, :-1])


# ---- extend-context


def test_published_numbers_of_four_times_the_context() -> None:
    known = extend_context.computed()
    assert known.agree
    assert (known.squeezed, *map(round, known.bases)) == (0.25, 40_890, 2_044_497)
    assert known.lengthened == pytest.approx(1.139, abs=5e-4)
    assert [n / 2**30 for n in known.caches] == [1, 4]


def test_rescaling_turns_and_leaves_the_weights() -> None:
    model, batch = tiny(), texts(2 * TRAINED)
    with torch.no_grad():
        plain, same, slower = (
            losses(m, batch)
            for m in (
                model,
                extend_context.rescaled(model, None),
                extend_context.rescaled(model, extend_context.scaling("linear", 4, TRAINED)),
            )
        )
        halted = losses(model, batch, positions_T=positions_of(batch.lengths) / 4)
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, slower, atol=1e-3)
    torch.testing.assert_close(slower, halted)  # interpolation is nothing but smaller positions


# ---- needle


def loaded(model: Decoder) -> Any:
    return SimpleNamespace(model=model, tokenizer=SimpleNamespace(encode=lambda text: [*text.encode()]))


@pytest.mark.parametrize("window", [None, 9])
def test_a_common_beginning_is_read_once(window: int | None) -> None:
    reader = needle.Reader(loaded(tiny()), window)
    first, second, third = [1, 2, 3, 4, 5] * 6, [1, 2, 3, 4, 5] * 4 + [9] * 12, [1, 2, 3, 4, 5] * 4
    rows = []
    for text in (first, second, third, third):
        hidden_TD = reader.read(text)
        rows.append(len(hidden_TD))
        torch.testing.assert_close(hidden_TD[-1], needle.Reader(loaded(reader.model), window).read(text)[-1])
    assert rows == [30, 12, 1, 1]


def test_the_narrow_reader_sees_what_a_window_shows() -> None:
    model, tokens = tiny(), torch.randint(256, (40,), generator=torch.Generator().manual_seed(2))
    context = window_and_sinks.Narrow(40, 9, needle.ANCHORS)
    with torch.no_grad():
        expected = model(tokens, positions_of([40]), context)
    torch.testing.assert_close(needle.Reader(loaded(model), 9).read(tokens.tolist()), expected)


def test_facts_stand_at_their_depths() -> None:
    reader, text = needle.Reader(loaded(tiny())), [0] * 100
    facts = needle.facts(4, Run(), 0)
    assert [f.depth for f in facts] == [0.875, 0.625, 0.375, 0.125]
    assert len({f.name for f in facts}) == len({f.color for f in facts}) == 4
    for fact in facts:
        alone = needle.with_facts(reader, text, [fact])
        said = needle.HIDING.format(fact.name, fact.color).encode()
        assert bytes(alone).index(said) == round(100 * fact.depth)
        assert said in bytes(needle.with_facts(reader, text, facts))
    assert [x for x in needle.with_facts(reader, text, facts) if x == 0] == text


def test_chance_by_enumeration() -> None:
    """Three guesses among ten colors, all thousand ways."""
    ways = [sum(g == 0 for g in guesses) for guesses in itertools.product(range(10), repeat=3)]
    for hits in range(4):
        assert needle.chance(hits, 3) == pytest.approx(sum(w >= hits for w in ways) / 1000)


def test_windows_that_tell_nothing_are_refused() -> None:
    assert needle.telling([512, 1024, 4096], 256, 5) == [512, 1024]
    with pytest.raises(CutawayError, match="all facts or none"):
        needle.telling([128], 256, 5)
