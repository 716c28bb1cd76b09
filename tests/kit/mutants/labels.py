"""Mistakes in the probabilities of labels."""

from __future__ import annotations

from kit.mutation import edit, mutants

LABELS = "cutaway.engine.labels:"

# fmt: off
MUTANTS = mutants(
    ("labels: a token that two labels share is weighed twice", "label probabilities",
        edit(LABELS + "branches", "if token not in following:", "if True:")),
    ("labels: a walk not renormalized over what may come", "label probabilities",
        edit(LABELS + "score", "logp_V[tokens].log_softmax(0)", "logp_V[tokens]")),
    ("labels: logits taken for log-probabilities", "label probabilities",
        edit(LABELS + "score", "after(said).double().log_softmax(0)", "after(said).double()")),
    ("labels: the end token not scored", "label probabilities",
        edit(LABELS + "score", "range(len(la))", "range(len(la) - 1)")),
    ("labels: walked returned for scored", "label probabilities",
        edit(LABELS + "Scored.scored.fget", "self.total_L", "self.walked_L")),
    ("labels: the mean leaves out the end token", "label corrections",
        edit(LABELS + "Scored.per_token.fget", "self.lengths_L", "(self.lengths_L - 1)")),
    ("labels: a gain with the sign of a loss", "label corrections",
        edit(LABELS + "Scored.beyond", "self.total_L - free.total_L", "free.total_L - self.total_L")),
)
