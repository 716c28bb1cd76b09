"""BERT (Devlin et al. 2018, arXiv:1810.04805); MiniLM (arXiv:2002.10957) is a small BERT.

LayerNorm after each sublayer, learned positions, two token types; masked words are predicted through one more layer
and the token embedding. Its tables are the stock that later encoders vary.

`cutaway_pooling` is not BERT's: it carries what sentence-transformers keeps in `modules.json` and `1_Pooling`.
"""

from __future__ import annotations

from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.families.endings import VOCABULARY, Ending, ending_fields, ending_rows, observed
from cutaway.models.families.llama import ACTIVATION_NAMES
from cutaway.models.families.table import Config, Family, Field, Row, named, pair, same
from cutaway.models.spec import Spec

EPS = 1e-12


def head_dim(config: Config) -> int:
    """Width over heads."""
    return int(config["hidden_size"] // config["num_attention_heads"])


def norm(config: Config) -> dict[str, Any]:
    """The LayerNorm that stands everywhere."""
    return {"kind": "layer", "eps": config.get("layer_norm_eps", EPS)}


def transform(config: Config) -> dict[str, Any]:
    """The layer before the vocabulary."""
    return {"activation": ACTIVATION.read(config), "norm": norm(config)}


ACTIVATION = named("hidden_act", "layer.ffn.activation", ACTIVATION_NAMES, "gelu")

WIDTHS = (
    same("vocab_size", "vocab"),
    same("hidden_size", "width"),
    same("num_hidden_layers", "depth"),
    same("intermediate_size", "layer.ffn.width"),
    same("num_attention_heads", "layer.attention.heads"),
)
ATTENTION = (
    Field("layer.attention.kv_heads", lambda c: c["num_attention_heads"]),
    Field("layer.attention.head_dim", head_dim),
    Field("layer.attention.scale", lambda c: head_dim(c) ** -0.5),
)
FIELDS = (
    *WIDTHS,
    *ATTENTION,
    ACTIVATION,
    same("type_vocab_size", "embedding.types", 2),
    same("layer_norm_eps", "layer.norm.eps", EPS),
    Field("embedding.norm", norm),
)
POSITIONS = (
    same("max_position_embeddings", "context"),
    Field("embedding.positions", lambda c: c["max_position_embeddings"]),
)

CONSTANTS = {
    "layer.norm.kind": "layer",
    "layer.placement": "post",
    "layer.attention.causal": False,
    "layer.attention.bias": True,
    "layer.attention.out_bias": True,
    "layer.ffn.gated": False,
    "layer.ffn.bias": True,
    "final_norm": None,
}
REQUIRES = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}

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


def rows(prefix: str) -> tuple[Row, ...]:
    """The tensors of the bare model, under the prefix that models with a head give it."""
    return (
        *embedding_rows(prefix),
        *(r for ours, hf, _ in LAYER_NAMES for r in pair(f"{prefix}encoder.layer.{{i}}.{hf}", f"layers.{{i}}.{ours}")),
    )


def embedding_rows(prefix: str) -> tuple[Row, ...]:
    """Three tables and the norm of their sum."""
    return (
        Row(f"{prefix}embeddings.word_embeddings.weight", "embedding.tokens.weight"),
        Row(f"{prefix}embeddings.position_embeddings.weight", "embedding.positions.weight"),
        Row(f"{prefix}embeddings.token_type_embeddings.weight", "embedding.types.weight"),
        *pair(f"{prefix}embeddings.LayerNorm", "embedding.norm"),
    )


def vocabulary_rows(at: str) -> tuple[Row, ...]:
    """The tensors of a head for masked words; its matrix is the token embedding."""
    return (
        *pair(f"{at}.transform.dense", "head.dense"),
        *pair(f"{at}.transform.LayerNorm", "head.norm"),
        Row(f"{at}.bias", "head.bias"),
    )


COPIES = (r".*\.decoder\.(weight|bias)", r"(\w+\.)?embeddings\.position_ids")  # what older files store twice

POOLER = pair("[bert.]pooler.dense", "pooler")
ENDINGS = (
    Ending("BertModel"),
    Ending("BertForMaskedLM", VOCABULARY, transform, rows=vocabulary_rows("cls.predictions")),
    Ending(
        "BertForSequenceClassification",
        "first",
        lambda c: {"activation": "tanh"},
        rows=(*pair("[bert.]pooler.dense", "task.dense"), *pair("classifier", "task.out")),
    ),
    Ending("BertForTokenClassification", "each", rows=pair("classifier", "task.out")),
    Ending("BertForQuestionAnswering", "span", rows=pair("qa_outputs", "task.out")),
)

# ---- llama.cpp's side

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


FAMILY = Family(
    name="bert",
    architectures=tuple(e.name for e in ENDINGS),
    gguf="bert",
    fields=(*FIELDS, *POSITIONS, *ending_fields(ENDINGS)),
    constants=CONSTANTS,
    prefix="bert.",
    rows=(*rows("[bert.]"), *POOLER, *ending_rows(ENDINGS)),
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
    requires=REQUIRES,
    ignored=(*COPIES, r"cls\.seq_relationship\..*"),  # whether one sentence follows another: an end of its own
    observed=observed(ENDINGS, POOLER, "bert."),
    pools=True,
)
