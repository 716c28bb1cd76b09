"""Where an architecture's parameters are: one `Part` per module that holds any, from the `Spec` alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from cutaway.models.spec import LayerSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.disentangled import DisentangledSpec
from cutaway.nn.experts import ExpertsSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.heads import HeadSpec, TransformSpec
from cutaway.nn.latent import LatentSpec
from cutaway.nn.linear_attention import LinearSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.position_bias import BucketSpec


@dataclass(frozen=True)
class Part:
    """The parameters of one module. symbols, sizes: of its weight. bias: numbers in its bias.

    use: what a token does with the weight. "rows": multiplied too, but only where logits are wanted. "source": once
    for each token of the source. active: which share of the weight a token uses, of experts those it is sent to.
    times: how often a token goes through it, more than once where layers share a block.
    """

    module: str
    symbols: tuple[str, ...]
    sizes: tuple[int, ...]
    bias: int = 0
    use: Literal["multiply", "rows", "source", "look up", "scale", "nothing"] = "multiply"
    active: Fraction = Fraction(1)
    times: int = 1

    @property
    def weights(self) -> int:
        return math.prod(self.sizes)

    @property
    def parameters(self) -> int:
        return self.weights + self.bias


def parts(s: Spec) -> Iterator[Part]:
    """Every module of the model that holds parameters; a tied head's matrix is the embedding's."""
    rows = s.embedding.width or s.width
    yield Part("embedding.tokens", ("V", "E") if s.embedding.width else ("V", "D"), (s.vocab, rows), use="look up")
    yield from _stack(s, rows)
    if s.head:
        yield from _head(s, s.head, rows)
    if s.pooling and s.pooling.dense:
        yield Part("pooler", ("D", "D"), (s.width, s.width), s.width, use="nothing")
    if s.task:
        yield from _transform("task", "D", s.width, s.width, s.task.transform)
        yield Part("task.out", ("labels", "D"), (s.task.labels, s.width), s.task.labels * s.task.bias, use="rows")
    for i, layer in enumerate(s.ahead):
        yield from _ahead(f"ahead.{i}.", s, layer)
    if s.encoder:  # the token embedding is the decoder's
        yield from (_of_source(replace(p, module=f"encoder.{p.module}")) for p in _stack(s.encoder, s.width))


def _stack(s: Spec, rows: int) -> Iterator[Part]:
    """Everything between the token embedding and the hidden states."""
    e = s.embedding
    if e.positions:
        yield Part("embedding.positions", ("P", "D"), (e.positions, rows), use="look up")
    if e.types:
        yield Part("embedding.types", ("types", "D"), (e.types, rows), use="look up")
    yield from _norm("embedding.norm", "D", rows, e.norm)
    if e.width:
        yield Part("embedding.project", ("E", "D"), (e.width, s.width), s.width * e.project_bias)
    if isinstance(s.position_bias, BucketSpec):
        table = (s.position_bias.buckets, s.layers[0].attention.heads)
        yield Part("position_bias", ("buckets", "H"), table, use="look up")
    if s.relative:
        yield Part("relative", ("N", "D"), (2 * s.relative.span, s.width), use="look up")
        yield from _norm("relative.norm", "D", s.width, s.relative.norm)
    runs = Counter(s.block_of(i) for i in range(len(s.layers)))
    for i, layer in enumerate(s.blocks):
        yield from (replace(part, times=runs[i]) for part in _block(f"layers.{i}.", s.width, layer))
    yield from _norm("final_norm", "D", s.width, s.final_norm)


def _head(s: Spec, head: HeadSpec, rows: int) -> Iterator[Part]:
    yield from _transform("head", "E", s.width, rows, head.transform)
    if not head.tied:
        yield Part("head", ("V", "D"), (s.vocab, rows), s.vocab * head.bias, use="rows")
    elif head.bias:
        yield Part("head", ("V",), (s.vocab,), use="scale")


def _transform(at: str, symbol: str, width: int, rows: int, transform: TransformSpec | None) -> Iterator[Part]:
    if transform:
        yield Part(f"{at}.dense", ("D", symbol), (width, rows), rows * transform.bias, use="rows")
        yield from _norm(f"{at}.norm", symbol, rows, transform.norm)


def _block(at: str, width: int, layer: LayerSpec) -> Iterator[Part]:
    yield from _norm(f"{at}attention_norm", "D", width, None if layer.bare else layer.norm)
    yield from ATTENTION[type(layer.attention)](f"{at}attention", width, layer.attention)
    if layer.cross:
        yield from _norm(f"{at}cross_norm", "D", width, layer.norm)
        for part in _attention(f"{at}cross", width, layer.cross):
            yield _of_source(part) if part.module.endswith((".k", ".v")) else part
    yield from _norm(f"{at}ffn_norm", "D", width, layer.norm)
    yield from FEED[type(layer.ffn)](f"{at}ffn", width, layer.ffn)
    if layer.placement == "sandwich":
        yield from _norm(f"{at}attention_post_norm", "D", width, layer.norm)
        yield from _norm(f"{at}ffn_post_norm", "D", width, layer.norm)


def _of_source(part: Part) -> Part:
    return replace(part, use="source") if part.use == "multiply" else part


def _attention(at: str, width: int, a: AttentionSpec) -> Iterator[Part]:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    yield Part(f"{at}.q", ("D", "(H·K)"), (width, queries), queries * a.bias)
    yield Part(f"{at}.k", ("D", "(G·K)"), (width, keys), keys * a.bias)
    yield Part(f"{at}.v", ("D", "(G·K)"), (width, keys), keys * a.bias)
    yield Part(f"{at}.out", ("(H·K)", "D"), (queries, width), width * a.out_bias)
    yield from _norm(f"{at}.q_norm", "K", a.head_dim, a.qk_norm)
    yield from _norm(f"{at}.k_norm", "K", a.head_dim, a.qk_norm)
    if a.sinks:
        yield Part(at, ("H",), (a.heads,), use="scale")


def _latent(at: str, width: int, a: LatentSpec) -> Iterator[Part]:
    queries, kept = a.heads * a.head_dim, a.kv_rank + a.rope_dim
    if a.query_rank:
        yield Part(f"{at}.q_down", ("D", "Cq"), (width, a.query_rank), a.query_rank * a.bias)
        yield from _norm(f"{at}.q_norm", "Cq", a.query_rank, a.norm)
    yield Part(f"{at}.q", ("Cq" if a.query_rank else "D", "(H·K)"), (a.query_rank or width, queries))
    yield Part(f"{at}.kv_down", ("D", "(C+R)"), (width, kept), kept * a.bias)
    yield from _norm(f"{at}.kv_norm", "C", a.kv_rank, a.norm)
    yield Part(f"{at}.k_up", ("C", "(H·N)"), (a.kv_rank, a.heads * a.plain_dim))
    yield Part(f"{at}.v_up", ("C", "(H·V)"), (a.kv_rank, a.heads * a.value_dim))
    yield Part(f"{at}.out", ("(H·V)", "D"), (a.heads * a.value_dim, width), width * a.bias)


def _linear(at: str, width: int, a: LinearSpec) -> Iterator[Part]:
    inner = a.heads * a.head_dim
    for name in ("q", "k", "v"):
        yield Part(f"{at}.{name}", ("D", "(H·K)"), (width, inner), inner * a.bias)
    yield Part(f"{at}.out", ("(H·K)", "D"), (inner, width), width * a.out_bias)


def _disentangled(at: str, width: int, a: DisentangledSpec) -> Iterator[Part]:
    inner = a.heads * a.head_dim
    for name in ("q", "k", "v"):
        yield Part(f"{at}.{name}", ("D", "(H·K)"), (width, inner), inner)
    yield Part(f"{at}.out", ("(H·K)", "D"), (inner, width), width)


def _feed_forward(at: str, width: int, f: FeedForwardSpec) -> Iterator[Part]:
    for name in ("gate", "up") if f.gated else ("up",):
        yield Part(f"{at}.{name}", ("D", "F"), (width, f.width), f.width * f.bias)
    yield Part(f"{at}.down", ("F", "D"), (f.width, width), width * f.bias)


def _experts(at: str, width: int, f: ExpertsSpec) -> Iterator[Part]:
    """The router scores all experts; of their weights a token uses those of the ones it is sent to."""
    active, e = Fraction(f.router.top_k, f.count), f.expert
    yield Part(f"{at}.router", ("D", "E"), (width, f.count), f.count * (f.router.bias + f.router.choice_bias))
    biases = f.count * ((1 + e.gated) * e.width + width) * e.bias
    matrices = (2 + e.gated, f.count, width, e.width)
    yield Part(at, (f"{2 + e.gated}", "E", "D", "F"), matrices, biases, active=active)
    if f.shared:
        yield from _feed_forward(f"{at}.shared", width, f.shared)
    if f.shared_gate:
        yield Part(f"{at}.shared_gate", ("D", "1"), (width, 1))


def _ahead(at: str, s: Spec, layer: LayerSpec) -> Iterator[Part]:
    for name in ("token_norm", "hidden_norm"):
        yield from _norm(at + name, "D", s.width, s.final_norm)
    yield Part(f"{at}project", ("(2·D)", "D"), (2 * s.width, s.width), use="nothing")
    yield from (replace(part, use="nothing") for part in _block(f"{at}block.", s.width, layer))
    yield from _norm(f"{at}final_norm", "D", s.width, s.final_norm)


def _norm(module: str, symbol: str, width: int, spec: NormSpec | None) -> Iterator[Part]:
    if spec:
        yield Part(module, (symbol,), (width,), width if spec.kind != "rms" and spec.bias else 0, use="scale")


Parts = Callable[[str, int, Any], Iterator[Part]]
ATTENTION: dict[type, Parts] = {
    AttentionSpec: _attention,
    LatentSpec: _latent,
    LinearSpec: _linear,
    DisentangledSpec: _disentangled,
}
FEED: dict[type, Parts] = {FeedForwardSpec: _feed_forward, ExpertsSpec: _experts}
