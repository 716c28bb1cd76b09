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
from cutaway.models.families.rope_gguf import MSCALE
from cutaway.models.families.table import Config, Family, Field, Row, Via, named, pair, same
from cutaway.models.spec import Spec
from cutaway.nn.experts import ExpertsSpec
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


FOLDING = Via(
    lambda t, s: (t.transpose(1, 2).flatten(0, 1).contiguous(),),
    lambda ts, s: ts[0].unflatten(0, (s.layers[0].attention.heads, -1)).transpose(1, 2).contiguous(),
)
UNFOLDING = Via(
    lambda t, s: (t.flatten(0, 1),), lambda ts, s: ts[0].unflatten(0, (s.layers[0].attention.heads, -1)).contiguous()
)


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
GGUF_ROWS = (
    *(row for row in llama.GGUF_ROWS if not any(f".attn_{name}." in row.theirs for name in "qkv")),
    Row("blk.{i}.attn_q.weight", f"{_OURS}.q.weight", _QUERY, lambda s: not _folded(s)),
    Row("blk.{i}.attn_q_a.weight", f"{_OURS}.q_down.weight"),
    Row("blk.{i}.attn_q_a_norm.weight", f"{_OURS}.q_norm.weight"),
    Row("blk.{i}.attn_q_b.weight", f"{_OURS}.q.weight", _QUERY, _folded),
    Row("blk.{i}.attn_kv_a_mqa.weight", f"{_OURS}.kv_down.weight", _KEY),
    Row("blk.{i}.attn_kv_a_norm.weight", f"{_OURS}.kv_norm.weight"),
    Row("blk.{i}.attn_k_b.weight", f"{_OURS}.k_up.weight", FOLDING),
    Row("blk.{i}.attn_v_b.weight", f"{_OURS}.v_up.weight", UNFOLDING),
    *moe.GGUF_ROWS,
    *moe.SHARED_GGUF_ROWS,
)
GGUF_KEYS = {
    **{
        key: entry
        for key, entry in llama.GGUF_KEYS.items()
        if key not in ("attention.head_count_kv", "attention.key_length")
    },
    "leading_dense_block_count": "first_k_dense_replace",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.value_length_mla": "v_head_dim",
    "rope.dimension_count": "qk_rope_head_dim",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
}


def gguf_config(metadata: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The widths of a head's parts, YaRN's factors, and groups where the choice is limited to some."""
    said = {key.removeprefix("deepseek2."): value for key, value in metadata.items()}
    groups = {"n_group": said.get("expert_group_count") or 1, "topk_group": said.get("expert_group_used_count") or 1}
    mscale = round(10 * said.get(MSCALE, 0.0), 6)
    return {
        **llama.gguf_sizes(metadata, shapes),
        **groups,
        "q_lora_rank": said.get("attention.q_lora_rank"),
        "qk_nope_head_dim": said["attention.key_length_mla"] - said["rope.dimension_count"],
        "topk_method": "greedy" if groups["n_group"] == 1 else "group_limited_greedy",
        "norm_topk_prob": said.get("expert_weights_norm", False),
        **({"rope_scaling": {"mscale": mscale, "mscale_all_dim": mscale}} if mscale else {}),
    }


def gguf_extra(spec: Spec) -> dict[str, Any]:
    """Entries that llama.cpp wants beside those of the config: it reads the folded form, in which all heads share
    one key, and how scores become weights."""
    a = cast(LatentSpec, spec.layers[0].attention)
    router = next(layer.ffn.router for layer in spec.layers if isinstance(layer.ffn, ExpertsSpec))
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": a.kv_rank + a.rope_dim,
        "attention.value_length": a.kv_rank,
        "attention.key_length_mla": a.head_dim,
        "expert_gating_func": {"softmax": 1, "sigmoid": 2}[router.score],
    }


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
    gguf="deepseek2",
    gguf_rows=GGUF_ROWS,
    gguf_keys=GGUF_KEYS,
    gguf_config=gguf_config,
    gguf_extra=gguf_extra,
    requires={
        **REQUIRES,
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (False,),
        "mlp_bias": (False,),
    },
    ignored=llama.FAMILY.ignored,
)
