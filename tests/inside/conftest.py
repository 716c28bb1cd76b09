"""Small models, one thread; SmolLM2 as we and as transformers read it, each loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cutaway.weights.checkpoint import Loaded, load
from cutaway.weights.save import save_directory
from cutaway.weights.sides import Witness, witness
from kit.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Loaded:
    return load(str(smollm2_gguf))


@pytest.fixture(scope="session")
def smollm2_witness(smollm2: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Witness:
    """By way of safetensors, which transformers reads faster; that these are the GGUF's weights is proven elsewhere."""
    path = tmp_path_factory.mktemp("models") / "smollm2"
    save_directory(smollm2.model, smollm2.tokenizer, path, torch.float32)
    return witness(str(path))
