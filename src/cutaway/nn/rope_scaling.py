"""Rotary positions beyond the length they were trained on: six ways to slow the angles.

The fast pairs tell neighbors apart and have made every angle many times over in training; the slow ones have not
finished their first turn, so a longer text shows them angles that they have never met. The kinds differ in which
pairs they slow, and by how much:

    linear    all by `factor`: positions are squeezed      Chen et al. 2023, arXiv:2306.15595
    ntk       a larger base: the fastest pair not at all,
              the slowest by `factor`                      bloc97 2023, in section 3.1 of arXiv:2309.00071
    dynamic   as ntk, by as much as the text is too long   emozilla 2023, appendix B.3 of arXiv:2309.00071
    yarn      fast pairs kept, slow ones as in linear,
              a ramp over the pairs between them           Peng et al. 2023, arXiv:2309.00071
    llama3    the same with a ramp over turns              Llama 3.1, arXiv:2407.21783
    longrope  each pair by its own searched factor,
              others for long texts than for short ones    Ding et al. 2024, arXiv:2402.13753

yarn and longrope also lengthen the rotated queries and keys by an attention factor, since the softmax over more keys
is flatter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeScaling:
    """How much longer than `original_context`, in tokens, a text may be: `factor` times.

    low, high: pairs making fewer full turns than `low` within the original context are slowed, those making more than
               `high` are not (llama3: 1 and 4; yarn: 1 and 32, there called beta_slow and beta_fast).
    truncate:  yarn's ramp begins and ends at whole pairs.
    attention_factor: of rotated queries and keys; None derives it, for yarn from mscale and mscale_all_dim (DeepSeek).
    short, long: longrope's factor of each pair, for texts up to the original context and beyond.
    """

    kind: Literal["linear", "ntk", "dynamic", "yarn", "llama3", "longrope"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


def plain(base: float, exponent_k: Tensor) -> Tensor:
    """Angle per position of each pair as trained, base^-exponent, [K/2]."""
    return base**-exponent_k


def slowed(base: float, exponent_k: Tensor, scaling: RopeScaling, reach: Tensor) -> Tensor:
    """The same under a scaling, for texts of `reach` tokens: [K/2], or [T, K/2] if each token has its own reach [T]."""
    return _KINDS[scaling.kind](base, exponent_k, scaling, reach.double()[..., None])


def _linear(base: float, exponent_k: Tensor, s: RopeScaling, reach: Tensor) -> Tensor:
    return plain(base, exponent_k) / s.factor


def _ntk(base: float, exponent_k: Tensor, s: RopeScaling, reach: Tensor) -> Tensor:
    return _slowest_by(s.factor, base, exponent_k)


def _dynamic(base: float, exponent_k: Tensor, s: RopeScaling, reach: Tensor) -> Tensor:
    excess = reach.clamp(min=s.original_context) / s.original_context - 1
    return _slowest_by(1 + s.factor * excess, base, exponent_k)


def _slowest_by(factor: Tensor | float, base: float, exponent_k: Tensor) -> Tensor:
    """Enlarge the base so that the last pair becomes `factor` times slower: exponents are 0, 2/K, ... (K-2)/K."""
    return (base * factor ** (1 / exponent_k[-1])) ** -exponent_k


def _llama3(base: float, exponent_k: Tensor, s: RopeScaling, reach: Tensor) -> Tensor:
    turns_k = s.original_context * plain(base, exponent_k) / (2 * math.pi)
    return _blend(base, exponent_k, s, kept_k=_ramp(turns_k, s.low, s.high))


def _yarn(base: float, exponent_k: Tensor, s: RopeScaling, reach: Tensor) -> Tensor:
    pairs = len(exponent_k)

    def pair_making(turns: float) -> float:
        return pairs * math.log(s.original_context / (turns * 2 * math.pi)) / math.log(base)

    first, last = pair_making(s.high), pair_making(s.low)
    if s.truncate:
        first, last = math.floor(first), math.ceil(last)
    index_k = torch.arange(pairs, dtype=exponent_k.dtype, device=exponent_k.device)
    return _blend(base, exponent_k, s, kept_k=1 - _ramp(index_k, max(first, 0), min(last, 2 * pairs - 1)))


def _ramp(x: Tensor, start: float, end: float) -> Tensor:
    """0 up to `start`, 1 from `end` on; where both are the same, a step after it."""
    return ((x - start) / (end - start or 1e-3)).clamp(0, 1)


def _blend(base: float, exponent_k: Tensor, s: RopeScaling, kept_k: Tensor) -> Tensor:
    frequency_k = plain(base, exponent_k)
    return kept_k * frequency_k + (1 - kept_k) * frequency_k / s.factor


def _longrope(base: float, exponent_k: Tensor, s: RopeScaling, reach: Tensor) -> Tensor:
    short_k, long_k = (torch.tensor(f, dtype=exponent_k.dtype, device=exponent_k.device) for f in (s.short, s.long))
    return plain(base, exponent_k) / torch.where(reach > s.original_context, long_k, short_k)


_KINDS: dict[str, Callable[[float, Tensor, RopeScaling, Tensor], Tensor]] = {
    "linear": _linear,
    "ntk": _ntk,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def attention_factor(scaling: RopeScaling) -> float:
    """By how much a scaling lengthens rotated queries and keys, so that scores grow by its square."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    derived = {"yarn": _yarn_attention_factor, "longrope": _longrope_attention_factor}.get(scaling.kind)
    return derived(scaling) if derived else 1.0


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """0.1 * weight * ln(factor) + 1, found by fitting perplexities; DeepSeek multiplies its scores by the square."""
    return 0.1 * weight * math.log(max(factor, 1.0)) + 1


def _yarn_attention_factor(s: RopeScaling) -> float:
    if s.mscale and s.mscale_all_dim:
        return yarn_mscale(s.factor, s.mscale) / yarn_mscale(s.factor, s.mscale_all_dim)
    return yarn_mscale(s.factor)


def _longrope_attention_factor(s: RopeScaling) -> float:
    return math.sqrt(1 + math.log(max(s.factor, 1.0)) / math.log(s.original_context))


def scaling_faults(s: RopeScaling, pairs: int) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of a scaling for a rotation of so many pairs."""
    if s.kind not in _KINDS:
        yield "kind", f"{s.kind!r} is not one of {list(_KINDS)}"
        return
    if not (math.isfinite(s.factor) and s.factor >= 1):
        yield "factor", f"must be at least 1, got {s.factor}"
    if s.original_context < 2:
        yield "original_context", f"must be at least 2, got {s.original_context}"
    if s.attention_factor is not None and not (math.isfinite(s.attention_factor) and s.attention_factor > 0):
        yield "attention_factor", f"must be above 0, got {s.attention_factor}"
    if s.kind in ("yarn", "llama3") and not 0 < s.low < s.high < math.inf:
        yield "low", f"must be above 0 and below high = {s.high}, got {s.low}"
    if s.kind in ("ntk", "dynamic") and pairs < 2:
        yield "kind", f"{s.kind!r} needs two pairs or more"
    for name in ("short", "long") if s.kind == "longrope" else ():
        factors = getattr(s, name)
        if len(factors) != pairs or not all(math.isfinite(f) and f > 0 for f in factors):
            yield name, f"must hold a positive factor for each of {pairs} pairs, got {len(factors)}: {factors!r:.60}"
