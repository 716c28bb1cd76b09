"""Checkpoints that keep a matrix as codes of few bits and, in tensors beside it, their scales; read as one matrix.

MXFP4   X_blocks, X_scales              gpt-oss: 32 numbers of 4 bits share a power of two
FP8     X.weight, X.weight_scale_inv    DeepSeek-V3: 128 x 128 numbers of 8 bits share a float32

These are known by their names. Those of `integers` are looked for where a checkpoint's configuration says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.weights import grouped
from cutaway.weights.blocks import microscaled
from cutaway.weights.grouped import Grouped
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


class Parts(NamedTuple):
    """The tensors of one matrix, by how their names end."""

    tensors: Shards
    stem: str

    def load(self, ends: tuple[str, ...]) -> grouped.Parts:
        """Those that there are."""
        return {end: self.tensors[self.stem + end] for end in ends if self.stem + end in self.tensors}

    def shape(self, end: str) -> Shape | None:
        """None if there is none."""
        return self.tensors.shapes.get(self.stem + end)

    def type(self, end: str) -> str | None:
        """On disk; None if there is none."""
        return self.tensors.dtypes.get(self.stem + end)


class Packing(NamedTuple):
    """One way to pack a matrix.

    name: the type on disk. ends: of the names of its tensors, codes, scales, then those that may be missing. whole: the
    end of its own name. shape: of the whole, None if its tensors do not fit. Of plain and split it has one.
    """

    name: str
    ends: tuple[str, ...]
    whole: str
    shape: Callable[[Parts], Shape | None]
    plain: Callable[[Tensor, Tensor], Tensor] | None = None  # of codes and scales
    split: Callable[[grouped.Parts], Grouped] | None = None


def _mxfp4_shape(parts: Parts) -> Shape | None:
    codes, scales = parts.shape("_blocks") or (), parts.shape("_scales") or ()
    return (codes[0], 32 * codes[2], codes[1]) if len(codes) == 4 and codes == (*scales, 16) else None


def _fp8_shape(parts: Parts) -> Shape | None:
    codes, scales = parts.shape(".weight") or (), parts.shape(".weight_scale_inv") or ()
    return codes if len(codes) == 2 and tuple(-(-n // TILE) for n in codes) == scales else None


PACKINGS = (
    Packing("MXFP4", ("_blocks", "_scales"), "", _mxfp4_shape, mxfp4),
    Packing("FP8", (".weight", ".weight_scale_inv"), ".weight", _fp8_shape, fp8),
)


class Found(NamedTuple):
    """A packed matrix of a checkpoint, and what it unpacks to."""

    packing: Packing
    parts: Parts
    shape: Shape

    def weights(self) -> Tensor:
        """The numbers."""
        if (split := self.split()) is not None:
            return split.weights()
        codes, scales = self.parts.load(self.packing.ends).values()
        assert self.packing.plain is not None
        return self.packing.plain(codes, scales)

    def split(self) -> Grouped | None:
        """Integers and scales, if it is made of these. Errors: groups that do not exist."""
        return self.packing.split(self.parts.load(self.packing.ends)) if self.packing.split else None


class Unpacked(Mapping[str, Tensor]):
    """The tensors of a checkpoint, each packed matrix under the one name that it has unpacked; decoded when asked for.

    packings: which may be there beside those of `PACKINGS`. shapes, dtypes: by name, as of `Shards`. Errors: scales
    that do not go with their codes.
    """

    def __init__(self, tensors: Shards, packings: tuple[Packing, ...] = ()) -> None:
        self.tensors, self.found = tensors, _found(tensors, PACKINGS + packings)
        parts = {found.parts.stem + end for found in self.found.values() for end in found.packing.ends}
        plain = [name for name in tensors if name not in parts]
        self.shapes = {name: tensors.shapes[name] for name in plain} | {n: f.shape for n, f in self.found.items()}
        self.dtypes = {name: tensors.dtypes[name] for name in plain} | {
            name: found.packing.name for name, found in self.found.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        found = self.found.get(name)
        return self.tensors[name] if found is None else found.weights()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def blocks(self, name: str) -> tuple[Tensor, str] | None:
        """The codes of a matrix as blocks of GGUF and their format; None where they cannot be: `Grouped.blocks`."""
        split = self.found[name].split() if name in self.found else None
        return None if split is None else split.blocks()

    def idle(self, name: str) -> bool:
        """A bias of zeros beside a packed matrix: AutoGPTQ wrote one for each, whether the model has them or not."""
        matrix = name.removesuffix(".bias") + ".weight"
        return name.endswith(".bias") and matrix in self.found and not self.tensors[name].any()


def _found(tensors: Shards, packings: tuple[Packing, ...]) -> dict[str, Found]:
    """The packed matrices by the names that they have unpacked."""
    made: dict[str, Found] = {}
    for stem, ways in _ways(tensors, packings).items():
        parts = Parts(tensors, stem)
        fitting = ((packing, shape) for packing in ways if (shape := packing.shape(parts)) is not None)
        packing, shape = next(fitting, (ways[0], None))
        if shape is None:
            codes, scales = (list(parts.shape(end) or ()) for end in packing.ends[:2])
            what = f"{packing.name} codes of shape {codes} have scales of shape {scales}, or others do not fit"
            raise CutawayError(what, f"{tensors.path}: {stem}{packing.whole}", DAMAGED)
        made[stem + packing.whole] = Found(packing, parts, shape)
    return made


def _ways(tensors: Shards, packings: tuple[Packing, ...]) -> dict[str, list[Packing]]:
    """The packed matrices by what their tensors' names begin with, and how each may be packed, going by names."""
    ways: dict[str, list[Packing]] = {}
    for packing in packings:
        codes, scales = packing.ends[:2]
        for name in tensors:
            if name.endswith(scales) and (stem := name.removesuffix(scales)) + codes in tensors:
                ways.setdefault(stem, []).append(packing)
    return ways
