"""What DeepSeek-V2 and V3 share: latent attention in config.json, in tensors, and in llama.cpp's "deepseek2".

A checkpoint keeps the rotated part of queries and keys in pairs (2j, 2j + 1); ours are (j, j + R/2). The matrices
that unfold keys and values take turns in one, a head after the other; GGUF files have them apart, that of the keys
turned round for the folded form, in which all heads share one key.
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
from cutaway.models.families.table import Config, Field, Row, Via, pair, same
from cutaway.models.spec import Spec
from cutaway.nn.experts import ExpertsSpec
from cutaway.nn.latent import LatentSpec
from cutaway.nn.rope_scaling import yarn_mscale

SCORES = {"softmax": 1, "sigmoid": 2}  # llama.cpp's numbers


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


FIELDS = (
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
NORMS = {**moe.NORMS, "layer.attention.norm.kind": "rms", "layer.attention.norm.eps": 1e-6}


def turned_last(heads: Callable[[LatentSpec], int], still: Callable[[LatentSpec], int]) -> Via:
    """Rows of each head, the last R of which are rotated: from pairs (2j, 2j + 1) to pairs (j, j + R/2)."""

    def sorted_rows(t: Tensor, s: Spec, back: bool) -> Tensor:
        a = cast(LatentSpec, s.layers[0].attention)
        turned = torch.arange(a.rope_dim).view(-1, 2).T.flatten()
        order = torch.cat([torch.arange(still(a)), still(a) + turned])
        return t.unflatten(0, (heads(a), -1))[:, order.argsort() if back else order].flatten(0, 1)

    return Via(lambda t, s: (sorted_rows(t, s, False),), lambda ts, s: sorted_rows(ts[0], s, True))


def apart(t: Tensor, s: Spec) -> tuple[Tensor, ...]:
    """The matrices of keys and values out of the one in which they take turns."""
    a = cast(LatentSpec, s.layers[0].attention)
    parts = t.unflatten(0, (a.heads, -1)).split([a.plain_dim, a.value_dim], 1)
    return tuple(part.flatten(0, 1).contiguous() for part in parts)


def by_head(t: Tensor, s: Spec) -> Tensor:
    """[H*N, C] -> [H, N, C]."""
    return t.unflatten(0, (s.layers[0].attention.heads, -1))


def is_folded(s: Spec) -> bool:
    """Do queries, too, pass through a latent?"""
    return cast(LatentSpec, s.layers[0].attention).query_rank is not None


QUERY = turned_last(lambda a: a.heads, lambda a: a.plain_dim)
KEY = turned_last(lambda a: 1, lambda a: a.kv_rank)
IN_TURNS = Via(apart, lambda ts, s: torch.cat([by_head(t, s) for t in ts], 1).flatten(0, 1))
HEADS = Via(lambda t, s: (t.flatten(0, 1),), lambda ts, s: by_head(ts[0], s).contiguous())
TURNED_HEADS = Via(
    lambda t, s: (t.transpose(1, 2).flatten(0, 1).contiguous(),),
    lambda ts, s: by_head(ts[0], s).transpose(1, 2).contiguous(),
)

_AT, _OURS = "model.layers.{i}.self_attn", "layers.{i}.attention"
ROWS = (
    *(row for row in llama.ROWS if "self_attn" not in row.theirs),
    Row(f"{_AT}.q_proj.weight", f"{_OURS}.q.weight", QUERY, lambda s: not is_folded(s)),
    *pair(f"{_AT}.q_a_proj", f"{_OURS}.q_down"),
    Row(f"{_AT}.q_a_layernorm.weight", f"{_OURS}.q_norm.weight"),
    Row(f"{_AT}.q_b_proj.weight", f"{_OURS}.q.weight", QUERY, is_folded),
    *(row._replace(via=KEY) for row in pair(f"{_AT}.kv_a_proj_with_mqa", f"{_OURS}.kv_down")),
    Row(f"{_AT}.kv_a_layernorm.weight", f"{_OURS}.kv_norm.weight"),
    Row(f"{_AT}.kv_b_proj.weight", (f"{_OURS}.k_up.weight", f"{_OURS}.v_up.weight"), IN_TURNS),
    *pair(f"{_AT}.o_proj", f"{_OURS}.out"),
)
GGUF_ROWS = (
    *(row for row in llama.GGUF_ROWS if not any(f".attn_{name}." in row.theirs for name in "qkv")),
    Row("blk.{i}.attn_q.weight", f"{_OURS}.q.weight", QUERY, lambda s: not is_folded(s)),
    Row("blk.{i}.attn_q_a.weight", f"{_OURS}.q_down.weight"),
    Row("blk.{i}.attn_q_a_norm.weight", f"{_OURS}.q_norm.weight"),
    Row("blk.{i}.attn_q_b.weight", f"{_OURS}.q.weight", QUERY, is_folded),
    Row("blk.{i}.attn_kv_a_mqa.weight", f"{_OURS}.kv_down.weight", KEY),
    Row("blk.{i}.attn_kv_a_norm.weight", f"{_OURS}.kv_norm.weight"),
    Row("blk.{i}.attn_k_b.weight", f"{_OURS}.k_up.weight", TURNED_HEADS),
    Row("blk.{i}.attn_v_b.weight", f"{_OURS}.v_up.weight", HEADS),
    *moe.GGUF_ROWS,
    *moe.SHARED_GGUF_ROWS,
)
_FOLDED = ("attention.head_count_kv", "attention.key_length")  # keys that speak of the folded form
GGUF_KEYS = {
    **{key: entry for key, entry in llama.GGUF_KEYS.items() if key not in _FOLDED},
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
    """Widths of a head's parts, groups, scores, YaRN's factors. Errors: a file from before llama.cpp folded."""
    said = {key.removeprefix("deepseek2."): value for key, value in metadata.items()}
    if "attention.key_length_mla" not in said:
        raise CutawayError("keeps keys and values in one matrix", "GGUF", "convert the model anew")
    groups = said.get("expert_group_count") or 1
    score = next((name for name, number in SCORES.items() if number == said.get("expert_gating_func", 1)), "unknown")
    mscale = round(10 * said.get(MSCALE, 0.0), 6)
    return {
        **llama.gguf_sizes(metadata, shapes),
        "q_lora_rank": said.get("attention.q_lora_rank"),
        "qk_nope_head_dim": said["attention.key_length_mla"] - said["rope.dimension_count"],
        "n_group": groups,
        "topk_group": said.get("expert_group_used_count") or 1,
        "topk_method": "greedy" if groups == 1 else "group_limited_greedy",
        "norm_topk_prob": said.get("expert_weights_norm", False),
        "scoring_func": score,
        **({"rope_scaling": {"mscale": mscale, "mscale_all_dim": mscale}} if mscale else {}),
    }


def gguf_extra(spec: Spec) -> dict[str, Any]:
    """Entries that llama.cpp wants beside those of the config: of the folded form, and how experts are scored."""
    a = cast(LatentSpec, spec.layers[0].attention)
    router = next(layer.ffn.router for layer in spec.layers if isinstance(layer.ffn, ExpertsSpec))
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": a.kv_rank + a.rope_dim,
        "attention.value_length": a.kv_rank,
        "attention.key_length_mla": a.head_dim,
        "expert_gating_func": SCORES[router.score],
    }
