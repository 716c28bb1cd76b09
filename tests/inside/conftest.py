"""Small models, one thread; SmolLM2 as we and as transformers read it, each loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutaway.weights.checkpoint import Loaded, load
from cutaway.weights.sides import Witness, witness
from kit.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Loaded:
    return load(str(smollm2_gguf))


@pytest.fixture(scope="session")
def smollm2_witness(smollm2_gguf: Path) -> Witness:
    return witness(str(smollm2_gguf))
