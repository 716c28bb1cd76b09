"""Mistakes in the engine and in sentence vectors."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

STEP, RUNNER, CACHE = "cutaway.engine.engine:", "cutaway.engine.runner:", "cutaway.engine.cache:"
REPLAY = "cutaway.engine.replay:"
ENGINE, MODULES, SENTENCES = STEP + "Engine.", RUNNER + "Modules.", "cutaway.embed.sentences:"

# fmt: off
MUTANTS = mutants(
    ("engine: positions begin anew with every span", "replies gpt2",
        edit(REPLAY + "laid_out", "count_B.cumsum() - end_B", "count_B.cumsum() - count_B")),
    ("engine: positions one late", "replies gpt2",
        edit(RUNNER + "Modules.run", "inputs.positions_T", "inputs.positions_T + 1")),
    ("engine: last tokens for next tokens", "replies llama",
        edit(RUNNER + "tokens_of", "sequence.tokens[start:start + count]", "sequence.tokens[len(sequence.tokens) - count:]")),
    ("engine: logits of the token before", "replies llama",
        edit(STEP + "_wanted", "range(end - 1 - beyond, end)", "range(max(end - 2 - beyond, 0), max(end - 1, 1))")),
    ("engine: logits of another sequence", "replies llama",
        edit(ENGINE + "_compute", "iter(self.runner.run", "reversed(self.runner.run")),
    ("engine: a piece of the prompt is answered", "replies llama",
        edit(STEP + "_wanted", "if beyond >= 0 else []", "if beyond >= 0 else [end - 1]")),
    ("engine: reply written over the cache's end", "replies llama",
        edit(MODULES + "_context", "[(self._memory(s, start), start, count)", "[(self._memory(s, start), max(start - (count == 1), 0), count)")),
    ("engine: a wrong draft is kept", "speculated llama",
        edit(ENGINE + "_advance", "event.choice.token != draft or sequence.finish", "draft < 0 or sequence.finish")),
    ("engine: drafts accepted that are not computed", "speculated llama",
        edit(ENGINE + "_advance", "max(0, len(events) - 1)", "len(events)")),
    ("engine: only the last draft's logits", "speculated llama",
        edit(STEP + "_wanted", "range(end - 1 - beyond, end)", "range(end - 1, end)")),
    ("engine: drafts computed in place of the last token", "speculated llama",
        edit(RUNNER + "tokens_of", "sequence.tokens[start:start + count] + drafts", "drafts + sequence.tokens[start:start + count]")),
    ("cache: a page of another sequence", "replies llama",
        edit(CACHE + "Paged.open", "torch.tensor(table)", "torch.tensor(table) * 0")),
    ("cache: a page's tokens in reverse when read", "replies llama",
        edit(CACHE + "Paged.get", "self.slots_S[first:end]", "self.slots_S[first:end].flip(0)")),
    ("sentences: in the order of their lengths", "sentences bert",
        edit(SENTENCES + "encode_ids", "vectors_ND[batch] = _encode_batch(model, [rows[j] for j in batch])\n    return vectors_ND",
             "vectors_ND[batch] = _encode_batch(model, [rows[j] for j in batch])\n    return vectors_ND[sorted(range(len(rows)), key=lambda i: len(rows[i]))]")),
    ("sentences: positions counted through the batch", "sentences bert",
        edit(SENTENCES + "read", "positions_of(lengths, model.device)", "positions_of([sum(lengths)], model.device)")),
    ("sentences: see each other", "sentences bert",
        edit(SENTENCES + "read", "BlockDiagonal(lengths)", "BlockDiagonal([sum(lengths)])")),
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
