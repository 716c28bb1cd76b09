"""Mistakes in vectors and scores from decoders."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

SENTENCES, RERANKING = "cutaway.embed.sentences:", "cutaway.embed.reranking:"
VECTORS, SCORES = "decoder vectors, left", "reranking, right"

# fmt: off
MUTANTS = mutants(
    ("decoder vectors: the last token of all", VECTORS, edit(SENTENCES + "last_tokens", ".cumsum(0) - 1", ".cumsum(0) * 0 - 1")),
    ("decoder vectors: the last token but one", VECTORS, edit(SENTENCES + "last_tokens", "- 1", "- 2")),
    ("decoder vectors: not of unit length", VECTORS, edit(SENTENCES + "_encode_batch", "F.normalize(last_tokens(hidden_TD, lengths), dim=-1)", "last_tokens(hidden_TD, lengths)")),
    ("decoder vectors: a mean", VECTORS, edit(SENTENCES + "_encode_batch", "last_tokens(hidden_TD, lengths)", "torch.stack([row.mean(0) for row in hidden_TD.split(lengths)])")),
    ("query instruction: the query alone", "query instruction", edit(SENTENCES + "instructed", "Instruct: {task}\\nQuery:", "")),
    ("reranking: softmax over the whole vocabulary", SCORES, edit(RERANKING + "yes", "[:, [no_id, yes_id]].softmax(-1)", ".softmax(-1)[:, [no_id, yes_id]]")),
    ("reranking: how likely it says no", SCORES, edit(RERANKING + "yes", ".softmax(-1)[:, 1]", ".softmax(-1)[:, 0]")),
    ("reranking: a sigmoid of yes alone", SCORES, edit(RERANKING + "yes", "[:, [no_id, yes_id]].softmax(-1)[:, 1]", "[:, yes_id].sigmoid()")),
    ("reranking: words at the first position", SCORES, edit(RERANKING + "yes", "last_tokens(*read(model, [row]))", "read(model, [row])[0][:1]")),
)
# fmt: on
