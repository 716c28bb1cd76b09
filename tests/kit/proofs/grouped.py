"""Integers with scales in the layouts of GPTQ, AWQ and compressed-tensors, against packers of one number at a time.

Every layout is read as numbers, and as the blocks of GGUF that the kernels take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from cutaway.weights import blocks
from cutaway.weights.grouped import Grouped
from cutaway.weights.integers import AWQ, INTEGERS, gptq, packed_integers
from cutaway.weights.packed import Packing
from kit.proofs.models import agree
from weights import integers
from weights.integers import Drawn

ROUNDED = 2.0**-11  # of a zero times its scale, in float16, against the largest weight


def read(packing: Packing, parts: dict[str, torch.Tensor]) -> Grouped:
    assert packing.split is not None
    return packing.split(parts)


def same(found: Grouped, drawn: Drawn) -> float:
    """To the last bit."""
    return agree([found.weights().double()], [drawn.dense], 0.0)


def same_blocks(found: Grouped, drawn: Drawn, type: str) -> float:
    """Exact unless zeros become offsets, which are rounded to float16."""
    made = found.blocks()
    assert made is not None
    rows, kind = made
    assert kind == type, f"{kind}, not {type}"
    numbers = blocks.dequantize(rows, kind, drawn.shape)
    return agree([numbers.double()], [drawn.dense], ROUNDED if kind == "Q4_1" else 0.0)


def gptq_version(bits: int, less: int) -> float:
    """Groups in order, stated or not; then out of order; symmetric ones as blocks."""
    ordered, mixed = (integers.draw(48, 128, bits, 64, seed=7, least=less, shuffled=mixed) for mixed in (False, True))
    even = integers.draw(48, 128, bits, 64, seed=7, even=True)
    for drawn in (ordered, mixed):
        same(read(gptq(bits, less), integers.gptq(drawn, less)), drawn)
    same(read(gptq(bits, less), integers.gptq(ordered, less, indexed=False)), ordered)
    assert read(gptq(bits, less), integers.gptq(mixed, less)).blocks() is None, "inputs moved"
    of_even = read(gptq(bits, less), integers.gptq(even, less))
    return same_blocks(of_even, even, "Q4_0" if bits == 4 else "Q8_0")


def gptq_blocks() -> float:
    drawn = integers.draw(48, 128, 4, 64, seed=8, least=1)
    return same_blocks(read(gptq(4, 1), integers.gptq(drawn)), drawn, "Q4_1")


def awq() -> float:
    drawn, even = integers.draw(48, 128, 4, 64, seed=9), integers.draw(48, 128, 4, 32, even=True, seed=9)
    same(read(AWQ, integers.awq(drawn)), drawn)
    same_blocks(read(AWQ, integers.awq(even)), even, "Q4_0")
    return same_blocks(read(AWQ, integers.awq(drawn)), drawn, "Q4_1")


def compressed(bits: int) -> float:
    """Zeros packed, signed, and none; words that are not full; a scale for each output; inputs out of order."""
    drawn, mixed = (integers.draw(20, 96, bits, 32, seed=10, shuffled=mixed) for mixed in (False, True))
    odd, even = (integers.draw(13, k, bits, size, even=True, seed=11) for k, size in ((45, 45), (64, 64)))
    for m, zeros in ((drawn, "packed"), (drawn, "signed"), (odd, "none"), (mixed, "packed")):
        same(read(packed_integers(bits), integers.packed(m, zeros)), m)
    of_even = read(packed_integers(bits), integers.packed(even, "none"))
    return same_blocks(of_even, even, "Q4_0" if bits == 4 else "Q8_0")


def compressed_plain() -> float:
    drawn, even = (integers.draw(20, 96, 8, 96, even=even, seed=12, dtype=torch.bfloat16) for even in (False, True))
    same(read(INTEGERS, integers.plain(drawn, zeros=True)), drawn)
    assert read(INTEGERS, integers.plain(drawn, zeros=True)).blocks() is None, "no format has such zeros"
    return same_blocks(read(INTEGERS, integers.plain(even)), even, "Q8_0")


PROOFS: dict[str, Callable[[], float]] = {
    **{f"gptq v{2 - less}, {bits} bits": partial(gptq_version, bits, less) for bits in (4, 8) for less in (0, 1)},
    "gptq blocks": gptq_blocks,
    "awq": awq,
    "compressed-tensors, 4 bits": partial(compressed, 4),
    "compressed-tensors, 8 bits": partial(compressed, 8),
    "compressed-tensors, plain": compressed_plain,
}
