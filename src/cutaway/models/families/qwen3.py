"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Llama with RMSNorm on each head's query and key, no biases."""

from __future__ import annotations

from cutaway.models.families import llama
from cutaway.models.families.table import Family, Field, Row, same

QK_NORM_ROWS = (
    Row("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attention.q_norm.weight"),
    Row("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attention.k_norm.weight"),
)
QK_NORM_GGUF_ROWS = (
    Row("blk.{i}.attn_q_norm.weight", "layers.{i}.attention.q_norm.weight"),
    Row("blk.{i}.attn_k_norm.weight", "layers.{i}.attention.k_norm.weight"),
)

FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    gguf="qwen3",
    fields=(
        *llama.sizes(),
        *llama.RMS,
        llama.ROPE,
        llama.SCALE,
        llama.ACTIVATION,
        same("attention_bias", "layer.attention.bias", False),
        Field("layer.attention.out_bias", lambda c: c.get("attention_bias", False)),
        Field("layer.attention.qk_norm.eps", lambda c: c.get("rms_norm_eps", 1e-6)),
    ),
    constants={**llama.GATED_RMS_DECODER, "layer.attention.qk_norm.kind": "rms"},
    rows=(*llama.ROWS, *QK_NORM_ROWS),
    gguf_rows=(*llama.GGUF_ROWS, *QK_NORM_GGUF_ROWS),
    gguf_keys=llama.GGUF_KEYS,
    gguf_config=llama.gguf_sizes,
    gguf_extra=llama.gguf_dims,
    requires={"use_sliding_window": (False,)},
    ignored=llama.FAMILY.ignored,
)
