"""Mistakes in the profile of an engine, and in the labs on deployments."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

PROFILE = "cutaway.engine.profile:Profile."
LABS = "cutaway.labs.engine."
DIAGNOSIS, LADDER, TARGETS = (
    LABS + "bottleneck_diagnosis:",
    LABS + "optimization_ladder:",
    LABS + "targets_by_application:",
)

# fmt: off
MUTANTS = mutants(
    ("profile: counted twice", "profile clocks", edit(PROFILE + "clocked", "took - self._inner.pop()", "took - 0 * self._inner.pop()")),
    ("profile: only the last call inside", "profile clocks", edit(PROFILE + "clocked", "self._inner[-1] += took", "self._inner[-1] = took")),
    ("profile: the last call of a part", "profile clocks", edit(PROFILE + "clocked", "self.parts[part] += took", "self.parts[part] = took")),
    ("profile: a request without its last step", "profile request", edit(PROFILE + "request", "self.took[sequence][-1] + 1", "self.took[sequence][-1]")),
    ("profile: no wait between steps", "profile request", edit(PROFILE + "request", "sequence.began - asked + between", "sequence.began - asked")),
    ("profile: waits from the first step on", "profile request", edit(PROFILE + "request", "times[-1][1] - asked", "times[-1][1] - times[0][0]")),
    ("diagnosis: what is planned counts as computed", "diagnosis repeated", edit(DIAGNOSIS + "repeated", "min(done[other], common(texts[who], texts[other]))", "common(texts[who], texts[other])")),
    ("diagnosis: texts that differ count as the same", "diagnosis repeated", edit(DIAGNOSIS + "repeated", "min(done[other], common(texts[who], texts[other]))", "done[other]")),
    ("diagnosis: what was computed once is forgotten", "diagnosis repeated", edit(DIAGNOSIS + "repeated", "max(done[who], start + count)", "start")),
    ("diagnosis: a count of sorts, not of numbers", "diagnosis sorting", edit(DIAGNOSIS + "Sorting.__torch_dispatch__", "args[0].numel()", "1")),
    ("ladder: logits of rejected guesses", "ladder heard", edit(LADDER + "overheard", "for at, i in rows}", "for at, i in rows if span.start + at not in heard}")),
    ("ladder: rungs that hang in the air", "ladder rungs", edit(LADDER + "switched", "below not in found", "False")),
    ("ladder: any order of rungs", "ladder rungs", edit(LADDER + "switched", "rung for rung in RUNGS if rung in found", "rung for rung in found")),
    ("targets: who arrives later is in flight already", "targets in flight", edit(TARGETS + "in_flight", "a.at for a in answers", "0.0 for a in answers")),
    ("targets: one target is enough", "targets met", edit(TARGETS + "met", "all(some)", "any(some)")),
    ("targets: gaps from the request on", "targets met", edit(TARGETS + "met", "a.times[-1] - a.times[0]", "a.times[-1] - a.at")),
    ("targets: the knee at the rate tried before", "targets knee", edit(TARGETS + "knee", "slow + (fast - slow) * (before - GOOD) / (before - after)", "slow")),
    ("targets: the largest limit", "targets knee", edit(TARGETS + "recommended", "min(", "max(")),
    ("targets: arrivals as if one a second came", "targets clock", edit(TARGETS + "serve", "Answer(ask.at / rate, [])", "Answer(ask.at, [])")),
    ("targets: the clock stands while a step lasts", "targets clock", edit(TARGETS + "serve", "clock += lasts(engine.steps[-1])", "clock += 1.0")),
)
# fmt: on
