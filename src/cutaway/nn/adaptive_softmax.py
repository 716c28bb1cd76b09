"""Adaptive softmax (Grave et al. 2017, "Efficient softmax approximation for GPUs", arXiv:1609.04309).

Tokens are numbered by falling frequency. The head answers for the frequent ones and, by one more logit each, for
clusters of rarer ones; a cluster's own softmax is asked only if the token lies in it, and works in a narrower space.

    p(token) = p(head: token)                                   for a frequent one
    p(token) = p(head: cluster) * p(cluster: token)             for the others

    hidden_TD ──── head: [0 ... 1999 | cluster 1]
              └─── narrow D -> D/4 ── cluster 1: [2000 ... 99999]      only the tokens that need it

The sum over the vocabulary is one by construction: this is another model, not an approximation of a softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError


class AdaptiveSoftmax(nn.Module):
    """cutoffs: the first token of each cluster, rising. factor: cluster i works in D / factor^i dimensions."""

    def __init__(self, width: int, vocab: int, cutoffs: Sequence[int], factor: float = 4.0) -> None:
        super().__init__()
        edges = [0, *cutoffs, vocab]
        if not cutoffs or any(a >= b for a, b in pairwise(edges)):
            what = f"must rise between 0 and the vocabulary of {vocab}, got {list(cutoffs)}"
            raise CutawayError(what, "cutoffs", "give the first token of each cluster")
        widths = [int(width / factor ** (i + 1)) for i in range(len(cutoffs))]
        if widths[-1] < 1:
            raise CutawayError(f"leaves no dimension of {width} for cluster {len(cutoffs)}", "factor", "lower it")
        self.clusters = list(pairwise(edges[1:]))
        self.shortlist = cutoffs[0]
        self.head = nn.Linear(width, self.shortlist + len(self.clusters), bias=False)
        self.tails = nn.ModuleList(
            nn.Sequential(nn.Linear(width, narrow, bias=False), nn.Linear(narrow, last - first, bias=False))
            for narrow, (first, last) in zip(widths, self.clusters, strict=True)
        )

    def forward(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        """Log-probabilities of the targets, [T]; a cluster is computed for its own tokens only."""
        if len(targets_T) and not (targets_T.min() >= 0 and targets_T.max() < self.clusters[-1][1]):
            raise CutawayError(f"hold a target outside 0 ... {self.clusters[-1][1] - 1}", "targets_T")
        head_TV = self.head(hidden_TD).log_softmax(-1)
        first_T = targets_T.clone()  # what the head is asked: the token, or its cluster
        inside_T = head_TV.new_zeros(len(targets_T))
        for i, (tail, (first, last)) in enumerate(zip(self.tails, self.clusters, strict=True)):
            rows_R = ((targets_T >= first) & (targets_T < last)).nonzero()[:, 0]
            tail_RV = tail(hidden_TD[rows_R]).log_softmax(-1)
            inside_T = inside_T.index_add(0, rows_R, tail_RV.gather(-1, targets_T[rows_R, None] - first)[:, 0])
            first_T[rows_R] = self.shortlist + i
        return head_TV.gather(-1, first_T[:, None])[:, 0] + inside_T

    def log_probs(self, hidden_TD: Tensor) -> Tensor:
        """Of the whole vocabulary, log_probs_TV: every cluster is computed, as for a draw."""
        head_TV = self.head(hidden_TD).log_softmax(-1)
        clusters = [
            head_TV[:, self.shortlist + i, None] + tail(hidden_TD).log_softmax(-1) for i, tail in enumerate(self.tails)
        ]
        return torch.cat([head_TV[:, : self.shortlist], *clusters], -1)

    def products(self, shares: Sequence[float]) -> float:
        """Multiplications per token in training, if cluster i holds `shares[i]` of the tokens."""
        tails = (
            share * sum(p.numel() for p in tail.parameters()) for share, tail in zip(shares, self.tails, strict=True)
        )
        return self.head.weight.numel() + sum(tails)
