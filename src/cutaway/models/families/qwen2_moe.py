"""Qwen2-MoE and Qwen1.5-MoE (Yang et al. 2024, arXiv:2407.10671): Qwen2 with many small experts.

Their weights do not sum to one, and beside them stands a shared expert behind a gate of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.models.families import llama, moe
from cutaway.models.families.rope import ROPE
from cutaway.models.families.table import Config, Family, Field, Row, Via, named, same


def is_dense(config: Config, i: int) -> bool:
    """Does layer i have a plain feed-forward layer?"""
    return i in (config.get("mlp_only_layers") or ()) or (i + 1) % config.get("decoder_sparse_step", 1) != 0


def say(dense: list[int], experts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that tell which layers those are."""
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}


EXPERTS = (
    same("num_experts", "count"),
    same("num_experts_per_tok", "router.top_k"),
    same("norm_topk_prob", "router.normalize", False),
    *moe.EXPERT,
)
SHARED = (
    same("shared_expert_intermediate_size", "shared.width"),
    named("hidden_act", "shared.activation", llama.ACTIVATION_NAMES, "silu"),
    Field("shared.gated", lambda c: True),
    Field("shared_gate", lambda c: True),
)
ONE_ROW = Via(lambda t, s: (t.view(1, -1),), lambda ts, s: ts[0].flatten())

FAMILY = Family(
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    fields=(
        *moe.sizes(),
        *moe.rms(1e-6),
        ROPE,
        llama.SCALE,
        same("qkv_bias", "layer.attention.bias", True),
        moe.feed_forwards((*EXPERTS, *SHARED), is_dense, say),
    ),
    constants=moe.NORMS,
    rows=(
        *llama.ROWS,
        *moe.rows("mlp", moe.PROJECTIONS),
        *(
            Row(f"model.layers.{{i}}.mlp.shared_expert.{name}_proj.weight", f"layers.{{i}}.ffn.shared.{name}.weight")
            for name in ("gate", "up", "down")
        ),
        Row("model.layers.{i}.mlp.shared_expert_gate.weight", "layers.{i}.ffn.shared_gate.weight"),
    ),
    gguf="qwen2moe",
    gguf_rows=(
        *llama.GGUF_ROWS,
        *moe.GGUF_ROWS,
        *moe.SHARED_GGUF_ROWS,
        Row("blk.{i}.ffn_gate_inp_shexp.weight", "layers.{i}.ffn.shared_gate.weight", ONE_ROW),
    ),
    gguf_keys={**moe.GGUF_KEYS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    gguf_config=lambda metadata, shapes: {**llama.gguf_sizes(metadata, shapes), "norm_topk_prob": False},
    gguf_extra=llama.gguf_dims,
    requires={"use_sliding_window": (False,)},
    ignored=llama.FAMILY.ignored,
)
