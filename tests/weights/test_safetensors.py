"""safetensors against the library and transformers, both ways, and every way a checkpoint can be wrong."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.errors import CutawayError, NotFound
from cutaway.weights import safetensors

TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip


def some(count: int = 6) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {f"layer.{i}": torch.randn(10 + i, 10, generator=draw) for i in range(count)}


def same(found: Any, expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


# ---- both ways with the library ----------------------------------------------------------------------------


def test_table_of_types_is_the_whole_table(tmp_path: Path) -> None:
    """Each type the reader knows goes to disk and back, with its size."""
    sizes = {name: dtype.itemsize for name, dtype in TORCH_TYPES.items()}
    assert sizes == safetensors.ITEM_SIZES
    for name, dtype in TORCH_TYPES.items():
        numbers = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
        safetensors.write(tmp_path, {"w": numbers})
        found = safetensors.read(tmp_path)
        assert (found.dtypes["w"], found.shapes["w"], found["w"].dtype) == (name, (2, 3), dtype)
        assert found["w"].view(torch.uint8).tolist() == numbers.view(torch.uint8).tolist()


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    tensors = {**some(), "scalar": torch.tensor(2.0), "none": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "any.safetensors", {"format": "pt", "note": "é"})
    for path in (tmp_path / "any.safetensors", tmp_path):
        found = safetensors.read(path)
        same(found, tensors)
        assert found.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert set(found.dtypes.values()) == {"F32"}


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    safetensors.write(tmp_path, some())
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    same(load_file(tmp_path / "model.safetensors"), some())
    same(safetensors.read(tmp_path), some())


def test_a_large_model_is_cut(tmp_path: Path) -> None:
    tensors = some()
    safetensors.write(tmp_path, tensors, max_shard_bytes=1000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in shards] == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    for file in shards:
        held = load_file(file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 1000
        assert all(index["weight_map"][name] == file.name for name in held)
    same(safetensors.read(tmp_path), tensors)
    same(safetensors.read(tmp_path / "model.safetensors.index.json"), tensors)


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    safetensors.write(tmp_path, some(3), max_shard_bytes=1)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    same(safetensors.read(tmp_path), some(3))


@pytest.mark.parametrize("limit", [5 << 30, 20_000])
def test_transformers_loads_what_we_write(tmp_path: Path, limit: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    safetensors.write(tmp_path, model.state_dict(), max_shard_bytes=limit)
    again = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("limit", ["5GB", "20KB"])
def test_what_transformers_writes_we_read(tmp_path: Path, limit: str) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size=limit)
    assert (tmp_path / "model.safetensors.index.json").exists() == (limit == "20KB")
    same(safetensors.read(tmp_path), model.state_dict())


def test_real_minilm(minilm_dir: Path) -> None:
    found = safetensors.read(minilm_dir)
    assert found.shapes["embeddings.word_embeddings.weight"] == (30522, 384)
    same(found, load_file(minilm_dir / "model.safetensors"))


# ---- writing -----------------------------------------------------------------------------------------------


def test_a_generator_is_held_one_shard_at_a_time(tmp_path: Path) -> None:
    made: list[Path] = []

    def pairs() -> Iterator[tuple[str, Tensor]]:
        for i in range(6):
            made.append(tmp_path)
            finished = [file for file in tmp_path.glob(".partial-*/*") if file.stat().st_size]
            assert len(made) - len(finished) <= 2
            yield f"t{i}", torch.full((100,), float(i))

    safetensors.write(tmp_path, pairs(), max_shard_bytes=400)
    assert safetensors.read(tmp_path)["t5"].unique().item() == 5


def test_views_and_shared_memory_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "all": base,
        "tied": base,
        "row": base[1],
        "turned": base.t(),
        "gradient": torch.ones(2, requires_grad=True),
    }
    safetensors.write(tmp_path, tensors)
    same(safetensors.read(tmp_path), tensors)


def test_rewriting_leaves_no_stale_files(tmp_path: Path) -> None:
    """Were the old ones left, transformers would load the old model.safetensors and not the new shards."""
    (tmp_path / "config.json").write_text("{}")
    safetensors.write(tmp_path, some(), max_shard_bytes=1000)
    safetensors.write(tmp_path, some(5), max_shard_bytes=1000)
    same(safetensors.read(tmp_path), some(5))
    safetensors.write(tmp_path, some(4))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    same(safetensors.read(tmp_path), some(4))
    safetensors.write(tmp_path, some(6), max_shard_bytes=2000)
    assert not (tmp_path / "model.safetensors").exists()
    same(safetensors.read(tmp_path), some(6))


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from some(3).items()
        raise RuntimeError

    safetensors.write(tmp_path, some())
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError):
        safetensors.write(tmp_path, broken(), max_shard_bytes=500)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    safetensors.write(tmp_path, some(1))
    (tmp_path / "usual").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_other_names_and_notes(tmp_path: Path) -> None:
    safetensors.write(tmp_path, some(1), metadata={"by": "us"}, stem="adapter_model")
    octets = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert json.loads(octets[8 : 8 + struct.unpack("<Q", octets[:8])[0]])["__metadata__"] == {"by": "us"}
    same(safetensors.read(tmp_path), some(1))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CutawayError, match="no tensors to write"):
        safetensors.write(tmp_path, {})
    with pytest.raises(CutawayError, match="'a' comes twice"):
        safetensors.write(tmp_path, [("a", torch.ones(1)), ("a", torch.ones(1))])
    with pytest.raises(CutawayError, match="complex128"):
        safetensors.write(tmp_path, {"a": torch.ones(1, dtype=torch.complex128)})
    with pytest.raises(CutawayError, match="__metadata__"):
        safetensors.write(tmp_path, some(1), metadata={"n": 1})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(CutawayError, match="cannot be written"):
        safetensors.write(tmp_path / "file", some(1))


# ---- bad files ---------------------------------------------------------------------------------------------


def entry(dtype: Any = "F32", shape: Any = (2,), span: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span, **more}


def build(header: Any, data: int = 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


NOT_A_FILE = "not a safetensors file"
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", NOT_A_FILE),
    "short": (b"\1\0\0", NOT_A_FILE),
    "no header": (build(b"", 0), NOT_A_FILE),
    "length beyond the file": (build({}, 0, 3), NOT_A_FILE),
    "length of 2^64": (build({}, 0, 2**64 - 1), "header of 18,446"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs"),
    "not JSON": (build(b"{'a'}"), "not the JSON it should be"),
    "not UTF-8": (build(b'{"\xff":1}'), "not the JSON it should be"),
    "deep": (build(b"[" * 200_000), "not the JSON it should be"),
    "a huge number": (build(b'{"w":' + b"9" * 10_000 + b"}"), "not the JSON it should be"),
    "a list": (build([]), "not a JSON object"),
    "name twice": (build(b'{"w":{},"w":{}}'), "'w' comes twice"),
    "field twice": (build(b'{"w":{"shape":[],"shape":[1]}}'), "'shape' comes twice"),
    "notes of numbers": (build({"__metadata__": {"a": 1}}), "not an object of strings"),
    "notes in a list": (build({"__metadata__": ["a"]}), "not an object of strings"),
    "no dtype": (build({"w": {"shape": [2], "data_offsets": [0, 8]}}), "tensor 'w' does not have dtype"),
    "more fields": (build({"w": entry(extra=1)}), "and only these"),
    "entry is a number": (build({"w": 7}), "tensor 'w' does not have dtype"),
    "unknown dtype": (build({"w": entry("F33")}), "tensor 'w' has dtype 'F33'; known are F64"),
    "dtype is a list": (build({"w": entry(["F32"])}), r"tensor 'w' has dtype \['F32'\]"),
    "negative shape": (build({"w": entry(shape=(-2,))}), r"tensor 'w' has shape \[-2\]"),
    "fractional shape": (build({"w": entry(shape=(2.0,))}), r"tensor 'w' has shape \[2.0\]"),
    "boolean shape": (build({"w": entry(shape=(2, True))}), r"tensor 'w' has shape \[2, True\]"),
    "shape is a number": (build({"w": entry(shape=2)}), "tensor 'w' has shape 2"),
    "shape beyond 2^63": (build({"w": entry(shape=(2**63, 0), span=(0, 0))}), "tensor 'w' has shape"),
    "product wraps to 2": (build({"w": entry(shape=(2**62 + 1, 2, 2))}), "tensor 'w' is F32 .* has 8 bytes"),
    "65 dimensions": (build({"w": entry(shape=(1,) * 64 + (2,))}), "tensor 'w' has shape"),
    "too few bytes": (build({"w": entry(shape=(3,))}), r"tensor 'w' is F32 \[3\] and has 8 bytes"),
    "too many bytes": (build({"w": entry("F16")}), "tensor 'w' is F16"),
    "one offset": (build({"w": entry(span=(8,))}), "tensor 'w' has data_offsets"),
    "offsets reversed": (build({"w": entry(span=(8, 0))}), r"tensor 'w' has data_offsets \[8, 0\]"),
    "offsets negative": (build({"w": entry(span=(-8, 0))}), "tensor 'w' has data_offsets"),
    "truncated": (build({"w": entry()}, 7), r"end at byte 8 \(the last is 'w'\), the file holds 7"),
    "bytes left over": (build({"w": entry()}, 9), "end at byte 8 .* the file holds 9"),
    "data for nothing": (build({}), "end at byte 0"),
    "gap at the front": (build({"w": entry(span=(8, 16))}, 16), "'w' leaves a gap before it"),
    "gap": (build({"v": entry(), "w": entry(span=(9, 17))}, 17), "'w' leaves a gap before it"),
    "overlap": (build({"v": entry(), "w": entry(span=(4, 12))}, 12), "'w' overlaps the tensor before it"),
    "same place": (build({"v": entry(), "w": entry()}), "'w' overlaps the tensor before it"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_file_and_tensor(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CutawayError, match=message) as caught:
        safetensors.read(path)
    assert caught.value.where == str(path)
    assert caught.value.hint


def test_good_files_by_hand_are_read(tmp_path: Path) -> None:
    """The builder of bad files builds good ones too: what is refused above is refused for its fault alone."""
    path = tmp_path / "model.safetensors"
    notes = {
        "__metadata__": {"a": "b"},
        "none": entry(shape=(0, 5), span=(8, 8)),
        "v": entry("I64", (), (8, 16)),
    }
    path.write_bytes(build({**notes, "w": entry()}, 16))
    found = safetensors.read(path)
    assert found["w"].tolist() == [0, 0]
    assert (found["v"].item(), found["none"].shape) == (0, (0, 5))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(some(2), path)
    whole = path.read_bytes()
    for size in [*range(300), *range(300, len(whole), 97)]:
        path.write_bytes(whole[:size])
        with pytest.raises(CutawayError):
            safetensors.read(path)


def test_a_missing_tensor_is_not_found(tmp_path: Path) -> None:
    safetensors.write(tmp_path, some(2))
    found = safetensors.read(tmp_path)
    with pytest.raises(NotFound, match=r"no tensor 'nope' \(it holds 2 others\)"):
        found["nope"]
    assert "nope" not in found
    assert found.get("nope") is None
    assert (len(found), list(found)) == (2, ["layer.0", "layer.1"])


def test_a_file_changed_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.write(tmp_path, some(2))
    found = safetensors.read(path)
    os.truncate(path, 100)
    with pytest.raises(CutawayError, match=r"tensor 'layer\.0' cannot be loaded"):
        found["layer.0"]


# ---- bad directories ---------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    safetensors.write(tmp_path, some(), max_shard_bytes=1000)
    return tmp_path


def reindex(directory: Path, **changes: Any) -> None:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def placed(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]


def test_a_missing_shard_is_refused(sharded: Path) -> None:
    (sharded / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(NotFound, match=r"model-00002-of-00004.safetensors: no such file"):
        safetensors.read(sharded)


def test_a_tensor_absent_from_its_shard_is_refused(sharded: Path) -> None:
    reindex(sharded, weight_map={**placed(sharded), "ghost": "model-00001-of-00004.safetensors"})
    with pytest.raises(CutawayError, match=r"'ghost' is not in model-00001-of-00004.safetensors"):
        safetensors.read(sharded)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..\\model.safetensors", "..",
     "", "pytorch_model.bin", 7, None, "a\0.safetensors"],
)  # fmt: skip
def test_an_index_leads_nowhere_else(sharded: Path, shard: Any) -> None:
    (sharded.parent / "model.safetensors").write_bytes(b"")
    reindex(sharded, weight_map={**placed(sharded), "layer.0": shard})
    with pytest.raises(CutawayError, match=r"'layer\.0' is placed in .* no \.safetensors file beside"):
        safetensors.read(sharded)


@pytest.mark.parametrize("weight_map", [{}, [], None, 7])
def test_an_index_needs_a_map(sharded: Path, weight_map: Any) -> None:
    reindex(sharded, weight_map=weight_map)
    with pytest.raises(CutawayError, match="no weight_map"):
        safetensors.read(sharded)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"weight_map": {"a": "b", "a": "c"}}'])
def test_an_index_that_is_not_one_is_refused(sharded: Path, content: bytes) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CutawayError, match=r"index\.json"):
        safetensors.read(sharded)


def test_tensors_the_index_forgets_are_kept(sharded: Path) -> None:
    """As transformers does; unless two shards have one each, and nothing says which is meant."""
    forgetful = {name: shard for name, shard in placed(sharded).items() if name != "layer.1"}
    reindex(sharded, weight_map=forgetful)
    same(safetensors.read(sharded), some())
    save_file({"layer.1": torch.ones(1), "layer.5": some()["layer.5"]}, sharded / "extra.safetensors")
    reindex(sharded, weight_map={**forgetful, "layer.5": "extra.safetensors"})
    with pytest.raises(CutawayError, match=r"'layer\.1' is in two shards"):
        safetensors.read(sharded)


def test_directories_without_one_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CutawayError, match=r"no \.safetensors file"):
        safetensors.read(tmp_path)
    save_file(some(1), tmp_path / "a.safetensors")
    save_file(some(1), tmp_path / "b.safetensors")
    with pytest.raises(CutawayError, match=r"2 \.safetensors files and no index"):
        safetensors.read(tmp_path)
    with pytest.raises(NotFound, match="no such file"):
        safetensors.read(tmp_path / "c.safetensors")
