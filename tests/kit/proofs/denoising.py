"""The noise of T5 and BART: texts that come back exactly, and shares, spans and orders as their definitions say."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise, permutations

import torch

from cutaway.nn.denoising import (
    corrupt_spans,
    delete_tokens,
    denoise,
    fill_spans,
    infill,
    permute_sentences,
    rotate_document,
)

SENTINELS = range(999, 899, -1)
MASK, STOP = 998, 997


def text(length: int) -> torch.Tensor:
    """No token twice, so that every token says where it stood."""
    return torch.arange(1, length + 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def even(drawn: Counter[tuple[int, ...]], kinds: int) -> None:
    """All of `kinds` outcomes came, by chi-square at 4.5 standard deviations as often as each other."""
    assert len(drawn) == kinds
    expected = drawn.total() / kinds
    chi_square = sum((n - expected) ** 2 / expected for n in drawn.values())
    assert chi_square < kinds - 1 + 4.5 * math.sqrt(2 * (kinds - 1)), chi_square


def spans() -> None:
    """Rebuilt by replacing strings; counts, order of the sentinels, and the published lengths of T5."""
    for seed in range(60):
        words_T = text(2 + seed)
        source_S, target_T = corrupt_spans(words_T, generator(seed), sentinels=SENTINELS, share=0.3, length=2.0)
        pieces = re.split(r" (9\d\d)(?= |$)", " " + " ".join(map(str, target_T.tolist())))
        written = " " + " ".join(map(str, source_S.tolist())) + " "
        for sentinel, said in zip(pieces[1::2], pieces[2::2], strict=True):
            written = written.replace(f" {sentinel} ", f"{said} ")
        assert written.split() == [str(word) for word in words_T.tolist()]
        assert torch.equal(fill_spans(source_S, target_T, SENTINELS), words_T)
        used = [t for t in source_S.tolist() if t in SENTINELS]
        assert used == [t for t in target_T.tolist() if t in SENTINELS] == [*SENTINELS[: len(used)]]
        assert len(words_T) - len(source_S) + len(used) == max(1, round(0.3 * len(words_T)))
        assert source_S[0] == 1
        assert not any(a in SENTINELS and b in SENTINELS for a, b in pairwise(source_S.tolist()))
    source_S, target_T = corrupt_spans(text(568), generator(0), sentinels=SENTINELS)
    assert (len(source_S) + 1, len(target_T) + 1) == (512, 114)  # with an end each, as T5 counts them
    even(Counter(cuts(generator(seed)) for seed in range(4200)), 3 * 7)


def cuts(chance: torch.Generator) -> tuple[int, ...]:
    """Which of 12 tokens are hidden, 4 in 2 spans: 3 ways to cut what is hidden, 7 what is kept."""
    source_S, _ = corrupt_spans(text(12), chance, sentinels=SENTINELS, share=0.333, length=2.0)
    return tuple(source_S.tolist())


def infilled() -> None:
    """What each run of masks hides is said by its neighbors; masks that stand alone hide Poisson(3) tokens."""
    lengths = Counter[int]()
    for seed in range(25):
        source_S = infill(text(2000), generator(seed), mask=MASK + 10_000)
        kept = [t for t in source_S.tolist() if t <= 2000]
        assert kept == sorted(kept)
        assert len(kept) == 1400
        padded = [0, *source_S.tolist(), 2001]
        alone = [(a, b) for a, m, b in zip(padded, padded[1:], padded[2:], strict=False) if m > 2001 and max(a, b) < m]
        lengths.update(b - a - 1 for a, b in alone)
    assert lengths.total() > 1000
    for k in range(8):
        expected = math.exp(-3) * 3**k / math.factorial(k)
        assert abs(lengths[k] / lengths.total() - expected) < 0.025, (k, lengths[k] / lengths.total(), expected)
    even(Counter(tuple(infill(text(4), generator(s), mask=9, share=0.25, length=9.0).tolist()) for s in range(2000)), 4)


def permuted() -> None:
    """Sentences stay whole, an open one too; every order is as likely as any other."""
    a, b, c = [1, 2, STOP], [3, STOP], [4, 5, 6]
    found = Counter(
        tuple(permute_sentences(torch.tensor([*a, *b, *c]), generator(seed), ends={STOP}).tolist())
        for seed in range(3000)
    )
    assert set(found) == {tuple(chain(*order)) for order in permutations((a, b, c))}
    even(found, 6)


def deleted_and_rotated() -> None:
    """What is deleted leaves no trace; a rotation begins anywhere, and goes on in order."""
    left = delete_tokens(text(20_000), generator(0), share=0.2)
    assert torch.equal(left, left.sort().values)
    assert abs(len(left) / 20_000 - 0.8) < 0.015
    assert left.max() <= 20_000
    rotated = Counter(tuple(rotate_document(text(5), generator(seed)).tolist()) for seed in range(2000))
    assert set(rotated) == {tuple((start + i) % 5 + 1 for i in range(5)) for start in range(5)}
    even(rotated, 5)


def whole() -> None:
    """BART's recipe: the target is the text; what is read is some order of its sentences, with masks for some words."""
    a, b = [*range(1, 60), STOP], [*range(100, 160), STOP]
    orders = set()
    for seed in range(20):
        words_T = torch.tensor([*a, *b])
        source_S, target_T = denoise(words_T, generator(seed), mask=MASK, ends={STOP})
        assert torch.equal(target_T, words_T)
        pattern = re.sub(rf"(?: {MASK})+", "(?: \\\\d+)*", "".join(f" {t}" for t in source_S.tolist()))
        fits = [i for i, order in enumerate(([*a, *b], [*b, *a])) if re.fullmatch(pattern, words(order))]
        assert len(fits) == 1
        assert sum(t != MASK for t in source_S.tolist()) == len(words_T) - round(0.3 * len(words_T))
        orders.add(fits[0])
    assert orders == {0, 1}


def words(tokens: list[int]) -> str:
    return "".join(f" {token}" for token in tokens)


PROOFS: dict[str, Callable[[], object]] = {
    "span corruption": spans,
    "infilling": infilled,
    "sentence permutation": permuted,
    "deletion and rotation": deleted_and_rotated,
    "denoising whole": whole,
}
