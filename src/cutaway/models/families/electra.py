"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): BERT's network, trained to tell which words a generator replaced.

The discriminator's head gives one number for each token. Embedding rows may be narrower than hidden states.
"""

from __future__ import annotations

from dataclasses import replace

from cutaway.models.families import bert
from cutaway.models.families.endings import VOCABULARY, Ending, ending_fields, ending_rows, observed
from cutaway.models.families.table import Config, Field, pair


def _width(config: Config) -> int | None:
    """Of the embedding rows, if it is not that of hidden states."""
    rows = config.get("embedding_size", 128)
    return None if rows == config["hidden_size"] else rows


ENDINGS = (
    Ending("ElectraModel"),
    Ending(
        "ElectraForPreTraining",
        "each",
        lambda c: {"activation": bert.ACTIVATION.read(c)},
        labels=1,
        rows=(
            *pair("discriminator_predictions.dense", "task.dense"),
            *pair("discriminator_predictions.dense_prediction", "task.out"),
        ),
    ),
    Ending(
        "ElectraForMaskedLM",
        VOCABULARY,
        lambda c: {"activation": "gelu", "norm": bert.norm(c)},
        rows=(
            *pair("generator_predictions.dense", "head.dense"),
            *pair("generator_predictions.LayerNorm", "head.norm"),
            pair("generator_lm_head", "head")[1],
        ),
    ),
    Ending(
        "ElectraForSequenceClassification",
        "first",
        lambda c: {"activation": "gelu"},
        rows=(*pair("classifier.dense", "task.dense"), *pair("classifier.out_proj", "task.out")),
    ),
    Ending("ElectraForTokenClassification", "each", rows=pair("classifier", "task.out")),
    Ending("ElectraForQuestionAnswering", "span", rows=pair("qa_outputs", "task.out")),
)

FAMILY = replace(
    bert.FAMILY,
    name="electra",
    architectures=tuple(e.name for e in ENDINGS),
    gguf="",
    fields=(
        *bert.FIELDS,
        *bert.POSITIONS,
        Field("width", lambda c: c["hidden_size"], lambda width: {"embedding_size": width}),
        Field("embedding.width", _width, lambda width: {"embedding_size": width} if width else {}),
        *ending_fields(ENDINGS),
    ),
    prefix="electra.",
    rows=(
        *bert.rows("[electra.]"),
        *pair("[electra.]embeddings_project", "embedding.project"),
        *ending_rows(ENDINGS),
    ),
    ignored=(*bert.COPIES, r"generator_lm_head\.weight"),
    observed=observed(ENDINGS, (), "electra."),
)
