"""GGUF files, versions 2 and 3, in and out: the one-file checkpoints of llama.cpp (Gerganov and others, 2023).

    "GGUF"  version  tensors  keys                 uint32 uint32 uint64 uint64
    key  type  value                               once per key: hyper-parameters, tokenizer, chat template
    name  dimensions  shape  format  offset        once per tensor: where it lies, innermost dimension first
    padding to general.alignment (32 unless said)
    the tensors, each at its offset from here      in the formats of `cutaway.weights.blocks`

All little-endian; a string is a uint64 length and UTF-8. The file is mapped, not read: a tensor costs memory only
once it is loaded. Nothing in the file is believed: every count and offset is held against the file's size before
anything is allocated. The specification is `docs/gguf.md` of the ggml repository.
"""

from __future__ import annotations

import difflib
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError, NotFound
from cutaway.files import atomic
from cutaway.weights import blocks

MAGIC = b"GGUF"
ALIGNMENT = 32
HEADER_LIMIT = 1 << 27  # bytes; the largest vocabularies (262,144 tokens) take about 6 MB
MAX_DEPTH = 4  # arrays within arrays
MAX_DIMENSIONS = 4
MAX_NAME = 63  # bytes of a tensor name llama.cpp accepts

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {  # type number of a metadata value -> its bytes
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
FORMAT_OF_ID = {form.id: form for form in blocks.FORMATS.values()}
UNREADABLE = {  # formats of ggml that Cutaway does not read, so that a refusal can name them
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how it is stored."""

    name: str
    shape: tuple[int, ...]  # outermost dimension first, as in torch
    type: str  # the name of its format in `blocks.FORMATS`
    offset: int  # bytes from the beginning of the file
    nbytes: int


@dataclass(frozen=True)
class GGUF:
    """An open file. Metadata values are bool, int, float, str, list (of str or of lists) or a numpy array."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    _bytes: Tensor = field(repr=False)  # uint8, the whole file, mapped

    def raw(self, name: str) -> Tensor:
        """The stored bytes of a tensor: uint8 [nbytes], a view on the mapped file. NotFound if there is none."""
        info = self._info(name)
        return self._bytes[info.offset : info.offset + info.nbytes]

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor's weights, in memory of their own. NotFound if there is none."""
        info = self._info(name)
        return blocks.dequantize(self.raw(name), info.type, info.shape, dtype)

    def _info(self, name: str) -> TensorInfo:
        if name in self.tensors:
            return self.tensors[name]
        near = difflib.get_close_matches(name, self.tensors, n=3)
        hint = f"near it: {', '.join(near)}" if near else f"it holds {len(self.tensors)} tensors; list `.tensors`"
        raise NotFound(f"no tensor {name!r}", str(self.path), hint)


# ---- reading ----------------------------------------------------------------------------------------------------


def read(path: str | Path) -> GGUF:
    """Open a GGUF file: its metadata is parsed, its tensors are located and checked, no weight is read.

    Raises CutawayError for a file that is not GGUF, truncated, corrupt, big-endian, one part of a split model, or
    that holds a tensor in a format not in `blocks.FORMATS`.
    """
    path = Path(path)
    header = _Header(_map(path), path)
    version = _version(header)
    tensor_count, key_count = header.number("<u8"), header.number("<u8")
    metadata = _metadata(header, key_count)
    _refuse_split(header, metadata)
    tensors = _tensors(header, tensor_count, _alignment(metadata, header.fail))
    return GGUF(path, version, metadata, tensors, torch.frombuffer(header.data, dtype=torch.uint8))


def _map(path: Path) -> mmap.mmap:
    """The file in memory, page by page as it is touched. Private: writing to a view never reaches the disk."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CutawayError("the file is empty", str(path), "download or convert it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise NotFound("no such file", str(path)) from None
    except OSError as error:
        raise CutawayError(f"cannot be opened: {error.strerror}", str(path)) from None


class _Header:
    """The header, read front to back. `doing` says what is being read, for the error if it turns out bad."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path = data, path
        self.at, self.end = 0, min(len(data), HEADER_LIMIT)
        self.doing = "the first 24 bytes"

    def fail(self, what: str, hint: str = "the file is damaged; download or convert it again") -> NoReturn:
        raise CutawayError(f"{self.doing}: {what}", str(self.path), hint)

    def skip(self, size: int) -> int:
        """Pass over `size` bytes and say where they began. Fails if they are not all there."""
        if size > self.end - self.at:
            limit = "the file" if self.end == len(self.data) else f"the {HEADER_LIMIT:,} bytes a header may have"
            self.fail(f"{size:,} bytes from byte {self.at:,} go past the end of {limit} ({self.end:,} bytes)")
        self.at += size
        return self.at - size

    def array(self, dtype: str, count: int) -> np.ndarray:
        """`count` numbers, copied out of the file."""
        start = self.skip(count * np.dtype(dtype).itemsize)
        return np.frombuffer(self.data, dtype, count, start).copy()

    def number(self, dtype: str) -> int | float:
        return self.array(dtype, 1)[0].item()

    def strings(self, count: int) -> list[str]:
        """`count` strings. One loop over local names: vocabularies are most of the time a header takes."""
        data, at, length = self.data, self.at, struct.Struct("<Q").unpack_from
        found = []
        try:
            for _ in range(count):
                (size,) = length(data, at)
                if size > self.end - at - 8:
                    self.at = at + 8
                    self.skip(size)
                found.append(data[at + 8 : at + 8 + size].decode())
                at += 8 + size
        except struct.error:
            self.fail("the file ends within a string's length")
        except UnicodeDecodeError:
            self.fail(f"the string at byte {at + 8:,} is not UTF-8")
        self.at = at
        return found


def _version(header: _Header) -> int:
    """Check the magic and return the version, 2 or 3."""
    magic = header.data[: len(MAGIC)]
    if magic != MAGIC:
        header.fail(f"not a GGUF file: it begins with {magic!r}", "give a .gguf file, downloaded whole")
    header.skip(len(MAGIC))
    version = int(header.number("<u4"))
    if version & 0xFFFF == 0:  # 3 with its bytes the other way round
        header.fail("this GGUF file is big-endian", "convert it with gguf_convert_endian, or get the little-endian one")
    if version not in {2, 3}:
        header.fail(f"GGUF version {version} is not known", "versions 2 and 3 are; convert the model again")
    return version


def _metadata(header: _Header, count: int) -> dict[str, Any]:
    """All keys and values. A key takes at least 13 bytes, so a lying count runs into the end of the file."""
    metadata: dict[str, Any] = {}
    for index in range(count):
        header.doing = f"metadata key {index + 1} of {count:,}"
        (key,) = header.strings(1)
        if key in metadata:
            header.fail(f"the key {key!r} comes twice")
        header.doing = f"metadata {key!r}"
        metadata[key] = _value(header, int(header.number("<u4")))
    return metadata


def _value(header: _Header, kind: int) -> Any:
    """One metadata value of the type numbered `kind`, as plain Python."""
    if kind == STRING:
        return header.strings(1)[0]
    if kind == ARRAY:
        return _array(header, 1)
    return _scalars(header, kind, 1)[0].item()


def _array(header: _Header, depth: int) -> list[Any] | np.ndarray:
    """A metadata array: numbers as numpy, strings and arrays as a list."""
    kind, count = int(header.number("<u4")), int(header.number("<u8"))
    if kind == STRING:
        return header.strings(count)
    if kind != ARRAY:
        return _scalars(header, kind, count)
    if depth == MAX_DEPTH:
        header.fail(f"arrays are nested deeper than {MAX_DEPTH}")
    return [_array(header, depth + 1) for _ in range(count)]


def _scalars(header: _Header, kind: int, count: int) -> np.ndarray:
    if kind not in SCALARS:
        header.fail(f"unknown metadata type {kind}")
    if kind != BOOL:
        return header.array(SCALARS[kind], count)
    octets = header.array("u1", count)
    if (octets > 1).any():
        header.fail("a boolean is neither 0 nor 1")
    return octets.astype(bool)


def _refuse_split(header: _Header, metadata: Mapping[str, Any]) -> None:
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        header.doing = "split.count"
        number = metadata.get("split.no", 0)
        part = f"part {number + 1}" if isinstance(number, int) else "one part"
        header.fail(f"this is {part} of a model split into {parts}", "join them with llama-gguf-split --merge")


def _alignment(metadata: Mapping[str, Any], fail: Callable[[str], NoReturn]) -> int:
    """Every tensor begins at a multiple of this many bytes."""
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        fail(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _tensors(header: _Header, count: int, alignment: int) -> dict[str, TensorInfo]:
    """Where every tensor lies. The offsets in the file count from the end of the header, which comes last."""
    found: dict[str, TensorInfo] = {}
    for index in range(count):
        header.doing = f"tensor {index + 1} of {count:,}"
        info = _tensor(header)
        if info.name in found:
            header.fail("comes twice")
        found[info.name] = info
    start = -(-header.at // alignment) * alignment
    return {name: _placed(header, info, start, alignment) for name, info in found.items()}


def _tensor(header: _Header) -> TensorInfo:
    """One tensor's entry, its offset as written."""
    (name,) = header.strings(1)
    header.doing = f"tensor {name!r}"
    dimensions = int(header.number("<u4"))
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        header.fail(f"has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    shape = tuple(header.array("<u8", dimensions)[::-1].tolist())
    if 0 in shape:
        header.fail(f"has an empty dimension: {list(shape)}")
    kind, offset = int(header.number("<u4")), int(header.number("<u8"))
    form = FORMAT_OF_ID.get(kind)
    if form is None:
        which = UNREADABLE.get(kind, "unknown to Cutaway")
        header.fail(f"format {kind} ({which}) cannot be read", f"readable: {', '.join(blocks.FORMATS)}")
    if shape[-1] % form.elements:
        header.fail(f"rows of {shape[-1]} weights are not whole {form.name} blocks of {form.elements}")
    return TensorInfo(name, shape, form.name, offset, form.nbytes(shape))


def _placed(header: _Header, info: TensorInfo, start: int, alignment: int) -> TensorInfo:
    """The same entry with its offset counted from the beginning of the file, once that is known to lie inside."""
    header.doing = f"tensor {info.name!r}"
    if info.offset % alignment:
        header.fail(f"offset {info.offset:,} is not a multiple of {alignment}")
    begin, size = start + info.offset, len(header.data)
    if begin + info.nbytes > size:
        shape = " x ".join(map(str, info.shape))
        header.fail(f"{info.type} {shape} needs bytes {begin:,} to {begin + info.nbytes:,} of a file of {size:,}")
    return TensorInfo(info.name, info.shape, info.type, begin, info.nbytes)


# ---- writing ----------------------------------------------------------------------------------------------------

Source = Tensor | Callable[[], Tensor]


def write(
    path: str | Path, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...], str, Source]]
) -> None:
    """Write a GGUF file, version 3, under a temporary name first.

    tensors: (name, shape outermost first, format, source). A source is the tensor, or a function that makes it when
    its turn comes, so that a model never lies in memory whole. It holds the weights in `shape`, or (uint8) bytes
    already in that format, which are copied as they are.

    Metadata: bool, str; int as uint32, else int32, uint64, int64; float as float32; lists of one of these (of int:
    int32 if they fit, as llama.cpp stores token types); numpy numbers and arrays keep their own type.

    Raises CutawayError for names, shapes, formats or values that the format or llama.cpp cannot take.
    """
    path = Path(path)
    fail = _failing(path)
    entries = list(tensors)
    alignment = _alignment(metadata, fail)
    header = _pack_header(metadata, entries, alignment, fail)
    with atomic(path) as partial, partial.open("wb") as file:
        file.write(header)
        for name, shape, form, source in entries:
            _pad(file, alignment)
            file.write(_encoded(name, tuple(shape), form, source, fail).numpy().data)
        _pad(file, alignment)


def _failing(path: Path) -> Callable[[str], NoReturn]:
    def fail(what: str) -> NoReturn:
        raise CutawayError(what, str(path))

    return fail


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _pack_header(
    metadata: Mapping[str, Any], entries: list[tuple[str, tuple[int, ...], str, Source]], alignment: int,
    fail: Callable[[str], NoReturn],
) -> bytes:  # fmt: skip
    parts = [MAGIC, struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _pack_value(key, value, fail)]
    offset = 0
    for name, shape, kind, _ in entries:
        form = blocks.named(kind)
        parts.append(_pack_entry(name, tuple(shape), form, offset, fail))
        offset += -(-form.nbytes(shape) // alignment) * alignment
    names = [name for name, *_ in entries]
    if len(set(names)) < len(names):
        fail(f"tensor {next(n for n in names if names.count(n) > 1)!r} comes twice")
    return b"".join(parts)


def _pack_entry(
    name: str, shape: tuple[int, ...], form: blocks.Format, offset: int, fail: Callable[[str], NoReturn]
) -> bytes:
    if not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
        fail(f"tensor {name!r} has shape {list(shape)}; GGUF takes 1 to {MAX_DIMENSIONS} dimensions, none empty")
    if len(name.encode()) > MAX_NAME:
        fail(f"tensor name {name!r} is longer than the {MAX_NAME} bytes llama.cpp takes")
    return _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], form.id, offset)


def _encoded(
    name: str, shape: tuple[int, ...], kind: str, source: Source, fail: Callable[[str], NoReturn]
) -> Tensor:
    """The bytes of one tensor: uint8, flat, on the CPU."""
    tensor = (source() if callable(source) else source).detach().cpu()
    if tensor.dtype == torch.uint8 and tensor.numel() == blocks.named(kind).nbytes(shape):
        return tensor.contiguous().view(-1)
    if tuple(tensor.shape) != shape:
        fail(f"tensor {name!r} was announced as {list(shape)} and came as {list(tensor.shape)} {tensor.dtype}")
    try:
        return blocks.quantize(tensor, kind).view(-1)
    except CutawayError as error:
        fail(f"tensor {name!r}: {error}")


def _string(text: str) -> bytes:
    octets = text.encode()
    return struct.pack("<Q", len(octets)) + octets


def _pack_value(key: str, value: Any, fail: Callable[[str], NoReturn]) -> bytes:
    """A metadata value: its type number and its bytes; an array also has its element type and length."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    array = _typed(value)
    kinds = [] if array is None else [k for k, dtype in SCALARS.items() if np.dtype(dtype) == array.dtype]
    if array is None or not kinds or array.ndim > 1:
        fail(f"metadata {key!r}: GGUF cannot hold {value!r:.80}")
    prefix = struct.pack("<IIQ", ARRAY, kinds[0], len(array)) if array.ndim else struct.pack("<I", kinds[0])
    return prefix + array.astype(SCALARS[kinds[0]]).tobytes()


def _typed(value: Any) -> np.ndarray | None:
    """A number, or a list of numbers of one type, with the type GGUF shall give it; None if there is none."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value).newbyteorder("=") if False else np.asarray(value)
    return None
