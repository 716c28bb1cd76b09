"""One thread: models of a few thousand weights gain nothing from more, and lose much on a busy machine.

And no clock decides how much is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cutaway.engine.drafter import Pass


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guess costs stays what is supposed to begin with; measuring it has proofs of its own."""
    monkeypatch.setattr(Pass, "note", lambda *_: None)
