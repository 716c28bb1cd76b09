"""The key/value cache: what attention needs of earlier tokens, kept instead of computed again.

Only K and V are kept: a later token asks with its own query, and an earlier token's query is not asked again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec, attend


class KVCache:
    """Keys and values of one sequence, per layer a pair of [G, capacity, K] buffers that double when full."""

    def __init__(self, spec: Spec, dtype: torch.dtype, device: torch.device, capacity: int = 256) -> None:
        self.pairs = [
            tuple(torch.empty(a.kv_heads, capacity, a.head_dim, dtype=dtype, device=device) for _ in "kv")
            for a in (layer.attention for layer in spec.layers)
        ]

    def put(self, layer: int, start: int, k_TGK: Tensor, v_TGK: Tensor) -> None:
        """Store T tokens' keys and values at positions start, start + 1, ..."""
        end = start + len(k_TGK)
        for buffer in self.pairs[layer]:
            if end > buffer.shape[1]:
                self._grow(layer, max(end, 2 * buffer.shape[1]))
        for buffer, new_TGK in zip(self.pairs[layer], (k_TGK, v_TGK), strict=True):
            buffer[:, start:end] = new_TGK.transpose(0, 1)

    def get(self, layer: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions first ... end - 1, as views [G, S, K]."""
        keys, values = self.pairs[layer]
        return keys[:, first:end], values[:, first:end]

    def _grow(self, layer: int, capacity: int) -> None:
        def larger(buffer: Tensor) -> Tensor:
            fresh = buffer.new_empty(buffer.shape[0], capacity, buffer.shape[2])
            fresh[:, : buffer.shape[1]] = buffer
            return fresh

        self.pairs[layer] = tuple(larger(buffer) for buffer in self.pairs[layer])


Span = tuple[KVCache, int, int]  # n new tokens at positions start ... start + n - 1, after those in the cache


class Spans:
    """The context of a step: a span of new tokens for each sequence."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, spec: AttentionSpec) -> Tensor:
        """Remember the new keys and values, then let each sequence's queries look at all of its own."""
        lengths = [n for _, _, n in self.spans]
        parts = zip(*(t.split(lengths) for t in (q_THK, k_TGK, v_TGK)), strict=True)
        return torch.cat([self._one(layer, s, qkv, spec) for s, qkv in zip(self.spans, parts, strict=True)])

    def _one(self, layer: int, span: Span, qkv: tuple[Tensor, ...], spec: AttentionSpec) -> Tensor:
        q_QHK, k_QGK, v_QGK = qkv
        cache, start, n = span
        cache.put(layer, start, k_QGK, v_QGK)
        first = 0 if spec.window is None else max(0, start - spec.window + 1)
        k_GSK, v_GSK = cache.get(layer, first, start + n)
        return attend(q_QHK.transpose(0, 1)[None], k_GSK[None], v_GSK[None], spec)[0].transpose(0, 1)
