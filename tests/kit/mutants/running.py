"""Mistakes in the engine and in sentence vectors."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

ENGINE, SENTENCES = "cutaway.engine.engine:Engine.", "cutaway.embed.sentences:"

# fmt: off
MUTANTS = mutants(
    ("engine: positions begin anew with every span", "replies gpt2",
        edit(ENGINE + "step", "torch.arange(s.computed, s.computed + n, device=device)", "torch.arange(n, device=device)")),
    ("engine: positions one late", "replies gpt2",
        edit(ENGINE + "step", "torch.arange(s.computed, s.computed + n, device=device)", "torch.arange(s.computed + 1, s.computed + n + 1, device=device)")),
    ("engine: last tokens for next tokens", "replies llama",
        edit(ENGINE + "step", "s.tokens[s.computed:s.computed + n]", "s.tokens[len(s.tokens) - n:]")),
    ("engine: logits of the token before", "replies llama",
        edit(ENGINE + "step", "hidden_TD[[end for _, end in ready]]", "hidden_TD[[max(end - 1, 0) for _, end in ready]]")),
    ("engine: logits of another sequence", "replies llama",
        edit(ENGINE + "step", "zip(ready, logits_RV, strict=True)", "zip(ready, logits_RV.flip(0), strict=True)")),
    ("engine: a piece of the prompt is answered", "replies llama",
        edit(ENGINE + "step", "if s.computed == len(s.tokens)", "if s.computed > 0")),
    ("engine: reply written over the cache's end", "replies llama",
        edit(ENGINE + "step", "Spans([(self._cache(s), s.computed, n) for s, n in spans])",
             "Spans([(self._cache(s), max(s.computed - (n == 1), 0), n) for s, n in spans])")),
    ("sentences: in the order of their lengths", "sentences bert",
        edit(SENTENCES + "encode_ids", "vectors_ND[batch] = _encode_batch(model, [rows[j] for j in batch])\n    return vectors_ND",
             "vectors_ND[batch] = _encode_batch(model, [rows[j] for j in batch])\n    return vectors_ND[sorted(range(len(rows)), key=lambda i: len(rows[i]))]")),
    ("sentences: positions counted through the batch", "sentences bert",
        edit(SENTENCES + "_encode_batch", "positions_of(lengths, model.device)", "positions_of([sum(lengths)], model.device)")),
    ("sentences: see each other", "sentences bert",
        edit(SENTENCES + "_encode_batch", "BlockDiagonal(lengths)", "BlockDiagonal([sum(lengths)])")),
    ("pooling: first token for the mean", "sentences bert",
        edit("cutaway.models.encoder:Encoder.pool", "row.mean(0)", "row[0]")),
    ("pooling: mean without the special tokens", "sentences bert",
        edit("cutaway.models.encoder:Encoder.pool", "row.mean(0)", "row[:max(1, len(row) - 1)].mean(0)")),
    ("pooling: largest for mean", "sentences bert", edit("cutaway.models.encoder:Encoder.pool", "row.mean(0)", "row.max(0).values")),
    ("pooling: not scaled to unit length", "sentences bert",
        edit("cutaway.models.encoder:Encoder.pool", "if self.pooling.normalize else", "if False else")),
    ("pooling: one mean for all", "sentences bert",
        edit("cutaway.models.encoder:Encoder.pool", "hidden_TD.split(lengths)", "[hidden_TD] * len(lengths)")),
)
# fmt: on
