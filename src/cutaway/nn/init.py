"""How the matrices of a model start out: one standard deviation for each, by scheme.

    normal    s, for all                               BERT, GPT-2's first half (s = 0.02)
    lecun     sqrt(1 / fan_in)                         LeCun et al. 1998, "Efficient BackProp"
    xavier    sqrt(2 / (fan_in + fan_out))             Glorot & Bengio 2010, AISTATS
    kaiming   sqrt(2 / fan_in)                         He et al. 2015, arXiv:1502.01852
    depth     s, what writes to the stream s / sqrt(N) Radford et al. 2019 (GPT-2); N = 2 x layers
    zero      s, what writes to the stream 0           after Goyal et al. 2017, arXiv:1706.02677, section 5.1
    mup       s / sqrt(g), the head s / g              Yang et al. 2022, arXiv:2203.03466, table 3; g = how much
                                                       wider the matrix's input is than in the base model

A matrix's output has the variance fan_in * s^2 * (second moment of its input): lecun keeps it, kaiming makes up
for the half that ReLU takes away, xavier is the mean of what the forward and the backward pass want.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError

Role = Literal["embedding", "residual", "head", "hidden"]

ROLES: dict[str, Role] = {  # by name; whatever fits none of them is "hidden"
    r"(?:.*\.)?(embedding\.(tokens|positions|types)\.weight|position_bias\..*)": "embedding",
    r"(?:.*\.)?(attention\.out|cross\.out|down)(\.weight)?": "residual",
    r"head\.weight": "head",
}


class Matrix(NamedTuple):
    """A parameter with a fan-in and a fan-out, the last two axes, [.., out, in]. It may be a stack of such.

    residual: it writes to the residual stream, as one of `writers` modules that do. growth: fan-in over the fan-in
    of its namesake in a base model.
    """

    name: str
    parameter: Tensor
    role: Role
    writers: int
    growth: float

    @property
    def fan_in(self) -> int:
        return self.parameter.shape[-1]

    @property
    def fan_out(self) -> int:
        return self.parameter.shape[-2]


SCHEMES: dict[str, Callable[[Matrix, float], float]] = {
    "normal": lambda m, std: std,
    "lecun": lambda m, std: m.fan_in**-0.5,
    "xavier": lambda m, std: math.sqrt(2 / (m.fan_in + m.fan_out)),
    "kaiming": lambda m, std: math.sqrt(2 / m.fan_in),
    "depth": lambda m, std: std / math.sqrt(m.writers) if m.role == "residual" else std,
    "zero": lambda m, std: 0.0 if m.role == "residual" else std,
    "mup": lambda m, std: std / (m.growth if m.role == "head" else math.sqrt(m.growth)),
}


def matrices(model: nn.Module, base: nn.Module | None = None) -> Iterator[Matrix]:
    """Every matrix of a model; biases are none, not even those of a stack of experts."""
    named = {name: p for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("bias")}
    fans = {name: p.shape[-1] for name, p in (base or model).named_parameters() if p.ndim > 1}
    writers = {re.sub(r"(attention|cross|ffn)\..*", r"\1", name) for name in named if role(name) == "residual"}
    for name, p in named.items():
        yield Matrix(name, p, role(name), len(writers), p.shape[-1] / fans[name])


def role(name: str) -> Role:
    """What a matrix is there for, by its name in a `cutaway.models` model."""
    return next((found for pattern, found in ROLES.items() if re.fullmatch(pattern, name)), "hidden")


@torch.no_grad()
def initialize(
    model: nn.Module,
    scheme: str,
    generator: torch.Generator | None = None,
    std: float = 0.02,
    base: nn.Module | None = None,
) -> None:
    """Draw all matrices anew, from normal distributions, and zero all biases; norms stay as they are.

    std: s above, and that of embeddings in every scheme. base: the model that was tuned, for mup; it may be on
    device "meta". Errors: an unknown scheme; mup with a tied head, which cannot both grow and not grow.
    """
    if scheme not in SCHEMES:
        raise CutawayError(f"unknown scheme {scheme!r}", "initialize", f"known: {', '.join(SCHEMES)}")
    found = list(matrices(model, base))
    if scheme == "mup":
        _untied(found)
    for m in found:
        nn.init.normal_(m.parameter, std=std if m.role == "embedding" else SCHEMES[scheme](m, std), generator=generator)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)


def mup_groups(model: nn.Module, base: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Parameter groups for Adam with which the best `lr` does not depend on the width (Yang et al. 2022, table 3).

    Matrices whose input grows with the width get lr / growth, everything else lr. That holds for heads of constant
    width; if heads grow, scores are to be divided by K instead of sqrt(K) too. Errors: a tied head.
    """
    found = list(matrices(model, base))
    _untied(found)
    growth = {m.name: m.growth for m in found if m.role != "embedding"}
    groups: dict[float, list[Tensor]] = {}
    for name, p in model.named_parameters():
        groups.setdefault(growth.get(name, 1.0), []).append(p)
    return [{"params": parameters, "lr": lr / g} for g, parameters in groups.items()]


def _untied(found: list[Matrix]) -> None:
    if not any(m.role == "head" for m in found):
        raise CutawayError("needs a head of its own", "mup", "a tied one has the embedding's scale: set HeadSpec.tied")
