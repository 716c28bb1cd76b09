"""DeepSeek-V3 and R1 (2024, arXiv:2412.19437): V2 with sigmoid scores, a bias that only chooses, and a block ahead.

The bias evens the load without a loss that would pull against quality. The further block predicts the token after
the next one; its copies of embedding and head are those of the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cutaway.models.families import deepseek_v2, latent, llama, moe
from cutaway.models.families.table import Config, Family, Field, Row, same


def observed(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """How many blocks predict ahead, which transformers drops from the tensors and leaves in the configuration."""
    projects = (re.fullmatch(r"(?:model\.)?layers\.(\d+)\.eh_proj\.weight", name) for name in shapes)
    return {"num_nextn_predict_layers": sum(match is not None for match in projects)}


def gguf_config(metadata: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """As V2, in whose names this family's choice is another; llama.cpp leaves out the blocks ahead."""
    return {**latent.gguf_config(metadata, shapes), "topk_method": "noaux_tc", "num_nextn_predict_layers": 0}


def _ahead(row: Row) -> Row:
    """The row of a layer, of the block that stands behind the layers."""
    names = (row.ours,) if isinstance(row.ours, str) else row.ours
    ours = tuple(name.replace("layers.{i}", "ahead.{m}.block") for name in names)
    return row._replace(theirs=row.theirs.replace("layers.{i}", "layers.{n}"), ours=ours)


ROWS = (
    *deepseek_v2.ROWS,
    Row("model.layers.{i}.mlp.gate.e_score_correction_bias", "layers.{i}.ffn.router.choice_bias"),
)

FAMILY = Family(
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    fields=(
        *latent.FIELDS,
        Field(
            "ahead",
            lambda c: c["num_nextn_predict_layers"],
            lambda blocks: {"num_nextn_predict_layers": len(blocks)},
        ),
        moe.feed_forwards(
            (
                same("n_routed_experts", "count"),
                same("num_experts_per_tok", "router.top_k"),
                same("routed_scaling_factor", "router.scale"),
                same("norm_topk_prob", "router.normalize", True),
                same("n_group", "router.groups"),
                same("topk_group", "router.kept_groups"),
                Field("router.score", lambda c: "sigmoid"),
                Field("router.group_score", lambda c: "top2"),
                Field("router.choice_bias", lambda c: True),
                *moe.EXPERT,
                *deepseek_v2.SHARED,
            ),
            lambda c, i: i < c.get("first_k_dense_replace", 3),
            deepseek_v2.say,
        ),
    ),
    constants=latent.NORMS,
    rows=(
        *ROWS,
        *(_ahead(row) for row in ROWS if "{i}" in row.theirs),
        Row("model.layers.{n}.enorm.weight", "ahead.{m}.token_norm.weight"),
        Row("model.layers.{n}.hnorm.weight", "ahead.{m}.hidden_norm.weight"),
        Row("model.layers.{n}.eh_proj.weight", "ahead.{m}.project.weight"),
        Row("model.layers.{n}.shared_head.norm.weight", "ahead.{m}.final_norm.weight"),
    ),
    gguf="deepseek2",
    gguf_mark=".exp_probs_b.bias",
    gguf_rows=(*latent.GGUF_ROWS, Row("blk.{i}.exp_probs_b.bias", "layers.{i}.ffn.router.choice_bias")),
    gguf_keys=latent.GGUF_KEYS,
    gguf_config=gguf_config,
    gguf_extra=latent.gguf_extra,
    requires={
        **deepseek_v2.REQUIRES,
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "rope_interleave": (True,),
    },
    ignored=(*llama.FAMILY.ignored, r"(model\.)?layers\.\d+\.(embed_tokens|shared_head\.head)\.weight"),
    observed=observed,
)
