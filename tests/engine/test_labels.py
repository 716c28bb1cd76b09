"""Label probabilities: see the proofs; here what is refused."""

from __future__ import annotations

import pytest

from cutaway.engine.labels import branches
from cutaway.errors import CutawayError
from kit.proofs.labels import PROOFS


@pytest.mark.parametrize("name", PROOFS)
def test_proof(name):
    PROOFS[name]()


@pytest.mark.parametrize("labels", [[], [()], [(1, 2), (1, 2)], [(1,), (1, 2)], [(1, 2), (1,)]])
def test_labels_that_cannot_be_told_apart_are_refused(labels):
    with pytest.raises(CutawayError):
        branches(labels)
