"""Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388): Qwen3 with 128 experts a layer, of which a token uses eight."""

from __future__ import annotations

from cutaway.models.families import llama, moe, qwen2_moe, qwen3
from cutaway.models.families.rope import ROPE
from cutaway.models.families.table import Family, Field, same


def count(spelled: str) -> Field:
    """The number of experts, which transformers spells otherwise from version 5 on; either is read."""
    return same(spelled, "count", lambda c: c.get("num_local_experts"))


FAMILY = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    fields=(
        *moe.sizes(),
        *moe.rms(1e-6),
        ROPE,
        llama.SCALE,
        same("attention_bias", "layer.attention.bias", False),
        Field("layer.attention.out_bias", lambda c: c.get("attention_bias", False)),
        Field("layer.attention.qk_norm.eps", lambda c: c.get("rms_norm_eps", 1e-6)),
        moe.feed_forwards((count("num_experts"), *qwen2_moe.EXPERTS[1:]), qwen2_moe.is_dense, qwen2_moe.say),
    ),
    constants={**moe.NORMS, "layer.attention.qk_norm.kind": "rms"},
    rows=(*llama.ROWS, *qwen3.QK_NORM_ROWS, *moe.rows("mlp", moe.PROJECTIONS)),
    gguf="qwen3moe",
    gguf_rows=(*llama.GGUF_ROWS, *qwen3.QK_NORM_GGUF_ROWS, *moe.GGUF_ROWS),
    gguf_keys=moe.GGUF_KEYS,
    gguf_config=lambda metadata, shapes: {**llama.gguf_sizes(metadata, shapes), "norm_topk_prob": True},
    gguf_extra=llama.gguf_dims,
    requires={"use_sliding_window": (False,)},
    ignored=llama.FAMILY.ignored,
)
