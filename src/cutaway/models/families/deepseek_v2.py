"""DeepSeek-V2 (2024, arXiv:2405.04434): latent attention, and experts in groups of which few are open to a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cutaway.models.families import latent, llama, moe
from cutaway.models.families.table import Config, Family, Field, Row, named, same

SHARED = (
    Field("shared.width", lambda c: c["n_shared_experts"] * c["moe_intermediate_size"]),
    named("hidden_act", "shared.activation", llama.ACTIVATION_NAMES, "silu"),
    Field("shared.gated", lambda c: True),
)


def say(dense: list[int], experts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The dense layers come first; the shared expert is as wide as so many of the others."""
    return {
        "first_k_dense_replace": len(dense),
        "n_shared_experts": experts[0]["shared"]["width"] // experts[0]["expert"]["width"],
    }


def in_groups(key: str) -> Callable[[Config], int]:
    """How many groups; one where the choice is not limited to some of them."""
    return lambda c: 1 if c.get("topk_method", "greedy") == "greedy" else c[key]


ROWS = (
    *latent.ROWS,
    *moe.rows("mlp", moe.PROJECTIONS),
    *(
        Row(f"model.layers.{{i}}.mlp.shared_experts.{name}_proj.weight", f"layers.{{i}}.ffn.shared.{name}.weight")
        for name in ("gate", "up", "down")
    ),
)
REQUIRES = {"moe_layer_freq": (1,), "pretraining_tp": (1,)}

FAMILY = Family(
    name="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    fields=(
        *latent.FIELDS,
        moe.feed_forwards(
            (
                same("n_routed_experts", "count"),
                same("num_experts_per_tok", "router.top_k"),
                same("routed_scaling_factor", "router.scale", 1.0),
                Field("router.normalize", lambda c: False),
                Field(
                    "router.groups",
                    in_groups("n_group"),
                    lambda n: {"n_group": n, "topk_method": "greedy" if n == 1 else "group_limited_greedy"},
                ),
                Field("router.kept_groups", in_groups("topk_group"), lambda n: {"topk_group": n}),
                *moe.EXPERT,
                *SHARED,
            ),
            lambda c, i: i < c.get("first_k_dense_replace", 0),
            say,
        ),
    ),
    constants=latent.NORMS,
    rows=ROWS,
    gguf="deepseek2",
    gguf_rows=latent.GGUF_ROWS,
    gguf_keys=latent.GGUF_KEYS,
    gguf_config=latent.gguf_config,
    gguf_extra=latent.gguf_extra,
    requires={
        **REQUIRES,
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (False,),
        "mlp_bias": (False,),
    },
    ignored=llama.FAMILY.ignored,
)
