"""The position-wise feed-forward layer, plain (Vaswani et al. 2017) or gated (Shazeer 2020, arXiv:2002.05202).

plain:  down(act(up(x)))
gated:  down(act(gate(x)) * up(x))       with act = silu this is SwiGLU, with act = gelu GeGLU
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class FeedForwardSpec:
    """width: F. activation: a key of `ACTIVATIONS`."""

    width: int
    activation: str
    gated: bool
    bias: bool = False


class FeedForward(nn.Module):
    """x_TD -> x_TD through F hidden units, each token on its own."""

    def __init__(self, width: int, spec: FeedForwardSpec) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.gate = nn.Linear(width, spec.width, spec.bias) if spec.gated else None
        self.up = nn.Linear(width, spec.width, spec.bias)
        self.down = nn.Linear(spec.width, width, spec.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x_TD)))
        return self.down(self.activation(self.gate(x_TD)) * self.up(x_TD))
