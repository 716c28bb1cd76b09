"""The anatomy of a model: its real module tree, each part with shapes, parameters, FLOPs, bytes and its code.

A node is a module, or one of two mechanisms that hold no tensors and so are no modules: rotation and the
attention that a context answers. Children stand in the order in which a token passes them.

Shapes: T tokens, S keys that are seen, R rows whose logits are wanted, B sequences; then heads, widths.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

import cutaway
from cutaway.models.block import Block, Stack
from cutaway.models.cost import pairs, per_pair
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.encoder import Encoder
from cutaway.models.spec import MixerSpec
from cutaway.nn.attention import Attention, AttentionSpec, CrossAttention, attend
from cutaway.nn.disentangled import DisentangledAttention, Relative
from cutaway.nn.embedding import Embedding
from cutaway.nn.experts import Experts
from cutaway.nn.feed_forward import ACTIVATIONS, FeedForward
from cutaway.nn.heads import Head, TaskHead
from cutaway.nn.latent import LatentAttention
from cutaway.nn.norms import LayerNorm, RMSNorm
from cutaway.nn.positions import rotate
from cutaway.nn.routing import Router

PACKAGE = Path(cutaway.__file__).parent
PARTS = ("attention", "cross", "ffn")  # of a block, each with its norms around it
ATTENTION = ("q_down", "q_norm", "q", "k", "v", "kv_down", "kv_norm", "k_up", "v_up", "k_norm", "out")
KINDS = {rotate: "Rope", attend: "Attend"}  # a module's kind is its class


class Code(NamedTuple):
    """Lines of a file of this package: path relative to it, first and last."""

    path: str
    line: int
    end: int


class Role(NamedTuple):
    """What a part takes, what it gives, and what configures it."""

    input: str
    output: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Held:
    """A tensor. dtype, bytes: in memory. stored: its type in a checkpoint, such as Q4_1, if there is one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    bytes: int
    stored: str | None


@dataclass(frozen=True)
class Node:
    """A part. tensors: those it holds itself. code: None for PyTorch's own modules.

    parameters, bytes, flops_per_token and share (of all parameters) include those of the children.
    """

    id: str
    name: str
    kind: str
    input: str
    output: str
    detail: dict[str, Any]
    code: Code | None
    parameters: int
    bytes: int
    flops_per_token: int
    share: float
    tensors: tuple[Held, ...] = ()
    children: tuple[Node, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        values = {name: value for name, value in vars(self).items() if name != "children"}
        values["code"] = self.code._asdict() if self.code else None
        values["tensors"] = [asdict(tensor) for tensor in self.tensors]
        return {**values, "children": [child.to_dict() for child in self.children]}


@dataclass(frozen=True)
class Anatomist:
    """Draws the tree of a model on any device, "meta" included.

    context: tokens that the token sees whose FLOPs are counted. stored: a parameter's type in the checkpoint.
    """

    model: Stack
    context: int
    stored: Callable[[str], str | None] = lambda name: None

    def draw(self) -> Node:
        """The whole model."""
        return self._module("", self.model)

    def _module(self, path: str, module: nn.Module) -> Node:
        width = self.model.spec.width
        role = ROLES[type(module)](module, path, self.model) if type(module) in ROLES else _rows(width, width)
        return self._node(
            path,
            type(module),
            role,
            self._flops.get(path, 0),
            tensors=tuple(self._tensors(path, module)),
            children=tuple(self._children(path, module)),
        )

    def _children(self, path: str, module: nn.Module) -> Iterator[Node]:
        parts = dict(module.named_children())
        for name in _order(module, list(parts)):
            if isinstance(module, Attention | LatentAttention | DisentangledAttention) and name == "out":
                yield from self._question(path, module.spec)
            inner = f"{path}.{name}".lstrip(".")
            if isinstance(parts[name], Head | Embedding) or any(held.startswith(f"{inner}.") for held in self._held):
                yield self._module(inner, parts[name])

    def _question(self, path: str, a: MixerSpec) -> Iterator[Node]:
        """Between the projections of attention: rotation, and what the context does with q, k and v."""
        q, kv = f"[T, {a.heads}, {a.head_dim}]", f"{a.kv_heads}, {a.head_dim}]"
        if a.rope:
            shapes = f"q {q}, k [T, {kv}"
            yield self._node(f"{path}.rope", rotate, Role(shapes, shapes, asdict(a.rope)))
        seen, spec = pairs(a, 1, self.context - 1), self.model.spec
        times = sum(path == f"layers.{spec.block_of(i)}.attention" for i in range(len(spec.layers)))  # 0 for a source
        role = Role(f"q {q}, k and v [S, {kv}", q, {"keys": seen, "window": a.window, "causal": a.causal})
        yield self._node(f"{path}.attend", attend, role, times * 2 * (per_pair(a, True) * seen + a.per_token))

    def _node(
        self,
        path: str,
        made_by: Any,
        role: Role,
        flops: int = 0,
        *,
        tensors: tuple[Held, ...] = (),
        children: tuple[Node, ...] = (),
    ) -> Node:
        parameters = sum(t.parameters for t in tensors) + sum(c.parameters for c in children)
        return Node(
            id=path or "model",
            name=path.rpartition(".")[2] or "model",
            kind=KINDS.get(made_by) or made_by.__name__,
            **role._asdict(),
            code=code_of(made_by),
            parameters=parameters,
            bytes=sum(t.bytes for t in tensors) + sum(c.bytes for c in children),
            flops_per_token=flops + sum(c.flops_per_token for c in children),
            share=parameters / self.model.cost.parameters,
            tensors=tensors,
            children=children,
        )

    def _tensors(self, path: str, module: nn.Module) -> Iterator[Held]:
        for name, t in module.named_parameters(path, recurse=False):
            dtype = str(t.dtype).removeprefix("torch.")
            yield Held(name, tuple(t.shape), dtype, t.numel(), t.nbytes, self.stored(name))

    @cached_property
    def _held(self) -> frozenset[str]:
        """Every tensor by one name: an encoder's token embedding is the decoder's."""
        return frozenset(name for name, _ in self.model.named_parameters())

    @cached_property
    def _flops(self) -> dict[str, int]:
        """Of the modules that multiply, 2 per weight; a tied head multiplies with the embedding's."""
        spec, parts = self.model.spec, self.model.cost.parts
        found = {p.module: int(2 * p.weights * p.active * p.times) for p in parts if p.use in ("multiply", "rows")}
        tied = {"head": 2 * spec.vocab * (spec.embedding.width or spec.width)} if spec.head and spec.head.tied else {}
        return found | tied


def _order(module: nn.Module, names: list[str]) -> list[str]:
    """The order in which a token passes the parts."""
    if isinstance(module, Attention | LatentAttention | DisentangledAttention):
        early = ATTENTION if isinstance(module, LatentAttention) else ("q", "k", "v", "q_norm", "k_norm", "out")
        return [name for name in early if name in names]
    if isinstance(module, EncoderDecoder):  # the source is read first
        return ["encoder", *(name for name in names if name != "encoder")]
    if isinstance(module, Block):
        norm_first = module.spec.placement in ("pre", "sandwich")
        around = [(f"{p}_norm", p) if norm_first else (p, f"{p}_norm") for p in PARTS]
        passed = [name for p, pair in zip(PARTS, around, strict=True) for name in (*pair, f"{p}_post_norm")]
        return [name for name in passed if name in names]
    return names


@cache
def code_of(source: Any) -> Code | None:
    """Where a class or function of this package is written; None for anything else."""
    path = Path(inspect.getfile(source))
    if not path.is_relative_to(PACKAGE):
        return None
    lines, first = inspect.getsourcelines(source)
    return Code(path.relative_to(PACKAGE).as_posix(), first, first + len(lines) - 1)


def _rows(d_in: int, d_out: int, letter: str = "T", **detail: Any) -> Role:
    return Role(f"[{letter}, {d_in}]", f"[{letter}, {d_out}]", detail)


def _stack(module: Stack, output: str) -> Role:
    s = module.spec
    return Role("[T]", output, {"family": s.family, "layers": len(s.layers), "context": s.context})


def _attention(module: Attention, width: int) -> Role:
    a = module.spec
    detail = {name: getattr(a, name) for name in ("heads", "kv_heads", "head_dim", "scale", "causal", "window")}
    return _rows(width, width, **detail)


def _plain(spec: Any) -> dict[str, Any]:
    """The fields of a spec that are plain values."""
    return {name: value for name, value in vars(spec).items() if isinstance(value, int | float | str)}


def _head(module: Head, model: Stack) -> Role:
    rows, vocab = model.spec.embedding.width or model.spec.width, model.spec.vocab
    tied = {"tied": "embedding.tokens"} if module.spec.tied else {}
    return _rows(model.spec.width, vocab, "R", **tied, **{"in": rows, "out": vocab})


def _feed_forward(module: FeedForward, width: int) -> Role:
    activation = next(name for name, function in ACTIVATIONS.items() if function is module.activation)
    hidden = module.up.out_features
    return _rows(width, width, width=hidden, activation=activation, gated=module.gate is not None)


def _norm(module: RMSNorm | LayerNorm, path: str, model: Stack) -> Role:
    """A norm on queries or keys works on each head."""
    shape = f"[T, {len(module.weight)}]"
    if path.endswith(("q_norm", "k_norm")) and isinstance(a := _mixer(path, model), AttentionSpec):
        shape = f"[T, {a.heads if path.endswith('q_norm') else a.kv_heads}, {a.head_dim}]"
    return Role(shape, shape, {"eps": module.eps})


def _mixer(path: str, model: Stack) -> MixerSpec:
    """The attention of the layer in which the module at `path` stands."""
    return model.spec.layers[int(path.split(".")[1])].attention


# module class -> its role, from the module, its path and the model
ROLES: dict[type[nn.Module], Callable[[Any, str, Stack], Role]] = {
    Decoder: lambda m, path, model: _stack(m, f"[R, {m.spec.vocab}]"),
    EncoderDecoder: lambda m, path, model: _stack(m, f"[R, {m.spec.vocab}]"),
    Encoder: lambda m, path, model: _stack(m, f"[{'T' if path else 'B'}, {m.spec.width}]"),
    nn.ModuleList: lambda m, path, model: _rows(model.spec.width, model.spec.width, layers=len(m)),
    Block: lambda m, path, model: _rows(model.spec.width, model.spec.width, placement=m.spec.placement),
    Embedding: lambda m, path, model: Role("[T]", f"[T, {model.spec.width}]", {"scale": m.spec.scale}),
    nn.Embedding: lambda m, path, model: Role("[T]", f"[T, {m.embedding_dim}]", {"rows": m.num_embeddings}),
    Attention: lambda m, path, model: _attention(m, model.spec.width),
    CrossAttention: lambda m, path, model: _attention(m, model.spec.width),
    LatentAttention: lambda m, path, model: _rows(model.spec.width, model.spec.width, **_plain(m.spec)),
    DisentangledAttention: lambda m, path, model: _rows(model.spec.width, model.spec.width, **_plain(m.spec)),
    Relative: lambda m, path, model: Role("", f"[T, {model.spec.width}]", {"rows": len(m.weight)}),
    Head: lambda m, path, model: _head(m, model),
    TaskHead: lambda m, path, model: _rows(model.spec.width, m.spec.labels, "B", **_plain(m.spec)),
    FeedForward: lambda m, path, model: _feed_forward(m, model.spec.width),
    Experts: lambda m, path, model: _rows(
        model.spec.width, model.spec.width, **_plain(m.spec), **_plain(m.spec.expert)
    ),
    Router: lambda m, path, model: _rows(model.spec.width, m.spec.top_k, experts=len(m.weight), **_plain(m.spec)),
    RMSNorm: _norm,
    LayerNorm: _norm,
    nn.Linear: lambda m, path, model: _rows(
        m.in_features, m.out_features, {"head": "R", "pooler": "B"}.get(path, "T"), bias=m.bias is not None
    ),
}
