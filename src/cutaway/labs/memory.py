"""How much memory a computation holds at once, counted tensor by tensor instead of asked of the machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Bytes of the tensors that PyTorch's operations made and that still exist; peak is the most there were.

    Room that one operation takes and gives back within itself is not seen. Tensors on the device "meta" count like
    any other though they take none, so that forms too large for the machine can be counted too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given | self.known:
                self._hold(tensor)
        self.peak = max(self.peak, self.now)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.now += storage.nbytes()
        self.known.add(id(storage))
        weakref.finalize(storage, self._release, id(storage), storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self.now -= size
        self.known.discard(key)


def peak_bytes(way: Callable[[], object]) -> int:
    """The most bytes that tensors made by `way` held at one time; what was there before does not count."""
    with Live() as live:
        way()
    return live.peak
