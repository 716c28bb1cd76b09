"""Gemma 3, text models (Gemma Team 2025, arXiv:2503.19786).

Norms around each sublayer, their weights stored as distance from one; RMSNorm on queries and keys; five layers with a
sliding window and fast rotation for each layer that sees everything and turns slowly; embeddings scaled by sqrt(D).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.families import llama
from cutaway.models.families.qwen3 import QK_NORM_GGUF_ROWS, QK_NORM_ROWS
from cutaway.models.families.rope import read_rope, rope_entries
from cutaway.models.families.table import OFFSET_FROM_ONE, Config, Each, Family, Field, Row, named, same

LOCAL, GLOBAL = "sliding_attention", "full_attention"
DEPTH_OF_27B = 62


def layer_types(config: Config) -> list[str]:
    """Stated per layer, or one global layer in every `sliding_window_pattern`."""
    depth = config["num_hidden_layers"]
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    stated = config.get("layer_types") or [LOCAL if (i + 1) % pattern else GLOBAL for i in range(depth)]
    if len(stated) != depth or not set(stated) <= {LOCAL, GLOBAL}:
        raise CutawayError(f"layer_types does not name {LOCAL} or {GLOBAL} for each of {depth} layers", "config.json")
    return stated


def read_windows(config: Config) -> Each:
    kinds, window = layer_types(config), config.get("sliding_window")
    if window is None and LOCAL in kinds:
        raise CutawayError("has no 'sliding_window'", "config.json", "the checkpoint's configuration is incomplete")
    return Each(window if kind == LOCAL else None for kind in kinds)


def write_windows(windows: list[int | None]) -> dict[str, Any]:
    size = {w for w in windows if w is not None}
    if len(size) > 1:
        raise CutawayError(f"layers have several windows: {sorted(size)}", "Spec", "this family has one")
    kinds = [LOCAL if w else GLOBAL for w in windows]
    return {"layer_types": kinds, **({"sliding_window": size.pop()} if size else {})}


def read_ropes(config: Config) -> Each:
    """A rope per layer: local layers turn with their own, unscaled base."""
    nested = config.get("rope_parameters") or {}
    by_kind = {
        LOCAL: read_rope(
            {
                **config,
                "rope_theta": config.get("rope_local_base_freq", 1e4),
                "rope_scaling": None,
                "rope_parameters": nested.get(LOCAL),
            }
        ),
        GLOBAL: read_rope(
            {**config, "rope_theta": config.get("rope_theta", 1e6), "rope_parameters": nested.get(GLOBAL)}
        ),
    }
    return Each(by_kind[kind] for kind in layer_types(config))


def gguf_config(metadata: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What llama.cpp takes for granted: a pattern of six, and what scores are divided by, otherwise in the 27B."""
    pattern = metadata.get("gemma3.attention.sliding_window_pattern", 6)
    wide = metadata["gemma3.embedding_length"] // metadata["gemma3.attention.head_count"]
    return {
        **llama.gguf_sizes(metadata, shapes),
        **({"sliding_window_pattern": pattern} if isinstance(pattern, int) else {"layer_types": _kinds(pattern)}),
        "query_pre_attn_scalar": wide
        if metadata["gemma3.block_count"] == DEPTH_OF_27B
        else metadata["gemma3.attention.key_length"],
    }


def _kinds(local: Iterable[bool]) -> list[str]:
    return [LOCAL if slides else GLOBAL for slides in local]


def write_ropes(ropes: list[dict[str, Any]]) -> dict[str, Any]:
    """Bases of the two kinds; which layer has which follows from the windows. A single kind is told by its base."""
    fast, slow = min(ropes, key=lambda r: r["base"]), max(ropes, key=lambda r: r["base"])
    return {**rope_entries(slow), "rope_local_base_freq": fast["base"]}


def gemma_row(row: Row) -> Row:
    """Llama's row under Gemma's names: its `ffn_norm` is 'pre_feedforward', its post norms are further ones."""
    theirs = row.theirs.replace("post_attention_layernorm", "pre_feedforward_layernorm")
    return row._replace(theirs=theirs)


POST_ROWS = (
    Row("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.attention_post_norm.weight"),
    Row("model.layers.{i}.post_feedforward_layernorm.weight", "layers.{i}.ffn_post_norm.weight"),
)
POST_GGUF_ROWS = (
    Row("blk.{i}.post_attention_norm.weight", "layers.{i}.attention_post_norm.weight"),
    Row("blk.{i}.post_ffw_norm.weight", "layers.{i}.ffn_post_norm.weight"),
)

SCALE = Field(
    "layer.attention.scale",
    lambda c: c.get("query_pre_attn_scalar", 256) ** -0.5,
    lambda scales: {"query_pre_attn_scalar": round(scales[0] ** -2)},
)

FAMILY = Family(
    name="gemma3",
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    gguf="gemma3",
    fields=(
        *llama.sizes(tied=True),
        *llama.RMS,
        named("hidden_activation", "layer.ffn.activation", llama.ACTIVATION_NAMES, "gelu_pytorch_tanh"),
        same("attention_bias", "layer.attention.bias", False),
        Field("layer.attention.out_bias", lambda c: c.get("attention_bias", False)),
        SCALE,
        Field("layer.attention.window", read_windows, write_windows),
        Field("layer.attention.rope", read_ropes, write_ropes),
        Field("layer.attention.qk_norm.eps", lambda c: c.get("rms_norm_eps", 1e-6)),
        Field("embedding.scale", lambda c: c["hidden_size"] ** 0.5),
    ),
    constants={
        "layer.norm.kind": "rms",
        "layer.norm.unit_offset": True,
        "layer.placement": "sandwich",
        "layer.attention.qk_norm.kind": "rms",
        "layer.attention.qk_norm.unit_offset": True,
        "layer.ffn.gated": True,
        "final_norm.kind": "rms",
        "final_norm.unit_offset": True,
    },
    rows=(*(gemma_row(row) for row in llama.ROWS), *QK_NORM_ROWS, *POST_ROWS),
    gguf_rows=tuple(
        row._replace(via=OFFSET_FROM_ONE) if "norm" in row.theirs else row
        for row in (*llama.GGUF_ROWS, *QK_NORM_GGUF_ROWS, *POST_GGUF_ROWS)
    ),
    gguf_keys={
        **llama.GGUF_KEYS,
        "attention.sliding_window": "sliding_window",
        "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    gguf_config=gguf_config,
    gguf_extra=llama.gguf_dims,
    requires={
        "use_bidirectional_attention": (False, None),
        "final_logit_softcapping": (None,),
        "attn_logit_softcapping": (None,),
    },
)
