"""Every mutant must be killed: a proof that no mistake can break proves nothing."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from cutaway.nn.norms import RMSNorm
from cutaway.nn.positions import rotate
from kit.mutants import MUTANTS
from kit.mutation import Mutant, Stale, edit, killed
from kit.proofs import PROOFS


@cache
def holds(proof: str) -> bool:
    """The unmutated proof passes, which is worth finding out once."""
    PROOFS[proof]()
    return True


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_is_killed(mutant: Mutant, record_property):
    assert holds(mutant.proof)
    reason = killed(mutant, PROOFS[mutant.proof])
    record_property(f"mutant {mutant.name}", reason is not None)
    assert reason is not None, f"{mutant.proof} did not notice"


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_mechanism_has_its_mutants():
    """A file of mechanisms without a mutant is one whose proofs nobody has tested."""
    assert len(MUTANTS) >= 100
    assert {mutant.proof.split()[0] for mutant in MUTANTS} <= {proof.split()[0] for proof in PROOFS}


def test_an_edit_changes_the_function_for_all_its_holders_and_only_for_a_while():
    held, norm, x_TD = rotate, RMSNorm(4, 0.0), torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    with edit("cutaway.nn.norms:RMSNorm.forward", ".mean(", ".sum(")():
        torch.testing.assert_close(norm(x_TD).norm(), torch.tensor(1.0))
    torch.testing.assert_close(norm(x_TD).norm(), torch.tensor(2.0))
    with edit("cutaway.nn.positions:rotate", "turn.cos_TK[:, None]", "0")():
        assert held is rotate
        assert held.__code__.co_filename == "<mutant of cutaway.nn.positions:rotate>"
    assert held.__code__.co_filename.endswith("positions.py")


def test_an_edit_that_finds_nothing_to_edit_is_an_error():
    with pytest.raises(Stale, match="0 times"), edit("cutaway.nn.positions:rotate", "no such text", "")():
        pass
