"""Parts of the labs on positions that have known values, or must notice what is wrong."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.labs.lab import Run
from cutaway.labs.position.rope_extrapolation import Scores, unfinished
from cutaway.labs.position.rope_scaling import frequencies, scaling
from cutaway.labs.position.rotary import layouts
from cutaway.labs.position.sinusoids import shift_error, waves
from cutaway.nn.attention import Question
from cutaway.nn.positions import RopeSpec, rope_frequencies, sinusoids


def test_pairs_that_never_turn_are_counted_by_hand() -> None:
    found = unfinished(1e4, 128, 4096)
    assert (round(found.slowest), found.pairs) == (54_410, 18)
    by_hand = [2 * math.pi * 1e4 ** (2 * j / 128) for j in range(64)]
    assert sum(wavelength > 4096 for wavelength in by_hand) == 18
    assert unfinished(1e4, 128, 60_000).pairs == 0


def test_published_bases_of_ntk() -> None:
    """Factor 4 at d = 128: base 10,000 becomes 40,890; dynamic NTK slows the slowest pair by 1 + 4 * 3."""
    found = frequencies(1e4, 128, scaling("ntk", 4.0, 2048), 4.0)
    assert float(found[1]) ** -64 == pytest.approx(40_890, rel=1e-4)
    plain = rope_frequencies(RopeSpec(1e4), 128)
    assert float((plain / frequencies(1e4, 128, scaling("dynamic", 4.0, 2048), 4.0))[-1]) == pytest.approx(13)


def test_a_table_that_is_no_rotation_is_noticed() -> None:
    table_TD = sinusoids(torch.arange(40), 16)
    assert shift_error(table_TD, 5) < 1e-13
    assert shift_error(table_TD * torch.linspace(1, 2, 40)[:, None], 5) > 0.1
    assert waves(16, 100, Run().generator()).shortest == pytest.approx(2 * math.pi)


def test_layouts_agree_only_when_permuted() -> None:
    permuted, mixed = layouts(8, Run().generator())
    assert permuted < 1e-14
    assert mixed > 0.1


def test_scores_are_told_apart_by_distance() -> None:
    """Keys whose size grows with the token: what is noted at a distance is the scores at that distance."""
    n, trained = 16, 4
    q_THK, k_TGK = torch.ones(n, 1, 1), torch.arange(float(n))[:, None, None]
    context = Scores([n], trained)
    context.attend(0, q_THK, k_TGK, k_TGK, Question(1.0))
    assert context.largest[0][0] == pytest.approx(15, abs=0.1)  # distance 0: the last key
    assert context.largest[0][-1] == pytest.approx(0)  # distance 15: the first key alone
    assert 0 < context.beyond[0] < 0.1  # later keys score higher, so little falls on far ones
