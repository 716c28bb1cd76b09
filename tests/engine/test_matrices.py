"""Matrices joined and interleaved as a tape needs them, from rows wherever they lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cutaway.engine.matrices import Stored, interleaved, joined, layout, pack
from cutaway.errors import CutawayError
from cutaway.native.build import compiled
from cutaway.native.packing import Packed, pack_floats
from cutaway.weights import blocks


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    try:
        compiled()
    except CutawayError as error:
        pytest.skip(f"no native kernels: {error}")


class Named(dict[str, Stored]):
    """A source of matrices."""

    def matrix(self, name: str) -> Stored:
        return self[name]

    def vector(self, name: str) -> Tensor | None:
        return None


def source(**types: str) -> Named:
    """Matrices of 64 x 64, the rows of each in an order of its own."""
    made = Named()
    for seed, (name, type) in enumerate(types.items()):
        torch.manual_seed(seed)
        made[name] = Stored(blocks.quantize(torch.randn(64, 64), type), torch.randperm(64), type)
    return made


def same(made: Packed, wanted: Packed) -> bool:
    return torch.equal(made.blocks, wanted.blocks) and made[1:] == wanted[1:]


def test_joined():
    """Neighbors of one format become one matrix."""
    files = source(q="Q8_0", k="Q4_0", v="Q4_0")
    (first, q), (second, kv) = joined(files, ["q", "k", "v"])
    assert (first, second) == (0, 64)
    assert (q.n, kv.n, q.bits, kv.bits) == (64, 128, 8, 4)
    assert same(q, pack(files["q"]))
    rows = torch.cat([files[name].rows[files[name].order_N] for name in "kv"])
    assert same(kv, pack(Stored(rows, torch.arange(128), "Q4_0")))


def test_interleaved():
    """32 rows of each in turn; different formats become float32."""
    files = source(gate="Q4_0", up="Q4_0", other="Q8_0", wide="BF16")
    turns = [("gate", 0), ("up", 0), ("gate", 32), ("up", 32)]
    rows = torch.cat([files[name].rows[files[name].order_N][at : at + 32] for name, at in turns])
    assert same(interleaved(files, ["gate", "up"]), pack(Stored(rows, torch.arange(128), "Q4_0")))
    for pair in (["gate", "other"], ["wide", "up"]):
        numbers = torch.stack([files[name].numbers.unflatten(0, (-1, 32)) for name in pair], 1).flatten(0, 2)
        assert same(interleaved(files, pair), pack_floats(numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_numbers(dtype):
    """bfloat16 stays, everything else becomes float32; of rows that are columns elsewhere too."""
    w_NK = torch.randn(32, 48).to(dtype).T
    stored = Stored.of(w_NK)
    assert stored.k == 32
    assert torch.equal(stored.numbers, w_NK.float())
    assert same(pack(stored), pack_floats(w_NK))


def test_every_format_has_a_layout():
    for name, form in blocks.FORMATS.items():
        assert layout(name).bits >= form.bits // 2
