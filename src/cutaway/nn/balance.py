"""How evenly tokens spread over experts: what a load is, and what keeps it even.

Left alone, a router starves most experts: those that are chosen learn, and what they learn has them chosen more.
Three remedies, to be compared by `load_of` what was `recorded`:

    balance_loss     a further loss, which pulls the router away from what suits the tokens best
    balance_step     a bias that moves the choice and has no gradient (Wang et al. 2024, arXiv:2408.15664)
    capacity         of `ExpertsSpec`: a full expert turns tokens away
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cutaway.nn.norms import at_least_float32
from cutaway.nn.routing import TINY, Router, Routing


class Load(NamedTuple):
    """How evenly tokens spread. busiest: the largest count over the mean, 1 at best, E / C at worst.

    entropy: of the counts' shares, in nats, log E at best. idle: experts that nobody chose. dropped: share of the
    choices that found no room.
    """

    counts_E: list[int]
    busiest: float
    entropy: float
    idle: int
    dropped: float


def load_of(*routings: Routing) -> Load:
    """The load of one layer, over one routing or several."""
    counts_E = torch.stack([r.counts_E for r in routings]).sum(0)
    share_E = counts_E.double() / counts_E.sum()
    kept = [torch.ones_like(r.chosen_TC, dtype=torch.bool) if r.kept_TC is None else r.kept_TC for r in routings]
    return Load(
        counts_E.tolist(),
        float(share_E.max() * len(share_E)),
        float(-torch.special.xlogy(share_E, share_E).sum()),
        int((counts_E == 0).sum()),
        float(1 - torch.cat(kept).double().mean()),
    )


def balance_loss(*routings: Routing) -> Tensor:
    """E * sum over experts of (choices per token that fell on it) * (its mean share of the scores).

    C if perfectly balanced, and the more, the more the same experts are both chosen and scored high. Switch's loss
    (Fedus et al. 2021, arXiv:2101.03961) for C = 1, that of transformers for any C, DeepSeek's times C. Several
    routings are pooled as one batch. Only the shares have a gradient.
    """
    tokens = sum(len(r.chosen_TC) for r in routings)
    counts_E = torch.stack([r.counts_E for r in routings]).sum(0)
    shares_TE = torch.cat([r.scores_TE / (r.scores_TE.sum(-1, keepdim=True) + TINY) for r in routings])
    return len(counts_E) * (counts_E.to(shares_TE.dtype) / tokens * shares_TE.mean(0)).sum()


def z_loss(routing: Routing) -> Tensor:
    """Mean squared log-partition of the logits, which keeps them small (ST-MoE, Zoph et al. 2022, arXiv:2202.08906)."""
    return routing.logits_TE.logsumexp(-1).square().mean()


@torch.no_grad()
def balance_step(bias_E: Tensor, counts_E: Tensor, speed: float) -> None:
    """Move the choice bias, in place, by `speed`: up for experts below the mean load, down for those above it.

    Once per optimizer step, with the counts of all its batches.
    """
    load_E = counts_E.to(at_least_float32(bias_E).dtype)
    bias_E += speed * (load_E.mean() - load_E).sign().to(bias_E.dtype)


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, list[Routing]]]:
    """While open, every routing of every `Router` in `model`, by the router's name, in the order they were made.

    A pass that the backward pass makes again (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174) is the same
    tokens a second time and is not recorded.
    """
    found: dict[str, list[Routing]] = {name: [] for name, m in model.named_modules() if isinstance(m, Router)}

    def note(into: list[Routing], routing: Routing) -> None:
        if not _in_backward():
            into.append(routing)

    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, inputs, out, into=into: note(into, out))
        for name, into in found.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _in_backward() -> bool:
    """Is autograd at work? What runs now is then being computed again."""
    return bool(torch._C._current_graph_task_id() >= 0)
