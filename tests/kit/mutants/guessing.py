"""Mistakes in models that guess for another: what they keep, and where they are in the text."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

DRAFT, AHEAD = "cutaway.engine.draft_model:DraftModel.", "cutaway.engine.look_ahead:LookAhead."
RUNNER, DRAFTER = "cutaway.engine.runner:", "cutaway.engine.drafter:"

# fmt: off
MUTANTS = mutants(
    ("draft model: wrong guesses stay in the cache", "drafted llama",
        edit(DRAFT + "_shadow", "drafted != token", "False")),
    ("draft model: the last guess counts as computed", "drafted llama sampled",
        edit(DRAFT + "_shadow", "shadow.drafts[:-1]", "shadow.drafts")),
    ("draft model: guesses computed one place early", "drafted llama",
        edit(DRAFT + "propose", "Span(shadow, end - 1, 1)", "Span(shadow, end - 2, 1)")),
    ("draft model: a piece of the prompt is answered", "drafted llama",
        edit(DRAFT + "_step", "span.start + span.count >= len(span.sequence.tokens)", "True")),
    ("draft model: logits of another sequence", "drafted llama",
        edit(DRAFT + "_step", "for _, row in ended", "for _, row in reversed(ended)")),
    ("draft model: published pages hold guesses", "drafted llama",
        edit(DRAFT + "_step", "min(start + count, len(shadow.tokens))", "start + count")),
    ("runner: the first guess for every guess", "drafted llama",
        edit(RUNNER + "tokens_of", "max(0, start - len(sequence.tokens))", "0")),
    ("guesses: all are drawn for the same place", "drafted llama sampled",
        edit(DRAFTER + "extend", "sequence.reply + drafts", "sequence.reply")),
    ("prediction: the first place for the likeliest", "predicted",
        edit(DRAFTER + "Predicted.follow", "-abs(end - len(reply))", "0")),
    ("prediction: any run for the longest", "predicted",
        edit(DRAFTER + "Predicted.follow", "(run, ", "(0, ")),
    ("prediction: the run read forward", "predicted",
        edit(DRAFTER + "Predicted.follow", "end][::-1]", "end]")),
    ("prediction: the last token again", "predicted",
        edit(DRAFTER + "Predicted.follow", "prediction[end:end + most]", "prediction[end - 1:end + most]")),
    ("guesses: what a further one costs is never learned", "guesses measured", edit(DRAFTER + "Pass.note", "self.slope += FADES", "self.slope += 0 * FADES")),
    ("guesses: one wild step decides", "guesses measured", edit(DRAFTER + "Pass.note", "min(seconds, WILD * self.at(tokens))", "seconds")),
    ("guesses: rare sizes decide alone", "guesses measured", edit(DRAFTER + "Pass.note", "/ self.spread", "/ (off * off + 1e-09)")),
    ("guesses: cost of one, whatever the company", "guesses measured", edit(DRAFTER + "Pass.checking", "* company / self.at", "/ self.at")),
    ("guesses: tries without limit", "guesses paying", edit(DRAFTER + "Drafter._spares", "price <= self.spared", "True")),
    ("guesses: made although they do not pay", "guesses paying", edit(DRAFTER + "Drafter.worth", "self.cost + self.passes.checking(company)", "0.0")),
    ("guesses: one at most", "guesses paying", edit(DRAFTER + "best_length", "length < most", "length < 1")),
    ("guesses: no try after a bad time", "guesses paying", edit(DRAFTER + "Drafter.learn", "sequence.trust[self] = trust", "sequence.trust[self] = 0.0")),
    ("look ahead: hidden state of the token after", "looked-ahead llama",
        edit(AHEAD + "_known", "sequence.tokens[at + 1:at + 1 + len(hidden_ND)]", "sequence.tokens[at:at + len(hidden_ND)]")),
    ("look ahead: hidden states of wrong guesses stay", "looked-ahead llama",
        edit(AHEAD + "hear", "old_ND[:start - at]", "old_ND")),
    ("look ahead: the first row for the last", "looked-ahead llama",
        edit(AHEAD + "_compute", "torch.tensor(counts).cumsum(0) - 1", "torch.tensor(counts).cumsum(0) - torch.tensor(counts)")),
    ("look ahead: positions one late", "looked-ahead llama",
        edit(AHEAD + "propose", "len(s.tokens) + len(drafts[s]) - 2", "len(s.tokens) + len(drafts[s]) - 1")),
    ("look ahead: the model's hidden state over again", "looked-ahead llama",
        edit(AHEAD + "propose", "made_RD[torch.tensor(on)]", "ready_RD[torch.tensor(on)]")),
    ("look ahead: what was read is read again", "looked-ahead llama",
        edit(AHEAD + "_read", "(at + len(tokens), self.waiting[sequence][1][len(tokens):])", "(at + len(tokens), self.waiting[sequence][1])")),
)
# fmt: on
