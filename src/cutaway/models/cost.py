"""What a model costs: parameters, FLOPs and bytes, from its `Spec` alone.

Exact: parameters, which `Cost.check` holds against a model's tensors; bytes of weights and KV cache; FLOPs of
matrix multiplications, 2 per multiply-add (as in Kaplan et al. 2020, arXiv:2001.08361): projections,
feed-forward, head, and attention's scores and weighted sums over the keys that a token may see.
Not counted, because small: norms, rotation, softmax, activation functions, biases, residual sums, sampling; and
DeBERTa's projections of its table of distances, which a batch of any size makes once per layer.
Upper bounds: the memory of activations and logits.

Symbols, also in the formulas that users are shown:
  V vocabulary   D width   L layers   H query heads   G key/value heads   K width of one head
  F feed-forward width   P learned positions   W window   C context, in tokens   B sequences at once
  T new tokens of a step   N parameters   b bytes per number
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from torch import nn

from cutaway.errors import CutawayError
from cutaway.models.parts import Part, parts
from cutaway.models.spec import FeedSpec, MixerSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.disentangled import DisentangledSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.linear_attention import LinearSpec

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
STEP = 512  # new tokens that the engine computes at a time; a longer prompt is computed in pieces
SAMPLER_BYTES = 40  # per vocabulary entry: scores, noise, sorted order, probabilities as ten float32


class Term(NamedTuple):
    """A number and where it comes from: a formula in symbols, and the same with numbers put in."""

    name: str
    value: int
    formula: str
    numbers: str


@dataclass(frozen=True)
class Cost:
    """The cost model of one architecture. dtype: a key of `BYTES`. Errors: another dtype, sizes below 1."""

    spec: Spec

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every module that holds parameters."""
        return tuple(parts(self.spec))

    @cached_property
    def parameters(self) -> int:
        """Numbers in all tensors together; those of a tied head are the embedding's and count once."""
        return sum(part.parameters for part in self.parts)

    def by_part(self) -> list[Term]:
        """Parameters, like modules of all layers in one line: "layers.*.attention.q", 30 × 576 × 576."""
        alike = Counter(replace(p, module=re.sub(r"^layers\.\d+", "layers.*", p.module)) for p in self.parts)
        return [_parameters(part, count) for part, count in alike.items()]

    def check(self, model: nn.Module) -> None:
        """Hold the formulas against a model's tensors. Errors: the first module where they differ."""
        counted = Counter({part.module: part.parameters for part in self.parts})
        held = Counter[str]()
        for name, tensor in model.named_parameters():
            held[name.rpartition(".")[0]] += tensor.numel()
        for module in [*counted, *held]:
            if counted[module] != held[module]:
                what = f"the formulas give {counted[module]:,} parameters, the tensors hold {held[module]:,}"
                raise CutawayError(what, module)

    def flops(self, new: int, past: int = 0, rows: int = 0) -> int:
        """FLOPs of computing `new` tokens after `past` remembered ones, with logits for `rows` of them."""
        attention = sum(2 * (a.per_pair * pairs(a, new, past) + a.per_token * new) for a in self._attentions)
        return 2 * self._multiplied * new + attention + rows * self._row.value

    def per_token(self, context: int) -> list[Term]:
        """FLOPs of generating one token that sees `context` tokens, itself included."""
        seen = ((*_scored(a), pairs(a, 1, context - 1)) for a in self._attentions)
        beside = sum(2 * a.per_token for a in self._attentions)
        name, formula = ("distances", "L·4·H·K·rows") if self.spec.relative else ("states", "L·4·H·F·K")
        terms = [
            Term("matrices", 2 * self._multiplied, "2·(weights multiplied)", f"2 × {self._multiplied:,}"),
            _sum("attention", "L·4·H·K·min(C, W)", seen),
            *([Term(name, beside, formula, f"{beside:,}")] if beside else []),
            *([self._row] if self._matrices else []),
        ]
        return terms

    def flops_per_token(self, context: int) -> int:
        """The sum of `per_token`."""
        return sum(term.value for term in self.per_token(context))

    def kv_bytes_per_token(self, dtype: str) -> Term:
        """What one token leaves in the caches of all layers together, as long as no window is full."""
        b = width_of(dtype)
        return _sum("KV per token", self._kept, ((*kept(a), b) for a in self._caching))

    def kv_bytes(self, context: int, batch: int, dtype: str) -> Term:
        """Keys and values that `batch` sequences of `context` tokens need; a window bounds a layer's need.

        What is held can be more: `engine.cache` keeps what has left a window, in buffers that double.
        """
        sizes = (batch, width_of(dtype))
        seen = ((*kept(a), min(context, a.window or context), *sizes) for a in self._caching)
        return _sum("KV cache", self._kept.replace("·b", "·min(C, W)·B·b"), seen)

    def memory(self, context: int, batch: int, dtype: str, step: int | None = None) -> list[Term]:
        """Bytes to run `batch` sequences of `context` tokens: weights, KV cache, activations, logits, total.

        Activations and logits are upper bounds for inference in steps of at most `step` new tokens (default:
        `STEP` in a decoder, everything at once in an encoder). They count the tensors alive at the worst
        moment, not the workspace of fused kernels.
        """
        step = step or (context * batch if self.spec.pooling else STEP)
        for name, value in (("context", context), ("batch", batch), ("step", step)):
            if value < 1:
                raise CutawayError(f"must be at least 1, got {value}", name)
        b = width_of(dtype)
        terms = [
            Term("weights", self.parameters * b, "N·b", _times((self.parameters, b))),
            self.kv_bytes(context, batch, dtype),
            self._activations(min(context * batch, step), context, b),
            self._logits(batch, b),
        ]
        total = Term("total", sum(t.value for t in terms), "", " + ".join(f"{t.value:,}" for t in terms))
        return [*terms, total]

    def _activations(self, tokens: int, context: int, b: int) -> Term:
        """The residual stream before and after a sublayer, its input and output, what is inside it.

        Inside feed-forward: gate, up, product. Inside attention: q, k, v, and what rotating q (or normalizing
        it in float32) needs beside them. At another moment: the mask of one sequence.
        """
        width, layers = self.spec.width, self.spec.layers
        inner = max(max(_inside(layer.attention), 3 * hidden(layer.ffn), 6 * width) for layer in layers)
        tables = sum(2 * a.rotated for a in {a.rope: a for a in self._attentions if a.rope}.values())
        mask = max(mask_bytes(a, min(tokens, context), context) for a in self._attentions)
        return Term(
            "activations",
            tokens * b * (4 * width + inner + tables) + mask,
            "T·b·(4·D + max(4·H·K + 3·G·K, 3·F, 6·D) + 2·K) + mask",
            f"{tokens:,} × {b} × (4 × {width:,} + {inner:,} + {tables:,}) + {mask:,}",
        )

    def _logits(self, rows: int, b: int) -> Term:
        """A row per sequence in the model's dtype, and the sampler's copies of the row that it works on."""
        vocab = self.spec.vocab if self.spec.head else 0
        numbers = f"{vocab:,} × ({rows:,} × {b} + {SAMPLER_BYTES})"
        return Term("logits", vocab * (rows * b + SAMPLER_BYTES), f"V·(B·b + {SAMPLER_BYTES})", numbers)

    @cached_property
    def _multiplied(self) -> int:
        return int(sum(part.weights * part.active * part.times for part in self.parts if part.use == "multiply"))

    @property
    def _attentions(self) -> list[MixerSpec]:
        return [layer.attention for layer in self.spec.layers]

    @property
    def _caching(self) -> list[MixerSpec]:
        """An encoder sees everything at once and keeps nothing."""
        return [] if self.spec.pooling else self._attentions

    @property
    def _kept(self) -> str:
        return "L·(C+R)·b" if any(len(a.cached) == 1 for a in self._caching) else "L·2·G·K·b"

    @property
    def _matrices(self) -> list[tuple[str, tuple[int, ...]]]:
        """Symbols and sizes of what the rows that are looked at go through; a tied head's are the embedding's."""
        spec = self.spec
        tied = [("V·E" if spec.embedding.width else "V·D", (spec.vocab, spec.embedding.width or spec.width))]
        looked_up = tied if spec.head and spec.head.tied else []
        return looked_up + [("·".join(part.symbols), part.sizes) for part in self.parts if part.use == "rows"]

    @property
    def _row(self) -> Term:
        """FLOPs of one row of logits or labels."""
        formula, numbers = (
            " + ".join(f"2·{symbols}" for symbols, _ in self._matrices),
            " + ".join(_times((2, *sizes)) for _, sizes in self._matrices),
        )
        return Term("head", sum(2 * math.prod(sizes) for _, sizes in self._matrices), formula, numbers)


def width_of(dtype: str) -> int:
    """Bytes per number. Errors: an unknown dtype."""
    if dtype not in BYTES:
        raise CutawayError(f"unknown dtype {dtype!r}", "dtype", f"known: {', '.join(BYTES)}")
    return BYTES[dtype]


def kept(a: MixerSpec) -> tuple[int, ...]:
    """Factors of how many numbers a cache keeps of a token: 2, G, K; or the width of a latent."""
    return (2, *a.cached[0]) if len(a.cached) == 2 else tuple(width for _, width in a.cached) or (0,)


def _scored(a: MixerSpec) -> tuple[int, ...]:
    """Factors of the FLOPs for each query and key: 4, H, K; or their product, where keys and values differ."""
    return (4, a.heads, a.head_dim) if a.per_pair == 2 * a.heads * a.head_dim else (2, a.per_pair)


def pairs(a: MixerSpec, new: int, past: int) -> int:
    """How many (query, key) pairs `new` tokens after `past` ones make: one for each key that a query may see.

    past 2, new 3, window 3      x x x . .
                                 . x x x .     9 pairs
                                 . . x x x
    """
    keys = new + past
    window = min(a.window or keys, keys)
    if not a.causal:
        return sum(min(i + window, keys) - max(i - window + 1, 0) for i in range(past, keys))
    growing = min(max(window - past, 0), new)  # queries that still see everything before them
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def mask_bytes(a: MixerSpec, queries: int, keys: int) -> int:
    """What `cutaway.nn.attention.visible` takes: 64-bit distances and booleans, both twice for a window."""
    if a.window is not None and a.window < keys:
        return 18 * queries * min(keys, a.window + queries)
    return 9 * queries * keys if a.causal else 0


def hidden(f: FeedSpec) -> int:
    """Hidden units that a token goes through."""
    if isinstance(f, FeedForwardSpec):
        return f.width
    return f.router.top_k * f.expert.width + (f.shared.width if f.shared else 0)


def _inside(a: MixerSpec) -> int:
    """Numbers per token that attention holds at its worst moment, counted in the model's dtype."""
    if isinstance(a, LinearSpec):
        return 4 * a.heads * a.head_dim + 2 * math.prod(a.state[1]) + math.prod(a.state[0])
    if isinstance(a, AttentionSpec):
        return (7 if a.qk_norm else 4) * a.heads * a.head_dim + 3 * a.kv_heads * a.head_dim
    if isinstance(a, DisentangledSpec):
        return a.heads * (7 * a.head_dim + 4 * a.span)
    widest = max(a.kv_rank + a.rope_dim, a.head_dim)  # of a query: folded, or plain
    return 4 * a.heads * widest + 2 * a.heads * a.value_dim + (a.query_rank or 0) + 2 * (a.kv_rank + a.rope_dim)


def _parameters(part: Part, count: int) -> Term:
    """One line of the table, for `count` like modules."""
    formula, numbers = "·".join(part.symbols), _times(part.sizes)
    if part.bias:
        formula, numbers = f"{formula} + {part.symbols[-1]}", f"{numbers} + {part.bias:,}"
    if part.module.startswith("layers."):
        opened, closed = ("(", ")") if part.bias else ("", "")
        formula, numbers = f"L·{opened}{formula}{closed}", f"{count} × {opened}{numbers}{closed}"
    return Term(part.module, count * part.parameters, formula, numbers)


def _sum(name: str, formula: str, products: Iterable[tuple[int, ...]]) -> Term:
    """A sum of products, one per layer, like ones written once: "30 × 2 × 3 × 64"."""
    alike = Counter(products)
    value = sum(count * math.prod(factors) for factors, count in alike.items())
    numbers = " + ".join(_times((count, *factors)) for factors, count in alike.items())
    return Term(name, value, formula, numbers or "0")


def _times(factors: tuple[int, ...]) -> str:
    return " × ".join(f"{f:,}" for f in factors)
