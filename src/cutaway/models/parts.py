"""Where an architecture's parameters are: one `Part` per module that holds any, from the `Spec` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cutaway.models.spec import LayerSpec, Spec
from cutaway.nn.norms import NormSpec


@dataclass(frozen=True)
class Part:
    """The parameters of one module. symbols, sizes: of its weight. bias: numbers in its bias.

    use: what a token does with the weight. "rows": multiplied too, but only where logits are wanted.
    """

    module: str
    symbols: tuple[str, ...]
    sizes: tuple[int, ...]
    bias: int = 0
    use: Literal["multiply", "rows", "look up", "scale", "nothing"] = "multiply"

    @property
    def weights(self) -> int:
        return math.prod(self.sizes)

    @property
    def parameters(self) -> int:
        return self.weights + self.bias


def parts(s: Spec) -> Iterator[Part]:
    """Every module of the model that holds parameters; a tied head holds none."""
    yield Part("embedding.tokens", ("V", "D"), (s.vocab, s.width), use="look up")
    if s.embedding.positions:
        yield Part("embedding.positions", ("P", "D"), (s.embedding.positions, s.width), use="look up")
    if s.embedding.types:
        yield Part("embedding.types", ("types", "D"), (s.embedding.types, s.width), use="look up")
    if s.embedding.norm:
        yield _norm("embedding.norm", "D", s.width, s.embedding.norm)
    for i, layer in enumerate(s.layers):
        yield from _block(f"layers.{i}.", s.width, layer)
    if s.final_norm:
        yield _norm("final_norm", "D", s.width, s.final_norm)
    if s.head and not s.head.tied:
        yield Part("head", ("V", "D"), (s.vocab, s.width), use="rows")
    if s.pooling and s.pooling.dense:
        yield Part("pooler", ("D", "D"), (s.width, s.width), s.width, use="nothing")


def _block(at: str, width: int, layer: LayerSpec) -> Iterator[Part]:
    a, f = layer.attention, layer.ffn
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    yield _norm(f"{at}attention_norm", "D", width, layer.norm)
    yield Part(f"{at}attention.q", ("D", "(H·K)"), (width, queries), queries * a.bias)
    yield Part(f"{at}attention.k", ("D", "(G·K)"), (width, keys), keys * a.bias)
    yield Part(f"{at}attention.v", ("D", "(G·K)"), (width, keys), keys * a.bias)
    yield Part(f"{at}attention.out", ("(H·K)", "D"), (queries, width), width * a.out_bias)
    if a.qk_norm:
        yield _norm(f"{at}attention.q_norm", "K", a.head_dim, a.qk_norm)
        yield _norm(f"{at}attention.k_norm", "K", a.head_dim, a.qk_norm)
    yield _norm(f"{at}ffn_norm", "D", width, layer.norm)
    for name in ("gate", "up") if f.gated else ("up",):
        yield Part(f"{at}ffn.{name}", ("D", "F"), (width, f.width), f.width * f.bias)
    yield Part(f"{at}ffn.down", ("F", "D"), (f.width, width), width * f.bias)
    if layer.placement == "sandwich":
        yield _norm(f"{at}attention_post_norm", "D", width, layer.norm)
        yield _norm(f"{at}ffn_post_norm", "D", width, layer.norm)


def _norm(module: str, symbol: str, width: int, spec: NormSpec) -> Part:
    return Part(module, (symbol,), (width,), width if spec.kind == "layer" else 0, use="scale")
