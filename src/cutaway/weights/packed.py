"""Checkpoints that keep a matrix as codes of few bits and, in a tensor beside it, their scales; read as one matrix.

MXFP4   X_blocks, X_scales              gpt-oss: 32 numbers of 4 bits share a power of two
FP8     X.weight, X.weight_scale_inv    DeepSeek-V3: 128 x 128 numbers of 8 bits share a float32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.weights.blocks import microscaled
from cutaway.weights.safetensors import DAMAGED, Shards

TILE = 128  # rows, and columns, of FP8 weights that share a scale
Shape = tuple[int, ...]


def mxfp4(codes: Tensor, scales: Tensor) -> Tensor:
    """Weights [E, I, O] in bfloat16, which holds them exactly, from codes [E, O, I/32, 16] and scales [E, O, I/32].

    OCP Microscaling Formats v1.0 (2023), both uint8. Of a byte's two codes the low half comes first.
    """
    codes_32 = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    return microscaled(codes_32, scales[..., None]).bfloat16().flatten(-2).transpose(1, 2).contiguous()


def fp8(weights: Tensor, scales: Tensor) -> Tensor:
    """Weights [O, I] in float32 from float8 ones and a factor for each tile of 128 x 128, the last ones smaller."""
    factors = scales.float().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    return weights.float() * factors[: weights.shape[0], : weights.shape[1]]


def _mxfp4_shape(codes: Shape, scales: Shape) -> Shape | None:
    return (codes[0], 32 * codes[2], codes[1]) if len(codes) == 4 and codes == (*scales, 16) else None


def _fp8_shape(codes: Shape, scales: Shape) -> Shape | None:
    return codes if len(codes) == 2 and tuple(-(-n // TILE) for n in codes) == scales else None


class Packing(NamedTuple):
    """name: the type on disk. codes, scales, whole: how names end. shape: of the whole, None if theirs do not fit."""

    name: str
    codes: str
    scales: str
    whole: str
    shape: Callable[[Shape, Shape], Shape | None]
    decode: Callable[[Tensor, Tensor], Tensor]


PACKINGS = (
    Packing("MXFP4", "_blocks", "_scales", "", _mxfp4_shape, mxfp4),
    Packing("FP8", ".weight", ".weight_scale_inv", ".weight", _fp8_shape, fp8),
)


class Pair(NamedTuple):
    """The names of a matrix's two tensors, and how they make it."""

    codes: str
    scales: str
    packing: Packing


class Unpacked(Mapping[str, Tensor]):
    """The tensors of a checkpoint, each packed pair under the one name that it has unpacked; decoded when asked for.

    shapes, dtypes: by name, as of `Shards`. Errors: scales that do not go with their codes.
    """

    def __init__(self, tensors: Shards) -> None:
        self.tensors, self.pairs = tensors, _pairs(tensors)
        parts = {name for pair in self.pairs.values() for name in pair[:2]}
        plain = [name for name in tensors if name not in parts]
        self.shapes = {name: tensors.shapes[name] for name in plain} | {
            name: self._shape(name, pair) for name, pair in self.pairs.items()
        }
        self.dtypes = {name: tensors.dtypes[name] for name in plain} | {
            name: pair.packing.name for name, pair in self.pairs.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        pair = self.pairs.get(name)
        if pair is None:
            return self.tensors[name]
        return pair.packing.decode(self.tensors[pair.codes], self.tensors[pair.scales])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _shape(self, name: str, pair: Pair) -> Shape:
        codes, scales = (self.tensors.shapes[part] for part in pair[:2])
        if (shape := pair.packing.shape(codes, scales)) is None:
            what = f"{pair.packing.name} codes of shape {list(codes)} have scales of shape {list(scales)}"
            raise CutawayError(what, f"{self.tensors.path}: {name}", DAMAGED)
        return shape


def _pairs(tensors: Shards) -> dict[str, Pair]:
    """The packed matrices by the names that they have unpacked."""
    return {
        stem + packing.whole: Pair(stem + packing.codes, name, packing)
        for packing in PACKINGS
        for name in tensors
        if name.endswith(packing.scales) and (stem := name.removesuffix(packing.scales)) + packing.codes in tensors
    }
