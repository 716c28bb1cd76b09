"""Views and interventions on loud twins against transformers, scipy and numpy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kit.proofs.inside import PROOFS
from kit.threads import one_thread  # noqa: F401


@pytest.mark.parametrize("proof", [pytest.param(proof, id=name) for name, proof in PROOFS.items()])
def test_agrees_with_an_independent_computation(proof: Callable[[], object]) -> None:
    proof()
