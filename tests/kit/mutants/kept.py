"""Mistakes around keys and values of 8 bits; those in C++ are in tests/native/test_mutants.py."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

LAB = "cutaway.labs.engine.kv_quantization:"
GRAPH, NATIVE, PROOF = "cutaway.engine.graph:Graph.", "cutaway.engine.runner:Native.", "kept in 8 bits"

# fmt: off
MUTANTS = mutants(
    ("kept: copies without their scales", PROOF, edit(GRAPH + "copy_pages", "store[new] = store[old]", "store[new, :, :-64] = store[old, :, :-64]")),
    ("kept: copies without their values", PROOF, edit(GRAPH + "copy_pages", "(*self.keys, *self.values)", "self.keys")),
    ("kept: in float16 whatever was asked", PROOF, edit(NATIVE + "allocate", "cache=self.cache", "cache='float16'")),
    ("kept: a page counted as if in float16", PROOF, edit(NATIVE + "page_bytes.fget", "KEPT[self.cache]", "KEPT['float16']")),
    ("kept: rounded down", "kept levels", edit(LAB + "rounded", "codes = ((grouped - low) / step).round().clamp(0, 2 ** bits - 1)", "codes = ((grouped - low) / step).floor().clamp(0, 2 ** bits - 1)")),
    ("kept: levels from zero", "kept levels", edit(LAB + "rounded", "codes * step + low", "codes * step")),
    ("kept: along the other axis", "kept levels", edit(LAB + "rounded", "1 if along == CHANNEL else 2", "2 if along == CHANNEL else 1")),
    ("kept: recent tokens rounded", "kept recent", edit(LAB + "Coarse.put", "start + len(rows_TGK[0]) - self.way.recent", "start + len(rows_TGK[0])")),
    ("kept: closed caches go on rounding", "kept recent", edit(LAB + "Coarse.put", "self.closed or self.way.bits", "self.way.bits")),
    ("kept: keys rounded as values are", "kept recent", edit(LAB + "Coarse.put", "(self.way.keys, self.way.values)", "(self.way.values, self.way.values)")),
    ("kept: values not counted", PROOF, edit(NATIVE + "page_bytes.fget", "for heads, width in kept", "for heads, width in kept[:1]")),
)
# fmt: on
