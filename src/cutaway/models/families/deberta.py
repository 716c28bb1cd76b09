"""DeBERTa-v2 and v3 (He et al. 2020, arXiv:2006.03654; He et al. 2021, arXiv:2111.09543): disentangled attention.

No positions in the embedding: one table of rows for distances serves all layers, projected by their own query and key
matrices. The first version's own projections, absolute positions and v2's convolution are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.families import bert
from cutaway.models.families.endings import VOCABULARY, Ending, ending_fields, ending_rows, observed
from cutaway.models.families.table import Config, Field, Row, one, pair, same

EPS = 1e-7
PROJECTIONS = ("query", "key", "value")
NEEDED = {"relative_attention": True, "position_biased_input": False, "share_att_key": True}  # unsaid: the contrary


def norm(config: Config) -> dict[str, Any]:
    """The LayerNorm that stands everywhere."""
    return {"kind": "layer", "eps": config.get("layer_norm_eps", EPS)}


def terms(config: Config) -> list[str]:
    """Which of the two further terms there are, stated as "c2p|p2c" or as a list. Errors: other kinds of attention."""
    for key, value in NEEDED.items():
        if config.get(key, not value) is not value:
            raise CutawayError(f"{key} = {not value} is not implemented for deberta", "config.json")
    stated = config.get("pos_att_type") or []
    found = [t.strip() for t in stated.lower().split("|")] if isinstance(stated, str) else list(stated)
    if not set(found) <= {"c2p", "p2c"}:
        raise CutawayError(f"pos_att_type = {stated!r} is not implemented", "config.json", "known: c2p, p2c")
    return found


def _reach(config: Config) -> int:
    stated = config.get("max_relative_positions", -1)
    return int(stated if stated > 0 else config["max_position_embeddings"])


def _buckets(config: Config) -> int | None:
    stated = config.get("position_buckets", -1)
    return stated if stated > 0 else None


def _relative_norm(config: Config) -> dict[str, Any] | None:
    kinds = [kind.strip() for kind in config.get("norm_rel_ebd", "none").lower().split("|")]
    return norm(config) if "layer_norm" in kinds else None


def _width(config: Config) -> int:
    """Errors: embedding rows of another width."""
    if config.get("embedding_size", config["hidden_size"]) != config["hidden_size"]:
        raise CutawayError(f"embedding_size = {config['embedding_size']} is not implemented", "config.json")
    return int(config["hidden_size"])


def _pooler(config: Config) -> dict[str, Any]:
    """Errors: one of another width."""
    if config.get("pooler_hidden_size", config["hidden_size"]) != config["hidden_size"]:
        raise CutawayError(f"pooler_hidden_size = {config['pooler_hidden_size']} is not implemented", "config.json")
    return {"activation": "gelu"}


def _written_terms(mixers: list[dict[str, Any]]) -> dict[str, Any]:
    a = one(mixers, "layer.attention")
    return {**NEEDED, "pos_att_type": [t for t, on in (("c2p", a["to_position"]), ("p2c", a["to_content"])) if on]}


ATTENTION = "layer.attention."
DISTANCES = (
    Field(f"{ATTENTION}head_dim", bert.head_dim),
    Field(f"{ATTENTION}scale", lambda c: ((1 + len(set(terms(c)))) * bert.head_dim(c)) ** -0.5),
    Field(f"{ATTENTION}to_position", lambda c: "c2p" in terms(c), _written_terms, given="layer.attention"),
    Field(f"{ATTENTION}to_content", lambda c: "p2c" in terms(c)),
    Field(f"{ATTENTION}reach", _reach, lambda all: {"max_relative_positions": one(all, f"{ATTENTION}reach")}),
    Field(f"{ATTENTION}buckets", _buckets, lambda all: {"position_buckets": one(all, f"{ATTENTION}buckets") or -1}),
    Field(
        f"{ATTENTION}norm",
        _relative_norm,
        lambda all: {"norm_rel_ebd": "layer_norm" if one(all, f"{ATTENTION}norm") else "none"},
    ),
)

LAYER_NAMES = tuple(
    (ours, f"{theirs}_proj" if theirs.endswith(PROJECTIONS) else theirs) for ours, theirs, _ in bert.LAYER_NAMES
)

ENDINGS = (
    Ending("DebertaV2Model"),
    Ending(
        "DebertaV2ForMaskedLM",
        VOCABULARY,
        lambda c: {"activation": bert.ACTIVATION.read(c), "norm": norm(c)},
        rows=bert.vocabulary_rows("cls.predictions"),
    ),
    Ending(
        "DebertaV2ForSequenceClassification",
        "first",
        _pooler,
        rows=(*pair("pooler.dense", "task.dense"), *pair("classifier", "task.out")),
    ),
    Ending("DebertaV2ForTokenClassification", "each", rows=pair("classifier", "task.out")),
    Ending("DebertaV2ForQuestionAnswering", "span", rows=pair("qa_outputs", "task.out")),
)

FAMILY = replace(
    bert.FAMILY,
    name="deberta",
    model_type="deberta-v2",
    architectures=tuple(e.name for e in ENDINGS),
    gguf="",
    fields=(
        same("vocab_size", "vocab"),
        Field("width", _width, lambda width: {"hidden_size": width}),
        same("max_position_embeddings", "context"),
        same("num_hidden_layers", "depth"),
        same("num_attention_heads", "layer.attention.heads"),
        *DISTANCES,
        same("intermediate_size", "layer.ffn.width"),
        bert.ACTIVATION,
        same("type_vocab_size", "embedding.types", 0),
        same("layer_norm_eps", "layer.norm.eps", EPS),
        Field("embedding.norm", norm),
        *ending_fields(ENDINGS),
    ),
    constants={
        "layer.norm.kind": "layer",
        "layer.placement": "post",
        "layer.ffn.gated": False,
        "layer.ffn.bias": True,
        "final_norm": None,
    },
    prefix="deberta.",
    rows=(
        *bert.embedding_rows("[deberta.]"),
        Row("[deberta.]encoder.rel_embeddings.weight", "relative.weight"),
        *pair("[deberta.]encoder.LayerNorm", "relative.norm"),
        *(
            r
            for ours, theirs in LAYER_NAMES
            for r in pair(f"[deberta.]encoder.layer.{{i}}.{theirs}", f"layers.{{i}}.{ours}")
        ),
        *ending_rows(ENDINGS),
    ),
    requires={
        "conv_kernel_size": (0,),
        "pooler_hidden_act": ("gelu",),
        "legacy": (True,),
    },
    ignored=(*bert.COPIES, r"(lm|mask)_predictions\..*"),  # what v3 was trained with
    observed=observed(ENDINGS, (), "deberta."),
)
