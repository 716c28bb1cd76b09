"""The position-wise feed-forward layer, plain (Vaswani et al. 2017) or gated (Shazeer 2020, arXiv:2002.05202).

plain:    down(act(up(x)))
gated:    down(act(gate(x)) * up(x))       with act = silu this is SwiGLU, with act = gelu GeGLU
clamped:  down(act(min(gate(x), limit)) * (clamp(up(x), -limit, limit) + 1))       gpt-oss (arXiv:2508.10925)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_bloom": lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),  # sqrt(2/pi), rounded
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, arXiv:1606.08415
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021, "Primer", arXiv:2109.08668
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class FeedForwardSpec:
    """width: F. activation: a key of `ACTIVATIONS`. limit: of the clamped gate, which only a gated layer can have."""

    width: int
    activation: str
    gated: bool
    bias: bool = False
    limit: float | None = None


def faults(f: FeedForwardSpec) -> Iterator[tuple[str, bool, str]]:
    """(field, is it wrong?, what is wrong)."""
    yield "width", f.width < 1, f"must be at least 1, got {f.width}"
    yield "activation", f.activation not in ACTIVATIONS, f"{f.activation!r} is not one of {list(ACTIVATIONS)}"
    yield "limit", f.limit is not None and not f.gated, "there is no gate to clamp"
    yield "limit", f.limit is not None and f.limit <= 0, f"must be above 0, got {f.limit}"


def gated(activation: Callable[[Tensor], Tensor], gate_TF: Tensor, up_TF: Tensor, limit: float | None) -> Tensor:
    """The F hidden units of a gated layer from its two projections; see the formulas above."""
    if limit is None:
        return activation(gate_TF) * up_TF
    return activation(gate_TF.clamp(max=limit)) * (up_TF.clamp(-limit, limit) + 1)


class FeedForward(nn.Module):
    """x_TD -> x_TD through F hidden units, each token on its own."""

    def __init__(self, width: int, spec: FeedForwardSpec) -> None:
        super().__init__()
        self.activation, self.limit = ACTIVATIONS[spec.activation], spec.limit
        self.gate = nn.Linear(width, spec.width, spec.bias) if spec.gated else None
        self.up = nn.Linear(width, spec.width, spec.bias)
        self.down = nn.Linear(spec.width, width, spec.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x_TD)))
        return self.down(gated(self.activation, self.gate(x_TD), self.up(x_TD), self.limit))
