"""What every test may ask for: the real models, once pulled; and threads that do not fight over the cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cutaway.errors import NotFound
from cutaway.weights import sources


def pytest_configure() -> None:
    if not torch.cuda.is_available():  # before anything imports Triton, so that its kernels run with numpy
        os.environ.setdefault("TRITON_INTERPRET", "1")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _model(name: str) -> Path:
    try:
        return sources.resolve(name)
    except NotFound as error:
        if os.environ.get("CUTAWAY_SKIP_MODELS") == "1":
            pytest.skip(str(error))
        pytest.fail(f"{error}: `make test` pulls it, and CUTAWAY_SKIP_MODELS=1 skips what needs it")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a Llama-family decoder."""
    return _model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M, Q4_K_M: a decoder with sliding windows."""
    return _model("gemma-3-270m")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2, safetensors: a BERT-family sentence encoder."""
    return _model("all-minilm-l6-v2")
