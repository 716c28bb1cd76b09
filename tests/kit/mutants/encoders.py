"""Mistakes in encoders: their heads, their tables of names, token types, distances, shared blocks."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F

from cutaway.models.families.table import Family, Field
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
    ("words: layer before them not activated", "values bert-masked", edit(HEADS + "Transformed.transform", "self.activation is None", "True")),
    ("words: layer before them not normed", "values bert-masked", edit(HEADS + "Transformed.transform", "self.norm is None", "True")),
    ("words: layer before them skipped", "values bert-masked", edit(HEADS + "Transformed.transform", "self.dense is None", "True")),
    ("words: bias dropped", "values bert-masked", edit(HEADS + "Head.forward", "self.bias)", "None)")),
    ("words: bias dropped by ELECTRA's generator", "values electra-generator", edit(HEADS + "Head.forward", "self.bias)", "None)")),
    ("words: ALBERT's activated otherwise than its blocks", "values albert", edit(FAMILIES + "albert:_transform", "ACTIVATION.read(config)", "'gelu'")),
    ("words: RoBERTa's activated like its blocks", "values xlm_roberta",
        field("xlm_roberta", "head", lambda head: {**head, "transform": {**head["transform"], "activation": "relu"}})),
    ("words: embedding detached", "gradients bert-masked", edit(STACK + "logits", "self.embedding.tokens.weight", "self.embedding.tokens.weight.detach()")),
    ("task: last token for the first", "values bert-classifier", edit(HEADS + "TaskHead.rows", "self.spec.at == 'last'", "True")),
    ("task: first token for the last", "task rows", edit(HEADS + "TaskHead.rows", "self.spec.at == 'last'", "False")),
    ("task: last token one too early", "task rows", edit(HEADS + "TaskHead.rows", "ends - 1", "ends - 2")),
    ("task: first token of the batch for all", "values roberta-classifier", edit(HEADS + "TaskHead.rows", "F.pad(ends[:-1], (1, 0))", "0 * ends")),
    ("task: mean over the batch", "values modernbert-mean", edit(HEADS + "TaskHead.rows", "row_TD.mean(0)", "hidden_TD.mean(0)")),
    ("task: sum for mean", "task rows", edit(HEADS + "TaskHead.rows", "row_TD.mean(0)", "row_TD.sum(0)")),
    ("task: mean read as the first token", "values modernbert-mean", field("modernbert", "task", lambda task: {**task, "at": "first"})),
    ("task: BERT's layer not activated", "values bert-classifier", edit(HEADS + "Transformed.transform", "self.activation is None", "True")),
    ("task: ELECTRA's layer activated like BERT's", "values electra-classifier",
        field("electra", "task", lambda task: {**task, "transform": {"activation": "tanh"}})),
    ("task: discriminator activated by exact gelu", "values electra", put("cutaway.nn.feed_forward:ACTIVATIONS", "gelu_tanh", lambda _: F.gelu)),
    ("task: norm of ModernBERT's layer skipped", "values modernbert-classifier", edit(HEADS + "Transformed.transform", "self.norm is None", "True")),
    ("task: tags one token late", "values bert-tagger", edit(HEADS + "TaskHead.rows", "return hidden_TD\n", "return hidden_TD.roll(1, 0)\n")),
    ("task: begin and end of a span exchanged", "values bert-span",
        edit(HEADS + "TaskHead.forward", "self.out(self.transform(self.rows(hidden_TD, lengths)))", "self.out(self.transform(self.rows(hidden_TD, lengths))).flip(-1)")),
)

INPUT = mutants(
    ("types: ignored", "types bert", edit(EMBEDDING, "types_T is None", "True")),
    ("types: exchanged", "types bert", edit(EMBEDDING, "self.types(types_T)", "self.types(1 - types_T)")),
    ("types: row of the first without a pair dropped", "values bert-masked", edit(EMBEDDING, "self.types.weight[0]", "0")),
    ("types: no gradient", "types electra", edit(EMBEDDING, "self.types(types_T)", "self.types(types_T).detach()")),
    ("types: not passed on", "types bert-masked", edit(STACK + "forward", "positions_T, types_T)", "positions_T, None)")),
    ("input sum: positions left out", "input sum", edit(EMBEDDING, "self.positions(positions_T + self.spec.first)", "0")),
    ("input sum: not normed", "input sum", edit(EMBEDDING, "self.norm is None", "True")),
    ("input sum: types after the norm", "input sum",
        edit(EMBEDDING, "x_TD = x_TD if self.norm is None else self.norm(x_TD)", "x_TD = self.norm(x_TD - self.types(types_T)) + self.types(types_T)")),
    ("padding: sequences begin with the last token of the one before", "padding bert",
        edit("cutaway.nn.attention:BlockDiagonal.attend", "t.transpose(0, 1).split(", "t.transpose(0, 1).roll(1, 1).split(")),
    ("positions: RoBERTa's from the row of padding", "values roberta", field("roberta", "embedding.first", lambda row: row - 1)),
    ("positions: RoBERTa's from row 0", "values roberta", field("roberta", "embedding.first", lambda row: 0)),
    ("positions: XLM-RoBERTa's as if padding were token 1", "values xlm_roberta", field("xlm_roberta", "embedding.first", lambda row: 2)),
    ("narrow rows: normed after they are projected", "values albert",
        edit(EMBEDDING, "x_TD = x_TD if self.norm is None else self.norm(x_TD)\n    return x_TD if self.project is None else self.project(x_TD)",
             "return (lambda y: (y - y.mean(-1, True)) / y.std(-1, keepdim=True, correction=0))(self.project(x_TD))")),
    ("narrow rows: projection without bias", "values electra",
        edit(EMBEDDING, "self.project(x_TD)", "x_TD @ self.project.weight.T")),
)

TABLES = mutants(
    ("shared block: each group in turn", "values albert-groups",
        edit("cutaway.models.spec:Spec.block_of", "i * (self.distinct or len(self.layers)) // len(self.layers)", "i % (self.distinct or len(self.layers))")),
    ("shared block: first group too long", "values albert-groups",
        edit("cutaway.models.spec:Spec.block_of", "i * (self.distinct or len(self.layers)) // len(self.layers)", "min((i + 1) * self.distinct // len(self.layers), self.distinct - 1)")),
    ("shared block: run once", "values albert",
        edit(STACK + "transform", "x_TD = self.block(i)(x_TD, i, place, context)", "x_TD = self.block(i)(x_TD, i, place, context) if i == 0 else x_TD")),
    ("tables: ALBERT's two norms exchanged", "values albert",
        rows("albert", "", exchanged("full_layer_layer_norm", "attention.LayerNorm"))),
    ("tables: DeBERTa's key and query exchanged", "values deberta", rows("deberta", "_proj", exchanged("query_proj", "key_proj"))),
    ("tables: ModernBERT's gate and what it gates exchanged", "values modernbert",
        edit("cutaway.nn.feed_forward:gated", "activation(gate_TF) * up_TF", "activation(up_TF) * gate_TF")),
    ("tables: ModernBERT's bases exchanged", "values modernbert",
        edit(FAMILIES + "modernbert:read_ropes", "by_kind[kind] for", "by_kind[LOCAL if kind == GLOBAL else GLOBAL] for")),
    ("tables: ModernBERT's window counts both sides", "values modernbert", edit(FAMILIES + "modernbert:read_windows", "// 2 + 1", "")),
    ("tables: ModernBERT's window without the token itself", "values modernbert", edit(FAMILIES + "modernbert:read_windows", "// 2 + 1", "// 2")),
    ("tables: ModernBERT's window on the layers that see everything", "values modernbert-classifier",
        edit(FAMILIES + "modernbert:read_windows", "if kind == LOCAL", "if kind == GLOBAL")),
    ("tables: ModernBERT's norms with another epsilon", "values modernbert", edit(FAMILIES + "modernbert:norm", "config.get('norm_eps', EPS)", "EPS")),
)

RELATIVE = mutants(
    ("distances: scale without the further terms", "values deberta", field("deberta", "layer.attention.scale", lambda scale: scale * 3**0.5)),
    ("distances: scale as if both terms were there", "values deberta-to-position", field("deberta", "layer.attention.scale", lambda scale: scale * (2 / 3) ** 0.5)),
    ("distances: content to position dropped", "values deberta", edit(ADDED, "if spec.to_position", "if False")),
    ("distances: position to content dropped", "values deberta", edit(ADDED, "if spec.to_content", "if False")),
    ("distances: content to position dropped, by hand", "distance terms", edit(ADDED, "if spec.to_position", "if False")),
    ("distances: position to content dropped, by hand", "distance terms", edit(ADDED, "if spec.to_content", "if False")),
    ("distances: both terms where one is asked for", "distance to content", edit(ADDED, "if spec.to_position", "if True")),
    ("distances: terms not scaled", "values deberta", edit(ADDED, "spec.scale * bias_HQS", "bias_HQS")),
    ("distances: counted the other way", "values deberta", edit(DISTANCES + "rows_of", "-distance_QS", "distance_QS")),
    ("distances: of j - i in the third term, as in the paper", "values deberta",
        edit(ADDED, "gather(-1, row_QS.mT).mT", "gather(-1, row_QS).mT")),
    ("distances: one row off", "distance terms", edit(DISTANCES + "rows_of", "d_QS + spec.span)", "d_QS + spec.span + 1)")),
    ("distances: table too short by one", "values deberta", edit(DISTANCES + "rows_of", "2 * spec.span - 1)", "2 * spec.span - 2)")),
    ("distances: keys' rows by the queries' matrix", "values deberta", edit(ADDED, "(self.k, self.q)", "(self.q, self.q)")),
    ("distances: matrices of the rows exchanged", "values deberta", edit(ADDED, "(self.k, self.q)", "(self.q, self.k)")),
    ("distances: rows not normed", "values deberta", edit(DISTANCES + "Relative.forward", "self.norm is None", "True")),
    ("distances: rows without gradient", "gradients deberta", edit(DISTANCES + "Relative.forward", "self.norm(self.weight)", "self.norm(self.weight.detach())")),
    ("distances: cut off where buckets should grow", "values deberta", edit(DISTANCES + "rows_of", "spec.buckets is None", "True")),
    ("distances: buckets rounded down", "distance buckets", edit(DISTANCES + "log_buckets", ".ceil()", ".floor()")),
    ("distances: last bucket at the reach", "distance buckets", edit(DISTANCES + "log_buckets", "(reach - 1) / half", "reach / half")),
    ("distances: all buckets logarithmic", "distance buckets", edit(DISTANCES + "log_buckets", "<= half", "< 1")),
    ("distances: rounding error skips a bucket", "distance buckets", edit(DISTANCES + "log_buckets", "far - 1e-09", "far + 1e-09")),
    ("distances: far ones without their sign", "distance buckets", edit(DISTANCES + "log_buckets", "distance_QS.sign() * (", "(")),
)
# fmt: on

MUTANTS = (*ENDS, *INPUT, *TABLES, *RELATIVE)
