"""BERT (Devlin et al. 2018, arXiv:1810.04805) as a sentence encoder; MiniLM (arXiv:2002.10957) is a small BERT.

`cutaway_pooling` is not BERT's: it carries what sentence-transformers keeps in `modules.json` and `1_Pooling`.
"""

from __future__ import annotations

from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.families.llama import ACTIVATION_NAMES
from cutaway.models.families.table import Config, Family, Field, Row, named, pair, same
from cutaway.models.spec import Spec


def _head_dim(config: Config) -> int:
    return config["hidden_size"] // config["num_attention_heads"]


POOLING_TYPES = {1: "mean", 2: "cls"}  # llama.cpp's numbers


def _gguf_config(metadata: Config, shapes: Any) -> dict[str, Any]:
    """llama.cpp's files hold no pooler. Errors: a pooling that is not implemented."""
    number = metadata.get("bert.pooling_type", 1)
    if number not in POOLING_TYPES:
        raise CutawayError(f"bert.pooling_type = {number} is not implemented", hint="known: 1 (mean), 2 (first token)")
    kind = POOLING_TYPES[number]
    return {
        "vocab_size": shapes["token_embd.weight"][0],
        "type_vocab_size": shapes["token_types.weight"][0],
        "cutaway_pooling": {"kind": kind, "normalize": True, "dense": False},
    }


def _gguf_extra(spec: Spec) -> dict[str, Any]:
    number = next(n for n, kind in POOLING_TYPES.items() if spec.pooling and kind == spec.pooling.kind)
    return {"attention.causal": False, "pooling_type": number}


LAYER_NAMES = (  # ours, transformers', llama.cpp's
    ("attention.q", "attention.self.query", "attn_q"),
    ("attention.k", "attention.self.key", "attn_k"),
    ("attention.v", "attention.self.value", "attn_v"),
    ("attention.out", "attention.output.dense", "attn_output"),
    ("attention_norm", "attention.output.LayerNorm", "attn_output_norm"),
    ("ffn.up", "intermediate.dense", "ffn_up"),
    ("ffn.down", "output.dense", "ffn_down"),
    ("ffn_norm", "output.LayerNorm", "layer_output_norm"),
)

FAMILY = Family(
    name="bert",
    architectures=("BertModel",),
    gguf="bert",
    fields=(
        same("vocab_size", "vocab"),
        same("hidden_size", "width"),
        same("max_position_embeddings", "context"),
        Field("embedding.positions", lambda c: c["max_position_embeddings"]),
        same("type_vocab_size", "embedding.types", 2),
        same("num_hidden_layers", "depth"),
        same("num_attention_heads", "layer.attention.heads"),
        Field("layer.attention.kv_heads", lambda c: c["num_attention_heads"]),
        Field("layer.attention.head_dim", _head_dim),
        Field("layer.attention.scale", lambda c: _head_dim(c) ** -0.5),
        same("intermediate_size", "layer.ffn.width"),
        named("hidden_act", "layer.ffn.activation", ACTIVATION_NAMES, "gelu"),
        same("layer_norm_eps", "layer.norm.eps", 1e-12),
        Field("embedding.norm.eps", lambda c: c.get("layer_norm_eps", 1e-12)),
        Field("pooling", lambda c: c.get("cutaway_pooling", {}), lambda value: {"cutaway_pooling": value}),
    ),
    constants={
        "layer.norm.kind": "layer",
        "layer.placement": "post",
        "layer.attention.causal": False,
        "layer.attention.bias": True,
        "layer.attention.out_bias": True,
        "layer.ffn.gated": False,
        "layer.ffn.bias": True,
        "embedding.norm.kind": "layer",
        "final_norm": None,
    },
    prefix="bert.",
    rows=(
        Row("embeddings.word_embeddings.weight", "embedding.tokens.weight"),
        Row("embeddings.position_embeddings.weight", "embedding.positions.weight"),
        Row("embeddings.token_type_embeddings.weight", "embedding.types.weight"),
        *pair("embeddings.LayerNorm", "embedding.norm"),
        *(r for ours, hf, _ in LAYER_NAMES for r in pair(f"encoder.layer.{{i}}.{hf}", f"layers.{{i}}.{ours}")),
        *pair("pooler.dense", "pooler"),
    ),
    gguf_rows=(
        Row("token_embd.weight", "embedding.tokens.weight"),
        Row("position_embd.weight", "embedding.positions.weight"),
        Row("token_types.weight", "embedding.types.weight"),
        *pair("token_embd_norm", "embedding.norm"),
        *(r for ours, _, gg in LAYER_NAMES for r in pair(f"blk.{{i}}.{gg}", f"layers.{{i}}.{ours}")),
    ),
    gguf_keys={
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.layer_norm_epsilon": "layer_norm_eps",
    },
    gguf_config=_gguf_config,
    gguf_extra=_gguf_extra,
    requires={"position_embedding_type": ("absolute",), "is_decoder": (False,), "add_cross_attention": (False,)},
    ignored=(r"(bert\.)?embeddings\.position_ids",),
    pools=True,
)
