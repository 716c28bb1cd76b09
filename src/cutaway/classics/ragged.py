"""Steps through time over sequences of different lengths that are laid end to end.

Whatever is recurrent takes its first token of every sequence, then every second one, and so on:

    a0 a1 a2 b0 c0 c1      step 0: a0 c0 b0       longest sequence first, so that those that
                           step 1: a1 c1          go on are always the first rows of the state
                           step 2: a2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError


class Steps(NamedTuple):
    """order_T: where step after step finds its tokens. counts: tokens in each step. order_N: sequences, longest first.

    `x_TD[steps.order_T].split(steps.counts)` are the steps' rows, `torch.cat(rows)[steps.order_T.argsort()]` puts
    them back.
    """

    order_T: Tensor
    counts: list[int]
    order_N: Tensor


def steps_of(lengths: list[int], device: torch.device | None = None) -> Steps:
    """The steps of sequences of `lengths`. Errors: no sequence, an empty one."""
    if not lengths or min(lengths) < 1:
        raise CutawayError(f"must be lengths of at least 1, got {lengths!r:.80}", "lengths")
    lengths_N = torch.tensor(lengths, device=device)
    order_N = lengths_N.argsort(descending=True, stable=True)
    starts_N = (lengths_N.cumsum(0) - lengths_N)[order_N]
    counts = (lengths_N > torch.arange(max(lengths), device=device)[:, None]).sum(1).tolist()
    return Steps(torch.cat([starts_N[:n] + step for step, n in enumerate(counts)]), counts, order_N)
