"""Drawing a token natively: the passes over a vocabulary that cost time. See sampling.h."""

from __future__ import annotations

from ctypes import CDLL, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from functools import cache

from torch import Tensor

from cutaway.native.build import NATIVE, library


@cache
def kernels(march: str = NATIVE) -> CDLL | None:
    """The library with its types told; None where there is none."""
    found = library(march)
    if found:
        found.cutaway_draw.argtypes = [c_void_p, c_int32, c_float, c_float, c_uint32, c_uint32]
        found.cutaway_draw.restype = c_int32
        found.cutaway_fence.argtypes = [c_void_p, c_int32, c_void_p, c_int32]
        found.cutaway_fence.restype = None
        found.cutaway_reach.argtypes = [c_void_p, c_int32, c_float, c_int64, c_double]
        found.cutaway_reach.restype = c_float
    return found


def draw(of: CDLL, scores_V: Tensor, low: float, high: float, key: int) -> int:
    """The winner among the scores from `low` to `high` with noise of a 64-bit key; scores_V float32."""
    return int(of.cutaway_draw(scores_V.data_ptr(), len(scores_V), low, high, key % 2**32, key >> 32))


def fence(of: CDLL, scores_V: Tensor, mask_W: Tensor) -> None:
    """Minus infinity, in place, for what a mask of 32 bits a word forbids; scores_V float32."""
    of.cutaway_fence(scores_V.data_ptr(), len(scores_V), mask_W.data_ptr(), len(mask_W))


def reach(of: CDLL, scores_V: Tensor, low: float, *, most: int = 0, share: float = 1.0) -> float:
    """The lowest of the best `most` scores, or of the fewest best with `share` of the probability of those >= low."""
    return float(of.cutaway_reach(scores_V.data_ptr(), len(scores_V), low, most, share))
