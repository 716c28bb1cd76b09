"""Memory of training: parameters with gradients and optimizer state, and what backward needs of the forward pass.

AdamW in mixed precision (Rajbhandari et al. 2020, arXiv:1910.02054): 2 bytes of weights, 2 of gradients, 4 each of a
full-precision copy, mean and variance. Activations in 16 bit by Korthikanti et al. 2022 (arXiv:2205.05198), whose
block has H heads, a feed-forward of 4·D and dropout: an estimate for any other.
"""

from __future__ import annotations

from cutaway.budget.chips import Chip
from cutaway.budget.figures import Figure, figure
from cutaway.models.cost import Cost

STATE = {"weights": 2, "gradients": 2, "weights in float32": 4, "mean": 4, "variance": 4}
"""Bytes a parameter."""


def states(count: int) -> list[Figure]:
    """Bytes of what is kept for each parameter, line by line and together."""
    lines = [figure(name, "bytes", "b·N", b=b, N=count) for name, b in STATE.items()]
    return [*lines, figure("state of training", "bytes", "b·N", b=sum(STATE.values()), N=count)]


def activations(layers: int, width: int, heads: int, tokens: int, batch: int = 1) -> list[Figure]:
    """Bytes kept for backward: everything, without the scores (tiled attention), only each layer's input."""
    sizes = {"s": tokens, "B": batch, "D": width}
    everything = "s·B·D·(34 + 5·H·s/D)"
    return [
        figure("activations, one layer", "bytes", everything, H=heads, **sizes),
        figure("activations, all layers", "bytes", f"L·{everything}", L=layers, H=heads, **sizes),
        figure("activations, tiled attention", "bytes", "L·34·s·B·D", L=layers, **sizes),
        figure("activations, layer inputs only", "bytes", "L·2·s·B·D", L=layers, **sizes),
        figure("FLOPs, recomputing over not", "", "(3 + 1)/3"),
    ]


def training_memory(cost: Cost, tokens: int, batch: int = 1) -> list[Figure]:
    """State and activations of training a model on `batch` sequences of `tokens` tokens."""
    spec = cost.spec
    heads = max(layer.attention.heads for layer in spec.layers)
    return [*states(cost.parameters), *activations(len(spec.layers), spec.width, heads, tokens, batch)]


def training_time(count: int, tokens: float, chip: Chip, dtype: str, utilization: float = 0.4) -> list[Figure]:
    """FLOPs and chip hours of training `count` parameters on `tokens` tokens, 6 FLOPs a parameter and token."""
    sizes = {"N": count, "T": tokens}
    return [
        figure("training", "FLOP", "6·N·T", **sizes),
        figure("chip hours", "h", "6·N·T/(u·R)/3600", u=utilization, R=chip.rate(dtype), **sizes),
    ]
