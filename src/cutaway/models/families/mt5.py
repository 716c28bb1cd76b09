"""mT5 (Xue et al. 2021, arXiv:2010.11934): T5 1.1 in 101 languages; its head is not scaled, nor tied if stored."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cutaway.models.families import t5
from cutaway.models.families.t5 import read_ffn
from cutaway.models.families.table import Field


def _field(field: Field) -> Field:
    """T5's, but gated where a file does not say."""
    return field._replace(read=partial(read_ffn, default="gated-gelu")) if field.path.endswith("ffn") else field


FAMILY = replace(
    t5.FAMILY,
    name="mt5",
    architectures=("MT5ForConditionalGeneration",),
    fields=tuple(_field(field) for field in t5.FAMILY.fields if field.path != "head.scale"),
    observed=lambda config, names: {"tie_word_embeddings": "lm_head.weight" not in names},
)
