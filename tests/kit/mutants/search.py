"""Mistakes in search."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

SEARCH = "cutaway.engine.search:"

# fmt: off
MUTANTS = mutants(
    ("beams: length penalty multiplies", "search beams", edit(SEARCH + "Beams.rank", "score /", "score *")),
    ("beams: the length of prompt and reply", "search beams", edit(SEARCH + "Group._hypothesis", "len(reply)", "len(beam.leaf.tokens)")),
    ("beams: an end outside the best is complete", "search beams", edit(SEARCH + "Group.advance", "best[:self.width] if", "best if")),
    ("beams: only as many candidates as beams", "search beams", edit(SEARCH + "Group.advance", "max(2, 1 + ends) * self.width", "self.width")),
    ("beams: the worst completed stay", "search beams", edit(SEARCH + "Group.advance", "-reply.rank", "reply.rank")),
    ("beams: stop at the first completed", "search beams", edit(SEARCH + "Group._may_improve", "len(self.complete) < self.width", "not self.complete")),
    ("beams: early stopping ignored", "search beams", edit(SEARCH + "Group._may_improve", "rules.early_stopping is not True", "True")),
    ("beams: never means now", "search beams", edit(SEARCH + "Group._may_improve", "rules.early_stopping == 'never'", "False")),
    ("beams: scores do not add up", "search beams", edit(SEARCH + "_continued", "head.score + s", "s")),
    ("beams: logits for log-probabilities", "search beams", edit(SEARCH + "_continued", "logits_V.log_softmax(-1)", "logits_V")),
    ("forks: pages are not copied", "search forks", edit(SEARCH + "Tree._fork", "self.engine.runner.copy(self.engine.scheduler.fork(parent, child))", "self.engine.scheduler.fork(parent, child)")),
    ("forks: leaves in another order", "search forks", edit(SEARCH + "Tree.logits", "self.leaves]", "self.leaves[::-1]]")),
    ("diverse: groups pay nothing", "search diverse", edit(SEARCH + "_continued", "group.rules.diversity * times", "0")),
    ("diverse: nothing is taken", "search diverse", edit(SEARCH + "beam_search", "taken.update(group.advance(grown))", "group.advance(grown)")),
    ("contrastive: likeness rewards", "search contrastive", edit(SEARCH + "contrastive_search", "best.values - alpha", "best.values + alpha")),
    ("contrastive: mean for maximum", "search contrastive", edit(SEARCH + "contrastive_search", ".amax(-1)", ".mean(-1)")),
    ("contrastive: lengths count", "search contrastive", edit(SEARCH + "contrastive_search", "F.normalize(part, dim=-1)", "part")),
    ("contrastive: forgets what it said", "search contrastive", edit(SEARCH + "contrastive_search", "torch.cat([known_TD, last_KD[chosen, None]])", "known_TD")),
    ("best of: the sum decides", "search choice", edit(SEARCH + "best_of", " / max(1, len(reply))", "")),
    ("best of: the worst", "search choice", edit(SEARCH + "best_of", "-means[i]", "means[i]")),
)
# fmt: on
