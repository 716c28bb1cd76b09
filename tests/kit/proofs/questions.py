"""Every kind of question that a layer can ask, answered for one query of one head after the other, in plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.nn.attention import BlockDiagonal, Place, Question, attend, attention_weights
from cutaway.nn.latent import LatentAttention, LatentSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.positions import RopeSpec, rotation
from kit.twins import make_loud

KEYS, SHARED = 7, 3  # keys; query heads for each key head
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.3, 1.5], dtype=torch.float64)


class Case(NamedTuple):
    """sees: whether a query at one position may look at a key at another. prefix: see `visible`."""

    question: Question
    sees: Callable[[int, int], bool] = lambda at, key: key <= at
    prefix: int = 0


def bias(q_BHQK: Tensor, k_BGSK: Tensor, distance_QS: Tensor) -> Tensor:
    """By distance, and by what the query and the key are."""
    return 0.1 * distance_QS.double() * q_BHQK[..., :1] + k_BGSK.repeat_interleave(SHARED, -3)[..., 1][..., None, :]


CASES = {
    "softcap": Case(Question(0.9, softcap=1.5)),
    "softcap in a window": Case(Question(0.9, softcap=1.5, window=3), lambda at, key: at - 3 < key <= at),
    "sinks": Case(Question(0.3, sinks_H=SINKS)),
    "sinks in a window": Case(Question(0.3, window=2, sinks_H=SINKS), lambda at, key: at - 2 < key <= at),
    "sinks both ways": Case(Question(0.3, causal=False, sinks_H=SINKS), lambda at, key: True),
    "anchors": Case(Question(0.3, window=2, anchors=2), lambda at, key: key <= at and (key > at - 2 or key < 2)),
    "global tokens": Case(
        Question(0.3, causal=False, window=2, anchors=1), lambda at, key: abs(at - key) < 2 or key < 1 or at < 1
    ),
    "prefix": Case(Question(0.3), lambda at, key: key <= at or key < 4, prefix=4),
    "bias": Case(Question(0.3, bias=bias)),
    "bias in a window": Case(Question(0.3, window=3, bias=bias), lambda at, key: at - 3 < key <= at),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answer(name: str) -> None:
    """The fused kernel and the softmax written out, for a whole text and for its last three queries."""
    case = CASES[name]
    for queries in (KEYS, 3):
        q_HQK, k_GSK, v_GSK = drawn(6, queries, 5), drawn(2, KEYS, 5, seed=1), drawn(2, KEYS, 5, seed=2)
        expected = torch.stack([
            torch.stack([_one(case, (q_HQK[h], k_GSK[h // SHARED], v_GSK[h // SHARED]), i, h) for i in range(queries)])
            for h in range(6)
        ])  # fmt: skip
        fused = attend(q_HQK[None], k_GSK[None], v_GSK[None], case.question, case.prefix)[0]
        written = attention_weights(q_HQK, k_GSK, case.question, case.prefix) @ v_GSK.repeat_interleave(SHARED, 0)
        for found in (fused, written):
            off = (found - expected).abs().max().item()
            assert off < 1e-12, f"{queries} queries: off by {off:.1e}"


def _one(case: Case, qkv: tuple[Tensor, Tensor, Tensor], i: int, head: int) -> Tensor:
    """What query i of one head gets: out_K."""
    q_QK, k_SK, v_SK = qkv
    question, at = case.question, KEYS - len(q_QK) + i
    seen = [key for key in range(KEYS) if case.sees(at, key)]
    scores = k_SK[seen] @ q_QK[i] * question.scale
    if question.softcap:
        scores = question.softcap * (scores / question.softcap).tanh()
    if question.bias:
        scores = scores + torch.stack([0.1 * (key - at) * q_QK[i, 0] + k_SK[key, 1] for key in seen])
    sink = 0.0 if question.sinks_H is None else question.sinks_H[head].exp()
    return scores.exp() @ v_SK[seen] / (scores.exp().sum() + sink)


def prefixes() -> None:
    """In a ragged batch each sequence has its own prefix."""
    lengths, own, question = [5, 3], [3, 0], Question(0.3)
    q, k, v = drawn(8, 6, 5), drawn(8, 2, 5, seed=1), drawn(8, 2, 5, seed=2)
    found = BlockDiagonal(lengths, prefixes=own).attend(0, q, k, v, question).split(lengths)
    parts = zip(*(t.transpose(0, 1).split(lengths, 1) for t in (q, k, v)), own, found, strict=True)
    for q_HQK, k_GSK, v_GSK, prefix, out_QHK in parts:
        expected = attend(q_HQK[None], k_GSK[None], v_GSK[None], question, prefix)[0]
        assert torch.equal(out_QHK.transpose(0, 1), expected)


LATENT = LatentSpec(
    heads=5, kv_rank=7, plain_dim=6, rope_dim=4, value_dim=6, scale=0.2, norm=NormSpec("rms", 1e-5), rope=RopeSpec(50.0)
)
LENGTHS = [6, 1, 4]


def loud_latent(spec: LatentSpec, width: int = 11) -> LatentAttention:
    module = LatentAttention(width, spec).double()
    make_loud(module)
    return module


def turning(width: int) -> Place:
    """The rotation of vectors of `width` at the positions of `LENGTHS`."""
    positions_T = torch.cat([torch.arange(n) for n in LENGTHS])
    return Place(rotation(RopeSpec(50.0), width, positions_T, torch.float64))


def latent_forms(spec: LatentSpec = LATENT, place: Place | None = None) -> None:
    """Unfolded and folded latent attention give the same, values and gradients."""
    module, context = loud_latent(spec), BlockDiagonal(LENGTHS)
    projected = module.project(drawn(sum(LENGTHS), 11, seed=5), place := place or turning(spec.rope_dim))
    outs = [form(projected, 0, place, context) for form in (module.naive, module.absorbed)]
    weights = [p for name, p in module.named_parameters() if not name.startswith("out")]
    probe = drawn(*outs[0].shape, seed=1)
    found, expected = ([out, *torch.autograd.grad((out * probe).sum(), weights, retain_graph=True)] for out in outs)
    for mine, other in zip(found, expected, strict=True):
        off = ((mine - other).abs().max() / other.abs().max()).item()
        assert off < 1e-11, f"off by {off:.1e}"


PROOFS: dict[str, Callable[[], None]] = {
    **{f"question {name}": partial(answer, name) for name in CASES},
    "question prefixes": prefixes,
    "latent forms": latent_forms,
}
