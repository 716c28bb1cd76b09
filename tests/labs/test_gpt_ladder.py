"""The ladder arrives at the very spec that is proven against GPT2LMHeadModel."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

from cutaway.labs.arch.gpt_ladder import gpt2, rungs
from cutaway.models.families.table import spec_of
from kit import twins


def test_the_last_rung_is_the_spec_of_the_proven_twin() -> None:
    twin = twins.twin("gpt2")
    target = spec_of(twin.family, twin.config)
    assert rungs(target)[-1][1] == target


def test_every_rung_changes_something_and_only_its_own() -> None:
    specs = [spec for _, spec in rungs(gpt2(48, 2, 4, 64, 97))]
    changed = [{f.name for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)} for a, b in pairwise(specs)]
    assert changed == [{"encoder", "layers"}, {"embedding"}, {"layers"}, {"final_norm", "layers"}]
