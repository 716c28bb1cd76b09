"""Attention over scattered pages: the kernel's answer, on a GPU or in Triton's interpreter, and the definition's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cutaway.engine import paged_attention as paging
from cutaway.engine.paged_kernel import paged
from cutaway.engine.replay import laid_out, moved
from cutaway.nn.attention import Question, attention_weights

PAGES = 300


@contextmanager
def interpreted() -> Iterator[None]:
    """The kernel as it is now, mutants too, run by Triton's interpreter. Skips where that cannot be."""
    knobs = pytest.importorskip("triton.knobs", reason="Triton is not there")
    if not knobs.runtime.interpret:
        pytest.skip("Triton compiles for a GPU here")
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    fresh = FunctionType(paged.__code__, paged.__globals__, "paged")  # what is known of the other is of its old code
    fresh.__annotations__ = paged.__annotations__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "kernel", lambda: InterpretedFunction(fresh))
        patch.setattr(InterpreterBuilder, "create_dot", product)
        yield


def product(_: Any, a: Any, b: Any, added: Any, *how: Any) -> Any:
    """A matrix product whose rows are alike wherever they stand, as on a GPU. The interpreter's own is numpy's, where
    that is not so, and takes bfloat16 for integers."""

    def numbers(x: Any) -> np.ndarray[Any, Any]:
        halves = x.data.dtype == np.uint16
        return (x.data.astype(np.uint32) << 16).view(np.float32) if halves else x.data.astype(np.float32)

    summed = (numbers(a)[:, :, None] * numbers(b)[None]).sum(1)
    return type(added)(summed + added.data, added.dtype.scalar)


@dataclass(frozen=True)
class Case:
    """spans: (first position, tokens) of each sequence. tile: most tokens of a tile."""

    heads: int = 6
    kv_heads: int = 2
    width: int = 10
    size: int = 4
    tile: int = 16
    spans: tuple[tuple[int, int], ...] = ((0, 5), (7, 1), (13, 20))
    question: Question = field(default_factory=lambda: Question(0.3))
    dtype: torch.dtype = torch.float32


def random_case(seed: int) -> Case:
    """Any heads, width, pages, tiles, spans and question."""
    dice = Random(seed)
    kv_heads, size = dice.choice((1, 2, 3)), dice.choice((1, 4, 16, 32))
    heads = kv_heads * dice.choice((1, 2, 3, 5, 8))
    spans = tuple((dice.choice((0, dice.randrange(60))), n) for n in (1, dice.randrange(1, 40), dice.randrange(1, 20)))
    sinks_H = torch.randn(heads, generator=torch.Generator().manual_seed(seed)) if dice.random() < 0.4 else None
    window, softcap = dice.choice((None, dice.randrange(1, 40))), dice.choice((None, 1.5))
    question = Question(dice.uniform(0.1, 0.5), window=window, softcap=softcap, sinks_H=sinks_H)
    return Case(heads, kv_heads, dice.randrange(1, 80), size, dice.choice((1, 2, 8, 16)), spans, question)


CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(6)},
    "plain": Case(),
    "window": Case(question=Question(0.3, window=7)),
    "window of one": Case(question=Question(0.3, window=1)),
    "softcap": Case(question=Question(0.7, softcap=2.0)),
    "sinks": Case(question=Question(0.3, sinks_H=torch.linspace(-2, 3, 6)), width=16),
    "sinks, window": Case(question=Question(0.3, sinks_H=torch.linspace(-2, 3, 6), window=5)),
    "a head each": Case(heads=3, kv_heads=3, tile=64, spans=((0, 70), (90, 1))),
    "one for all": Case(heads=5, kv_heads=1, width=24, tile=8),
    "wide heads": Case(heads=2, kv_heads=1, width=256, tile=32, size=16, spans=((40, 3), (0, 1))),
    "float16": Case(dtype=torch.float16),
    "bfloat16": Case(dtype=torch.bfloat16, question=Question(0.3, window=7)),
}


def drawn(case: Case, device: str = "cpu") -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Queries of all tokens, and keys and values of each sequence from its beginning on, [S, G, K]."""
    generator, kv = torch.Generator().manual_seed(1), (case.kv_heads, case.width)
    q_THK = torch.randn(sum(n for _, n in case.spans), case.heads, case.width, generator=generator)
    both = [[torch.randn(start + n, *kv, generator=generator) for start, n in case.spans] for _ in "kv"]
    keys, values = ([t.to(device, case.dtype) for t in each] for each in both)
    return q_THK.to(device, case.dtype), keys, values


def kernel(case: Case, q_THK: Tensor, keys: list[Tensor], values: list[Tensor], chosen: Sequence[int]) -> Tensor:
    """Its answer to the chosen sequences, whose pages are scattered among others full of NaN."""
    order = torch.randperm(PAGES, generator=torch.Generator().manual_seed(len(chosen))).tolist()
    stores = [torch.full((PAGES * case.size, *keys[0].shape[1:]), torch.nan).to(q_THK) for _ in "kv"]
    pieces, within = [], torch.arange(case.size)
    for i in chosen:
        start, n = case.spans[i]
        table, order = order[: -(-(start + n) // case.size)], order[-(-(start + n) // case.size) :]
        slots_S = (torch.tensor(table)[:, None] * case.size + within).flatten()[: start + n].to(q_THK.device)
        for store, held in zip(stores, (keys[i], values[i]), strict=True):
            store[slots_S] = held
        pieces.append((start, n, table, 0))
    ids = [0] * sum(case.spans[i][1] for i in chosen)
    inputs = moved(laid_out(ids, pieces, [], case.size, case.tile), q_THK.device)
    question, sinks_H = case.question, case.question.sinks_H
    question = question if sinks_H is None else replace(question, sinks_H=sinks_H.to(q_THK))
    return paging.paged_attention(
        q_THK, *stores, inputs.tiles_N4, inputs.tables_BP, size=case.size, tile=case.tile, question=question
    )


def definition(case: Case, q_THK: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Out_THK in float64, each sequence alone."""
    rows, sinks_H = q_THK.split([n for _, n in case.spans]), case.question.sinks_H
    question = case.question if sinks_H is None else replace(case.question, sinks_H=sinks_H.to(q_THK).double())
    outs = []
    for q, k, v in zip(rows, keys, values, strict=True):
        q_HQK, k_GSK, v_GSK = (t.transpose(0, 1).double() for t in (q, k, v))
        weights_HQS = attention_weights(q_HQK, k_GSK, question)
        outs.append((weights_HQS @ v_GSK.repeat_interleave(case.heads // case.kv_heads, 0)).transpose(0, 1))
    return torch.cat(outs)


BOUNDS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def agrees(case: Case, device: str = "cpu") -> None:
    """The kernel on all sequences at once gives what the definition says."""
    q_THK, keys, values = drawn(case, device)
    ours = kernel(case, q_THK, keys, values, range(len(case.spans))).double()
    expected = definition(case, q_THK, keys, values)
    worst = float((ours - expected).abs().max())
    assert worst < BOUNDS[case.dtype], f"off by {worst:.1e}"


def same_bits(case: Case, device: str = "cpu") -> None:
    """Each sequence alone, and the last token of each alone, come to the same bits as all together."""
    q_THK, keys, values = drawn(case, device)
    together = kernel(case, q_THK, keys, values, range(len(case.spans)))
    ends = torch.tensor([n for _, n in case.spans]).cumsum(0).tolist()
    last = replace(case, spans=tuple((start + n - 1, 1) for start, n in case.spans))
    for i, (end, (_, n)) in enumerate(zip(ends, case.spans, strict=True)):
        alone = kernel(case, q_THK[end - n : end], keys, values, [i])
        assert torch.equal(alone, together[end - n : end]), f"sequence {i} is another in company"
        token = kernel(last, q_THK[end - 1 : end], keys, values, [i])
        assert torch.equal(token, together[end - 1 : end]), f"the last token of sequence {i} is another by itself"
