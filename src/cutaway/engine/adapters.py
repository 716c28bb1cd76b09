"""Adapters at work: loaded and unloaded by name while sequences run, any number of them in one batch."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError, NotFound
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.weights.adapters import Adapter, read_adapter

MOST = 64  # loaded at a time: each takes memory


@dataclass(frozen=True, eq=False)
class Fitted:
    """A loaded adapter. made: what the runner made of it.

    salt: of pages that are computed with it; no other's, not even of one that had its name before.
    """

    name: str
    made: Any
    salt: bytes = field(default_factory=lambda: os.urandom(16))


class Adapters:
    """Those that sequences may ask for. Any thread may load and unload.

    One that is unloaded is known no more at once; who has it already ends with it, then its memory is free.
    asked: how many sequences asked for each.
    """

    def __init__(self, spec: Spec, fit: Callable[[Adapter], Any]) -> None:
        self.spec, self.fit = spec, fit
        self.loaded: dict[str, Fitted] = {}
        self.asked: Counter[str] = Counter()

    def load(self, name: str, source: Path) -> Fitted:
        """Read a folder. Errors: a name that is empty or taken; too many; those of `read_adapter`."""
        self._check(name)
        fitted = Fitted(name, self.fit(read_adapter(source, self.spec)))
        if self.loaded.setdefault(name, fitted) is not fitted:
            self._check(name)
        return fitted

    def unload(self, name: str) -> None:
        """Errors: `NotFound`."""
        if self.loaded.pop(name, None) is None:
            raise self._unknown(name)

    def find(self, name: str) -> Fitted | None:
        """The one a sequence asks for; None for no name. Errors: `NotFound`."""
        fitted = self.loaded.get(name)
        if fitted is None and name:
            raise self._unknown(name)
        self.asked.update([name] if name else [])
        return fitted

    def _check(self, name: str) -> None:
        if not name or name in self.loaded:
            what = f"{name!r} is loaded already" if name else "is empty"
            raise CutawayError(what, "adapter", "unload it first, or choose another name" if name else "give it a name")
        if len(self.loaded) >= MOST:
            raise CutawayError(f"{MOST} are loaded already", "adapter", "unload one first")

    def _unknown(self, name: str) -> NotFound:
        return NotFound(f"no adapter {name!r} is loaded", "adapter", f"there is {', '.join(self.loaded) or 'none'}")


Changes = Mapping[str, tuple[Tensor, Tensor]]


def changes(adapter: Adapter, dtype: torch.dtype, device: torch.device) -> Changes:
    """By parameter a_RK and b_NR with the scale in it, copied, so that no file is needed any more."""
    return {
        name: (a_RK.to(device, dtype, copy=True), (b_NR.double() * scale).to(device, dtype))
        for name, (a_RK, b_NR, scale) in adapter.items()
    }


class Twin:
    """A decoder with the weights of another, whose linear layers add to each row what its adapter changes."""

    def __init__(self, model: Decoder) -> None:
        self.model = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
        self._rows: list[tuple[Changes, Tensor]] = []  # of the batch at hand
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(partial(self._add, f"{name}.weight"))

    def __call__(self, rows: Mapping[Fitted, list[int]], *given: Any) -> Tensor:
        """What the decoder makes of a batch. rows: those of each adapter."""
        self._rows = [(fitted.made, torch.tensor(some, device=self.model.device)) for fitted, some in rows.items()]
        try:
            return self.model(*given)
        finally:
            self._rows = []  # nothing keeps an adapter that is unloaded

    def _add(self, name: str, module: nn.Module, given: tuple[Tensor], y_TN: Tensor) -> Tensor:
        for made, rows_M in self._rows:
            if name in made:
                a_RK, b_NR = made[name]
                y_TN = y_TN.index_add(0, rows_M, given[0][rows_M] @ a_RK.T @ b_NR.T)
        return y_TN
