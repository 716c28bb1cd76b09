"""Matrices packed into codes and scales against the readers of transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from cutaway.weights.packed import fp8, mxfp4
from kit.proofs.models import agree


def mxfp4_codes() -> float:
    """Three experts of six rows of 64 numbers, to the last bit."""
    draw = torch.Generator().manual_seed(11)
    codes = torch.randint(256, (3, 6, 2, 16), generator=draw, dtype=torch.uint8)
    scales = torch.randint(100, 150, (3, 6, 2), generator=draw).to(torch.uint8)
    return agree([mxfp4(codes, scales)], [convert_moe_packed_tensors(codes, scales)], 0.0)


def fp8_tiles() -> float:
    """A matrix of two by three tiles; theirs takes whole tiles only."""
    draw = torch.Generator().manual_seed(11)
    weights = torch.randn(256, 384, generator=draw).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3, generator=draw) + 0.1
    return agree([fp8(weights, scales)], [Fp8Dequantize(None)._dequantize_one(weights, scales).float()], 1e-6)


PROOFS: dict[str, Callable[[], float]] = {"packed mxfp4": mxfp4_codes, "packed fp8": fp8_tiles}
