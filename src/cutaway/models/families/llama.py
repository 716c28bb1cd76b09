"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 2, arXiv:2307.09288; Llama 3, arXiv:2407.21783).

RMSNorm before each sublayer, rotary positions, SwiGLU, no biases, grouped key/value heads. SmolLM2 is a Llama.
Its tables are the stock that most later families vary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.models.families.rope import ROPE, head_dim
from cutaway.models.families.table import Config, Family, Field, Row, interleaved, named, same
from cutaway.models.spec import Spec

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}


def sizes(kv_heads: Any = None, dim: Any = None, tied: bool = False) -> tuple[Field, ...]:
    """The fields that all have. kv_heads, dim: what a file without those keys means; None if it must state them,
    because the defaults of transformers are one model's and those of llama.cpp are others."""
    return (
        same("vocab_size", "vocab"),
        same("hidden_size", "width"),
        same("max_position_embeddings", "context"),
        same("num_hidden_layers", "depth"),
        same("num_attention_heads", "layer.attention.heads"),
        same("num_key_value_heads", "layer.attention.kv_heads", kv_heads),
        same("head_dim", "layer.attention.head_dim", dim),
        same("intermediate_size", "layer.ffn.width"),
        same("tie_word_embeddings", "head.tied", tied),
    )


RMS = (
    same("rms_norm_eps", "layer.norm.eps", 1e-6),
    Field("final_norm.eps", lambda c: c.get("rms_norm_eps", 1e-6)),
)
SCALE = Field("layer.attention.scale", lambda c: head_dim(c) ** -0.5)
ACTIVATION = named("hidden_act", "layer.ffn.activation", ACTIVATION_NAMES, "silu")

GATED_RMS_DECODER = {
    "embedding": {},
    "layer.norm.kind": "rms",
    "layer.ffn.gated": True,
    "final_norm.kind": "rms",
}

ROWS = (
    Row("model.embed_tokens.weight", "embedding.tokens.weight"),
    Row("model.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight"),
    *(
        Row(f"model.layers.{{i}}.self_attn.{theirs}.{part}", f"layers.{{i}}.attention.{ours}.{part}")
        for theirs, ours in [("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "out")]
        for part in ("weight", "bias")
    ),
    Row("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.ffn_norm.weight"),
    *(
        Row(f"model.layers.{{i}}.mlp.{name}_proj.{part}", f"layers.{{i}}.ffn.{name}.{part}")
        for name in ("gate", "up", "down")
        for part in ("weight", "bias")
    ),
    Row("model.norm.weight", "final_norm.weight"),
    Row("lm_head.weight", "head.weight"),
)

# The names that llama.cpp gives them, the same for all its architectures.
GGUF_ROWS = (
    Row("token_embd.weight", "embedding.tokens.weight"),
    Row("blk.{i}.attn_norm.weight", "layers.{i}.attention_norm.weight"),
    *(
        Row(f"blk.{{i}}.attn_{theirs}.{part}", f"layers.{{i}}.attention.{ours}.{part}")
        for theirs, ours in [("q", "q"), ("k", "k"), ("v", "v"), ("output", "out")]
        for part in ("weight", "bias")
    ),
    Row("blk.{i}.ffn_norm.weight", "layers.{i}.ffn_norm.weight"),
    *(
        Row(f"blk.{{i}}.ffn_{name}.{part}", f"layers.{{i}}.ffn.{name}.{part}")
        for name in ("gate", "up", "down")
        for part in ("weight", "bias")
    ),
    Row("output_norm.weight", "final_norm.weight"),
    Row("output.weight", "head.weight"),
)
GGUF_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}


def gguf_sizes(metadata: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a GGUF says by its tensors: vocabulary, tied head."""
    vocab = shapes.get("token_embd.weight", (len(metadata.get("tokenizer.ggml.tokens", ())),))[0]
    return {"vocab_size": vocab, "tie_word_embeddings": "output.weight" not in shapes}


def gguf_dims(spec: Spec) -> dict[str, Any]:
    """Entries that llama.cpp wants beside those of the config."""
    a = spec.layers[0].attention
    return {"rope.dimension_count": a.head_dim, "attention.value_length": a.head_dim}


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    gguf="llama",
    fields=(
        *sizes(kv_heads=lambda c: c["num_attention_heads"], dim=head_dim),
        *RMS,
        ROPE,
        SCALE,
        ACTIVATION,
        same("attention_bias", "layer.attention.bias", False),
        Field("layer.attention.out_bias", lambda c: c.get("attention_bias", False)),
        same("mlp_bias", "layer.ffn.bias", False),
    ),
    constants=GATED_RMS_DECODER,
    rows=ROWS,
    gguf_rows=tuple(
        row._replace(via=interleaved(lambda s: s.layers[0].attention.heads))
        if ".attn_q." in row.theirs
        else row._replace(via=interleaved(lambda s: s.layers[0].attention.kv_heads))
        if ".attn_k." in row.theirs
        else row
        for row in GGUF_ROWS
    ),
    gguf_keys=GGUF_KEYS,
    gguf_config=gguf_sizes,
    gguf_extra=gguf_dims,
    requires={"pretraining_tp": (1,)},
    ignored=(r".*rotary_emb\.inv_freq",),
)
