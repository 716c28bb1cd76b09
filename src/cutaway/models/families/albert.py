"""ALBERT (Lan et al. 2019, arXiv:1909.11942): a BERT of few parameters. One block serves all layers (or each of a few
groups of them), and the vocabulary's rows are narrow: V·E + E·D numbers instead of V·D.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cutaway.models.families import bert
from cutaway.models.families.endings import VOCABULARY, Ending, ending_fields, ending_rows, observed
from cutaway.models.families.llama import ACTIVATION_NAMES
from cutaway.models.families.table import Config, named, pair, same

ACTIVATION = named("hidden_act", "layer.ffn.activation", ACTIVATION_NAMES, "gelu_new")
GROUP = "[albert.]encoder.albert_layer_groups.{i}.albert_layers.0"
LAYER_NAMES = {
    "attention.q": "attention.query",
    "attention.k": "attention.key",
    "attention.v": "attention.value",
    "attention.out": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "ffn.up": "ffn",
    "ffn.down": "ffn_output",
    "ffn_norm": "full_layer_layer_norm",
}


def _transform(config: Config) -> dict[str, Any]:
    return {"activation": ACTIVATION.read(config), "norm": bert.norm(config)}


POOLER = pair("[albert.]pooler", "pooler")
ENDINGS = (
    Ending("AlbertModel"),
    Ending(
        "AlbertForMaskedLM",
        VOCABULARY,
        _transform,
        rows=(
            *pair("predictions.dense", "head.dense"),
            *pair("predictions.LayerNorm", "head.norm"),
            pair("predictions", "head")[1],
        ),
    ),
    Ending(
        "AlbertForSequenceClassification",
        "first",
        lambda c: {"activation": "tanh"},
        rows=(*pair("[albert.]pooler", "task.dense"), *pair("classifier", "task.out")),
    ),
    Ending("AlbertForTokenClassification", "each", rows=pair("classifier", "task.out")),
    Ending("AlbertForQuestionAnswering", "span", rows=pair("qa_outputs", "task.out")),
)

FAMILY = replace(
    bert.FAMILY,
    name="albert",
    architectures=tuple(e.name for e in ENDINGS),
    gguf="",
    fields=(
        *bert.FIELDS,
        *bert.POSITIONS,
        ACTIVATION,
        same("embedding_size", "embedding.width", 128),
        same("num_hidden_groups", "distinct", 1),
        *ending_fields(ENDINGS),
    ),
    prefix="albert.",
    rows=(
        *bert.embedding_rows("[albert.]"),
        *pair("[albert.]encoder.embedding_hidden_mapping_in", "embedding.project"),
        *(r for ours, theirs in LAYER_NAMES.items() for r in pair(f"{GROUP}.{theirs}", f"layers.{{i}}.{ours}")),
        *POOLER,
        *ending_rows(ENDINGS),
    ),
    requires={**bert.REQUIRES, "inner_group_num": (1,)},
    ignored=(*bert.COPIES, r"sop_classifier\..*"),  # whether two sentences are in their order: an end of its own
    observed=observed(ENDINGS, POOLER, "albert."),
)
