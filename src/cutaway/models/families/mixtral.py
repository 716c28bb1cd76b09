"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with eight experts a layer, of which a token uses two.

llama.cpp takes it for a llama that has experts.
"""

from __future__ import annotations

from cutaway.models.families import llama, moe
from cutaway.models.families.rope import ROPE, read_rope
from cutaway.models.families.table import Family, Field, same

FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    fields=(
        *moe.sizes(),
        *moe.rms(1e-5),
        ROPE._replace(read=lambda c: read_rope({"rope_theta": 1e6, **c})),
        llama.SCALE,
        Field("layer.attention.window", lambda c: c.get("sliding_window"), lambda ws: {"sliding_window": ws[0]}),
        same("num_local_experts", "layer.ffn.count", 8),
        same("num_experts_per_tok", "layer.ffn.router.top_k", 2),
        same("intermediate_size", "layer.ffn.expert.width"),
        llama.ACTIVATION._replace(path="layer.ffn.expert.activation"),
    ),
    constants={**moe.NORMS, "layer.ffn.expert.gated": True},
    rows=(*llama.ROWS, *moe.rows("block_sparse_moe", {"w1": "gate", "w3": "up", "w2": "down"})),
    gguf="llama",
    gguf_mark=".ffn_gate_inp.weight",
    gguf_rows=(*llama.FAMILY.gguf_rows, *moe.GGUF_ROWS),
    gguf_keys={
        **llama.GGUF_KEYS,
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
    },
    gguf_config=llama.gguf_sizes,
    gguf_extra=llama.gguf_dims,
    ignored=llama.FAMILY.ignored,
)
