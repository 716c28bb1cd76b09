"""Hugging Face safetensors in and out, one file or several (Patry and others, 2022).

    length      uint64, little-endian, of the header
    header      JSON, {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
    tensors     without gaps; offsets count from here

A large model is cut into shards, `model-00001-of-00003.safetensors`, and `model.safetensors.index.json` says
which tensor is in which. The `safetensors` library loads the tensors; everything about them is checked here
first, because the library says neither which file nor which tensor is wrong.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cutaway.errors import CutawayError, NotFound

HEADER_LIMIT = 100_000_000  # bytes, the library's own limit
MAX_DIMENSIONS = 64  # what torch takes
DAMAGED = "the file is damaged or a download was cut short; get it again"
ITEM_SIZES = {  # bytes of one number
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "BOOL": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip


class MissingTensor(NotFound, KeyError):
    """A tensor asked for by a name that the checkpoint does not hold."""


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor."""

    file: Path
    dtype: str  # as on disk: "BF16"
    shape: tuple[int, ...]
    nbytes: int


class Shards(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each loaded when it is asked for.

    shapes, dtypes: by name, known without loading; a dtype is the type on disk ("BF16").
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.path, self.entries = path, entries
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in entries.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.entries:
            raise MissingTensor(f"no tensor {name!r}", str(self.path), f"it holds {len(self.entries)} others")
        file = self.entries[name].file
        try:
            return safe_open(file, framework="pt").get_tensor(name)  # opened anew: what was read leaves memory again
        except (SafetensorError, OSError) as error:
            raise CutawayError(f"tensor {name!r} cannot be loaded: {error}", str(file), DAMAGED) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries


# ---- reading --------------------------------------------------------------------------------------------


def read(path: str | Path) -> Shards:
    """Open a checkpoint: a .safetensors file, an index (.json), or a directory that holds either.

    Headers are read and checked; no weight is. Raises CutawayError for files that are missing, truncated or
    corrupt, and for an index that names files or tensors that are not there.
    """
    path = Path(path)
    file = _find(path) if path.is_dir() else path
    if file.suffix == ".json":
        return Shards(path, _indexed(file))
    return Shards(path, _header(file))


def _find(directory: Path) -> Path:
    """The file to begin with, chosen as transformers does."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (directory / name).is_file():
            return directory / name
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    found = f"{len(files)} .safetensors files and no index" if files else "no .safetensors file"
    raise CutawayError(f"the directory holds {found}", str(directory), "name one file, or get the model again")


def _indexed(index: Path) -> dict[str, Entry]:
    """The tensors of all shards. Where two shards hold a tensor of one name, the index decides."""
    placed = _weight_map(index)
    shards = {shard: _header(index.parent / shard) for shard in sorted(set(placed.values()))}
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise CutawayError(f"tensor {name!r} is not in {shard}", str(index), DAMAGED)
    entries = {name: shards[shard][name] for name, shard in placed.items()}
    for held in shards.values():
        for name in held.keys() - placed.keys():
            if name in entries:
                raise CutawayError(f"tensor {name!r} is in two shards and not in the index", str(index), DAMAGED)
            entries[name] = held[name]
    return entries


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, out of the index. Only names beside the index are followed."""
    content = _json(_octets(index, 0, None), index)
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise CutawayError("the index has no weight_map", str(index), DAMAGED)
    for name, shard in placed.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or set(shard) & set("/\\\0"):
            what = f"tensor {name!r} is placed in {shard!r:.80}, which is no .safetensors file beside the index"
            raise CutawayError(what, str(index), "do not use this model unless you trust where it came from")
    return placed


def _octets(path: Path, start: int, size: int | None) -> bytes:
    """A piece of a file; all of it up to the header limit where no size is given."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(HEADER_LIMIT if size is None else size)
    except FileNotFoundError:
        raise NotFound("no such file", str(path), "get the model again") from None
    except OSError as error:
        raise CutawayError(f"cannot be read: {error.strerror}", str(path)) from None


def _header(path: Path) -> dict[str, Entry]:
    """The tensors of one file, everything about them checked."""
    start = _octets(path, 0, 8)
    size = path.stat().st_size
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(size - 8, HEADER_LIMIT):
        hint = "get the model itself with git lfs" if start == b"version " else DAMAGED
        raise CutawayError(f"not a safetensors file: a header of {length:,} bytes in {size:,}", str(path), hint)
    header = _json(_octets(path, 8, length), path)
    if not isinstance(header, dict):
        raise CutawayError("the header is not a JSON object", str(path), DAMAGED)
    _check_notes(header.pop("__metadata__", {}), path)
    spans = {name: _span(name, fields, path) for name, fields in header.items()}
    _check_cover(spans, size - 8 - length, path)
    return {
        name: Entry(path, fields["dtype"], tuple(fields["shape"]), spans[name][1] - spans[name][0])
        for name, fields in header.items()
    }


def _json(octets: bytes, path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise CutawayError(f"{twice!r} comes twice in one JSON object", str(path), DAMAGED)
        return content

    try:
        return json.loads(octets.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CutawayError(f"not the JSON it should be: {error}", str(path), DAMAGED) from None


def _check_notes(notes: Any, path: Path) -> None:
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise CutawayError("__metadata__ is not an object of strings", str(path), DAMAGED)


def _span(name: str, fields: Any, path: Path) -> tuple[int, int]:
    """First and last byte + 1 of a tensor, its dtype and shape accounted for."""

    def fail(what: str) -> CutawayError:
        return CutawayError(f"tensor {name!r} {what}", str(path), DAMAGED)

    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise fail("does not have dtype, shape and data_offsets, and only these")
    dtype, shape, span = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise fail(f"has dtype {dtype!r:.40}; known are {', '.join(ITEM_SIZES)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise fail(f"has shape {shape!r:.80}")
    if not _is_sizes(span) or len(span) != 2 or span[0] > span[1]:
        raise fail(f"has data_offsets {span!r:.80}")
    if span[1] - span[0] != math.prod(shape) * ITEM_SIZES[dtype]:
        raise fail(f"is {dtype} {shape} and has {span[1] - span[0]:,} bytes")
    return span[0], span[1]


def _is_sizes(value: Any) -> bool:
    """A list of integers that a file could have for sizes: 0 to 2^63 - 1."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(spans: Mapping[str, tuple[int, int]], size: int, path: Path) -> None:
    """The tensors, in order, must fill the rest of the file: no gap, no overlap, nothing beyond the end."""
    ordered = sorted((begin, end, name) for name, (begin, end) in spans.items())
    for (_, before, _), (begin, _, name) in pairwise([(0, 0, ""), *ordered]):
        if begin != before:
            kind = "overlaps the tensor before it" if begin < before else "leaves a gap before it"
            raise CutawayError(f"tensor {name!r} {kind} (byte {begin:,}, not {before:,})", str(path), DAMAGED)
    _, last, name = ordered[-1] if ordered else (0, 0, "")
    if last != size:
        what = f"the tensors end at byte {last:,} (the last is {name!r}), the file holds {size:,}"
        raise CutawayError(what, str(path), DAMAGED)


# ---- writing --------------------------------------------------------------------------------------------


def write(
    directory: str | Path,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    max_shard_bytes: int = 5 << 30,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> None:
    """Write `directory`/`stem`.safetensors, or shards of at most `max_shard_bytes` and their index.

    tensors: pairs may come from a generator; no more than one shard of them is in memory at a time. A tensor
    larger than a shard gets one of its own. metadata: strings for every file's header, {"format": "pt"} by
    default, which transformers insists on.

    Files of `stem` that were there before are replaced when all the new ones are whole. Raises CutawayError
    for no tensors, a name given twice, dtypes that safetensors does not have, and a directory that cannot be
    written.
    """
    directory = Path(directory)
    notes = {"format": "pt"} if metadata is None else dict(metadata)
    _check_notes(notes, directory)
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    shards: list[dict[str, int]] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".partial-") as staging:
            for held in _cut(pairs, max_shard_bytes, directory):
                _save(held, Path(staging) / str(len(shards)), notes)
                shards.append({name: tensor.nbytes for name, tensor in held.items()})
            _publish(Path(staging), directory, stem, shards)
    except OSError as error:
        raise CutawayError(f"cannot be written: {error.strerror}", str(directory)) from None


def _cut(pairs: Iterable[tuple[str, Tensor]], limit: int, directory: Path) -> Iterator[dict[str, Tensor]]:
    """Tensors gathered, in order, into shards of at most `limit` bytes."""
    held: dict[str, Tensor] = {}
    size, seen = 0, set[str]()
    for name, tensor in pairs:
        if name in seen:
            raise CutawayError(f"tensor {name!r} comes twice", str(directory))
        if held and size + tensor.nbytes > limit:
            yield held
            held, size = {}, 0
        held[name] = tensor
        size += tensor.nbytes
        seen.add(name)
    if not held:
        raise CutawayError("there are no tensors to write", str(directory))
    yield held


def _save(held: Mapping[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    """One file. Tensors that share memory are each written whole, which the library leaves to the caller.

    The library makes files that only their owner may read; ours get the mode of any new file.
    """
    alone: dict[str, Tensor] = {}
    memory = set[int]()
    for name, tensor in held.items():
        plain = tensor.detach().cpu().contiguous()
        alone[name] = plain.clone() if plain.untyped_storage().data_ptr() in memory else plain
        memory.add(alone[name].untyped_storage().data_ptr())
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(alone, path, notes)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CutawayError(f"cannot be written: {error}", str(path.parent.parent)) from None
    path.chmod(mode)


def _publish(staging: Path, directory: Path, stem: str, shards: list[dict[str, int]]) -> None:
    """Give the finished files their names. The index goes first and comes last: no reader meets a mixture."""
    count = len(shards)
    single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
    named = [directory / f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    named = named if count > 1 else [single]
    stale = {single, *directory.glob(f"{stem}-?????-of-?????.safetensors")} - set(named)
    for file in (index, *stale):
        file.unlink(missing_ok=True)
    for number, file in enumerate(named):
        os.replace(staging / str(number), file)
    if count > 1:
        placed = {name: file.name for file, shard in zip(named, shards, strict=True) for name in shard}
        total = sum(sum(shard.values()) for shard in shards)
        content = {"metadata": {"total_size": total}, "weight_map": placed}
        (staging / "index").write_text(json.dumps(content, indent=2) + "\n")
        os.replace(staging / "index", index)
