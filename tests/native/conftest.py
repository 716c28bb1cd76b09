"""One thread, and no test where the kernels cannot be built."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.native.build import compiled
from kit.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(autouse=True, scope="package")
def kernels() -> None:
    try:
        compiled()
    except CutawayError as error:
        pytest.skip(f"no native kernels: {error}")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
