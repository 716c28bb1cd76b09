"""DeepSeek-V2 (2024, arXiv:2405.04434): latent attention, and experts in groups of which few are open to a token.

A checkpoint keeps the rotated part of queries and keys in pairs (2j, 2j + 1); ours are (j, j + R/2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.families import llama, moe
from cutaway.models.families.rope import read_rope, rope_entries
from cutaway.models.families.table import Config, Family, Field, Row, Via, named, pair, same
from cutaway.models.spec import Spec
from cutaway.nn.latent import LatentSpec
from cutaway.nn.rope_scaling import yarn_mscale


def read_heads(config: Config) -> int:
    """Errors: fewer key/value heads than heads, which latent attention does not have."""
    heads = config["num_attention_heads"]
    if config.get("num_key_value_heads") not in (None, heads):
        raise CutawayError(f"num_key_value_heads is not num_attention_heads = {heads}", "config.json")
    return heads


def read_scale(config: Config) -> float:
    """1/sqrt(width of a head), under YaRN times the square of its factor for all dimensions."""
    scale, scaling = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5, read_rope(config).get("scaling")
    if not (scaling and scaling.get("mscale_all_dim")):
        return scale
    return scale * yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2


LATENT = (
    same("vocab_size", "vocab"),
    same("hidden_size", "width"),
    same("max_position_embeddings", "context"),
    same("num_hidden_layers", "depth"),
    same("tie_word_embeddings", "head.tied", False),
    *moe.rms(1e-6),
    Field(
        "layer.attention.heads",
        read_heads,
        lambda heads: {"num_attention_heads": heads[0], "num_key_value_heads": heads[0]},
    ),
    same("kv_lora_rank", "layer.attention.kv_rank"),
    Field("layer.attention.query_rank", lambda c: c["q_lora_rank"], lambda ranks: {"q_lora_rank": ranks[0]}),
    same("qk_nope_head_dim", "layer.attention.plain_dim"),
    same("qk_rope_head_dim", "layer.attention.rope_dim"),
    same("v_head_dim", "layer.attention.value_dim"),
    same("attention_bias", "layer.attention.bias", False),
    Field("layer.attention.scale", read_scale),
    Field("layer.attention.rope", read_rope, lambda ropes: rope_entries(ropes[0])),
)
LATENT_NORMS = {**moe.NORMS, "layer.attention.norm.kind": "rms", "layer.attention.norm.eps": 1e-6}
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


def turned_last(heads: Callable[[LatentSpec], int], still: Callable[[LatentSpec], int]) -> Via:
    """Rows of each head, the last R of which are rotated: from pairs (2j, 2j + 1) to pairs (j, j + R/2)."""

    def sorted_rows(t: Tensor, s: Spec, back: bool) -> Tensor:
        a = cast(LatentSpec, s.layers[0].attention)
        turned = torch.arange(a.rope_dim).view(-1, 2).T.flatten()
        order = torch.cat([torch.arange(still(a)), still(a) + turned])
        return t.unflatten(0, (heads(a), -1))[:, order.argsort() if back else order].flatten(0, 1)

    return Via(lambda t, s: (sorted_rows(t, s, False),), lambda ts, s: sorted_rows(ts[0], s, True))


def unfolded(t: Tensor, s: Spec) -> tuple[Tensor, ...]:
    """The matrices of keys and values, which stand in turns, a head after the other."""
    a = cast(LatentSpec, s.layers[0].attention)
    parts = t.unflatten(0, (a.heads, -1)).split([a.plain_dim, a.value_dim], 1)
    return tuple(part.flatten(0, 1).contiguous() for part in parts)


def in_turns(ts: tuple[Tensor, ...], s: Spec) -> Tensor:
    """The inverse of `unfolded`."""
    return torch.cat([t.unflatten(0, (s.layers[0].attention.heads, -1)) for t in ts], 1).flatten(0, 1)


UNFOLDED = Via(unfolded, in_turns)


def _folded(spec: Spec) -> bool:
    return cast(LatentSpec, spec.layers[0].attention).query_rank is not None


_AT, _OURS = "model.layers.{i}.self_attn", "layers.{i}.attention"
_QUERY = turned_last(lambda a: a.heads, lambda a: a.plain_dim)
_KEY = turned_last(lambda a: 1, lambda a: a.kv_rank)
ROWS = (
    *(row for row in llama.ROWS if "self_attn" not in row.theirs),
    Row(f"{_AT}.q_proj.weight", f"{_OURS}.q.weight", _QUERY, lambda s: not _folded(s)),
    *pair(f"{_AT}.q_a_proj", f"{_OURS}.q_down"),
    Row(f"{_AT}.q_a_layernorm.weight", f"{_OURS}.q_norm.weight"),
    Row(f"{_AT}.q_b_proj.weight", f"{_OURS}.q.weight", _QUERY, _folded),
    *(row._replace(via=_KEY) for row in pair(f"{_AT}.kv_a_proj_with_mqa", f"{_OURS}.kv_down")),
    Row(f"{_AT}.kv_a_layernorm.weight", f"{_OURS}.kv_norm.weight"),
    Row(f"{_AT}.kv_b_proj.weight", (f"{_OURS}.k_up.weight", f"{_OURS}.v_up.weight"), UNFOLDED),
    *pair(f"{_AT}.o_proj", f"{_OURS}.out"),
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
        *LATENT,
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
    constants=LATENT_NORMS,
    rows=ROWS,
    requires={
        **REQUIRES,
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (False,),
        "mlp_bias": (False,),
    },
    ignored=llama.FAMILY.ignored,
)
