"""The ways in which a small model can be told where its tokens stand, as changes to one and the same spec.

absolute   something that depends on a token's own position is added to its embedding: a learned row (Gehring et al.
           2017, arXiv:1705.03122), or sines and cosines (Vaswani et al. 2017, arXiv:1706.03762)
relative   a score depends on how far apart two tokens are: T5's buckets (Raffel et al. 2019, arXiv:1910.10683),
           rotation (Su et al. 2021, arXiv:2104.09864), ALiBi's slopes (Press et al. 2021, arXiv:2108.12409)
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.labs.training import with_layers
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec, Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal
from cutaway.nn.position_bias import AlibiSpec, BucketSpec
from cutaway.nn.positions import RopeSpec


class Scheme(NamedTuple):
    """kind: absolute, relative or none. rope and bias go into attention, table and waves into the embedding."""

    kind: str
    zh: str
    rope: RopeSpec | None = None
    bias: AlibiSpec | BucketSpec | None = None
    table: bool = False
    waves: bool = False


SCHEMES = {
    "no positions": Scheme("none", "无位置"),
    "learned table": Scheme("absolute", "可学习的表", table=True),
    "sinusoids": Scheme("absolute", "正余弦", waves=True),
    "T5 buckets": Scheme("relative", "T5 分桶", bias=BucketSpec(bidirectional=False)),
    "rotary": Scheme("relative", "旋转", rope=RopeSpec()),
    "ALiBi": Scheme("relative", "ALiBi", bias=AlibiSpec()),
}


def told_by(name: str, spec: Spec, causal: bool = True) -> Spec:
    """`spec` with the positions of `SCHEMES[name]` and no others, every layer causal or not."""
    scheme = SCHEMES[name]

    def change(layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.attention, AttentionSpec)
        attention = replace(layer.attention, rope=scheme.rope, position_bias=scheme.bias, causal=causal)
        return replace(layer, attention=attention)

    embedding = replace(
        spec.embedding,
        positions=spec.context if scheme.table else 0,
        sinusoidal=scheme.waves,
        scale=math.sqrt(spec.width) if scheme.waves else 1.0,  # as in the paper, or waves drown the tokens
    )
    return replace(with_layers(spec, change), embedding=embedding)


def hidden_at(model: Decoder, texts_NT: Tensor, offset: int = 0) -> Tensor:
    """Hidden states [N, T, D] of texts of equal lengths, every position `offset` more than it would be."""
    lengths = [texts_NT.shape[1]] * len(texts_NT)
    hidden_TD = model(texts_NT.flatten(), positions_of(lengths) + offset, BlockDiagonal(lengths))
    return hidden_TD.unflatten(0, texts_NT.shape)


@torch.inference_mode()
def logits_at(model: Decoder, texts_NT: Tensor, offset: int = 0) -> Tensor:
    """Logits [N, T, V], likewise."""
    return model.logits(hidden_at(model, texts_NT, offset).flatten(0, 1)).unflatten(0, texts_NT.shape)
