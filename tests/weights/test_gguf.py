"""GGUF files against the `gguf` package, both ways, and every way a file can be wrong."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from torch import Tensor

from cutaway.errors import CutawayError, NotFound
from cutaway.weights import blocks, gguf

U32, U64, F32, BOOL, STRING, ARRAY = 4, 10, 6, 7, 8, 9

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "negative": -5,
    "large": 2**40,
    "very negative": -(2**40),
    "largest": 2**64 - 1,
    "epsilon": 1e-5,
    "yes": True,
    "no": False,
    "empty": "",
    "tokens": ["<s>", "é", "中文", "🙂", ""],
    "types": [1, 2, 3, -1],
    "scores": [0.5, -1.25],
    "mixed": [1, 2.5],
    "flags": [True, False],
    "none": [],
    "uint8": np.uint8(7),
    "float64": np.float64(0.1),
    "sizes": np.array([1, 2, 3], np.uint16),
    "wide": np.array([2**40], np.int64),
    "swapped": np.array([1, 2], ">i4"),
}


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def float32(value: Any) -> Any:
    """What a Python float becomes in the file."""
    if isinstance(value, list) and any(isinstance(item, float) for item in value):
        return np.array(value, np.float32).tolist()
    return float(np.float32(value)) if isinstance(value, float) and not isinstance(value, np.float64) else value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def tensors_of_each_type() -> dict[str, tuple[str, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    names = [name for name, form in blocks.FORMATS.items() if form.encode]
    return {f"blk.{i}.{name}": (name, torch.randn(3, 5, 64, generator=draw)) for i, name in enumerate(names)}


# ---- both ways with the gguf package -----------------------------------------------------------------------


def test_what_we_write_the_gguf_package_reads(path: Path) -> None:
    made = tensors_of_each_type()
    made["one"] = ("F32", torch.arange(7.0))
    made["four"] = ("F16", torch.randn(2, 3, 4, 5))
    gguf.write(path, METADATA, [(name, t.shape, kind, t) for name, (kind, t) in made.items()])
    reader = GGUFReader(path)

    found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert found == {key: plain(float32(value)) for key, value in METADATA.items()}
    assert reader.fields["GGUF.version"].contents() == 3
    assert [tensor.name for tensor in reader.tensors] == list(made)
    for tensor in reader.tensors:
        kind, weights = made[tensor.name]
        assert tensor.tensor_type.name == kind
        assert tuple(tensor.shape[::-1].tolist()) == weights.shape
        assert tensor.data_offset % 32 == 0
        expected = quants.quantize(weights.numpy(), tensor.tensor_type)
        np.testing.assert_array_equal(tensor.data.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("llama.block_count", "UINT32"), ("negative", "INT32"), ("large", "UINT64"),
        ("very negative", "INT64"), ("epsilon", "FLOAT32"), ("yes", "BOOL"), ("empty", "STRING"),
        ("uint8", "UINT8"), ("float64", "FLOAT64"),
        ("types", "INT32"), ("scores", "FLOAT32"), ("flags", "BOOL"), ("sizes", "UINT16"), ("wide", "INT64"),
        ("swapped", "INT32"), ("tokens", "STRING"), ("mixed", "FLOAT32"),
    ],
)  # fmt: skip
def test_metadata_types_are_those_llama_cpp_expects(path: Path, key: str, kind: str) -> None:
    gguf.write(path, METADATA, [])
    assert GGUFReader(path).fields[key].types[-1].name == kind


def test_what_the_gguf_package_writes_we_read(path: Path) -> None:
    made = tensors_of_each_type()
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("u", 3)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 65535)
    writer.add_int64("i64", -(2**40))
    writer.add_float64("f64", 0.1)
    writer.add_bool("b", True)
    writer.add_string("s", "中文🙂")
    writer.add_array("tokens", ["a", "b"])
    writer.add_array("types", [1, 2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    for name, (kind, weights) in made.items():
        raw = GGMLQuantizationType[kind]
        writer.add_tensor(name, quants.quantize(weights.numpy(), raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = gguf.read(path)
    assert file.version == 3
    nested = file.metadata.pop("nested")
    assert [inner.tolist() for inner in nested] == [[1, 2], [3]]
    assert file.metadata.pop("types").dtype == np.int32
    assert file.metadata == {
        "general.architecture": "llama", "u": 3, "i8": -3, "u16": 65535, "i64": -(2**40),
        "f64": 0.1, "b": True, "s": "中文🙂", "tokens": ["a", "b"],
    }  # fmt: skip
    for name, (kind, weights) in made.items():
        assert (file.tensors[name].type, file.tensors[name].shape) == (kind, (3, 5, 64))
        raw = GGMLQuantizationType[kind]
        expected = quants.dequantize(quants.quantize(weights.numpy(), raw), raw)
        np.testing.assert_array_equal(file.load(name).numpy(), expected)


def test_our_own_round_trip(path: Path) -> None:
    """Reading and writing again keeps every byte, unread formats passed on as raw bytes."""
    raw = torch.randint(0, 256, (2, 144), dtype=torch.uint8)
    entries = [("norm", (7,), "F32", torch.randn(7)), ("w", (2, 256), "Q4_K", raw)]
    gguf.write(path, METADATA, entries)
    first = gguf.read(path)
    again = path.with_name("again.gguf")
    keep = {key: value for key, value in first.metadata.items() if key not in {"float64", "uint8"}}
    gguf.write(again, keep, [(n, t.shape, t.type, first.raw(n)) for n, t in first.tensors.items()])
    second = gguf.read(again)
    assert torch.equal(second.raw("w"), raw.view(-1))
    assert second.tensors.keys() == first.tensors.keys()
    assert {k: plain(v) for k, v in second.metadata.items()} == {k: plain(v) for k, v in keep.items()}


def test_version_2_and_other_alignments(path: Path) -> None:
    gguf.write(
        path,
        {"general.alignment": 128},
        [("a", (3,), "F32", torch.ones(3)), ("b", (2,), "F32", torch.zeros(2))],
    )
    assert [t.offset % 128 for t in gguf.read(path).tensors.values()] == [0, 0]
    assert path.stat().st_size % 128 == 0
    octets = bytearray(path.read_bytes())
    octets[4:8] = struct.pack("<I", 2)
    path.write_bytes(octets)
    file = gguf.read(path)
    assert file.version == 2
    assert file.load("a").tolist() == [1, 1, 1]


# ---- real files --------------------------------------------------------------------------------------------


def test_real_smollm2(smollm2_gguf: Path) -> None:
    file, reader = gguf.read(smollm2_gguf), GGUFReader(smollm2_gguf)
    fields = {key: value for key, value in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: plain(value) for key, value in file.metadata.items()} == {
        key: value.contents() for key, value in fields.items()
    }
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        info = file.tensors[tensor.name]
        assert (info.offset, info.type) == (tensor.data_offset, tensor.tensor_type.name)
        assert info.shape == tuple(tensor.shape[::-1].tolist())
        np.testing.assert_array_equal(file.raw(tensor.name).numpy(), tensor.data.view(np.uint8).ravel())
    assert sum(np.prod(info.shape) for info in file.tensors.values()) == 134_515_008


def test_real_gemma3(gemma3_gguf: Path) -> None:
    """A vocabulary of 262,144, for which the reference reader takes too long: known values instead."""
    file = gguf.read(gemma3_gguf)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[1], tokens[2]) == (262_144, "<eos>", "<bos>")
    assert file.metadata["tokenizer.ggml.scores"].shape == file.metadata["tokenizer.ggml.token_type"].shape
    last = max(file.tensors.values(), key=lambda info: info.offset)
    assert 0 <= gemma3_gguf.stat().st_size - last.offset - last.nbytes < 32
    assert len(file.tensors) == 236


# ---- what a reader may ask ---------------------------------------------------------------------------------


def test_raw_is_a_view_that_does_not_reach_the_disk(path: Path) -> None:
    gguf.write(path, {}, [("a", (8,), "F32", torch.ones(8))])
    before, file = path.read_bytes(), gguf.read(path)
    raw = file.raw("a")
    assert not raw.zero_().any()
    assert path.read_bytes() == before
    assert file.load("a").all(), "and is forgotten when the next is asked for"
    assert raw.any()


def test_a_missing_tensor_is_not_found(path: Path) -> None:
    gguf.write(path, {}, [("blk.0.attn_q.weight", (8,), "F32", torch.ones(8))])
    with pytest.raises(NotFound, match=r"model\.gguf: no tensor 'blk.0.attn_k.weight' \(near it: blk.0.attn_q.weight"):
        gguf.read(path).load("blk.0.attn_k.weight")
    with pytest.raises(NotFound, match="holds 1 others"):
        gguf.read(path).raw("???")


def test_a_type_for_the_weights_can_be_chosen(path: Path) -> None:
    gguf.write(path, {}, [("a", (8,), "BF16", torch.arange(8.0))])
    loaded = gguf.read(path).load("a", torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded.tolist() == list(range(8))


# ---- bad files ---------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    octets = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(octets)) + octets


def entry(name: str | bytes = "w", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(
    keys: tuple[bytes, ...] = (), entries: tuple[bytes, ...] = (), *, data: int = 64,
    counts: tuple[int, int] | None = None, magic: bytes = b"GGUF", version: int = 3,
) -> bytes:  # fmt: skip
    """A file by hand, right or wrong."""
    n_tensors, n_keys = counts or (len(entries), len(keys))
    header = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(entries)
    return header + bytes(-len(header) % 32 + data)


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return text("k") + struct.pack("<IIQ", ARRAY, kind, count) + body


def nested(depth: int) -> bytes:
    return text("k") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * (depth - 1) + struct.pack("<IQ", 4, 0)


def number(key: str, kind: int, body: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + body


def aligned(value: int) -> bytes:
    return number("general.alignment", U32, struct.pack("<I", value))


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "magic": (build(magic=b"GGML"), "not a GGUF file: it begins with b'GGML'"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "no version": (b"GGUF\3", "go past the end of the file"),
    "no counts": (build()[:20], "the first 24 bytes: 8 bytes from byte 16 go past the end"),
    "version 1": (build(version=1), "version 1 is not known"),
    "version 9": (build(version=9), "version 9 is not known"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "many keys": (build(counts=(0, 2**64 - 1)), "metadata 'k?'|metadata key 2 of 18,446"),
    "many tensors": (build(counts=(2**63, 0)), "tensor .* dimensions"),
    "long string": (build((text("k") + struct.pack("<IQ", STRING, 2**63),)), "metadata 'k': 9,223,372"),
    "last string": (build((text("k") + struct.pack("<IQ", STRING, 5),))[:45] + b"abcd", "'k': 5 bytes from"),
    "long key": (build((struct.pack("<Q", 2**64 - 1),), counts=(0, 1)), "metadata key 1 of 1: 18,446"),
    "key not UTF-8": (build((text(b"\xff\xfe") + struct.pack("<II", U32, 1),)), "not UTF-8"),
    "token not UTF-8": (build((array(STRING, 1, text(b"\xe4\xb8")),)), "'k': the string at .* not UTF-8"),
    "many strings": (build((array(STRING, 2**62),)), "metadata 'k'"),
    "many numbers": (build((array(U64, 2**62),)), "metadata 'k': 36,893,488,147,419,103,232 bytes"),
    "many arrays": (build((array(ARRAY, 2**62),)), "metadata 'k'"),
    "nested arrays": (build((nested(5),)), "nested deeper than 4"),
    "unknown value": (build((text("k") + struct.pack("<I", 99),)), "metadata 'k': unknown metadata type 99"),
    "unknown element": (build((array(13, 1),)), "unknown metadata type 13"),
    "boolean of 2": (build((number("k", BOOL, b"\2"),)), "neither 0 nor 1"),
    "key twice": (build((number("k", BOOL, b"\1"),) * 2), "the key 'k' comes twice"),
    "alignment 0": (build((aligned(0),)), "is 0, not a power of two"),
    "alignment 48": (build((aligned(48),)), "is 48, not a power of two"),
    "alignment 2^31": (build((aligned(2**31),)), "not a power of two"),
    "alignment 32.0": (build((number("general.alignment", F32, b"\0\0\0B"),)), "is 32.0, not a power"),
    "split": (build((number("split.count", U32, b"\3\0\0\0"),)), "one of 3 files .* llama-gguf-split"),
    "tensor twice": (build(entries=(entry("w"), entry("w"))), "tensor 'w': comes twice"),
    "no dimensions": (build(entries=(entry(dims=()),)), "tensor 'w': has 0 dimensions, not 1 to 4"),
    "5 dimensions": (build(entries=(entry(dims=(1,) * 5),)), "has 5 dimensions"),
    "4 billion dimensions": (build(entries=(text("w") + struct.pack("<I", 2**32 - 1),)), "dimensions, not 1"),
    "empty dimension": (build(entries=(entry(dims=(4, 0)),)), r"empty dimension: \[0, 4\]"),
    "overflow": (build(entries=(entry(dims=(2**62, 2**62, 4)),)), "tensor 'w': F32 .* of a file of"),
    "product wraps to 4": (build(entries=(entry(dims=(2**63 + 2, 2)),)), "a file of"),
    "Q2_K": (build(entries=(entry(kind=10),)), r"format 10 \(Q2_K\) cannot be read \(readable: F32"),
    "format 99": (build(entries=(entry(kind=99),)), r"format 99 \(unknown to Cutaway\)"),
    "part of a block": (build(entries=(entry(dims=(48, 2), kind=2),)), "48 weights are not whole Q4_0"),
    "misaligned": (build(entries=(entry(offset=16),)), "offset 16 is not a multiple of 32"),
    "beyond the end": (build(entries=(entry(offset=64),)), "needs bytes .* of a file of"),
    "half beyond the end": (build(entries=(entry(dims=(17,)),)), "needs bytes 64 to 132 of a file of 128"),
    "offset 2^64": (build(entries=(entry(offset=2**64 - 32),)), "needs bytes"),
    "no data": (build(entries=(entry(),), data=0), "needs bytes"),
    "name not UTF-8": (build(entries=(entry(b"\xff"),)), "tensor 1 of 1: the string .* not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_file_and_place(path: Path, name: str) -> None:
    content, message = BAD[name]
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CutawayError, match=message) as caught:
            gguf.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.where == str(path)
    assert caught.value.hint


def test_good_files_by_hand_are_read(path: Path) -> None:
    """The builder of bad files builds good ones too: what is refused above is refused for its fault alone."""
    keys = (nested(4), number("split.count", U32, struct.pack("<I", 1)), array(U32, 0).replace(b"k", b"e"))
    path.write_bytes(build(keys, (entry("a"), entry("b", (2, 2), 0, 32), entry("overlapping", (16,)))))
    file = gguf.read(path)
    assert {name: info.shape for name, info in file.tensors.items()} == {
        "a": (4,),
        "b": (2, 2),
        "overlapping": (16,),
    }
    assert file.metadata["e"].shape == (0,)
    path.write_bytes(build(data=0))
    assert gguf.read(path).tensors == {}


def test_every_truncation_is_refused(path: Path) -> None:
    keys = (
        number("x", STRING, text("value")),
        array(STRING, 2, text("ab") + text("cd")),
        number("y", F32, bytes(4)),
    )
    whole = build(keys, (entry("a"), entry("b", (16,), 0, 32)), data=96)
    path.write_bytes(whole)
    gguf.read(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CutawayError):
            gguf.read(path)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.gguf: no such file"):
        gguf.read(tmp_path / "none.gguf")
    with pytest.raises(CutawayError, match="directory"):
        gguf.read(tmp_path)


# ---- writing -----------------------------------------------------------------------------------------------


def test_tensors_are_made_one_at_a_time(path: Path) -> None:
    """A source is called when its turn comes and is let go of after: 20 tensors of 4 MB never meet."""
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.remove(1)

    def make() -> Tensor:
        alive.append(1)
        assert len(alive) <= 2
        return torch.from_numpy(np.ones((1024, 1024), np.float32).view(Counted))

    gguf.write(path, {}, ((f"t{i}", (1024, 1024), "Q8_0", make) for i in range(20)))
    assert not alive
    assert gguf.read(path).load("t19").amin() == pytest.approx(1, abs=1e-3)


def failing() -> Tensor:
    raise CutawayError("the source broke")


W = torch.zeros(2, 32)
UNWRITABLE: list[tuple[dict[str, Any], tuple[str, tuple[int, ...], str, Any], str]] = [
    ({}, ("w", (2, 33), "Q8_0", W), r"tensor 'w': rows of 33 weights"),
    ({}, ("w", (2, 32), "Q9", W), "tensor 'w': unknown weight format 'Q9'"),
    ({}, ("w", (256,), "Q4_K", torch.zeros(256)), "tensor 'w': Q4_K can be read but not written"),
    ({}, ("w", (32, 2), "F32", W), r"announced as \[32, 2\], it came as \[2, 32\] torch.float32"),
    ({}, ("w", (), "F32", torch.zeros(())), r"1 to 4 dimensions, none empty, not \[\]"),
    ({}, ("w", (1,) * 5, "F32", torch.zeros((1,) * 5)), "1 to 4 dimensions"),
    ({}, ("w", (0, 32), "F32", torch.zeros(0, 32)), "none empty"),
    ({}, ("w" * 64, (2, 32), "F32", W), "longer than the 63 bytes"),
    ({}, ("中" * 22, (2, 32), "F32", W), "longer than the 63 bytes"),
    ({}, ("w", (2, 32), "Q4_0", W / 0), "tensor 'w': a weight is NaN"),
    ({}, ("w", (2, 32), "F32", failing), "tensor 'w': the source broke"),
    ({"k": None}, ("w", (2, 32), "F32", W), "metadata 'k': GGUF cannot hold None"),
    ({"k": {"a": 1}}, ("w", (2, 32), "F32", W), "metadata 'k': GGUF cannot hold {"),
    ({"k": ["a", 1]}, ("w", (2, 32), "F32", W), "metadata 'k': GGUF cannot hold"),
    ({"k": [[1], [2]]}, ("w", (2, 32), "F32", W), "metadata 'k': GGUF cannot hold"),
    ({"k": [True, 2]}, ("w", (2, 32), "F32", W), "metadata 'k': GGUF cannot hold"),
    ({"k": 2**64}, ("w", (2, 32), "F32", W), "does not fit 64 bits"),
    ({"k": 1e300}, ("w", (2, 32), "F32", W), r"metadata 'k': GGUF cannot hold 1e\+300"),
    ({"k": np.zeros((2, 2))}, ("w", (2, 32), "F32", W), "an array of 2 dimensions"),
    ({"k": np.zeros(2, np.complex64)}, ("w", (2, 32), "F32", W), "type complex64"),
    ({"k": "\ud800"}, ("w", (2, 32), "F32", W), "metadata 'k': .* no UTF-8 form"),
    ({"general.alignment": 24}, ("w", (2, 32), "F32", W), "general.alignment is 24"),
]


@pytest.mark.parametrize(("metadata", "tensor", "message"), UNWRITABLE)
def test_what_cannot_be_written_leaves_nothing(
    path: Path, metadata: dict[str, Any], tensor: tuple[str, tuple[int, ...], str, Any], message: str
) -> None:
    path.write_bytes(b"what was there before")
    with pytest.raises(CutawayError, match=message) as caught:
        gguf.write(path, metadata, [tensor])
    assert caught.value.where.startswith(str(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == b"what was there before"


def test_a_tensor_written_twice_is_refused(path: Path) -> None:
    with pytest.raises(CutawayError, match="tensor 'w': comes twice"):
        gguf.write(path, {}, [("w", (2, 32), "F32", W)] * 2)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CutawayError):
        gguf.write(tmp_path / "file" / "model.gguf", {}, [])
    with pytest.raises(CutawayError):
        gguf.write(tmp_path, {}, [])
