"""Which of several labels: a trie over their tokens, and two probabilities that are easily taken for each other.

Every label ends with an end token, so that none is the beginning of another. With l = sum of log p(token | before):

    scored    exp l / sum over labels of exp l               given that the model says one of them
    walked    product of p(token) / sum of p(tokens that     what is drawn behind a mask that renormalizes
              some label has here)                           at every step

A mask that lets a likely token through does not know how unlikely all is that may follow it, hence walked differs from
scored wherever labels part (Park et al. 2024, arXiv:2405.21047).

A sum over more tokens is lower. What is compared instead: the mean per token, or what a label gains over its score
after a prompt without content (Zhao et al. 2021, arXiv:2102.09690; Holtzman et al. 2021, arXiv:2104.08315).

Legend: L labels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError

Label = tuple[int, ...]


class Scored(NamedTuple):
    """Of each label: nats, as float64; lengths count tokens, the end token too."""

    total_L: Tensor  # log p of all its tokens
    walked_L: Tensor  # log of the probability that a walk behind a mask ends there
    lengths_L: Tensor

    @property
    def scored(self) -> Tensor:
        """p_L of one of the labels: sums to 1, as `walked` does by itself."""
        return self.total_L.softmax(0)

    @property
    def walked(self) -> Tensor:
        return self.walked_L.exp()

    @property
    def per_token(self) -> Tensor:
        """Mean log p of a token, nats."""
        return self.total_L / self.lengths_L

    def beyond(self, free: Scored) -> Tensor:
        """Nats that each label gains over `free`, the scores after a prompt without content."""
        return self.total_L - free.total_L


def branches(labels: Sequence[Label]) -> dict[Label, list[int]]:
    """The inner nodes of the trie, each before those below it: what was said -> tokens that may follow.

    Errors: no labels, an empty one, one twice, one that begins another.
    """
    found: dict[Label, list[int]] = {}
    for label in labels:
        for i, token in enumerate(label):
            following = found.setdefault(label[:i], [])
            if token not in following:
                following.append(token)
    for i, label in enumerate(labels):
        if not label or label in found or label in labels[:i]:
            raise CutawayError("is empty, there twice, or begins another", f"label {i}", "end each with an end token")
    if not found:
        raise CutawayError("are none", "labels", "give at least one")
    return found


def score(labels: Sequence[Label], after: Callable[[Label], Tensor]) -> Scored:
    """All labels' probabilities; `after` tells the logits_V of what follows a beginning, and is asked once for each."""
    step: dict[Label, tuple[float, float]] = {}
    for said, tokens in branches(labels).items():
        logp_V = after(said).double().log_softmax(0)
        local = logp_V[tokens].log_softmax(0)
        step |= {(*said, t): (float(logp_V[t]), float(p)) for t, p in zip(tokens, local, strict=True)}
    sums = [[sum(column) for column in zip(*(step[la[: i + 1]] for i in range(len(la))), strict=True)] for la in labels]
    total_L, walked_L = torch.tensor(sums, dtype=torch.float64).T
    return Scored(total_L, walked_L, torch.tensor([len(label) for label in labels]))
