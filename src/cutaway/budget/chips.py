"""Chips: what they can multiply, hold and read. Dense figures, without sparsity, as their makers state them.

`measured` is the exception: what the machine at hand really does, found on the spot.
"""

from __future__ import annotations

import difflib
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from cutaway.errors import NotFound

HERE = "this-machine"


@dataclass(frozen=True)
class Chip:
    """flops: dense FLOP/s by type of number. memory: bytes. bandwidth: of that memory, bytes/s."""

    name: str
    flops: Mapping[str, float]
    memory: float
    bandwidth: float
    source: str

    def rate(self, dtype: str) -> float:
        """FLOP/s. Errors: a dtype that nothing is stated for."""
        if dtype not in self.flops:
            raise NotFound(f"{self.name} has no figure for {dtype!r}", "dtype", f"known: {', '.join(self.flops)}")
        return self.flops[dtype]

    def ridge(self, dtype: str) -> float:
        """FLOPs that it can do for each byte that it can read: below this, reading is what limits. Errors: dtype."""
        return self.rate(dtype) / self.bandwidth


T, GB = 1e12, 1e9

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "a100-40gb", {"float32": 19.5 * T, "bfloat16": 312 * T, "int8": 624 * T}, 40 * GB, 1.555 * T,
            "NVIDIA A100 Tensor Core GPU data sheet, 2021",
        ),
        Chip(
            "a100-80gb", {"float32": 19.5 * T, "bfloat16": 312 * T, "int8": 624 * T}, 80 * GB, 2.039 * T,
            "NVIDIA A100 Tensor Core GPU data sheet, 2021 (SXM)",
        ),
        Chip(
            "h100-sxm", {"float32": 67 * T, "bfloat16": 989.4 * T, "float8": 1978.9 * T}, 80 * GB, 3.35 * T,
            "NVIDIA H100 Tensor Core GPU data sheet, 2023",
        ),
        Chip(
            "h100-pcie", {"float32": 51 * T, "bfloat16": 756 * T, "float8": 1513 * T}, 80 * GB, 2.0 * T,
            "NVIDIA H100 Tensor Core GPU data sheet, 2023",
        ),
        Chip(
            "h200", {"float32": 67 * T, "bfloat16": 989.4 * T, "float8": 1978.9 * T}, 141 * GB, 4.8 * T,
            "NVIDIA H200 Tensor Core GPU data sheet, 2024",
        ),
        Chip(
            "b200", {"float32": 80 * T, "bfloat16": 2250 * T, "float8": 4500 * T}, 192 * GB, 8.0 * T,
            "NVIDIA Blackwell architecture technical brief, 2024",
        ),
        Chip(
            "mi300x", {"float32": 163.4 * T, "bfloat16": 1307.4 * T, "float8": 2614.9 * T}, 192 * GB, 5.3 * T,
            "AMD Instinct MI300X data sheet, 2023",
        ),
        Chip(
            "l4", {"float32": 30.3 * T, "bfloat16": 121 * T, "float8": 242.5 * T}, 24 * GB, 0.3 * T,
            "NVIDIA L4 Tensor Core GPU data sheet, 2023",
        ),
        Chip(
            "rtx-4090", {"float32": 82.6 * T, "bfloat16": 165.2 * T, "float8": 330.3 * T}, 24 * GB, 1.008 * T,
            "NVIDIA Ada GPU architecture white paper, 2022",
        ),
        Chip("m1-max", {"float32": 10.4 * T}, 64 * GB, 0.4 * T, "Apple, M1 Pro and M1 Max, October 2021"),
        Chip("m1-ultra", {"float32": 21 * T}, 128 * GB, 0.8 * T, "Apple, M1 Ultra, March 2022"),
    )
}  # fmt: skip


def chip(name: str) -> Chip:
    """By name; `HERE` measures the machine at hand. Errors: unknown, with the nearest."""
    if name == HERE:
        return measured()
    if name not in CHIPS:
        near = difflib.get_close_matches(name.lower(), [*CHIPS, HERE], 2, 0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join([*CHIPS, HERE])}"
        raise NotFound(f"no chip {name!r}", hint=hint)
    return CHIPS[name]


def measured(size: int = 1024, megabytes: int = 256, repeats: int = 5) -> Chip:
    """This machine's processor, with PyTorch's threads as they are: products of matrices, and a sum over memory.

    Errors of measurement are those of a machine with other users: the median of `repeats`.
    """
    matrices = {name: torch.randn(size, size).to(getattr(torch, name)) for name in ("float32", "bfloat16")}
    buffer = torch.ones(megabytes * 2**18)
    flops = {name: 2 * size**3 / _median(partial(torch.mm, m, m), repeats) for name, m in matrices.items()}
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Chip(HERE, flops, memory, buffer.nbytes / _median(buffer.sum, repeats), "measured just now")


def _median(way: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, after one that is not counted."""
    way()
    seconds = []
    for _ in range(repeats):
        began = clock()
        way()
        seconds.append(clock() - began)
    return statistics.median(seconds)


def clock() -> float:
    """Seconds; of this process alone where PyTorch has one thread, so that others' turns on its core do not count."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
