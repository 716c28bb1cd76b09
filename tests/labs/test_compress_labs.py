"""Parts of the labs on number formats that have known values."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.compress.floats import FORMATS
from cutaway.labs.compress.block_scaling import FORMS, spoil
from cutaway.labs.compress.number_formats import most, worst
from cutaway.labs.compress.quantization_basics import compared, predicted
from cutaway.labs.compress.rounding import floating, uniform
from cutaway.labs.compress.weights_versus_activations import Place, spared


def test_a_bit_is_six_decibels():
    assert predicted(12) - predicted(11) == pytest.approx(20 * math.log10(2), abs=0.01)


def test_a_wrong_code_is_noticed(monkeypatch):
    """The lab's comparison with PyTorch counts what differs."""
    from cutaway.labs.compress import quantization_basics as basics

    w_NK = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    assert compared(w_NK, "symmetric", "row", "row").differ == 0
    assert compared(w_NK, "zero-point", "group of 64", 64).differ == 0
    honest = basics.quantize
    monkeypatch.setattr(basics, "quantize", lambda *a, **k: honest(*a, **k)._replace(zero_S1=torch.ones(8, 1)))
    assert compared(w_NK, "symmetric", "row", "row").differ == 8


def test_the_outlier_itself_is_left_out():
    """With a scale of its own block it spoils 15 others; they are what is counted."""
    found = spoil("16", 16, torch.Generator().manual_seed(0))
    assert 30 < found.with_it < found.without < 50


def test_four_bits_of_floating_point_by_hand():
    x = torch.tensor([[12.0, 1.0, -2.6, 5.4]])
    assert floating("E2M1", 4)(x).tolist() == [[12.0, 1.0, -3.0, 6.0]]  # twice 6, 0.5, -1.5 and 3
    assert all(form(torch.randn(2, 256)).shape == (2, 256) for _, form in FORMS.values())


def test_the_worst_number_to_round():
    for form in FORMATS.values():
        assert worst(form, torch.Generator().manual_seed(0)) == pytest.approx(most(form), rel=0.02)
    assert floating("E4M3", "row")(torch.tensor([[4480.0, 0.0, -10.0]])).tolist() == [[4480.0, 0.0, -10.0]]


def test_the_first_token_is_spared():
    x_TD = torch.tensor([[1000.0, 0.3], [1.27, 0.013], [0.5, -0.2]])
    assert spared(x_TD)[0].tolist() == x_TD[0].tolist()
    assert spared(x_TD)[1:].flatten().tolist() == pytest.approx([1.27, 0.01, 0.5, -0.2])
    assert uniform(8, "tensor")(x_TD)[1:].abs().max() == 0
    assert Place.of("here", x_TD) == ("here", 1000.0, 0, 0, pytest.approx(0.3), pytest.approx(1.27))
