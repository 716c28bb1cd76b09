"""10,000 damaged files: each either loads or is refused with a CutawayError, in bounded time and memory.

Every file is made from a seed, so that a failure can be repeated: `damaged(kind, seed)`.
"""

from __future__ import annotations

import random
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.weights import gguf, safetensors

FILES_PER_FORMAT, BATCHES = 5000, 5
BATCH = FILES_PER_FORMAT // BATCHES
SECONDS_PER_FILE = 20  # far above the millisecond it takes: a bound, not a measurement
MEMORY = 512 << 20  # bytes above what the process had: no count in a file of 4 kB may ask for more

Mutation = Callable[[random.Random, bytearray], None]


# ---- whole files -------------------------------------------------------------------------------------------


def write_gguf(path: Path) -> None:
    """Every kind of metadata value and most formats, in about 4 kB."""
    metadata = {
        "general.architecture": "llama", "general.alignment": 32, "split.count": 1, "llama.block_count": 2,
        "epsilon": 1e-5, "yes": True, "wide": np.int64(-1), "double": np.float64(0.5), "byte": np.uint8(9),
        "tokens": ["<s>", "é", "中文", "🙂"], "types": [1, 2, 3], "scores": [0.5, -1.0],
        "flags": [True, False],
    }  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    kinds = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
    tensors = [(f"blk.{i}.w", (2, 32), kind, torch.randn(2, 32, generator=draw)) for i, kind in enumerate(kinds)]
    raw = torch.randint(0, 256, (210,), dtype=torch.uint8, generator=draw)
    gguf.write(path, metadata, [*tensors, ("k", (256,), "Q4_K", raw[:144]), ("last", (1, 1, 256), "Q6_K", raw)])


def write_safetensors(path: Path) -> None:
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    tensors = {f"layer.{i}.weight": torch.ones(3, i + 1).to(dtype) for i, dtype in enumerate(dtypes)}
    tensors |= {"scalar": torch.tensor(1.0), "none": torch.zeros(0, 4)}
    safetensors.write(path.parent, tensors, stem=path.stem)


def load_gguf(path: Path) -> None:
    file = gguf.read(path)
    for name in file.tensors:
        file.load(name)


def load_safetensors(path: Path) -> None:
    for tensor in safetensors.read(path).values():
        tensor.view(-1).tolist()


FORMATS = {"gguf": (write_gguf, load_gguf), "safetensors": (write_safetensors, load_safetensors)}


# ---- damage ------------------------------------------------------------------------------------------------


def flip_bits(rng: random.Random, octets: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)


def flip_bits_of_the_beginning(rng: random.Random, octets: bytearray) -> None:
    for _ in range(rng.choice([1, 2])):
        octets[rng.randrange(min(48, len(octets)))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, octets: bytearray) -> None:
    del octets[rng.randrange(len(octets)) :]


def extend(rng: random.Random, octets: bytearray) -> None:
    octets += rng.randbytes(rng.choice([1, 32, 1000]))


def splice(rng: random.Random, octets: bytearray) -> None:
    """A piece of the file written over, or in between, another part of it."""
    start, at = rng.randrange(len(octets)), rng.randrange(len(octets))
    piece = octets[start : start + rng.randrange(1, 100)]
    octets[at : at + rng.choice([0, len(piece)])] = piece


def cut_out(rng: random.Random, octets: bytearray) -> None:
    at = rng.randrange(len(octets))
    del octets[at : at + rng.randrange(1, 64)]


def overwrite(rng: random.Random, octets: bytearray) -> None:
    at, size = rng.randrange(len(octets)), rng.randrange(1, 16)
    octets[at : at + size] = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)])


def attack_lengths(rng: random.Random, octets: bytearray) -> None:
    """Where a small little-endian number stands: too large a one, off by one, or about the file's size."""
    places = [at for at in range(4, len(octets) - 8) if 0 < octets[at] < 64 and not any(octets[at + 1 : at + 4])]
    places = places or [0]
    ends = [2**bits + off for bits in (0, 4, 16, 31, 32, 62, 63, 64) for off in (-1, 0, 1)]
    for _ in range(rng.choice([1, 1, 2])):
        at, width = rng.choice(places), rng.choice([4, 8])
        value = rng.choice([*ends, len(octets), len(octets) - at, octets[at] + 1, octets[at] - 1])
        octets[at : at + width] = struct.pack("<Q", value % 2**64)[:width]


def attack_digits(rng: random.Random, octets: bytearray) -> None:
    """In JSON sizes are written in digits: one becomes many, none, negative, or something else altogether."""
    places = [at for at, octet in enumerate(octets) if chr(octet).isdigit()] or [0]
    at = rng.choice(places)
    others = [b"9" * 30, b"-1", b"1e9", b"[]", b"null", b"0", b"7", b'"', b"true", b"0.5", b""]
    octets[at : at + 1] = rng.choice(others)
    mend_length(octets)


def attack_names(rng: random.Random, octets: bytearray) -> None:
    """Names and keys that meet each other, lose their end, or are no text."""
    words = [
        b"weight",
        b"dtype",
        b"shape",
        b"layer.1",
        b"layer.2",
        b"blk.1",
        b"blk.2",
        b"F32",
        b"tokens",
        b"split",
    ]
    swaps = [
        *words,
        b"data_offsets",
        b"\\ud800",
        b"\xff\xfe",
        b"\0\0\0\0",
        b'","',
        b"__metadata__",
        b"{" * 50,
    ]
    present = [word for word in words if word in octets] or [bytes(octets[:1])]
    word = rng.choice(present)
    octets[:] = octets.replace(word, rng.choice(swaps), rng.choice([1, 1, -1]))
    mend_length(octets)


def mend_length(octets: bytearray) -> None:
    """Damage within a JSON header is met only if the length before it is right."""
    end = octets.rfind(b"}") + 1
    if octets[8:9] == b"{" and end > 8:
        octets[:8] = struct.pack("<Q", end - 8)


MUTATIONS: list[Mutation] = [
    flip_bits, flip_bits_of_the_beginning, truncate, extend, splice, cut_out, overwrite, attack_lengths,
    attack_lengths, attack_digits, attack_names,
]  # fmt: skip


@cache
def whole(kind: str, directory: Path) -> bytes:
    path = directory / f"whole.{kind}"
    FORMATS[kind][0](path)
    return path.read_bytes()


def damaged(original: bytes, seed: int) -> bytes:
    """The file of this seed: one or more mutations, the same every time."""
    rng, octets = random.Random(seed), bytearray(original)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if octets:
            rng.choice(MUTATIONS)(rng, octets)
    return bytes(octets)


# ---- bounds ------------------------------------------------------------------------------------------------


@contextmanager
def bounded_memory(extra: int) -> Iterator[None]:
    """A MemoryError for whatever asks for more than `extra` bytes of address space, by whatever means."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextmanager
def bounded_time(seconds: int) -> Iterator[None]:
    """A TimeoutError for whatever does not end."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(load: Callable[[Path], None], path: Path) -> str:
    """ "loaded" or "refused"; anything else raises."""
    try:
        with bounded_time(SECONDS_PER_FILE):
            load(path)
    except CutawayError as error:
        return "refused" if str(path) in error.where and error.what else f"refused without a place: {error}"
    return "loaded"


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_load_or_are_refused(tmp_path: Path, kind: str, batch: int) -> None:
    original = whole(kind, tmp_path)
    path = tmp_path / f"damaged.{kind}"
    load = FORMATS[kind][1]
    outcomes = []
    with bounded_memory(MEMORY):
        for seed in range(batch * BATCH, (batch + 1) * BATCH):
            path.write_bytes(damaged(original, seed))
            try:
                outcomes.append(outcome(load, path))
            except Exception as error:
                raise AssertionError(f"damaged({kind!r}, seed={seed}) gave {error!r}") from error
    assert set(outcomes) == {"loaded", "refused"}
    # Damage that is always noticed, or never, would be damage of one kind only.
    assert 0.05 < outcomes.count("loaded") / len(outcomes) < 0.6


@pytest.mark.parametrize("kind", FORMATS)
def test_the_bounds_hold(tmp_path: Path, kind: str) -> None:
    """The tests above can fail: what takes too much, never ends or raises something else is caught."""
    path = tmp_path / "file"
    path.write_bytes(whole(kind, tmp_path))
    assert outcome(FORMATS[kind][1], path) == "loaded"
    with bounded_memory(MEMORY), pytest.raises(RuntimeError, match="allocate"):
        torch.empty(4 << 30, dtype=torch.uint8)
    with pytest.raises(TimeoutError), bounded_time(1):
        time.sleep(SECONDS_PER_FILE)


def test_the_damage_is_reproducible(tmp_path: Path) -> None:
    files = [damaged(whole("gguf", tmp_path), seed) for seed in range(300)]
    assert files == [damaged(whole("gguf", tmp_path), seed) for seed in range(300)]
    assert len(set(files)) > 280
