"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, q, k and v fused in one matrix.

transformers keeps GPT-2's matrices as [in, out], the other way round from a linear layer.
"""

from __future__ import annotations

from typing import Any

from cutaway.models.cost import hidden
from cutaway.models.families.llama import ACTIVATION_NAMES
from cutaway.models.families.table import TRANSPOSED, Family, Field, Row, named, pair, same, split
from cutaway.models.spec import Spec

QKV = tuple(f"layers.{{i}}.attention.{name}" for name in ("q", "k", "v"))


def _fused(part: str) -> tuple[str, ...]:
    return tuple(f"{name}.{part}" for name in QKV)


def _linear_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    return (Row(f"{theirs}.weight", f"{ours}.weight", TRANSPOSED), Row(f"{theirs}.bias", f"{ours}.bias"))


def _gguf_config(metadata: Any, shapes: Any) -> dict[str, Any]:
    return {"vocab_size": shapes["token_embd.weight"][0], "tie_word_embeddings": "output.weight" not in shapes}


def _gguf_extra(spec: Spec) -> dict[str, Any]:
    return {"feed_forward_length": hidden(spec.layers[0].ffn)}


FAMILY = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    gguf="gpt2",
    fields=(
        same("vocab_size", "vocab"),
        same("n_embd", "width"),
        same("n_positions", "context"),
        Field("embedding.positions", lambda c: c["n_positions"]),
        same("n_layer", "depth"),
        same("n_head", "layer.attention.heads"),
        Field("layer.attention.kv_heads", lambda c: c["n_head"]),
        Field("layer.attention.head_dim", lambda c: c["n_embd"] // c["n_head"]),
        Field("layer.attention.scale", lambda c: (c["n_embd"] // c["n_head"]) ** -0.5),
        same("n_inner", "layer.ffn.width", lambda c: 4 * c["n_embd"]),
        named("activation_function", "layer.ffn.activation", ACTIVATION_NAMES, "gelu_new"),
        same("layer_norm_epsilon", "layer.norm.eps", 1e-5),
        Field("final_norm.eps", lambda c: c.get("layer_norm_epsilon", 1e-5)),
        same("tie_word_embeddings", "head.tied", True),
    ),
    constants={
        "layer.norm.kind": "layer",
        "layer.attention.bias": True,
        "layer.attention.out_bias": True,
        "layer.ffn.gated": False,
        "layer.ffn.bias": True,
        "final_norm.kind": "layer",
    },
    prefix="transformer.",
    rows=(
        Row("transformer.wte.weight", "embedding.tokens.weight"),
        Row("transformer.wpe.weight", "embedding.positions.weight"),
        *pair("transformer.h.{i}.ln_1", "layers.{i}.attention_norm"),
        Row("transformer.h.{i}.attn.c_attn.weight", _fused("weight"), split(1, transpose=True)),
        Row("transformer.h.{i}.attn.c_attn.bias", _fused("bias"), split(0)),
        *_linear_rows("transformer.h.{i}.attn.c_proj", "layers.{i}.attention.out"),
        *pair("transformer.h.{i}.ln_2", "layers.{i}.ffn_norm"),
        *_linear_rows("transformer.h.{i}.mlp.c_fc", "layers.{i}.ffn.up"),
        *_linear_rows("transformer.h.{i}.mlp.c_proj", "layers.{i}.ffn.down"),
        *pair("transformer.ln_f", "final_norm"),
        Row("lm_head.weight", "head.weight"),
    ),
    gguf_rows=(
        Row("token_embd.weight", "embedding.tokens.weight"),
        Row("position_embd.weight", "embedding.positions.weight"),
        *pair("blk.{i}.attn_norm", "layers.{i}.attention_norm"),
        Row("blk.{i}.attn_qkv.weight", _fused("weight"), split(0)),
        Row("blk.{i}.attn_qkv.bias", _fused("bias"), split(0)),
        *pair("blk.{i}.attn_output", "layers.{i}.attention.out"),
        *pair("blk.{i}.ffn_norm", "layers.{i}.ffn_norm"),
        *pair("blk.{i}.ffn_up", "layers.{i}.ffn.up"),
        *pair("blk.{i}.ffn_down", "layers.{i}.ffn.down"),
        *pair("output_norm", "final_norm"),
        Row("output.weight", "head.weight"),
    ),
    gguf_keys={
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
        "feed_forward_length": "n_inner",
    },
    gguf_config=_gguf_config,
    gguf_extra=_gguf_extra,
    requires={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
)
