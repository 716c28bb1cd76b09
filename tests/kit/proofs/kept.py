"""Keys and values of 8 bits in the pages of native kernels: as large as promised, copied whole, near the exact ones.

The kernels themselves are compared in tests/native.
"""

from __future__ import annotations

import torch

from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfModel
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Native
from cutaway.native.build import library
from engine.test_equality import model, prompt
from engine.tiny import tokenizer
from labs.test_engine_labs import test_recent_tokens_stay_exact_and_closed_caches_as_they_are as recent
from labs.test_engine_labs import test_rounding_is_as_fine_as_its_bits_and_knows_its_axis as rounding


def pages() -> None:
    """Half as large and a scale of two bytes for every 32 numbers; a copy holds what its page held."""
    if library() is None:
        return
    made = model()
    runner = Native(made.spec, OfModel(made), 1, "int8")
    engine = Engine(runner, tokenizer(), cache=8 * runner.page_bytes)
    stores = [*runner.graph.keys, *runner.graph.values]
    numbers = sum(2 * 32 * layer.attention.kv_heads * layer.attention.head_dim for layer in made.spec.layers)  # type: ignore[union-attr]
    assert runner.page_bytes == numbers + 2 * numbers // 32
    assert sum(store[0].nbytes for store in stores) == runner.page_bytes
    sequence = engine.add(prompt(40), SamplingParams(temperature=0, max_tokens=20))
    for _ in range(3):
        engine.step()
    table = sequence.table[:2]
    assert all(store[page].any() for store in stores for page in table), "nothing is kept"
    free = [page for page in range(8) if page not in sequence.table][:2]
    runner.copy([*zip(table, free, strict=True)])
    assert all(torch.equal(store[free], store[table]) for store in stores)


def levels() -> None:
    """What the lab on caches of few bits rounds to."""
    for bits in (2, 4, 8):
        rounding(bits)


PROOFS = {"kept in 8 bits": pages, "kept levels": levels, "kept recent": recent}
