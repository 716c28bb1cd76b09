"""Where Cutaway keeps things, and how it writes them: to a temporary name first, renamed when whole."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_dir() -> Path:
    """The folder for pulled models: $CUTAWAY_HOME, else $XDG_CACHE_HOME/cutaway, else ~/.cache/cutaway."""
    home = os.environ.get("CUTAWAY_HOME")
    if home:
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cutaway"


def advise(memory: mmap.mmap, advice: str, start: int = 0) -> None:
    """Say how memory from `start` on will be used; a system that does not know the advice goes on as before."""
    with suppress(AttributeError, OSError):
        memory.madvise(getattr(mmap, advice), start)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` on success, delete it on any failure.

    The body may make a file or a directory there. A reader never sees a half-written result; a directory that is
    replaced is moved aside until the new one stands in its place.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        yield partial
        if final.is_dir() and partial.is_dir():
            old = final.with_name(f".{final.name}.{os.getpid()}.old")
            os.replace(final, old)
            os.replace(partial, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(partial, final)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
