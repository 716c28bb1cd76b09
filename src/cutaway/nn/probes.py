"""What passes through a stack of modules on one batch: how large activations are, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Scale(NamedTuple):
    """At one module: root mean square of its output; norm of the loss's gradient there; and at its parameters."""

    activation: float
    gradient: float
    parameters: float


def scales(modules: Iterable[nn.Module], loss: Callable[[], Tensor]) -> list[Scale]:
    """One `Scale` per call of each module while `loss()` runs, in the order of the calls.

    A module's output is one tensor. No `.grad` is touched, so a probe between two training steps changes nothing.
    """
    calls: list[tuple[nn.Module, Tensor]] = []
    handles = [m.register_forward_hook(lambda module, args, out: calls.append((module, out))) for m in modules]
    try:
        value = loss()
    finally:
        for handle in handles:
            handle.remove()
    called = list(dict.fromkeys(module for module, _ in calls))
    held = [[p for p in module.parameters() if p.requires_grad] for module in called]
    wanted = [*(out for _, out in calls), *(p for group in held for p in group)]
    found = list(torch.autograd.grad(value, wanted, allow_unused=True))
    sizes = [0.0 if g is None else float(g.double().norm()) for g in found]
    rest = iter(sizes[len(calls) :])
    of_parameters = {module: _norm([next(rest) for _ in group]) for module, group in zip(called, held, strict=True)}
    return [
        Scale(rms(out), size, of_parameters[module])
        for (module, out), size in zip(calls, sizes[: len(calls)], strict=True)
    ]


def rms(x: Tensor) -> float:
    """Root mean square of all numbers."""
    return float(x.detach().double().square().mean().sqrt())


def _norm(sizes: Sequence[float]) -> float:
    return sum(size**2 for size in sizes) ** 0.5
