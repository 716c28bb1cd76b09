"""GGUF files, versions 2 and 3, in and out: the one-file checkpoints of llama.cpp (Gerganov et al., 2023).

    "GGUF"  version  tensors  keys                 uint32 uint32 uint64 uint64
    key  type  value                               once per key: hyper-parameters, tokenizer, chat template
    name  dimensions  shape  format  offset        once per tensor: where it lies, innermost dimension first
    padding to general.alignment (32 unless said)
    the tensors, each at its offset from here      in the formats of `cutaway.weights.blocks`

All little-endian; a string is a uint64 length and UTF-8. The file is mapped, not read: a tensor costs memory
only once it is loaded. Nothing in the file is believed: counts and offsets are held against the file's size
before anything is allocated. The specification is `docs/gguf.md` of the ggml repository.
"""

from __future__ import annotations

import difflib
import mmap
import os
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError, NotFound
from cutaway.files import advise, atomic
from cutaway.weights import blocks

MAGIC = b"GGUF"
ALIGNMENT = 32
HEADER_LIMIT = 1 << 26  # bytes; the largest vocabularies (262,144 tokens) take about 6 MB
MAX_DEPTH = 4  # arrays within arrays
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
MAX_NAME = 63  # bytes of a tensor name llama.cpp accepts

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {  # a metadata value's type number -> its numpy dtype
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
FORMAT_OF_ID = {form.id: form for form in blocks.FORMATS.values()}
UNREADABLE = {  # formats of ggml that Cutaway does not read, so that a refusal can name them
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
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
    _file: mmap.mmap = field(repr=False)

    def raw(self, name: str) -> Tensor:
        """The stored bytes of a tensor: uint8 [nbytes], a view on the mapped file. Raises NotFound.

        What was read before leaves memory here, and is in the file if somebody looks again: who packs or converts
        tensor by tensor never has two of them in memory twice.
        """
        info = self._info(name)
        advise(self._file, "MADV_DONTNEED")
        return torch.frombuffer(self._file, dtype=torch.uint8, offset=info.offset, count=info.nbytes)

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor's weights, in memory of their own. Raises NotFound."""
        info = self._info(name)
        return blocks.dequantize(self.raw(name), info.type, info.shape, dtype)

    def _info(self, name: str) -> TensorInfo:
        if name in self.tensors:
            return self.tensors[name]
        near = difflib.get_close_matches(name, self.tensors, n=3)
        hint = f"near it: {', '.join(near)}" if near else f"it holds {len(self.tensors)} others"
        raise NotFound(f"no tensor {name!r}", str(self.path), hint)


# ---- reading -----------------------------------------------------------------------------------------------


def read(path: str | Path) -> GGUF:
    """Open a GGUF file: its metadata is parsed, its tensors are located and checked, no weight is read.

    Raises CutawayError for a file that is not GGUF, truncated, corrupt, big-endian, one part of a split model
    or that holds a tensor in a format not in `blocks.FORMATS`; NotFound for no file.
    """
    path = Path(path)
    with _about(str(path)):
        header = _Header(_map(path))
        version = _version(header)
        tensor_count, key_count = header.integer("<u8"), header.integer("<u8")
        metadata = _metadata(header, key_count)
        _refuse_split(metadata)
        tensors = _tensors(header, tensor_count, _alignment(metadata))
    return GGUF(path, version, metadata, tensors, header.data)


@contextmanager
def _about(where: str) -> Iterator[None]:
    """Say `where` in every error raised within; an error of the operating system becomes one of ours."""
    try:
        yield
    except CutawayError as error:
        raise type(error)(error.what, ": ".join(filter(None, [where, error.where])), error.hint) from None
    except OSError as error:
        raise CutawayError(error.strerror or str(error), where) from None


def _map(path: Path) -> mmap.mmap:
    """The file as memory, page by page as it is touched. Private: writing to it never reaches the disk."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CutawayError("the file is empty", hint="download or convert it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise NotFound("no such file") from None


class _Header:
    """The header, read front to back. `doing` says what is being read, for the error if it turns out bad."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at, self.end = 0, min(len(data), HEADER_LIMIT)
        self.doing = "the first 24 bytes"

    def fail(self, what: str, hint: str = "the file is damaged; download or convert it again") -> NoReturn:
        raise CutawayError(f"{self.doing}: {what}", hint=hint)

    def skip(self, size: int) -> int:
        """Pass over `size` bytes and say where they began. Fails if they are not all there."""
        if size > self.end - self.at:
            limit = "the file" if self.end == len(self.data) else "what a header may take"
            self.fail(f"{size:,} bytes from byte {self.at:,} go past the end of {limit} ({self.end:,} bytes)")
        self.at += size
        return self.at - size

    def array(self, dtype: str, count: int) -> np.ndarray:
        """`count` numbers, copied out of the file."""
        start = self.skip(count * np.dtype(dtype).itemsize)
        return np.frombuffer(self.data, dtype, count, start).copy()

    def integer(self, dtype: str) -> int:
        return int(self.array(dtype, 1)[0])

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
    version = header.integer("<u4")
    if version & 0xFFFF == 0:  # 3 with its bytes the other way round
        header.fail("this GGUF file is big-endian", "get the little-endian one, or use gguf-convert-endian")
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
        metadata[key] = _value(header, header.integer("<u4"))
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
    kind, count = header.integer("<u4"), header.integer("<u8")
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


def _refuse_split(metadata: Mapping[str, Any]) -> None:
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        hint = "join them with llama-gguf-split --merge"
        raise CutawayError(f"this is one of {parts} files a model was split into", hint=hint)


def _alignment(metadata: Mapping[str, Any]) -> int:
    """Every tensor begins at a multiple of this many bytes."""
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment.bit_count() != 1 or not 1 <= alignment <= MAX_ALIGNMENT:
        what = f"general.alignment is {alignment!r:.40}, not a power of two up to {MAX_ALIGNMENT:,}"
        raise CutawayError(what, hint=f"almost every file has {ALIGNMENT}; this one may be damaged")
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
    dimensions = header.integer("<u4")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        header.fail(f"has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    shape = tuple(header.array("<u8", dimensions)[::-1].tolist())
    if 0 in shape:
        header.fail(f"has an empty dimension: {list(shape)}")
    kind, offset = header.integer("<u4"), header.integer("<u8")
    form = FORMAT_OF_ID.get(kind)
    if form is None:
        which = UNREADABLE.get(kind, "unknown to Cutaway")
        header.fail(f"format {kind} ({which}) cannot be read", f"readable: {', '.join(blocks.FORMATS)}")
    if shape[-1] % form.elements:
        header.fail(f"rows of {shape[-1]} weights are not whole {form.name} blocks of {form.elements}")
    return TensorInfo(name, shape, form.name, offset, form.nbytes(shape))


def _placed(header: _Header, info: TensorInfo, start: int, alignment: int) -> TensorInfo:
    """The same entry, its offset from the beginning of the file now, and the tensor known to lie inside."""
    header.doing = f"tensor {info.name!r}"
    if info.offset % alignment:
        header.fail(f"offset {info.offset:,} is not a multiple of {alignment}")
    begin, size = start + info.offset, len(header.data)
    if begin + info.nbytes > size:
        end = begin + info.nbytes
        header.fail(f"{info.type} {list(info.shape)} needs bytes {begin:,} to {end:,} of a file of {size:,}")
    return TensorInfo(info.name, info.shape, info.type, begin, info.nbytes)


# ---- writing -----------------------------------------------------------------------------------------------

Source = Tensor | Callable[[], Tensor]
Entry = tuple[str, Sequence[int], str, Source]  # name, shape (outermost first), format, weights

SINGLE_INTEGER = ("<u4", "<i4", "<u8", "<i8")  # the first that fits: llama.cpp wants its counts unsigned
LISTED_INTEGERS = ("<i4", "<u4", "<i8", "<u8")  # and its token types signed
TYPE_NUMBER = {np.dtype(dtype): number for number, dtype in SCALARS.items()}


def write(path: str | Path, metadata: Mapping[str, Any], tensors: Iterable[Entry]) -> None:
    """Write a GGUF file, version 3, under a temporary name first.

    tensors: a source is a tensor, or a function that makes it when its turn comes, so that a big model never
    lies in memory whole. It holds the weights in the shape announced, or (uint8) bytes already in the format.

    metadata: bool and str; int as uint32 if it fits, else int32, uint64, int64; float as float32; lists of
    one of these, int preferring int32 there; numpy numbers and one-dimensional arrays keep their own type.

    Raises CutawayError for names, shapes, formats or values that the format or llama.cpp cannot take.
    """
    entries = list(tensors)
    with _about(str(path)):
        alignment = _alignment(metadata)
        header = _pack_metadata(metadata, len(entries)) + _pack_entries(entries, alignment)
        with atomic(path) as partial, partial.open("wb") as file:
            file.write(header)
            for name, shape, kind, source in entries:
                _pad(file, alignment)
                with _about(f"tensor {name!r}"):
                    file.write(_encoded(source, tuple(shape), kind).numpy().data)
            _pad(file, alignment)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _pack_metadata(metadata: Mapping[str, Any], tensor_count: int) -> bytes:
    """The file up to its first tensor entry."""
    parts = [MAGIC, struct.pack("<IQQ", 3, tensor_count, len(metadata))]
    for key, value in metadata.items():
        with _about(f"metadata {key!r}"):
            parts += [_pack_string(key), _pack_value(value)]
    return b"".join(parts)


def _pack_value(value: Any) -> bytes:
    """A metadata value: its type number and its bytes; for an array also its elements' type and number."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _pack_string(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_pack_string, value))
    array = _typed(value)
    kind = TYPE_NUMBER.get(array.dtype.newbyteorder("<"))
    if kind is None or array.ndim > 1:
        raise CutawayError(f"GGUF cannot hold an array of {array.ndim} dimensions and type {array.dtype}")
    prefix = struct.pack("<IIQ", ARRAY, kind, array.size) if array.ndim else struct.pack("<I", kind)
    return prefix + array.astype(SCALARS[kind]).tobytes()


def _typed(value: Any) -> np.ndarray:
    """A number, or a list of numbers, with the type GGUF shall give it."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    listed = isinstance(value, list | tuple)
    types = {type(item) for item in value} if listed else {type(value)}
    if types == {bool}:
        return np.asarray(value)
    if types == {int}:
        return _integers(value, LISTED_INTEGERS if listed else SINGLE_INTEGER)
    if types <= {int, float}:
        with np.errstate(over="ignore"):
            rounded = np.asarray(value, np.float32)
        if np.array_equal(np.isinf(rounded), np.isinf(value)):
            return rounded
    raise CutawayError(f"GGUF cannot hold {value!r:.80}", hint="give bool, int, float, str, or a list of one")


def _integers(value: Any, dtypes: Sequence[str]) -> np.ndarray:
    for dtype in dtypes:
        with suppress(OverflowError):
            return np.asarray(value, dtype)
    raise CutawayError(f"{value!r:.80} does not fit 64 bits")


def _pack_string(text: str) -> bytes:
    try:
        octets = text.encode()
    except UnicodeEncodeError:
        raise CutawayError(f"{text!r:.80} has no UTF-8 form", hint="it holds half a surrogate pair") from None
    return struct.pack("<Q", len(octets)) + octets


def _pack_entries(entries: Sequence[Entry], alignment: int) -> bytes:
    """Where each tensor will lie: one after the other, each padded to the alignment."""
    parts, offset, seen = [], 0, set[str]()
    for name, shape, kind, _ in entries:
        with _about(f"tensor {name!r}"):
            form = blocks.named(kind)
            _check_entry(name, shape, seen)
            size = form.nbytes(shape)
        parts.append(_pack_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
        parts.append(struct.pack("<IQ", form.id, offset))
        offset += size + -size % alignment
        seen.add(name)
    return b"".join(parts)


def _check_entry(name: str, shape: Sequence[int], seen: Container[str]) -> None:
    if name in seen:
        raise CutawayError("comes twice")
    if len(_pack_string(name)) > 8 + MAX_NAME:
        raise CutawayError(f"its name is longer than the {MAX_NAME} bytes llama.cpp takes")
    if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 1:
        raise CutawayError(f"GGUF takes 1 to {MAX_DIMENSIONS} dimensions, none empty, not {list(shape)}")


def _encoded(source: Source, shape: tuple[int, ...], kind: str) -> Tensor:
    """The bytes of one tensor: uint8, flat, on the CPU."""
    tensor = (source if isinstance(source, Tensor) else source()).detach().cpu()
    if tensor.dtype == torch.uint8 and tensor.numel() == blocks.named(kind).nbytes(shape):
        return tensor.reshape(-1)
    if tuple(tensor.shape) != shape:
        raise CutawayError(f"announced as {list(shape)}, it came as {list(tensor.shape)} {tensor.dtype}")
    return blocks.quantize(tensor, kind).view(-1)
