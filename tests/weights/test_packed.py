"""Matrices packed into codes and scales: known numbers, whole checkpoints, and the refusal of odd ones.

That they are what transformers reads is a proof of the kit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.weights import safetensors
from cutaway.weights.packed import Unpacked, fp8, mxfp4


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def packed_fp4(draw: torch.Generator, low: int = 100, high: int = 150) -> tuple[Tensor, Tensor]:
    """Codes and scales of 3 experts with 6 rows of 64 numbers."""
    codes = torch.randint(256, (3, 6, 2, 16), generator=draw, dtype=torch.uint8)
    return codes, torch.randint(low, high, (3, 6, 2), generator=draw).to(torch.uint8)


def packed_fp8(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights and scales of a matrix whose last tiles are smaller."""
    weights = torch.randn(200, 300, generator=draw).to(torch.float8_e4m3fn)
    return weights, torch.rand(2, 3, generator=draw) + 0.1


def test_bfloat16_holds_every_number_of_mxfp4():
    """All codes, at exponents from the smallest on to the largest at which six times two to them is finite."""
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 1, 16)
    for exponent in (0, 1, 2, 126, 127, 128, 252):
        scales = torch.full((1, 16, 1), exponent, dtype=torch.uint8)
        exact = mxfp4(every, scales).double()
        table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
        expected = [table[half] * 2.0 ** (exponent - 127) for code in range(256) for half in (code & 15, code >> 4)]
        assert exact[0].T.flatten().tolist() == expected


def test_the_last_tiles_of_fp8_are_smaller(draw):
    weights, scales = packed_fp8(draw)
    rows, columns = torch.arange(200) // 128, torch.arange(300) // 128
    assert torch.equal(fp8(weights, scales), weights.float() * scales[rows][:, columns])


def saved(path: Path, tensors: dict[str, Tensor]) -> Unpacked:
    save_file(tensors, path / "model.safetensors")
    return Unpacked(safetensors.read(path))


def test_a_checkpoint_shows_each_pair_as_one_matrix(draw, tmp_path):
    (codes, scales), (weights, factors), norm = packed_fp4(draw), packed_fp8(draw), torch.ones(5)
    files = {"e.up_blocks": codes, "e.up_scales": scales, "q.weight": weights, "q.weight_scale_inv": factors}
    found = saved(tmp_path, {**files, "norm.weight": norm})
    assert dict(found.shapes) == {"norm.weight": (5,), "e.up": (3, 64, 6), "q.weight": (200, 300)}
    assert dict(found.dtypes) == {"norm.weight": "F32", "e.up": "MXFP4", "q.weight": "FP8"}
    assert sorted(found) == ["e.up", "norm.weight", "q.weight"]
    assert len(found) == 3
    assert torch.equal(found["norm.weight"], norm)
    assert torch.equal(found["e.up"], mxfp4(codes, scales))
    assert torch.equal(found["q.weight"], fp8(weights, factors))


def test_names_that_only_look_packed_are_left_alone(tmp_path):
    found = saved(tmp_path, {"my_scales": torch.ones(3), "layer_blocks": torch.ones(2)})
    assert dict(found.shapes) == {"my_scales": (3,), "layer_blocks": (2,)}


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        (("up_blocks", (3, 6, 2, 16)), ("up_scales", (3, 6, 3))),
        (("up_blocks", (3, 6, 2, 15)), ("up_scales", (3, 6, 2))),
        (("up_blocks", (6, 2, 16)), ("up_scales", (6, 2))),
        (("q.weight", (200, 300)), ("q.weight_scale_inv", (2, 2))),
        (("q.weight", (200,)), ("q.weight_scale_inv", (2,))),
    ],
)
def test_scales_that_do_not_go_with_their_codes_are_refused(codes, scales, tmp_path):
    tensors = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in (codes, scales)}
    with pytest.raises(CutawayError, match="have scales of shape"):
        saved(tmp_path, tensors)
