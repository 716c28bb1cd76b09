"""BLOOM (BigScience 2022, arXiv:2211.05100): ALiBi instead of positions, a norm after the embedding.

Query, key and value are fused head by head: all of head 0, then all of head 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.models.families.llama import gguf_sizes
from cutaway.models.families.table import Config, Family, Field, Row, Via, pair, same, split
from cutaway.models.spec import Spec

QKV = tuple(f"layers.{{i}}.attention.{name}" for name in ("q", "k", "v"))


def _load(t: Tensor, spec: Spec) -> tuple[Tensor, ...]:
    parts = t.unflatten(0, (spec.layers[0].attention.heads, 3, -1)).unbind(1)
    return tuple(part.flatten(0, 1).contiguous() for part in parts)


def _save(ts: tuple[Tensor, ...], spec: Spec) -> Tensor:
    heads = spec.layers[0].attention.heads
    return torch.stack([t.unflatten(0, (heads, -1)) for t in ts], 1).flatten(0, 2)


BY_HEAD = Via(_load, _save)


def fused(theirs: str, via: Via) -> tuple[Row, ...]:
    """The rows of a matrix with its bias that holds query, key and value."""
    return tuple(Row(f"{theirs}.{part}", tuple(f"{o}.{part}" for o in QKV), via) for part in ("weight", "bias"))


def width(config: Config) -> int:
    """`hidden_size`, which the first checkpoints call `n_embed`."""
    return config.get("hidden_size") or config["n_embed"]


def heads(config: Config) -> int:
    """`n_head`, which later configurations call as all others do."""
    return config.get("n_head") or config["num_attention_heads"]


FAMILY = Family(
    name="bloom",
    architectures=("BloomForCausalLM", "BloomModel"),
    gguf="bloom",
    fields=(
        same("vocab_size", "vocab"),
        same("hidden_size", "width", width),
        same("seq_length", "context", 2048),
        same("n_layer", "depth", lambda c: c["num_hidden_layers"]),
        same("n_head", "layer.attention.heads", heads),
        Field("layer.attention.kv_heads", heads),
        Field("layer.attention.head_dim", lambda c: width(c) // heads(c)),
        Field("layer.attention.scale", lambda c: (width(c) // heads(c)) ** -0.5),
        Field("layer.ffn.width", lambda c: 4 * width(c)),
        same("layer_norm_epsilon", "layer.norm.eps", 1e-5),
        Field("final_norm.eps", lambda c: c.get("layer_norm_epsilon", 1e-5)),
        Field("embedding.norm.eps", lambda c: c.get("layer_norm_epsilon", 1e-5)),
        same("tie_word_embeddings", "head.tied", True),
    ),
    constants={
        "embedding.norm.kind": "layer",
        "layer.norm.kind": "layer",
        "layer.attention.bias": True,
        "layer.attention.out_bias": True,
        "layer.attention.position_bias": {},
        "layer.ffn.gated": False,
        "layer.ffn.bias": True,
        "layer.ffn.activation": "gelu_bloom",
        "final_norm.kind": "layer",
    },
    prefix="transformer.",
    rows=(
        Row("transformer.word_embeddings.weight", "embedding.tokens.weight"),
        *pair("transformer.word_embeddings_layernorm", "embedding.norm"),
        *pair("transformer.h.{i}.input_layernorm", "layers.{i}.attention_norm"),
        *fused("transformer.h.{i}.self_attention.query_key_value", BY_HEAD),
        *pair("transformer.h.{i}.self_attention.dense", "layers.{i}.attention.out"),
        *pair("transformer.h.{i}.post_attention_layernorm", "layers.{i}.ffn_norm"),
        *pair("transformer.h.{i}.mlp.dense_h_to_4h", "layers.{i}.ffn.up"),
        *pair("transformer.h.{i}.mlp.dense_4h_to_h", "layers.{i}.ffn.down"),
        *pair("transformer.ln_f", "final_norm"),
        Row("lm_head.weight", "head.weight"),
    ),
    gguf_rows=(
        Row("token_embd.weight", "embedding.tokens.weight"),
        *pair("token_embd_norm", "embedding.norm"),
        *pair("blk.{i}.attn_norm", "layers.{i}.attention_norm"),
        *fused("blk.{i}.attn_qkv", split(0)),
        *pair("blk.{i}.attn_output", "layers.{i}.attention.out"),
        *pair("blk.{i}.ffn_norm", "layers.{i}.ffn_norm"),
        *pair("blk.{i}.ffn_up", "layers.{i}.ffn.up"),
        *pair("blk.{i}.ffn_down", "layers.{i}.ffn.down"),
        *pair("output_norm", "final_norm"),
        Row("output.weight", "head.weight"),
    ),
    gguf_keys={
        "context_length": "seq_length",
        "embedding_length": "hidden_size",
        "block_count": "n_layer",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    gguf_config=gguf_sizes,
    gguf_extra=lambda spec: {"feed_forward_length": 4 * spec.width},
    requires={"apply_residual_connection_post_layernorm": (False,), "pretraining_tp": (1,), "slow_but_exact": (False,)},
)
