"""How much memory a model takes beside its weights; `kit.proofs.footprint` says how that is measured."""

from __future__ import annotations

import pytest

from kit.proofs.footprint import PROOFS


@pytest.mark.parametrize("name", PROOFS)
def test_little_beside_the_weights(name):
    PROOFS[name]()
