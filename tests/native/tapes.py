"""What the tests of the kernels share: weights in every format, and tapes of one operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.native.packing import Packed, pack_codes, pack_floats
from cutaway.native.tape import Batch, Kind, Matrix, Rows, Tape, batch_of
from cutaway.weights import blocks

# Where each format of integers keeps its float16 numbers.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
TYPES = ("F32", "F16", "BF16", *HALVES, "MXFP4")
AVX2 = "x86-64-v3"
PORTABLE = "x86-64-v2"


def has_avx2() -> bool:
    """Whether this processor can run the AVX2 kernels."""
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def raw(type: str, n: int, k: int, seed: int = 0) -> Tensor:
    """[n, k] weights as a file has them, uint8 [n, bytes]: any codes at all, scales of either sign."""
    made = torch.Generator().manual_seed(seed)
    form = blocks.named(type)
    if type in ("F32", "F16", "BF16"):
        return blocks.quantize(torch.randn(n, k, generator=made) * 0.1, type)
    raw_BN = torch.randint(0, 256, (n * k // form.elements, form.bytes), dtype=torch.uint8, generator=made)
    for at in HALVES.get(type, ()):
        raw_BN[:, at : at + 2] = (torch.randn(len(raw_BN), 1, generator=made) * 0.01).half().view(torch.uint8)
    if type == "MXFP4":
        raw_BN[:, 0] = 120 + raw_BN[:, 0] % 8
    return raw_BN.view(n, -1)


def packed(type: str, n: int, k: int, order: Tensor | None = None) -> tuple[Packed, Tensor]:
    """Weights packed by PyTorch, and the float32 numbers that they stand for, scales rounded to float16."""
    stored, form = raw(type, n, k), blocks.named(type)
    if order is not None:
        n, stored = len(order), stored[order]
    if form.split is None:
        numbers_NK = blocks.dequantize(stored, type, (n, k))
        return pack_floats(numbers_NK.bfloat16() if type == "BF16" else numbers_NK), numbers_NK
    affine = form.split(stored.view(-1, form.bytes))
    offset = affine.offset_BS
    rounded = affine._replace(
        scale_BS=affine.scale_BS.half().float(), offset_BS=None if offset is None else offset.half().float()
    )
    codes_NK, scale_NS = affine.codes_BE.reshape(n, k), affine.scale_BS.reshape(n, -1)
    offset_NS = None if offset is None else offset.reshape(n, -1)
    return pack_codes(codes_NK, scale_NS, offset_NS, affine.zero, affine.bits), rounded.weights().view(n, k)


def rows(x_TK: Tensor) -> Rows:
    """Activations that begin as `x_TK`."""
    made = Rows.of(*x_TK.shape)
    made.floats[:, : x_TK.shape[1]] = x_TK
    return made


def flat(count: int, wanted: range | list[int] | None = None) -> Batch:
    """One sequence of `count` tokens."""
    table = range(-(-count // 32))
    return batch_of(range(count), [(0, count)], [table], range(count) if wanted is None else wanted, torch.zeros(1))


def play(batch: Batch, kind: Kind, march: str = "native", threads: int = 1, **fields: Any) -> None:
    """A tape of one operation."""
    tape = Tape(march)
    tape.add(kind, **fields)
    tape.run(batch, threads)


def integers(x_TK: Tensor, march: str = "native") -> Rows:
    """`x_TK` with its codes, as NORM without a weight makes them."""
    x, out = rows(x_TK), rows(x_TK)
    play(flat(len(x_TK)), Kind.NORM, march, in_=x, out=out, quantize=1)
    return out


def quantized(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [T, K] and steps [T, K / 32] by PyTorch: 127 steps reach the largest number of 32."""
    x_TGk, top = x_TK.unflatten(1, (-1, 32)), torch.tensor(127.0)  # a plain 127 / x is the inverse of x times 127
    most_TG1 = x_TGk.abs().amax(-1, keepdim=True)
    inverse_TG1 = torch.where(most_TG1 > 1e-30, top / most_TG1, 0)
    return (x_TGk * inverse_TG1).round().to(torch.int8).flatten(1), (most_TG1 / top)[..., 0]


def product(weights: Packed, x_TK: Tensor, march: str = "native", **how: Any) -> Tensor:
    """LINEAR: [T, N]. onto: what is there before. For the others see `play`."""
    matrix, onto = Matrix.of(weights), how.pop("onto", None)
    out = rows(torch.full((len(x_TK), weights.n), torch.nan) if onto is None else onto)
    given = integers(x_TK, march) if matrix.integers else rows(x_TK)
    play(flat(len(x_TK)), Kind.LINEAR, march, in_=given, out=out, matrix=matrix, add=int(onto is not None), **how)
    return out.floats[:, : weights.n].clone()
