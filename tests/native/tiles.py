"""Kernels that compute by AMX tiles, on a processor without them: tiles_twin.h in place of the processor's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cutaway.native import build

TWIN = Path(__file__).with_name("tiles_twin.h")


@contextmanager
def tiled(*options: str, rows: int = 1, march: str = build.NATIVE) -> Iterator[str]:
    """For a while, all kernels of `march` take tiles from so many rows on; which instructions they say they use."""
    version = hashlib.sha256(TWIN.read_bytes()).hexdigest()[:8]  # so that another twin is another build
    flags = ("-O1", "-include", str(TWIN), f"-DTWIN={version}", f"-DCUTAWAY_TILED={rows}", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, *flags))
        build.library.cache_clear()
        try:
            kernels = build.library(march)
            assert kernels is not None
            yield build.instructions(kernels)
        finally:
            build.library.cache_clear()
