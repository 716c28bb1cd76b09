"""Dropout (Srivastava et al. 2014, JMLR 15:1929): in training, each number is zeroed with probability p.

    inverted   training: x * mask / (1 - p)     inference: x                 what everybody uses
    original   training: x * mask               inference: x * (1 - p)       as the paper has it

Either way a number's mean is the same in training and at inference. Its second moment is not: the inverted form
multiplies it by 1 / (1 - p) in training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError


def dropout(x: Tensor, p: float, inverted: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """`x`, any shape, with a fresh mask; the gradient passes through the very same mask, at the same scale."""
    dropped = torch.rand(x.shape, generator=generator, device=x.device) < p
    kept = x.masked_fill(dropped, 0)
    return kept / (1 - p) if inverted else kept


class Dropout(nn.Module):
    """x -> x of the same shape; draws masks in training only. Errors: p outside [0, 1)."""

    def __init__(self, p: float, inverted: bool = True) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise CutawayError(f"must be at least 0 and below 1, got {p}", "dropout")
        self.p, self.inverted = p, inverted

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p:
            return dropout(x, self.p, self.inverted)
        return x if self.inverted or self.training else x * (1 - self.p)
