"""Mistakes in encoders: their heads, their tables of names, token types, distances, shared blocks."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F

from cutaway.models.families.table import Each, Family, Field
from kit.mutants.models import exchanged, rows
from kit.mutation import Change, edit, mutants, put

HEADS, DISTANCES = "cutaway.nn.heads:", "cutaway.nn.disentangled:"
ADDED = DISTANCES + "DisentangledAttention.bias"
EMBEDDING, STACK = "cutaway.nn.embedding:Embedding.forward", "cutaway.models.block:Stack."
FAMILIES = "cutaway.models.families."


def field(family: str, path: str, change: Callable[[Any], Any]) -> Change:
    """What every configuration of the family says at `path` is changed."""

    def read_otherwise(f: Field) -> Field:
        return f._replace(read=lambda config: change(f.read(config))) if f.path == path else f

    def changed(table: Family) -> Family:
        return replace(table, fields=tuple(map(read_otherwise, table.fields)))

    return put("cutaway.models.families:FAMILIES", family, changed)


# fmt: off
ENDS = mutants(
    ("words: layer before them skipped", "values bert-masked", edit(HEADS + "Transformed.transform", "self.dense is None", "hidden_RD.shape[-1] == 48")),
    ("words: layer before them not activated", "values bert-masked", edit(HEADS + "Transformed.transform", "self.activation is None", "True")),
    ("words: layer before them not normed", "values bert-masked", edit(HEADS + "Transformed.transform", "self.norm is None", "True")),
    ("words: bias dropped", "values bert-masked", edit(HEADS + "Head.forward", "self.bias)", "None)")),
    ("words: bias dropped by ELECTRA's generator", "values electra-generator", edit(HEADS + "Head.forward", "self.bias)", "None)")),
    ("words: BERT's activated otherwise than its blocks", "values albert", edit(FAMILIES + "albert:_transform", "ACTIVATION.read(config)", "'gelu'")),
    ("words: RoBERTa's activated like its blocks", "values xlm_roberta",
        field("xlm_roberta", "head", lambda head: {**head, "transform": {**head["transform"], "activation": "relu"}})),
    ("words: embedding detached", "gradients bert-masked", edit(STACK + "logits", "self.embedding.tokens.weight", "self.embedding.tokens.weight.detach()")),
    ("task: last token for the first", "values bert-classifier", edit(HEADS + "TaskHead.rows", "self.spec.at == 'last'", "True")),
    ("task: first token for the last", "task rows", edit(HEADS + "TaskHead.rows", "self.spec.at == 'last'", "False")),
    ("task: last token one too far", "task rows", edit(HEADS + "TaskHead.rows", "ends - 1", "ends.clamp(max=len(hidden_TD) - 1)")),
    ("task: first tokens one on", "values roberta-classifier", edit(HEADS + "TaskHead.rows", "F.pad(ends[:-1], (1, 0))", "F.pad(ends[:-1], (1, 0)) + 1 - ends // ends[-1]")),
    ("task: first token of the batch for all", "task rows", edit(HEADS + "TaskHead.rows", "F.pad(ends[:-1], (1, 0))", "0 * ends")),
    ("task: mean over the batch", "values modernbert-mean", edit(HEADS + "TaskHead.rows", "row_TD.mean(0)", "hidden_TD.mean(0)")),
    ("task: sum for mean", "task rows", edit(HEADS + "TaskHead.rows", "row_TD.mean(0)", "row_TD.sum(0)")),
    ("task: mean read as the first token", "values modernbert-mean",
        field("modernbert", "task", lambda task: {**task, "at": "first"})),
    ("task: BERT's layer not activated", "values bert-classifier", edit(HEADS + "Transformed.transform", "self.activation is None", "True")),
    ("task: ELECTRA's layer as BERT's", "values electra-classifier",
        field("electra", "task", lambda task: {**task, "transform": {"activation": "tanh"}})),
    ("task: discriminator activated by exact gelu", "values electra", put("cutaway.nn.feed_forward:ACTIVATIONS", "gelu_tanh", lambda _: F.gelu)),
    ("task: norm of ModernBERT's layer skipped", "values modernbert-classifier", edit(HEADS + "Transformed.transform", "self.norm is None", "True")),
    ("task: rows of the labels turned round", "values bert-tagger", edit(HEADS + "TaskHead.forward", "self.out(", "self.out.weight.flip(0).__class__.__rmatmul__ and self.out(").__class__ and
        edit(HEADS + "TaskHead.rows", "hidden_TD\n    if", "hidden_TD.roll(1, 0)\n    if")),
)
# fmt: on
