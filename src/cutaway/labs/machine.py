"""Where a number comes from: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import cutaway
from cutaway.labs.evidence import Machine

PACKAGE = Path(cutaway.__file__).parent


def machine() -> Machine:
    """What this process may use: cores are those it is allowed to run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    load = round(os.getloadavg()[0], 1)
    return Machine(cpu=_cpu(), cores=cores, memory_gb=round(memory, 1), gpu=gpu, load=load)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python and of what computes, by name; threads is how many PyTorch computes with."""
    packages = {name: version(name) for name in ("torch", "numpy", "tokenizers")}
    return {"cutaway": cutaway.__version__, "python": platform.python_version(), **packages} | {
        "threads": str(torch.get_num_threads())
    }


def commit() -> str:
    """HEAD of the checkout this code runs from ("+changes" if edited since), else the package's version."""
    root = _git("rev-parse", "--show-toplevel")
    if not root or Path(root) / "src" / "cutaway" != PACKAGE:
        return f"v{cutaway.__version__}"
    return (_git("rev-parse", "HEAD") or "") + ("+changes" if _git("status", "--porcelain", "src") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
