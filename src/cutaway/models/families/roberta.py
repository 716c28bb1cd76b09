"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's network, trained longer on more text, without sentence pairs.

Left of the pairs is one token type. Positions are counted from the row after the padding token's, which so is a
setting of the network here. The layer before the vocabulary is always activated by GELU.
"""

from __future__ import annotations

from dataclasses import replace

from cutaway.models.families import bert
from cutaway.models.families.endings import VOCABULARY, Ending, ending_fields, ending_rows, observed
from cutaway.models.families.table import Config, Family, Field, pair


def first(config: Config) -> int:
    """The row of position 0."""
    return int(config.get("pad_token_id", 1)) + 1


POSITIONS = (
    Field("context", lambda c: c["max_position_embeddings"] - first(c)),
    Field("embedding.positions", lambda c: c["max_position_embeddings"], lambda n: {"max_position_embeddings": n}),
    Field("embedding.first", first, lambda row: {"pad_token_id": row - 1}),
)
POOLER = pair("[roberta.]pooler.dense", "pooler")


def endings(name: str) -> tuple[Ending, ...]:
    """The classes whose names begin with `name`."""
    vocabulary = (
        *pair("lm_head.dense", "head.dense"),
        *pair("lm_head.layer_norm", "head.norm"),
        pair("lm_head", "head")[1],
    )
    first_token = (*pair("classifier.dense", "task.dense"), *pair("classifier.out_proj", "task.out"))
    return (
        Ending(f"{name}Model"),
        Ending(
            f"{name}ForMaskedLM", VOCABULARY, lambda c: {"activation": "gelu", "norm": bert.norm(c)}, rows=vocabulary
        ),
        Ending(f"{name}ForSequenceClassification", "first", lambda c: {"activation": "tanh"}, rows=first_token),
        Ending(f"{name}ForTokenClassification", "each", rows=pair("classifier", "task.out")),
        Ending(f"{name}ForQuestionAnswering", "span", rows=pair("qa_outputs", "task.out")),
    )


def family(name: str, model_type: str, classes: str) -> Family:
    """RoBERTa under the names that it and its descendants go by."""
    ends = endings(classes)
    return replace(
        bert.FAMILY,
        name=name,
        model_type=model_type,
        architectures=tuple(e.name for e in ends),
        gguf="",
        fields=(*bert.FIELDS, *POSITIONS, *ending_fields(ends)),
        prefix="roberta.",
        rows=(*bert.rows("[roberta.]"), *POOLER, *ending_rows(ends)),
        ignored=bert.COPIES,
        observed=observed(ends, POOLER, "roberta."),
    )


FAMILY = family("roberta", "roberta", "Roberta")
