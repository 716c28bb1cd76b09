"""The parity harness finds what people get wrong: ten planted mistakes, each for ten draws of weights and tokens.

Both models compute the same tokens layer by layer; of each mistake the first module that differs is named.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.models.compare import Divergence, compare, first
from cutaway.weights.sides import Answer, Ours, Witness
from kit import twins
from kit.mutants import MUTANTS
from kit.mutation import Change, put
from kit.precision import all_float64

SEEDS, LENGTH, TOLERANCE = 10, 13, 1e-9


def no_bias(self: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer that forgets its bias."""
    return F.linear(x, self.weight)


CHANGES: dict[str, Change] = {
    **{mutant.name: mutant.change for mutant in MUTANTS},
    "linear: bias forgotten": put("torch.nn:Linear", "forward", lambda forward: no_bias),
}
MISTAKES = [  # the twin, the mistake, the first module that differs
    ("llama", "attention: scale missing", "layers.0.attention.out"),
    ("llama", "rope: pairs interleaved", "layers.0.attention.out"),
    ("llama", "rope: keys one position on", "layers.0.attention.out"),
    ("llama", "causal mask: none", "layers.0.attention.out"),
    ("llama", "grouped heads: repeated in turn", "layers.0.attention.out"),
    ("llama", "feed-forward: gate and up swapped", "layers.0.ffn.down"),
    ("llama", "block: residual dropped", "layers.0.ffn_norm"),
    ("qwen2", "linear: bias forgotten", "layers.0.attention.q"),
    ("qwen2", "rms norm: epsilon a thousand times too large", "layers.0.attention_norm"),
    ("bert", "activation: tanh form for exact gelu", "layers.0.ffn.down"),
]


@cache
def theirs(name: str, seed: int) -> tuple[twins.Twin, Answer]:
    """The reference with weights and tokens of this seed, and what its modules make of them."""
    twin = twins.Twin(name, deepcopy(twins.twin(name).reference))
    twins.make_loud(twin.reference, seed)
    with all_float64():
        return twin, Witness("theirs", twins.checkpoint(twin), twin.reference).answer(tokens(seed))


def tokens(seed: int) -> list[int]:
    return torch.randint(twins.VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist()


def parted(name: str, seed: int, mistake: str | None = None) -> Divergence | None:
    """Where ours, with or without a mistake in it, parts from theirs."""
    twin, expected = theirs(name, seed)
    with CHANGES[mistake]() if mistake else nullcontext():
        source = twins.checkpoint(twin)
        found = Ours("ours", source, source.model(torch.float64)).answer(tokens(seed))
    return first(compare(found.traces, expected.traces), TOLERANCE)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in MISTAKES}))
def test_without_a_mistake_no_module_differs(name: str) -> None:
    assert [parted(name, seed) for seed in range(SEEDS)] == [None] * SEEDS


@pytest.mark.parametrize(("name", "mistake", "module"), MISTAKES, ids=[mistake for _, mistake, _ in MISTAKES])
def test_each_mistake_is_found_for_every_seed(name: str, mistake: str, module: str) -> None:
    found = [parted(name, seed, mistake) for seed in range(SEEDS)]
    caught = [divergence for divergence in found if divergence is not None]
    for seed, divergence in enumerate(caught):
        print(f"{mistake}, seed {seed}: {divergence.where(TOLERANCE)}, by {divergence.left.relative:.1e}")
    assert [divergence.module for divergence in caught] == [module] * SEEDS
