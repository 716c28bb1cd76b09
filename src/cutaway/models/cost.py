"""What a model costs: parameters, FLOPs and bytes, from its `Spec` alone.

Exact: parameters, which `Cost.check` holds against a model's tensors; bytes of weights and KV cache; FLOPs of
matrix multiplications, 2 per multiply-add (as in Kaplan et al. 2020, arXiv:2001.08361): projections,
feed-forward, head, and attention's scores and weighted sums over the keys that a token may see; experts by how many
a token goes to; latent attention in the form that runs, naive where all tokens are new, absorbed where it remembers.
Not counted, because small: norms, rotation, softmax, activation functions, biases, residual sums, sampling; and
DeBERTa's projections of its table of distances, which a batch of any size makes once per layer.
Upper bounds: the memory of activations and logits.

Symbols, also in the formulas that users are shown:
  V vocabulary   D width   L layers   H query heads   G key/value heads   K width of one head
  F feed-forward width   P learned positions   W window   A anchors   C context, in tokens   S tokens of a source
  B sequences at once   T new tokens of a step   N parameters   b bytes per number
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from torch import nn

from cutaway.errors import CutawayError
from cutaway.models.parts import Part, parts
from cutaway.models.spec import FeedSpec, MixerSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.disentangled import DisentangledSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.latent import LatentSpec
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

    @cached_property
    def active(self) -> int:
        """Parameters that a token uses: of experts those it goes to, of tables for looking up none.

        A tied head's matrix counts, the blocks ahead do not: they are for training and drafting.
        """
        tied = [part.weights for part in self.parts if part.module == "embedding.tokens" and self._tied]
        return int(sum(map(used, self.parts))) + sum(tied)

    def read(self, tokens: int) -> float:
        """Parameters that a step of `tokens` new tokens reads: of `active`, but each expert that any of them goes to.

        Expected, if every expert is as likely: E experts of which a token takes C are E·(1 - (1 - C/E)^T) distinct.
        """
        experts = [part for part in self.parts if part.active < 1 and part.use != "nothing"]
        alone, all_of_them = (
            sum(part.parameters * share(float(part.active)) for part in experts)
            for share in (lambda active: active, lambda active: 1 - (1 - active) ** tokens)
        )
        return self.active - alone + all_of_them

    def flops(self, new: int, past: int = 0, rows: int = 0, *, source: int = 0, remembers: bool = False) -> int:
        """FLOPs of computing `new` tokens after `past` remembered ones, with logits for `rows` of them.

        source: tokens that an encoder-decoder's encoder reads, once, with the first tokens. remembers: the first
        tokens too are computed in the form that fills a cache.
        """
        across = source * new * sum(math.prod(_crossing(a)) for a in self._crossing)
        reading = 0 if past else self.flops_of_source(source)
        attention = self.attended(new, past, remembers or past > 0)
        return 2 * self._multiplied * new + attention + across + reading + rows * self._row.value

    def attended(self, new: int, past: int = 0, remembers: bool = False) -> int:
        """FLOPs of scores and weighted values alone, as part of `flops`."""
        return sum(2 * (per_pair(a, remembers) * pairs(a, new, past) + a.per_token * new) for a in self._attentions)

    def flops_of_source(self, source: int) -> int:
        """FLOPs of encoding the source and of projecting it to the keys and values of all layers, once a sequence."""
        encoder = self.spec.encoder.layers if self.spec.encoder else ()
        attention = sum(2 * layer.attention.per_pair * pairs(layer.attention, source, 0) for layer in encoder)
        return 2 * _multiplied(self.parts, "source") * source + attention

    def per_token(self, context: int, source: int = 0) -> list[Term]:
        """FLOPs of generating one token that sees `context` tokens, itself included, and `source` of a source."""
        seen = ((*_scored(a), pairs(a, 1, context - 1)) for a in self._attentions)
        beside = sum(2 * a.per_token for a in self._attentions)
        name, formula = ("distances", "L·4·H·K·rows") if self.spec.relative else ("states", "L·4·H·F·K")
        terms = [
            Term("matrices", 2 * self._multiplied, "2·(weights multiplied)", f"2 × {self._multiplied:,}"),
            _sum("attention", "L·4·H·K·min(C, W+A)" if self._anchored else "L·4·H·K·min(C, W)", seen),
            *([_sum("cross", "L·4·H·K·S", ((*_crossing(a), source) for a in self._crossing))] if source else []),
            *([Term(name, beside, formula, f"{beside:,}")] if beside else []),
            *([self._row] if self._matrices else []),
        ]
        return terms

    def flops_per_token(self, context: int, source: int = 0) -> int:
        """The sum of `per_token`."""
        return sum(term.value for term in self.per_token(context, source))

    def kv_bytes_per_token(self, dtype: str) -> Term:
        """What one token leaves in the caches of all layers together, as long as no window is full."""
        b = width_of(dtype)
        return _sum("KV per token", self._kept, ((*kept(a), b) for a in self._caching))

    def kv_bytes(self, context: int, batch: int, dtype: str, source: int = 0) -> Term:
        """Keys and values that `batch` sequences of `context` tokens need; a window bounds a layer's need.

        source: tokens of each sequence's source, whose keys and values every cross-attention keeps as well.
        What is held can be more: `engine.cache` keeps what has left a window, in buffers that double.
        """
        sizes = (batch, width_of(dtype))
        seen = [(*kept(a), min(context, (a.window or context) + anchors(a)), *sizes) for a in self._caching]
        across = [(*kept(a), source, *sizes) for a in self._crossing] if source else []
        formula = self._kept.replace("·b", "·min(C, W+A)·B·b" if self._anchored else "·min(C, W)·B·b")
        return _sum("KV cache", f"{formula} + L·2·G·K·S·B·b" if across else formula, [*seen, *across])

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
        return _multiplied(self.parts, "multiply")

    @property
    def _attentions(self) -> list[MixerSpec]:
        return [layer.attention for layer in self.spec.layers]

    @property
    def _crossing(self) -> list[AttentionSpec]:
        return [layer.cross for layer in self.spec.layers if layer.cross]

    @property
    def _anchored(self) -> bool:
        return any(map(anchors, self._attentions))

    @property
    def _tied(self) -> bool:
        return self.spec.head is not None and self.spec.head.tied

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
        looked_up = tied if self._tied else []
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


def used(part: Part) -> Fraction:
    """Numbers of a part that one token uses: of a table for looking up, and of blocks ahead, none."""
    return Fraction(0) if part.use in ("look up", "nothing") else part.parameters * part.active


def anchors(a: MixerSpec) -> int:
    """First tokens that are seen and kept beside the window."""
    return a.anchors if isinstance(a, AttentionSpec) and a.window else 0


def per_pair(a: MixerSpec, remembers: bool) -> int:
    """Multiply-adds for each query and key; in latent attention that remembers, of the absorbed form."""
    if remembers and isinstance(a, LatentSpec):
        return a.heads * (2 * a.kv_rank + a.rope_dim)
    return a.per_pair


def _scored(a: MixerSpec) -> tuple[int, ...]:
    """Factors of the FLOPs for each query and key while generating: 4, H, K; or a product, where these do not fit."""
    each = per_pair(a, remembers=True)
    return (4, a.heads, a.head_dim) if each == 2 * a.heads * a.head_dim else (2, each)


def _crossing(a: AttentionSpec) -> tuple[int, ...]:
    return 4, a.heads, a.head_dim


def _multiplied(found: Iterable[Part], use: str) -> int:
    return int(sum(part.weights * part.active * part.times for part in found if part.use == use))


def pairs(a: MixerSpec, new: int, past: int) -> int:
    """How many (query, key) pairs `new` tokens after `past` ones make: one for each key that a query may see.

    past 2, new 3, window 3      x x x . .
                                 . x x x .     9 pairs; with one anchor 11
                                 . . x x x
    """
    keys = new + past
    window = min(a.window or keys, keys)
    if not a.causal:
        return sum(_both_ways(i, window, keys, anchors(a)) for i in range(past, keys))
    near = _staircase(keys + 1, window) - _staircase(past + 1, window)
    return near + _staircase(keys - window + 1, anchors(a)) - _staircase(past - window + 1, anchors(a))


def _staircase(steps: int, top: int) -> int:
    """0 + 1 + 2 + ..., so many steps, none higher than `top`."""
    rising = max(min(steps, top), 0)
    return rising * (rising - 1) // 2 + max(steps - rising, 0) * top


def _both_ways(i: int, window: int, keys: int, first: int) -> int:
    """Keys that token i sees before and after it; one of the `first` tokens sees all, and all see these."""
    low, high = max(i - window + 1, 0), min(i + window, keys)
    return keys if i < first else high - low + min(low, first)


def mask_bytes(a: MixerSpec, queries: int, keys: int) -> int:
    """What `cutaway.nn.attention.visible` takes: 64-bit distances and booleans, both twice for a window."""
    if a.window is not None and a.window < keys:
        return 18 * queries * (keys if anchors(a) else min(keys, a.window + queries))
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
