"""Why twins are loud: freshly initialized, they let mutants live that loud ones kill.

Weights that are ones and biases that are zeros can be ignored at any tolerance. Matrices of standard deviation 0.02
make attention so uniform that what is done to its scores stays below 1e-2, a tolerance that parity tests do use.
"""

from __future__ import annotations

import pytest
import torch

from kit import twins
from kit.mutants import MUTANTS
from kit.proofs.models import bound, error

TOLERANCE = 1e-2

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def largest_error(mutant: str, name: str, loud: bool) -> float:
    """Of a mutant's values, as a part of the largest value."""
    twin = twins.twin(name, loud)
    expected = twin.answers().values
    with BY_NAME[mutant].change():
        found = twins.ragged(twins.ours(twin))
    return max(error(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        ("rms norm: weight ignored", "llama"),
        ("layer norm: weight ignored", "gpt2"),
        ("layer norm: bias ignored", "gpt2"),
        ("q/k norm: swapped", "qwen3"),
        ("block: post norms swapped", "gemma3"),
    ],
)
def test_ones_and_zeros_can_be_ignored_unnoticed(mutant, name):
    assert largest_error(mutant, name, loud=False) < bound(torch.float64)
    assert largest_error(mutant, name, loud=True) > TOLERANCE


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        ("rope: none", "llama"),
        ("rope: pairs interleaved", "llama"),
        ("rope: keys one position on", "llama"),
        ("rope scaling: llama3 blended backwards", "llama-3"),
        ("attention: scale missing", "llama"),
    ],
)
def test_nearly_uniform_attention_hides_mistakes(mutant, name):
    assert largest_error(mutant, name, loud=False) < TOLERANCE < largest_error(mutant, name, loud=True)
