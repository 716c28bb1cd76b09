"""Rotary position embedding (Su et al. 2021, "RoFormer", arXiv:2104.09864).

Each pair of a head's coordinates is turned by an angle proportional to the token's position, a slower turn for each
further pair. A dot product between a rotated query and a rotated key then depends on their distance alone.

    pair j of position p turns by  p * base^(-2j/K)

Two layouts of "pair" exist: (j, j + K/2), as in transformers' checkpoints and used here, and (2j, 2j + 1), as in
Meta's original Llama and in GGUF files of the llama family; the rows of W_q and W_k are permuted when those are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeScaling:
    """How the angles are slowed so that a model reaches beyond the context it was trained on.

    linear: every frequency divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    llama3: only wavelengths longer than original_context / low are divided, those shorter than
            original_context / high are kept, in between the two are blended (Llama 3.1, arXiv:2407.21783).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class RopeSpec:
    """base: the longest wavelength is about 2*pi*base tokens."""

    base: float = 10000.0
    scaling: RopeScaling | None = None


class Rotation(NamedTuple):
    """cos_TK and sin_TK of the angles at each token's position."""

    cos_TK: Tensor
    sin_TK: Tensor


def rope_frequencies(spec: RopeSpec, head_dim: int, device: torch.device | None = None) -> Tensor:
    """Angle per position of each pair, float64 [K/2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    frequency = spec.base**-exponent
    if spec.scaling is None:
        return frequency
    if spec.scaling.kind == "linear":
        return frequency / spec.scaling.factor
    return _llama3(frequency, spec.scaling)


def _llama3(frequency: Tensor, s: RopeScaling) -> Tensor:
    turns = s.original_context * frequency / (2 * math.pi)  # full turns within the original context
    keep = ((turns - s.low) / (s.high - s.low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / s.factor


def rotation(spec: RopeSpec, head_dim: int, positions_T: Tensor, dtype: torch.dtype) -> Rotation:
    """The table that `rotate` needs for tokens at `positions_T`: angles in float64, cosines in `dtype`, [T, K]."""
    angle_Tk = positions_T.double()[:, None] * rope_frequencies(spec, head_dim, positions_T.device)
    angle_TK = torch.cat([angle_Tk, angle_Tk], -1)
    return Rotation(angle_TK.cos().to(dtype), angle_TK.sin().to(dtype))


def rotate(x_THK: Tensor, turn: Rotation) -> Tensor:
    """Rotate every pair (j, j + K/2) of every head of x_THK by its token's angle; keeps shape and dtype.

    [a, b] -> [a cos - b sin,  b cos + a sin]
    """
    a_THk, b_THk = x_THK.chunk(2, -1)
    return x_THK * turn.cos_TK[:, None] + torch.cat([-b_THk, a_THk], -1) * turn.sin_TK[:, None]
