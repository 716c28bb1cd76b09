"""Mistakes around keys and values of 8 bits; those in C++ are in tests/native/test_mutants.py."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

GRAPH, NATIVE, PROOF = "cutaway.engine.graph:Graph.", "cutaway.engine.runner:Native.", "kept in 8 bits"

# fmt: off
MUTANTS = mutants(
    ("kept: copies without their scales", PROOF, edit(GRAPH + "copy_pages", "store[new] = store[old]", "store[new, :, :-64] = store[old, :, :-64]")),
    ("kept: copies without their values", PROOF, edit(GRAPH + "copy_pages", "(*self.keys, *self.values)", "self.keys")),
    ("kept: in float16 whatever was asked", PROOF, edit(NATIVE + "allocate", "cache=self.cache", "cache='float16'")),
    ("kept: a page counted as if in float16", PROOF, edit(NATIVE + "page_bytes.fget", "KEPT[self.cache]", "KEPT['float16']")),
    ("kept: values not counted", PROOF, edit(NATIVE + "page_bytes.fget", "for heads, width in kept", "for heads, width in kept[:1]")),
)
# fmt: on
