"""Routing by agreement (Sabour et al. 2017, "Dynamic Routing Between Capsules", arXiv:1710.09829).

A capsule is a vector: its direction says what it found, its length how sure it is. Each token votes for every parent
capsule; a vote that agrees with what a parent comes out as is listened to more in the next round.

    repeat:  c_TJ  = softmax over parents J of b_TJ              a token divides its voice
             out_J = squash(sum over the tokens T of c_TJ * vote_TJ)
             b_TJ += vote_TJ . out_J                              agreement

Attention pooling divides the other way round: one parent's weights over the tokens sum to one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError


def squash(x_NJK: Tensor) -> Tensor:
    """Keep the direction, bring the length l to l^2 / (1 + l^2), below one."""
    length_NJ1 = x_NJK.norm(dim=-1, keepdim=True)
    return x_NJK * length_NJ1 / (1 + length_NJ1.square())


def route(votes_TJK: Tensor, lengths: list[int], rounds: int = 3) -> tuple[Tensor, Tensor]:
    """Parents out_NJK of N sequences, and the weights_TJ by which tokens voted in the last round.

    votes_TJK: a vector of each token of the ragged batch for each parent. Errors: fewer rounds than one.
    """
    if rounds < 1:
        raise CutawayError(f"must be at least 1, got {rounds}", "rounds")
    sequence_T = torch.repeat_interleave(torch.tensor(lengths, device=votes_TJK.device))
    agreement_TJ = votes_TJK.new_zeros(votes_TJK.shape[:2])
    for step in range(rounds):
        weights_TJ = agreement_TJ.softmax(-1)
        sums_NJK = votes_TJK.new_zeros(len(lengths), *votes_TJK.shape[1:])
        out_NJK = squash(sums_NJK.index_add(0, sequence_T, weights_TJ[:, :, None] * votes_TJK))
        if step + 1 < rounds:
            agreement_TJ = agreement_TJ + (votes_TJK * out_NJK[sequence_T]).sum(-1)
    return out_NJK, weights_TJ


class CapsulePooling(nn.Module):
    """hidden_TD -> out_NJK: every token votes for `parents` capsules of `width_out` numbers by matrices of its own."""

    def __init__(self, width: int, parents: int, width_out: int, rounds: int = 3) -> None:
        super().__init__()
        self.parents, self.rounds = parents, rounds
        self.votes = nn.Linear(width, parents * width_out, bias=False)

    def forward(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        """One capsule per parent for each sequence of the ragged batch."""
        return route(self.votes(hidden_TD).unflatten(-1, (self.parents, -1)), lengths, self.rounds)[0]


class AttentionPooling(nn.Module):
    """hidden_TD -> out_ND: a mean of each sequence's tokens, weighted by their softmaxed scores (Lin et al. 2017,
    arXiv:1703.03130, with one learned query)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        """One vector for each sequence of the ragged batch."""
        pairs = zip(self.score(hidden_TD).split(lengths), hidden_TD.split(lengths), strict=True)
        return torch.stack([(score_T1.softmax(0) * rows_TD).sum(0) for score_T1, rows_TD in pairs])
