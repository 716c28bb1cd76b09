"""A model under the name that clients call it by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from cutaway.engine.engine import engine_of
from cutaway.engine.service import Gate, Service
from cutaway.models.encoder import Encoder
from cutaway.serve.tool_calls import FORMATS, Format
from cutaway.weights.checkpoint import Loaded


@dataclass(frozen=True, eq=False)
class Served:
    """service generates; None for an encoder, whose requests pass `gate` and then take turns.

    calls: how the model writes calls of tools; None to see in its chat template. adapter: to compute with, by name.
    """

    name: str
    loaded: Loaded
    service: Service | None = None
    gate: Gate = field(default_factory=lambda: Gate(64))
    calls: Format | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    created: int = field(default_factory=lambda: int(time.time()))
    adapter: str = ""

    @property
    def called(self) -> str:
        """The name in requests and answers."""
        return self.adapter or self.name

    @property
    def encoder(self) -> Encoder | None:
        return cast(Encoder, self.loaded.model) if self.loaded.spec.pooling else None

    @property
    def context(self) -> int:
        """Longest input, for a decoder with its reply, in tokens."""
        return self.service.engine.context if self.service else self.loaded.spec.context

    @property
    def adapters(self) -> list[str]:
        """The names of those that it has loaded."""
        return [*self.service.engine.adapters.loaded] if self.service else []

    @property
    def alive(self) -> bool:
        return self.service is None or self.service.alive

    def close(self) -> None:
        """End the engine's thread."""
        if self.service is not None:
            self.service.close()


Models = Mapping[str, Served]


def adapted(models: Models, name: str) -> Served | None:
    """The model that has an adapter of that name, to compute with it."""
    return next((replace(served, adapter=name) for served in models.values() if name in served.adapters), None)


def serve_model(
    loaded: Loaded, *, context: int | None = None, running: int = 16, max_waiting: int = 64, name: str = "",
    calls: str | None = None, **how: Any,
) -> Served:  # fmt: skip
    """Start serving a model; `close` it in the end. See `Engine` and `Service` for the limits, `FORMATS` for calls.

    how: whether and how to guess what comes, how to keep keys and values: see `engine_of`.
    """
    gate = Gate(max_waiting + 1)
    if loaded.spec.pooling:
        return Served(name or loaded.name, loaded, gate=gate)
    engine = engine_of(loaded, context=context, running=running, **how)
    return Served(name or loaded.name, loaded, Service(engine, max_waiting), gate, FORMATS[calls] if calls else None)
