"""A model as a tape of native operations, recorded once and replayed every step.

    embed, then for each layer                                  x: the residual stream
        norm            x -> h
        linear          h -> q, k, v
        turn            q, k normalized and rotated; k, v into their page
        attend, merge   q over the pages of its sequence -> a
        linear          a -> added to x
        norm            x -> h
        feed            h -> hidden units f
        linear          f -> added to x
    norm and linear over the wanted rows -> logits, and their sums

Before each product of a layer stands what adapters need of its input (shrink); it does nothing where nobody has one.

Rows of the batch are tokens of any number of sequences, at any places in them: there are no phases. What a row comes
to does not depend on the others, to the bit (see kernels.cpp). `refusal` says which architectures it cannot record;
they run on the model's own modules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cutaway.engine.matrices import Source, interleaved, joined, pack
from cutaway.engine.sampler import Logits
from cutaway.models.spec import LayerSpec, Spec
from cutaway.native.adapters import Panel
from cutaway.native.packing import GROUP, LANES
from cutaway.native.tape import ACTIVATIONS, Batch, Kind, Matrix, Rows, Tape, untouched
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.positions import RopeSpec, rotation, sinusoids

PAGE = 32  # tokens of a page, as in kernels.cpp
PIECE = 8192  # logits summed up together, as there
KEPT = {"float16": 2 * PAGE, "int8": PAGE + 2}  # bytes of a page for each number of a head, see `Kept` in kernels.cpp
STRETCH = 64  # positions whose rotations are worked out together, when the first of them comes
ADAPTIVE = ("dynamic", "longrope")  # rotations that depend on how long the text becomes


class Graph:
    """The tape of one model. pages: how many the cache has. tokens, rows: the most of a step. cache: one of `KEPT`.

    keys, values: per layer uint8 [pages, G, bytes].
    targets: of the products that adapters change, which rows of which parameters their panels are.
    """

    def __init__(
        self, spec: Spec, source: Source, *, context: int, pages: int, tokens: int, rows: int, cache: str = "float16",
        march: str = "native",
    ) -> None:  # fmt: skip
        self.spec, self.source, self.tape, self.coded = spec, source, Tape(march), int(cache == "int8")
        self.targets: list[list[Panel]] = []
        sizes = [(pages, a.kv_heads, a.head_dim * KEPT[cache]) for a in (layer.attention for layer in spec.layers)]  # type: ignore[union-attr]
        self.keys, self.values = ([untouched(*size, dtype=torch.uint8) for size in sizes] for _ in range(2))
        self._buffers(tokens, rows)
        self._embed(context)
        self.turned, self.turns = 0, self._turns(context)
        for i, layer in enumerate(spec.layers):
            self._layer(i, layer)
        self._head()
        del self.source

    def __call__(self, batch: Batch, threads: int, seconds: Tensor | None = None) -> list[Logits]:
        """Of the wanted rows; their memory is used again by the next step."""
        while self.turned < batch.end:
            self._turn()
        self.tape.run(batch, threads, seconds)
        values_RV = self.logits.floats[: batch.rows, : self.spec.vocab]
        most_RP, mass_RP = self.weights.floats[: batch.rows, : 2 * self.pieces].numpy().reshape(-1, self.pieces, 2).T
        most_R = most_RP.max(0)
        total_R = most_R + np.log((mass_RP * np.exp(most_RP - most_R)).sum(0))
        first = (most_RP.argmax(0) * PIECE).tolist()
        best = [at + int(row[at : at + PIECE].argmax()) for at, row in zip(first, values_RV.numpy(), strict=True)]
        return [*map(Logits, values_RV, best, total_R.tolist())]

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        """What each first page holds into each second."""
        for store in (*self.keys, *self.values):
            for old, new in pairs:
                store[new] = store[old]

    def _buffers(self, tokens: int, rows: int) -> None:
        spec = self.spec
        mixers = [layer.attention for layer in spec.layers]
        wide = max((a.heads + 2 * a.kv_heads) * a.head_dim for a in mixers)  # type: ignore[union-attr]
        self.x, self.h, self.y = (Rows.of(tokens, spec.width) for _ in range(3))
        self.qkv = Rows.of(tokens, wide)
        self.a = {width: Rows.of(tokens, width) for width in {a.heads * a.head_dim for a in mixers}}  # type: ignore[union-attr]
        self.f = {width: Rows.of(tokens, width) for width in {layer.ffn.width for layer in spec.layers}}  # type: ignore[union-attr]
        self.last, self.logits = Rows.of(rows, spec.width), Rows.of(rows, spec.vocab)
        self.pieces = -(-spec.vocab // PIECE)
        self.weights = Rows.of(rows, 2 * self.pieces)

    def _embed(self, context: int) -> None:
        e, D = self.spec.embedding, self.spec.width
        self.tokens = Matrix.of(pack(self.source.matrix("embedding.tokens.weight")))
        table = self.source.vector("embedding.positions.weight")
        if e.sinusoidal:
            table = sinusoids(torch.arange(context), D).float()
        table = None if table is None else table[e.first :].contiguous()
        self.tape.add(Kind.EMBED, out=self.x, matrix=self.tokens, scale=e.scale, table=table)
        if e.norm:
            self._norm("embedding.norm", e.norm, self.x, self.x)

    def _turns(self, context: int) -> dict[RopeSpec, Tensor]:
        """Room for cosines and sines [2, context, E / 2] of each rotation, whole stretches of positions."""
        mixers, room = [layer.attention for layer in self.spec.layers], -(-context // STRETCH) * STRETCH
        widths = {a.rope: a.rotated // 2 for a in mixers if a.rope}  # type: ignore[union-attr]
        return {rope: untouched(2, room, width, dtype=torch.float32) for rope, width in widths.items()}

    def _turn(self) -> None:
        """Fill in the next stretch: what a long context could need and no text does costs neither time nor memory."""
        positions_T = torch.arange(self.turned, self.turned + STRETCH)
        for rope, made in self.turns.items():
            turn, width = rotation(rope, 2 * made.shape[2], positions_T, torch.float32), made.shape[2]
            made[:, positions_T] = torch.stack([turn.cos_TK, turn.sin_TK])[..., :width]
        self.turned += STRETCH

    def _layer(self, i: int, layer: LayerSpec) -> None:
        at = f"layers.{self.spec.block_of(i)}."
        for name, last, record in (("attention", "out", self._attention), ("ffn", "down", self._ffn)):
            hidden, matrix, bias = record(i, at, layer)
            onto = layer.placement in ("pre", "post")
            out, panels = self.x if onto else self.y, _panels({f"{at}{name}.{last}.weight": matrix.n})
            self._product(Kind.LINEAR, panels, in_=hidden, out=out, matrix=matrix, bias=bias, add=int(onto))
            if layer.placement == "post":
                self._norm(f"{at}{name}_norm", layer.norm, self.x, self.x)
            elif not onto:
                after = f"{name}_post_norm" if layer.placement == "sandwich" else f"{name}_norm"
                self._norm(at + after, layer.norm, self.y, self.x, add=1)

    def _attention(self, i: int, at: str, layer: LayerSpec) -> Made:
        """Up to the weighted values; the matrix that follows, and its bias."""
        a = layer.attention
        assert isinstance(a, AttentionSpec)
        names = [f"{at}attention.{part}" for part in "qkv"]
        parts = [(first, Matrix.of(made)) for first, made in joined(self.source, [f"{n}.weight" for n in names])]
        self._before(f"{at}attention_norm", layer, any(m.integers for _, m in parts), bare=layer.bare)
        bias = torch.cat([b for n in names if (b := self.source.vector(f"{n}.bias")) is not None] or [torch.zeros(0)])
        rows = [a.heads * a.head_dim, *[a.kv_heads * a.head_dim] * 2]
        panels = _panels({f"{n}.weight": count for n, count in zip(names, rows, strict=True)})
        for first, matrix in parts:
            some = padded(bias[first : first + matrix.n]) if len(bias) else None
            these, here = panels[first // LANES : (first + matrix.n) // LANES], self.qkv.beginning_at(first)
            self._product(Kind.LINEAR, these, in_=self.h, out=here, matrix=matrix, bias=some)
        cos, sin = self.turns[a.rope] if a.rope else (None, None)
        norms = [self._weight(f"{at}attention.{part}_norm", a.qk_norm)[0] if a.qk_norm else None for part in "qk"]
        heads = {"heads": a.heads, "kv_heads": a.kv_heads, "head_dim": a.head_dim, "coded": self.coded}
        store = {"keys": self.keys[i], "values": self.values[i], "in_": self.qkv}
        self.tape.add(
            Kind.TURN, **heads, **store, turning=a.rotated if a.rope else 0, cos=cos, sin=sin,
            q_norm=norms[0], k_norm=norms[1], eps=a.qk_norm.eps if a.qk_norm else 0.0,
            layered=int(a.qk_norm is not None and a.qk_norm.kind == "layer"),
        )  # fmt: skip
        out, hidden = Matrix.of(pack(self.source.matrix(f"{at}attention.out.weight"))), self.a[a.heads * a.head_dim]
        asked = {
            "window": a.window or 0, "scale": a.scale, "softcap": a.softcap or 0.0,
            "sinks": self.source.vector(f"{at}attention.sinks"), "out": hidden, "quantize": int(out.integers),
        }  # fmt: skip
        for kind in (Kind.ATTEND, Kind.MERGE):
            self.tape.add(kind, **heads, **store, **asked)
        return hidden, out, self._bias(f"{at}attention.out.bias")

    def _ffn(self, i: int, at: str, layer: LayerSpec) -> Made:
        """Up to the hidden units; the matrix that follows, and its bias."""
        f = layer.ffn
        assert isinstance(f, FeedForwardSpec)
        names = [f"{at}ffn.{part}" for part in (("gate", "up") if f.gated else ("up",))]
        matrix = Matrix.of(interleaved(self.source, [f"{n}.weight" for n in names]))
        biases = [b.unflatten(0, (-1, GROUP)) for n in names if (b := self.source.vector(f"{n}.bias")) is not None]
        bias = torch.stack(biases, 1).flatten().contiguous() if biases else None
        self._before(f"{at}ffn_norm", layer, matrix.integers)
        down, hidden = Matrix.of(pack(self.source.matrix(f"{at}ffn.down.weight"))), self.f[f.width]
        panels = _panels({f"{n}.weight": f.width for n in names}, GROUP)
        self._product(
            Kind.FEED, panels, in_=self.h, out=hidden, matrix=matrix, bias=bias, gated=int(f.gated),
            activation=ACTIVATIONS.index(f.activation), quantize=int(down.integers),
        )  # fmt: skip
        return hidden, down, self._bias(f"{at}ffn.down.bias")

    def _head(self) -> None:
        tied = self.spec.head is None or self.spec.head.tied
        matrix = self.tokens if tied else Matrix.of(pack(self.source.matrix("head.weight")))
        self._norm("final_norm", self.spec.final_norm, self.x, self.last, of_rows=1, quantize=int(matrix.integers))
        bias = self._bias("head.bias")
        self.tape.add(Kind.LINEAR, in_=self.last, out=self.logits, matrix=matrix, bias=bias, of_rows=1)
        head = self.spec.head
        shape = {"scale": head.scale, "softcap": head.softcap or 0.0} if head else {"scale": 1.0}
        self.tape.add(Kind.WEIGH, in_=self.logits, out=self.weights, matrix=matrix, of_rows=1, **shape)

    def _product(self, kind: Kind, panels: list[Panel], in_: Rows, **fields: object) -> None:
        """A product that adapters may change; before it what they need of its input."""
        self.targets.append(panels)
        self.tape.add(Kind.SHRINK, in_=in_, target=len(self.targets))
        self.tape.add(kind, in_=in_, target=len(self.targets), **fields)

    def _before(self, name: str, layer: LayerSpec, integers: bool, bare: bool = False) -> None:
        """What a sublayer reads, x -> h: normalized if the placement says so."""
        spec = layer.norm if layer.placement in ("pre", "sandwich") and not bare else None
        self._norm(name, spec, self.x, self.h, quantize=int(integers))

    def _norm(self, name: str, spec: NormSpec | None, of: Rows, to: Rows, **how: int) -> None:
        """`of` normalized into `to`, or copied if there is no norm."""
        weight, bias = self._weight(name, spec) if spec else (None, None)
        layered, eps = int(spec is not None and spec.kind == "layer"), spec.eps if spec else 0.0
        self.tape.add(Kind.NORM, in_=of, out=to, weight=weight, bias=bias, layered=layered, eps=eps, **how)

    def _weight(self, name: str, spec: NormSpec) -> tuple[Tensor | None, Tensor | None]:
        weight = self.source.vector(f"{name}.weight")
        return (weight + 1 if weight is not None and spec.unit_offset else weight), self.source.vector(f"{name}.bias")

    def _bias(self, name: str) -> Tensor | None:
        bias = self.source.vector(name)
        return None if bias is None else padded(bias)


Made = tuple[Rows, Matrix, Tensor | None]


def _panels(rows: dict[str, int], run: int = sys.maxsize) -> list[Panel]:
    """What the panels of joined matrices are. rows: of each matrix. run: so many of each in turn."""
    every = [[(name, row) for row in range(0, count, LANES)] for name, count in rows.items()]
    turns = range(0, max(map(len, every)), run // LANES)
    return [panel for i in turns for panels in every for panel in panels[i : i + run // LANES]]


def padded(bias_N: Tensor) -> Tensor:
    """With zeros up to a whole panel."""
    return torch.nn.functional.pad(bias_N, (0, -len(bias_N) % LANES)).contiguous()


def refusal(spec: Spec) -> str | None:
    """Why an architecture cannot be recorded; None if it can."""
    return next((why for holds, why in _refusals(spec) if holds), None)


def _refusals(s: Spec) -> Iterator[tuple[bool, str]]:
    yield s.encoder is not None, "it reads a source"
    yield s.head is None or s.head.transform is not None, "its head is not a single matrix"
    yield s.head is not None and s.head.bias and s.head.scale != 1.0, "its head is scaled before a bias is added"
    yield bool(s.embedding.types or s.embedding.width), "its embedding is more than a table"
    yield s.width % GROUP != 0, f"its width {s.width} is no multiple of {GROUP}"
    for layer in s.layers:
        yield from _layer_refusals(layer)


def _layer_refusals(layer: LayerSpec) -> Iterator[tuple[bool, str]]:
    a, f = layer.attention, layer.ffn
    if not isinstance(a, AttentionSpec) or not isinstance(f, FeedForwardSpec):
        yield True, f"it has {type(a).__name__} and {type(f).__name__}"
        return
    yield layer.cross is not None or layer.residual != 1.0, "its residual stream is scaled, or it reads a source"
    yield layer.norm is not None and layer.norm.kind == "batch", "it normalizes over the batch"
    yield not a.causal or a.position_bias is not None or a.anchors > 0, "its attention is not plainly causal"
    yield a.rope is not None and a.rope.scaling is not None and a.rope.scaling.kind in ADAPTIVE, "its rotation adapts"
    yield a.head_dim % GROUP != 0 or a.head_dim > 1024, f"its heads are {a.head_dim} wide"
    yield a.qk_norm is not None and a.qk_norm.kind == "layer" and a.qk_norm.bias, "norms of its heads have a bias"
    yield f.width % GROUP != 0 or f.limit is not None, "its feed-forward layer is clamped or of an odd width"
    yield f.activation not in ACTIVATIONS, f"it uses {f.activation}"
