"""How much memory a computation takes beyond its inputs, counted from the tensors that it makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Bytes of storages that came about while it was on: those alive now, and the most at any moment.

    Exact for what PyTorch's operators return; what a kernel allocates inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._mine: set[int] = set()
        self._given: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._given |= {storage._cdata for storage in _storages((args, kwargs))} - self._mine
        result = func(*args, **(kwargs or {}))
        for made in _storages(result):
            if made._cdata not in self._mine | self._given:
                self._mine.add(made._cdata)
                self.alive += made.nbytes()
                weakref.finalize(made, self._released, made._cdata, made.nbytes())
        self.peak = max(self.peak, self.alive)
        return result

    def _released(self, storage: int, size: int) -> None:
        self._mine.discard(storage)
        self.alive -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peak_bytes(way: Callable[[], object]) -> int:
    """The most bytes that `way` holds at once in tensors of its own, its result included."""
    with Meter() as meter:
        way()
    return meter.peak
