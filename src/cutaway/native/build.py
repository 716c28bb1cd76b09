"""Compile the kernels for this machine, once: a few seconds with g++, kept in the cache under a name that says of what.

Without a compiler everything still runs, on PyTorch's own operations: slower, and rounded otherwise.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from cutaway.errors import CutawayError
from cutaway.files import cache_dir

SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("kernels.cpp", "packing.h", "sampling.h", "simd.h", "tiles.h")
)
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC", "-Wno-maybe-uninitialized")
NATIVE = "native"  # the processor at hand, in -march
KEPT = 30 * 24 * 3600  # seconds that a build stays which nobody loads

log = logging.getLogger(__name__)


@cache
def library(march: str = NATIVE) -> ctypes.CDLL | None:
    """The kernels for one kind of processor, compiled if need be; None, and a line in the log, where that fails."""
    try:
        kernels = ctypes.CDLL(str(compiled(march)))
    except (CutawayError, OSError) as error:
        log.warning("no native kernels (%s): running on PyTorch's operations, which is slower", error)
        return None
    isa = instructions(kernels)
    log.log(logging.WARNING if "other numbers" in isa else logging.INFO, "native kernels on %s", isa)
    return kernels


def instructions(kernels: ctypes.CDLL) -> str:
    """Which of the processor's instructions they use, as "AVX-512 VNNI, AMX"."""
    kernels.cutaway_isa.restype = ctypes.c_char_p
    return str(kernels.cutaway_isa().decode())


def compiled(march: str = NATIVE) -> Path:
    """The file with the kernels. Errors: no compiler; what it complains of."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        what = "there is no C++ compiler" if compiler is None else f"there are none for {platform.machine()}"
        raise CutawayError(what, "native kernels", "install g++")
    command = (compiler, *FLAGS, f"-march={march}")
    path = cache_dir() / "native" / f"kernels-{_fingerprint(command, march)}.so"
    if not path.exists():
        _compile(command, path)
        _forget(path.parent)
    with suppress(OSError):  # a cache that others fill
        os.utime(path)
    return path


def _forget(folder: Path) -> None:
    """Builds for sources and processors of the past. Who has one loaded keeps it."""
    for old in folder.glob("kernels-*.so"):
        with suppress(OSError):  # another process was faster
            if time.time() - old.stat().st_mtime > KEPT:
                old.unlink()


def _fingerprint(command: tuple[str, ...], march: str) -> str:
    """Of sources, command and, if it is to run here only, this machine's processor."""
    digest = hashlib.sha256(" ".join(command).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    if march == NATIVE:
        digest.update(_features().encode())
    return digest.hexdigest()[:16]


def _features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _compile(command: tuple[str, ...], path: Path) -> None:
    """Into a name of its own first: another process may compile the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("compiling native kernels into %s", path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run([*command, str(SOURCES[0]), "-o", str(made)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CutawayError(f"the compiler refused: {done.stderr.strip()[:500]}", "native kernels")
        made.replace(path)


if __name__ == "__main__":  # at installation, so that the first model starts at once
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    library()
