"""What a number format does to a model, without kernels for it: weights, or inputs of linear maps, are rounded.

The changed model is a twin: it shares every tensor that is not changed with the original, which stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import Tensor, nn

Rounding = Callable[[Tensor], Tensor]
"""Numbers -> what they become in a format, same shape."""

M = TypeVar("M", bound=nn.Module)


def with_weights(model: M, rounding: Rounding, *, embeddings: bool = False) -> M:
    """A twin whose linear maps have rounded matrices; tables of embeddings too, if asked for."""
    twin = _twin(model)
    for _, module in linears(twin, embeddings=embeddings):
        module.weight = nn.Parameter(rounding(module.weight.detach()).to(module.weight.dtype), requires_grad=False)
    return twin


def with_inputs(model: M, rounding: Rounding) -> M:
    """A twin whose linear maps round what they are given, x_TD, before they use it."""
    twin = _twin(model)
    for _, module in linears(twin):
        module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]).to(inputs[0].dtype), *inputs[1:]))
    return twin


def linears(model: nn.Module, *, embeddings: bool = False) -> Iterator[tuple[str, nn.Linear | nn.Embedding]]:
    """The linear maps of a model by name; tables of embeddings too, if asked for."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (embeddings and isinstance(module, nn.Embedding)):
            yield name, module


def _twin(model: M) -> M:
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
