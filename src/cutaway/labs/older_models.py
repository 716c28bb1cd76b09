"""Recurrent models for labs: weights that a seed fixes, training until it is enough, and how information travels."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from cutaway.classics.recurrent import RecurrentLayer
from cutaway.labs.lab import Run
from cutaway.labs.training import fit
from cutaway.nn.attention import Attention

M = TypeVar("M", bound=nn.Module)


def seeded(make: Callable[[], M], seed: int, forget: float = 1.0) -> M:
    """The module that `make` builds, its weights PyTorch's usual ones of that seed.

    forget: added to the bias of every LSTM's forget gate, so that it begins by remembering (Gers et al. 2000;
    Jozefowicz et al. 2015 found that it is what matters most).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
    for layer in recurrent_layers(module):
        if layer.cell.gates == 4:
            with torch.no_grad():
                layer.input.bias[layer.width : 2 * layer.width] += forget
    return module


def recurrent_layers(module: nn.Module) -> list[RecurrentLayer]:
    """All of a model's."""
    return [part for part in module.modules() if isinstance(part, RecurrentLayer)]


def size_of(module: nn.Module) -> int:
    """How many parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


class Enough(Exception):
    """Training has reached its goal."""


def fit_until(
    module: nn.Module, loss: Callable[[torch.Generator], Tensor], steps: int, run: Run, *, goal: float, note: str
) -> int:
    """Train until the mean loss of five steps is below `goal`, or `steps` steps: how many it took."""
    losses: list[float] = []

    def watched(generator: torch.Generator) -> Tensor:
        if len(losses) >= 5 and statistics.mean(losses[-5:]) < goal:
            raise Enough
        value = loss(generator)
        losses.append(value.item())
        return value

    with suppress(Enough):
        fit(module.parameters(), watched, steps, run, note, seed=run.seed)
    return len(losses)


def attentions(model: nn.Module) -> list[nn.Module]:
    """The modules that carry something from one position to another: all positions in one call."""
    return [module for module in model.modules() if isinstance(module, Attention)]


def recurrences(model: nn.Module) -> list[nn.Module]:
    """The same of a recurrent model: one position a call, and the next needs its result."""
    return [layer.recurrent for layer in recurrent_layers(model)]


def calls(modules: Sequence[nn.Module], way: Callable[[], object]) -> int:
    """How often they are called, all together."""
    seen: list[nn.Module] = []
    handles = [module.register_forward_hook(lambda module, *_: seen.append(module)) for module in modules]
    way()
    for handle in handles:
        handle.remove()
    return len(seen)


def widest(make: Callable[[int], nn.Module], size: int) -> int:
    """The largest width whose module has at most `size` parameters."""

    def fits(width: int) -> bool:
        with torch.device("meta"):
            return size_of(make(width)) <= size

    return next(width for width in itertools.count(1) if not fits(width + 1))
