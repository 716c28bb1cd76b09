"""Which experts a token goes to, and with what weights.

    logits_TE = x_TD . W_ED            how well each of E experts suits each token
    scores_TE = softmax or sigmoid     of the logits
    chosen_TC = the C best             of all, or of those in the best groups of experts
    weights_TC = their scores          so that the choice, which has no gradient, is trained through its weights

softmax over all experts, the best one: Switch (Fedus et al. 2021, arXiv:2101.03961). The best two, their weights
summing to one: Mixtral (Jiang et al. 2024, arXiv:2401.04088). Experts in groups of which few are open to a token, so
that it crosses to few machines: DeepSeek-V2 (2024, arXiv:2405.04434). Sigmoids, and a bias that chooses but never
weighs: DeepSeek-V3 (2024, arXiv:2412.19437). How to keep the load even: `cutaway.nn.balance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.embedding import drawn
from cutaway.nn.norms import at_least_float32

SCORES: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda t: t.softmax(-1), "sigmoid": torch.sigmoid}
GROUP_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda scores: scores.amax(-1),
    "top2": lambda scores: scores.topk(2).values.sum(-1),
}
TINY = 1e-20  # keeps a sum of sigmoids that have all vanished from being divided by


@dataclass(frozen=True)
class RouterSpec:
    """top_k: C, experts a token goes to. normalize: their weights sum to `scale`, else each is its score times it.

    groups, kept_groups: experts stand in equal groups, and only those of the best groups can be chosen.
    group_score: a group is as good as its best expert (DeepSeek-V2) or its two best together (V3).
    bias: of the logits (gpt-oss). choice_bias: added to the scores for the choice alone (DeepSeek-V3).
    """

    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    bias: bool = False
    choice_bias: bool = False


class Routing(NamedTuple):
    """What a router decided: logits_TE, scores_TE, chosen_TC and weights_TC, the latter at least in float32.

    kept_TC: False where an expert had no room left, None if there is no limit.
    """

    logits_TE: Tensor
    scores_TE: Tensor
    chosen_TC: Tensor
    weights_TC: Tensor
    kept_TC: Tensor | None = None

    @property
    def counts_E(self) -> Tensor:
        """How many tokens chose each expert, whether it had room for them or not."""
        return self.chosen_TC.flatten().bincount(minlength=self.logits_TE.shape[1])


class Router(nn.Module):
    """x_TD -> Routing, computed at least in float32: rounded scores would choose other experts.

    limit: the most tokens that an expert takes, as a function of T. Who comes later in the batch is turned away, all
    second choices after all first ones (GShard, Lepikhin et al. 2020, arXiv:2006.16668).
    """

    def __init__(self, width: int, count: int, spec: RouterSpec, limit: Callable[[int], int] | None = None) -> None:
        super().__init__()
        self.spec, self.limit = spec, limit
        self.weight = nn.Parameter(drawn(count, width, std=width**-0.5))
        self.bias = nn.Parameter(torch.zeros(count)) if spec.bias else None
        self.choice_bias = nn.Parameter(torch.zeros(count), requires_grad=False) if spec.choice_bias else None

    def forward(self, x_TD: Tensor) -> Routing:
        bias_E = None if self.bias is None else at_least_float32(self.bias)
        logits_TE = F.linear(at_least_float32(x_TD), at_least_float32(self.weight), bias_E)
        scores_TE = SCORES[self.spec.score](logits_TE)
        chosen_TC = self._choose(scores_TE.detach())
        weights_TC = scores_TE.gather(1, chosen_TC)
        if self.spec.normalize:
            weights_TC = weights_TC / (weights_TC.sum(-1, keepdim=True) + TINY)
        kept_TC = None if self.limit is None else places(chosen_TC) < self.limit(len(x_TD))
        return Routing(logits_TE, scores_TE, chosen_TC, weights_TC * self.spec.scale, kept_TC)

    def _choose(self, scores_TE: Tensor) -> Tensor:
        if self.choice_bias is not None:
            scores_TE = scores_TE + self.choice_bias
        if self.spec.kept_groups < self.spec.groups:
            scores_TE = scores_TE.masked_fill(~self._open(scores_TE), -torch.inf)
        return scores_TE.topk(self.spec.top_k).indices

    def _open(self, scores_TE: Tensor) -> Tensor:
        """Which experts stand in one of a token's best groups."""
        group_score_TN = GROUP_SCORES[self.spec.group_score](scores_TE.unflatten(1, (self.spec.groups, -1)))
        best_Tn = group_score_TN.topk(self.spec.kept_groups).indices
        open_TN = torch.zeros_like(group_score_TN, dtype=torch.bool).scatter(1, best_Tn, True)
        return open_TN.repeat_interleave(scores_TE.shape[1] // self.spec.groups, 1)


def places(chosen_TC: Tensor) -> Tensor:
    """Each choice's place in its expert's queue, from 0: first choices in the order of tokens, then second ones."""
    expert_P = chosen_TC.T.flatten()
    order_P = expert_P.argsort(stable=True)
    counts_E = expert_P.bincount()
    first_E = counts_E.cumsum(0) - counts_E
    place_P = torch.arange(len(order_P), device=order_P.device) - first_E[expert_P[order_P]]
    return torch.empty_like(place_P).index_copy(0, order_P, place_P).view(chosen_TC.T.shape).T
