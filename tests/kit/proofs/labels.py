"""Label probabilities against a table model whose every reply can be enumerated."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from cutaway.engine.labels import Label, Scored, branches, score

VOCAB, END = 5, 0
LABELS = ((1, END), (1, 2, END), (1, 2, 3, END), (3, END), (4, 4, 1, END), (4, 2, END))


def table(seed: int) -> dict[Label, Tensor]:
    """Logits_V after every beginning of up to three tokens, float64."""
    generator = torch.Generator().manual_seed(seed)
    said = [s for n in range(4) for s in itertools.product(range(VOCAB), repeat=n)]
    return {s: 2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64) for s in said}


def chance(logits: dict[Label, Tensor], label: Label, fenced: bool) -> float:
    """The probability that a model of this table says the label, with or without a mask that forbids all others."""
    p = 1.0
    for i, token in enumerate(label):
        weights_V = logits[label[:i]].exp()
        open = {other[i] for other in LABELS if other[:i] == label[:i]} if fenced else range(VOCAB)
        p *= float(weights_V[token]) / sum(float(weights_V[t]) for t in open)
    return p


def probabilities() -> None:
    """Both distributions are those of enumeration, and each beginning is asked about once."""
    for seed in range(5):
        logits, asked = table(seed), list[Label]()

        def after(said: Label, logits: dict[Label, Tensor] = logits, asked: list[Label] = asked) -> Tensor:
            asked.append(said)
            return logits[said]

        found = score(LABELS, after)
        assert len(asked) == len(set(asked)) == len({la[:i] for la in LABELS for i in range(len(la))})
        free = [chance(logits, label, fenced=False) for label in LABELS]
        fenced = [chance(logits, label, fenced=True) for label in LABELS]
        assert torch.allclose(found.total_L.exp(), torch.tensor(free, dtype=torch.float64), rtol=1e-12, atol=0)
        scored = torch.tensor([p / sum(free) for p in free], dtype=torch.float64)
        assert torch.allclose(found.scored, scored, rtol=1e-12, atol=0), "scored is not the share of the scores"
        walked = torch.tensor(fenced, dtype=torch.float64)
        assert torch.allclose(found.walked, walked, rtol=1e-12, atol=0), "walked is not the chance behind the mask"
        assert abs(sum(fenced) - 1) < 1e-12
        assert float((found.scored - found.walked).abs().max()) > 0.01, "the two are told apart by nothing"


def corrections() -> None:
    """The mean per token counts the end token; a gain is positive where a label has become likelier."""
    one, other = (score(LABELS, table(seed).__getitem__) for seed in (1, 2))
    means = [float(total) / len(label) for total, label in zip(one.total_L, LABELS, strict=True)]
    assert torch.allclose(one.per_token, torch.tensor(means, dtype=torch.float64))
    ratio_L = one.total_L.exp() / other.total_L.exp()
    assert torch.allclose(one.beyond(other).exp(), ratio_L), "a gain is the logarithm of a ratio"


def trie() -> None:
    """By hand."""
    assert branches([(7, 8, 0), (7, 9, 0), (7, 0)]) == {(): [7], (7,): [8, 9, 0], (7, 8): [0], (7, 9): [0]}
    assert isinstance(score([(0,)], lambda said: torch.zeros(3)), Scored)


PROOFS = {"label probabilities": probabilities, "label corrections": corrections, "label trie": trie}
