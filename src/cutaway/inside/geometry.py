"""The geometry of a model's token embeddings: neighbors, arithmetic, and a plane to draw them in.

Every row of the table has the mean of all rows taken away and is scaled to unit length; what is left is direction.
Without that, the direction that all rows share (Mu & Viswanath 2018, arXiv:1702.01417) makes everything look alike.

    analogy    a is to b as c is to ?      the row closest to b - a + c (Mikolov et al. 2013, arXiv:1301.3781)
    plane      the two directions in which some rows differ most: principal components (Pearson 1901)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.block import Stack
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import Loaded


@dataclass(frozen=True)
class Neighbor:
    """cosine: of the angle to what was asked for."""

    id: int
    token: str
    cosine: float


@dataclass(frozen=True)
class Analogy:
    """nearest: the words of the question left out. with_question: left in, where b or c often comes first."""

    a: str
    b: str
    c: str
    nearest: list[Neighbor]
    with_question: list[Neighbor]


@dataclass(frozen=True)
class Point:
    token: str
    x: float
    y: float


@dataclass(frozen=True)
class Plane:
    """explained: share of the points' variance along x and along y."""

    points: list[Point]
    explained: tuple[float, float]


def directions(model: Stack) -> Tensor:
    """The embedding table with its mean row taken away, each row at unit length, directions_VD in float32."""
    table_VD = model.embedding.tokens.weight.detach().float()
    return F.normalize(table_VD - table_VD.mean(0), dim=-1)


def word_id(tokenizer: Tokenizer, word: str) -> int:
    """The token of a word as it stands within a sentence. Errors: it is more than one token."""
    spellings = [tokenizer.encode(text, add_special=False) for text in (f" {word}", word)]
    whole = next((ids for ids in spellings if len(ids) == 1), None)
    if whole is None:
        pieces = " ".join(tokenizer.display(id) for id in spellings[0])
        raise CutawayError(f"{word!r} is not one token but {len(spellings[0])}: {pieces}", "word", "try a common word")
    return whole[0]


def closest(directions_VD: Tensor, query_D: Tensor, count: int, but: Sequence[int] = ()) -> list[tuple[int, float]]:
    """(id, cosine) of the rows closest to a query of any length; rows `but` left out."""
    cosine_V = directions_VD @ F.normalize(query_D, dim=-1)
    cosine_V[[*but]] = -torch.inf
    best = cosine_V.topk(min(count, len(cosine_V) - len(but)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _named(tokenizer: Tokenizer, found: Sequence[tuple[int, float]]) -> list[Neighbor]:
    return [Neighbor(id, tokenizer.display(id), cosine) for id, cosine in found]


@torch.inference_mode()
def neighbors(loaded: Loaded, word: str, count: int = 10) -> list[Neighbor]:
    """The tokens whose directions are closest to a word's. Errors: see `word_id`."""
    table_VD, id = directions(loaded.model), word_id(loaded.tokenizer, word)
    return _named(loaded.tokenizer, closest(table_VD, table_VD[id], count, [id]))


@torch.inference_mode()
def analogy(loaded: Loaded, a: str, b: str, c: str, count: int = 10) -> Analogy:
    """a is to b as c is to what? Errors: see `word_id`."""
    table_VD, ids = directions(loaded.model), [word_id(loaded.tokenizer, word) for word in (a, b, c)]
    query_D = table_VD[ids[1]] - table_VD[ids[0]] + table_VD[ids[2]]
    nearest, all_of_them = (_named(loaded.tokenizer, closest(table_VD, query_D, count, but)) for but in (ids, ()))
    return Analogy(a, b, c, nearest, all_of_them)


@torch.inference_mode()
def plane(loaded: Loaded, words: Sequence[str]) -> Plane:
    """Words in the plane that shows most of their differences. Errors: fewer than three, see `word_id`."""
    ids = [word_id(loaded.tokenizer, word) for word in words]
    if len(set(ids)) < 3:
        raise CutawayError(f"{len(set(ids))} words do not make a plane", "words", "name at least three")
    places_N2, explained = principal(directions(loaded.model)[ids])
    points = [Point(word, x, y) for word, (x, y) in zip(words, places_N2.tolist(), strict=True)]
    return Plane(points, explained)


def principal(x_ND: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Coordinates along the first two principal components, [N, 2], and their shares of the variance.

    The sign of a component is free; here its largest entry in the rows is positive.
    """
    u_NM, s_M, _ = torch.linalg.svd(x_ND - x_ND.mean(0), full_matrices=False)
    places_N2 = u_NM[:, :2] * s_M[:2]
    signs_2 = places_N2.gather(0, places_N2.abs().argmax(0, keepdim=True)).sign()
    share_M = s_M.square() / s_M.square().sum()
    return places_N2 * signs_2, (float(share_M[0]), float(share_M[1]))
