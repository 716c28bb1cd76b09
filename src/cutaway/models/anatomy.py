"""The anatomy of a model: its real module tree, each part with shapes, parameters, FLOPs, bytes and its code.

A node is a module, or one of three mechanisms that hold no tensors and so are no modules: rotation, the attention
that a context answers, and a tied head. Children stand in the order in which a token passes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

import cutaway
from cutaway.models.block import Block, Stack
from cutaway.models.cost import pairs
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import Attention, AttentionSpec, attend
from cutaway.nn.embedding import Embedding
from cutaway.nn.feed_forward import FeedForward
from cutaway.nn.norms import LayerNorm, RMSNorm
from cutaway.nn.positions import rotate

PACKAGE = Path(cutaway.__file__).parent
Stored = Callable[[str], str | None]


class Code(NamedTuple):
    """A piece of this package: path relative to it, first and last line."""

    path: str
    line: int
    end: int


@dataclass(frozen=True)
class Held:
    """A tensor. dtype, bytes: in memory. stored: its type in the checkpoint, if there is one ("Q4_1")."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    bytes: int
    stored: str | None


@dataclass(frozen=True)
class Node:
    """A part. parameters, bytes, flops_per_token and share (of all parameters) include its children's.

    tensors: those it holds itself. detail: what configures it. input, output: shapes, T tokens, S keys, R rows.
    """

    id: str
    name: str
    kind: str
    input: str
    output: str
    parameters: int
    bytes: int
    flops_per_token: int
    share: float
    detail: dict[str, Any] = field(default_factory=dict)
    code: Code | None = None
    tensors: tuple[Held, ...] = ()
    children: tuple[Node, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        code = self.code._asdict() if self.code else None
        return {**asdict(self), "code": code, "children": [child.to_dict() for child in self.children]}


def anatomy(model: Stack, context: int, stored: Stored = lambda name: None) -> Node:
    """The tree of `model`, on any device, "meta" included.

    context: tokens that the token sees whose FLOPs are counted. stored: a parameter's type in the checkpoint.
    """
    return _Drawing(model, context, stored).module("", "model", model)


class Part(NamedTuple):
    """What a node is apart from its numbers."""

    input: str
    output: str
    detail: dict[str, Any]


class _Drawing:
    def __init__(self, model: Stack, context: int, stored: Stored) -> None:
        self.model, self.context, self.stored = model, context, stored
        self.total = model.cost.parameters
        self.flops = {p.module: 2 * p.weights for p in model.cost.parts if p.use in ("multiply", "rows")}

    def module(self, path: str, name: str, module: nn.Module) -> Node:
        children = tuple(self._children(path, module))
        tensors = tuple(self._tensors(path, module))
        return self._node(path or "model", name, type(module), describe(module, name, self.model), tensors, children)
