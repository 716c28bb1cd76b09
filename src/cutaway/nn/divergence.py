"""KL divergence (Kullback & Leibler 1951): what it costs to take one distribution for another, in nats.

    KL(p || q) = sum over V of p ln(p / q)          0 if equal, infinite where q rules out what p does

Summing over a vocabulary is not always possible: a policy trained by reinforcement knows of q and p only the
log-probabilities of what was drawn. Three estimators from one draw x ~ q and its ratio r = p(x) / q(x) (Schulman 2020,
"Approximating KL divergence"), all of KL(q || p):

    k1 = -ln r              unbiased, half of the draws have the wrong sign
    k2 = (ln r)^2 / 2       biased, never negative
    k3 = r - 1 - ln r       unbiased, never negative
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def kl_divergence(p_RV: Tensor, q_RV: Tensor) -> Tensor:
    """KL(p || q) of logits or log-probabilities, kl_R in nats; what p rules out counts for nothing."""
    p_RV, q_RV = p_RV.log_softmax(-1), q_RV.log_softmax(-1)
    return (p_RV.exp() * (p_RV - q_RV).masked_fill(p_RV == -torch.inf, 0)).sum(-1)


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_r: -log_r,
    "k2": lambda log_r: log_r.square() / 2,
    "k3": lambda log_r: torch.expm1(log_r) - log_r,
}
"""Of ln p(x) - ln q(x) where x was drawn from q: estimates of KL(q || p), draw by draw."""
