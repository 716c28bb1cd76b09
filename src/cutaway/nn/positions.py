"""Positions as angles: rotations of queries and keys (RoPE), and the sinusoids they grew out of.

Rotary position embedding (Su et al. 2021, "RoFormer", arXiv:2104.09864) turns each pair of a head's coordinates by an
angle proportional to the token's position, a slower turn for each further pair. A dot product between a rotated query
and a rotated key then depends on their distance alone.

    pair j of position p turns by  p * base^(-2j/K)

Two layouts of "pair" exist: (j, j + K/2), as in transformers' checkpoints and used here, and (2j, 2j + 1), as in
Meta's original Llama and in GGUF files of the llama family; the rows of W_q and W_k are permuted when those are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cutaway.nn.rope_scaling import RopeScaling, attention_factor, plain, scaling_faults, slowed


@dataclass(frozen=True)
class RopeSpec:
    """base: the longest wavelength is about 2*pi*base tokens.

    dim: how many leading coordinates of a head turn (partial rotation), None for all.
    """

    base: float = 10000.0
    scaling: RopeScaling | None = None
    dim: int | None = None


class Rotation(NamedTuple):
    """cos_TK and sin_TK of the angles at each token's position, times the scaling's attention factor.

    K is the number of coordinates that turn; the second half repeats the first.
    """

    cos_TK: Tensor
    sin_TK: Tensor


def rope_frequencies(
    spec: RopeSpec, head_dim: int, reach: Tensor | int = 0, device: torch.device | None = None
) -> Tensor:
    """Angle per position of each pair, float64 [K/2].

    reach: the length of text that dynamic and longrope scaling adapt to; one for each token [T] gives [T, K/2].
    """
    dim = spec.dim or head_dim
    exponent_k = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
    if spec.scaling is None:
        return plain(spec.base, exponent_k)
    return slowed(spec.base, exponent_k, spec.scaling, torch.as_tensor(reach, device=device))


def rotation(
    spec: RopeSpec, head_dim: int, positions_T: Tensor, dtype: torch.dtype, reach: Tensor | int | None = None
) -> Rotation:
    """The table that `rotate` needs for tokens at `positions_T`: angles in float64, cosines in `dtype`, [T, K].

    reach: see `rope_frequencies`; None for up to the last of the positions.
    """
    reach = positions_T.max() + 1 if reach is None else reach
    angle_Tk = positions_T.double()[:, None] * rope_frequencies(spec, head_dim, reach, positions_T.device)
    angle_TK = torch.cat([angle_Tk, angle_Tk], -1)
    length = attention_factor(spec.scaling) if spec.scaling else 1.0
    return Rotation((length * angle_TK.cos()).to(dtype), (length * angle_TK.sin()).to(dtype))


def rotate(x_THK: Tensor, turn: Rotation) -> Tensor:
    """Turn every pair (j, j + K/2) of every head of x_THK by its token's angle; coordinates beyond those stay.

    [a, b] -> [a cos - b sin,  b cos + a sin]
    """
    turning_THK, still_THK = x_THK.tensor_split([turn.cos_TK.shape[-1]], -1)
    a_THk, b_THk = turning_THK.chunk(2, -1)
    turned_THK = turning_THK * turn.cos_TK[:, None] + torch.cat([-b_THk, a_THk], -1) * turn.sin_TK[:, None]
    return torch.cat([turned_THK, still_THK], -1) if still_THK.shape[-1] else turned_THK


def rotate_interleaved(x_THK: Tensor, turn: Rotation) -> Tensor:
    """`rotate` in the other layout: every pair (2j, 2j + 1) of a head whose coordinates all turn."""
    return interleave(rotate(deinterleave(x_THK), turn))


def deinterleave(x_THK: Tensor) -> Tensor:
    """Coordinates in the order (2j, 2j + 1) brought into the order (j, j + K/2)."""
    return x_THK.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def interleave(x_THK: Tensor) -> Tensor:
    """The inverse of `deinterleave`."""
    return x_THK.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def sinusoids(
    positions_T: Tensor,
    width: int,
    base: float = 10000.0,
    layout: Literal["interleaved", "concatenated"] = "interleaved",
) -> Tensor:
    """The table of Vaswani et al. 2017, arXiv:1706.03762, section 3.5, to be added to the embedding: float64 [T, D].

    interleaved: sin, cos, sin, cos, ... as in the paper. concatenated: all sines, then all cosines, as in its code.
    """
    frequency_k = rope_frequencies(RopeSpec(base), width, device=positions_T.device)
    angle_Tk = positions_T.double()[:, None] * frequency_k
    table_TD = torch.cat([angle_Tk.sin(), angle_Tk.cos()], -1)
    return table_TD if layout == "concatenated" else interleave(table_TD)


def faults(rope: RopeSpec, head_dim: int) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of a rotation of heads of this width; nothing if it makes sense."""
    dim = head_dim if rope.dim is None else rope.dim
    if dim % 2:
        yield "dim", f"{dim} is odd, rotation needs pairs"
    if not 2 <= dim <= head_dim:
        yield "dim", f"must be from 2 to head_dim = {head_dim}, got {dim}"
    if not 1 < rope.base < float("inf"):
        yield "base", f"must be above 1, got {rope.base}"
    if rope.scaling is not None:
        yield from ((f"scaling.{field}", why) for field, why in scaling_faults(rope.scaling, dim // 2))
