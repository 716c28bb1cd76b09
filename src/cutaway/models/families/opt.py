"""OPT (Zhang et al. 2022, arXiv:2205.01068): GPT-2's layout with ReLU, q, k and v apart; positions begin at row 2.

The 350M model normalizes after each sublayer and has no final norm; its narrower embedding is not implemented.
"""

from __future__ import annotations

from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.families.llama import ACTIVATION_NAMES
from cutaway.models.families.table import Config, Family, Field, Row, named, one, pair, same

FIRST = 2  # the rows before it were meant for padding
NORM = {"kind": "layer", "eps": 1e-5}


def read_width(config: Config) -> int:
    """`hidden_size`. Errors: embedding rows of another width."""
    width, rows = config["hidden_size"], config.get("word_embed_proj_dim")
    if rows not in (None, width):
        raise CutawayError(f"word_embed_proj_dim = {rows} is not implemented", "config.json", f"supported: {width}")
    return width


def read_final_norm(config: Config) -> dict[str, Any] | None:
    """None where norms stand after the sublayers, and in checkpoints tuned before there was one."""
    wanted = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
    return NORM if wanted else None


def biases(*paths: str) -> tuple[Field, ...]:
    """One entry for all biases but the norms'."""
    first, *rest = paths
    return (
        same("enable_bias", first, True),
        *(Field(path, lambda c: c.get("enable_bias", True)) for path in rest),
    )


FAMILY = Family(
    name="opt",
    architectures=("OPTForCausalLM", "OPTModel"),
    fields=(
        same("vocab_size", "vocab"),
        Field("width", read_width, lambda width: {"hidden_size": width, "word_embed_proj_dim": width}),
        same("max_position_embeddings", "context"),
        Field("embedding.positions", lambda c: c["max_position_embeddings"] + FIRST),
        same("num_hidden_layers", "depth"),
        same("num_attention_heads", "layer.attention.heads"),
        Field("layer.attention.kv_heads", lambda c: c["num_attention_heads"]),
        Field("layer.attention.head_dim", lambda c: c["hidden_size"] // c["num_attention_heads"]),
        Field("layer.attention.scale", lambda c: (c["hidden_size"] // c["num_attention_heads"]) ** -0.5),
        same("ffn_dim", "layer.ffn.width"),
        named("activation_function", "layer.ffn.activation", ACTIVATION_NAMES, "relu"),
        *biases("layer.attention.bias", "layer.attention.out_bias", "layer.ffn.bias"),
        Field(
            "layer.placement",
            lambda c: "pre" if c.get("do_layer_norm_before", True) else "post",
            lambda placements: {"do_layer_norm_before": one(placements, "layer.placement") == "pre"},
        ),
        Field("final_norm", read_final_norm, lambda norm: {} if norm else {"_remove_final_layer_norm": True}),
        same("tie_word_embeddings", "head.tied", True),
    ),
    constants={
        "embedding.first": FIRST,
        "layer.norm.kind": "layer",
        "layer.norm.eps": NORM["eps"],
        "layer.ffn.gated": False,
    },
    prefix="model.decoder.",
    rows=(
        Row("model.decoder.embed_tokens.weight", "embedding.tokens.weight"),
        Row("model.decoder.embed_positions.weight", "embedding.positions.weight"),
        *pair("model.decoder.layers.{i}.self_attn_layer_norm", "layers.{i}.attention_norm"),
        *pair("model.decoder.layers.{i}.self_attn.q_proj", "layers.{i}.attention.q"),
        *pair("model.decoder.layers.{i}.self_attn.k_proj", "layers.{i}.attention.k"),
        *pair("model.decoder.layers.{i}.self_attn.v_proj", "layers.{i}.attention.v"),
        *pair("model.decoder.layers.{i}.self_attn.out_proj", "layers.{i}.attention.out"),
        *pair("model.decoder.layers.{i}.final_layer_norm", "layers.{i}.ffn_norm"),
        *pair("model.decoder.layers.{i}.fc1", "layers.{i}.ffn.up"),
        *pair("model.decoder.layers.{i}.fc2", "layers.{i}.ffn.down"),
        *pair("model.decoder.final_layer_norm", "final_norm"),
        Row("lm_head.weight", "head.weight"),
    ),
    requires={"layer_norm_elementwise_affine": (True,)},
)
