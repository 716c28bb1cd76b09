"""BART (Lewis et al. 2020, arXiv:1910.13461): an encoder-decoder trained to repair damaged text.

Learned positions that begin at row 2, LayerNorm after each sublayer and after the embedding, biases everywhere.
"""

from __future__ import annotations

from typing import Any

from cutaway.models.families.llama import ACTIVATION_NAMES
from cutaway.models.families.table import Family, Field, Row, Via, named, pair, same

EPS = 1e-5  # PyTorch's default; the configuration does not say it
FIRST = 2  # rows of the position table before that of position 0
FLAT = Via(lambda t, s: (t[0],), lambda ts, s: ts[0][None])  # [1, V]
LINEARS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}


def _stack(at: str, theirs: str) -> tuple[Field, ...]:
    """The fields of one of the two stacks."""
    return (
        same(f"{theirs}_layers", f"{at}depth"),
        same("max_position_embeddings", f"{at}context"),
        Field(f"{at}embedding.positions", lambda c: c["max_position_embeddings"] + FIRST),
        Field(
            f"{at}embedding.scale",
            lambda c: c["d_model"] ** 0.5 if c.get("scale_embedding") else 1.0,
            lambda scale: {"scale_embedding": scale != 1.0},
        ),
        *_attention(f"{at}layer.attention.", theirs),
        same(f"{theirs}_ffn_dim", f"{at}layer.ffn.width"),
        named("activation_function", f"{at}layer.ffn.activation", ACTIVATION_NAMES, "gelu"),
    )


def _attention(at: str, theirs: str) -> tuple[Field, ...]:
    key = f"{theirs}_attention_heads"
    return (
        same(key, f"{at}heads"),
        Field(f"{at}kv_heads", lambda c: c[key]),
        Field(f"{at}head_dim", lambda c: c["d_model"] // c[key]),
        Field(f"{at}scale", lambda c: (c["d_model"] // c[key]) ** -0.5),
    )


def _constants(at: str, causal: bool) -> dict[str, Any]:
    return {
        f"{at}embedding.first": FIRST,
        f"{at}embedding.norm": {"kind": "layer", "eps": EPS},
        f"{at}layer.norm": {"kind": "layer", "eps": EPS},
        f"{at}layer.placement": "post",
        f"{at}layer.attention.causal": causal,
        f"{at}layer.attention.bias": True,
        f"{at}layer.attention.out_bias": True,
        f"{at}layer.ffn.gated": False,
        f"{at}layer.ffn.bias": True,
        f"{at}final_norm": None,
    }


def _rows(stack: str, number: str, ours: str, attentions: tuple[tuple[str, str], ...]) -> tuple[Row, ...]:
    """The rows of one stack. attentions: theirs and ours."""
    theirs, layer = f"model.{stack}.layers.{number}", f"{ours}layers.{number}"
    rows = [
        Row(f"model.{stack}.embed_positions.weight", f"{ours}embedding.positions.weight"),
        *pair(f"model.{stack}.layernorm_embedding", f"{ours}embedding.norm"),
        *pair(f"{theirs}.fc1", f"{layer}.ffn.up"),
        *pair(f"{theirs}.fc2", f"{layer}.ffn.down"),
        *pair(f"{theirs}.final_layer_norm", f"{layer}.ffn_norm"),
    ]
    for name, attention in attentions:
        rows += [
            r
            for own, linear in LINEARS.items()
            for r in pair(f"{theirs}.{name}.{linear}", f"{layer}.{attention}.{own}")
        ]
        rows += pair(f"{theirs}.{name}_layer_norm", f"{layer}.{attention}_norm")
    return tuple(rows)


FAMILY = Family(
    name="bart",
    architectures=("BartForConditionalGeneration",),
    fields=(
        same("vocab_size", "vocab"),
        same("d_model", "width"),
        *_stack("", "decoder"),
        *_stack("encoder.", "encoder"),
        *_attention("layer.cross.", "decoder"),
        same("tie_word_embeddings", "head.tied", True),
        same("decoder_start_token_id", "start", 2),
    ),
    constants={
        **_constants("", causal=True),
        **_constants("encoder.", causal=False),
        "layer.cross.causal": False,
        "layer.cross.bias": True,
        "layer.cross.out_bias": True,
        "head.bias": True,
        "encoder.pooling": {},
    },
    rows=(
        Row("model.shared.weight", "embedding.tokens.weight"),
        *_rows("encoder", "{j}", "encoder.", (("self_attn", "attention"),)),
        *_rows("decoder", "{i}", "", (("self_attn", "attention"), ("encoder_attn", "cross"))),
        Row("final_logits_bias", "head.bias", FLAT),
        Row("lm_head.weight", "head.weight"),
    ),
    ignored=(r"model\.(en|de)coder\.embed_tokens\.weight",),
)
