"""A smaller model as drafter (Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).

It has pages of its own. Of each sequence there is a shadow: the same tokens, and how many of them are in those pages.
Guesses are computed behind the last token, for all sequences together. Next time those that came true count as
computed, and what follows overwrites the others.
"""

from __future__ import annotations

from copy import copy

from cutaway.engine.drafter import ROW, Asked, Drafter, extend
from cutaway.engine.pages import Chain, Pages
from cutaway.engine.runner import Batch, Runner, ends_of, has_states, pages_for, salt
from cutaway.engine.sequence import Sequence
from cutaway.engine.span import Span
from cutaway.errors import CutawayError
from cutaway.models.cost import Cost


class DraftModel(Drafter):
    """budget: tokens a step, so that a long prompt is read little by little. cache: bytes for keys and values.

    Who finds no room in the pages gets no guesses.
    """

    def __init__(self, runner: Runner, *, most: int = 8, budget: int = 512, cache: int = 1 << 28) -> None:
        super().__init__(most)
        self.runner, self.budget, self.cache = runner, budget, cache
        self.shadows: dict[Sequence, Sequence] = {}

    def join(self, runner: Runner, context: int, running: int) -> None:
        """See `Drafter`. Errors: it has another vocabulary, or states, or an encoder."""
        own, theirs = self.runner.spec, runner.spec
        if own.vocab != theirs.vocab:
            raise CutawayError(f"knows {own.vocab} tokens, the model {theirs.vocab}", "draft model", "both must share")
        if has_states(own) or own.encoder or own.pooling:
            raise CutawayError("has states or is an encoder", "draft model", "name a decoder with attention alone")
        self.context, self.budget = min(context, own.context), max(self.budget, running)
        pages = pages_for(self.runner, self.context, running, self.cache)
        self.runner.allocate(pages, self.context, self.budget, running)
        self.pages = Pages(pages, self.runner.size)
        self.cost = Cost(own).active / Cost(theirs).active

    def propose(self, asked: Asked) -> list[list[int]]:
        """See `Drafter`."""
        most = {self._shadow(sequence): most for sequence, most in asked}
        spans = self._lacking([*most])
        while spans:
            ends = {s: len(s.tokens) + len(s.drafts) for s in self._step(spans) if len(s.drafts) < most[s]}
            spans = [Span(shadow, end - 1, 1) for shadow, end in ends.items() if self._fits(shadow, end, [*most])]
        return [shadow.drafts for shadow in most]

    def effort(self, sequence: Sequence) -> float:
        """See `Drafter`: it reads what it has not read yet."""
        read = self.shadows[sequence].computed if sequence in self.shadows else 0
        return self.cost * (1 + ROW * (len(sequence.tokens) - read))

    def forget(self, sequence: Sequence) -> None:
        """See `Drafter`."""
        if shadow := self.shadows.pop(sequence, None):
            self.pages.release(shadow.table)
            self.runner.forget(shadow)

    def _shadow(self, sequence: Sequence) -> Sequence:
        """With those of its drafts computed that came true; the last one never was."""
        if sequence not in self.shadows:
            shadow = self.shadows[sequence] = copy(sequence)  # whose tokens, prompt and reply are the same lists
            shadow.chain = Chain(salt(self.runner.spec, sequence.tenant, sequence.limit))
            shadow.adapter = None  # made for the other model
            shadow.table, shadow.drafts = self.pages.match(sequence.tokens, shadow.chain), []
            shadow.computed = shadow.cached = len(shadow.table) * self.pages.size
        shadow = self.shadows[sequence]
        for drafted, token in zip(shadow.drafts[:-1], shadow.tokens[shadow.computed :], strict=False):
            if drafted != token:
                break
            shadow.computed += 1
        shadow.drafts = []
        return shadow

    def _lacking(self, shadows: list[Sequence]) -> Batch:
        """What they have not computed, those first who lack least."""
        spans, left = [], self.budget
        for shadow in sorted(shadows, key=lambda s: len(s.tokens) - s.computed):
            count = min(len(shadow.tokens) - shadow.computed, left)
            if count > 0 and self._fits(shadow, shadow.computed + count, shadows):
                spans.append(Span(shadow, shadow.computed, count))
                left -= count
        return spans

    def _step(self, spans: Batch) -> list[Sequence]:
        """Compute the spans; who got a further guess and may get another one."""
        ended = [
            (span.sequence, end - 1)
            for span, end in zip(spans, ends_of(spans), strict=True)
            if span.start + span.count >= len(span.sequence.tokens)
        ]
        rows = self.runner.run(spans, [row for _, row in ended])
        for shadow, start, count in spans:
            shadow.computed = min(start + count, len(shadow.tokens))
            self.pages.seal(shadow.table, shadow.tokens, shadow.cached, shadow.computed, shadow.chain)
            shadow.cached = shadow.computed
        guessed = zip((shadow for shadow, _ in ended), rows, strict=True)
        return [shadow for shadow, logits in guessed if extend(shadow, shadow.drafts, logits)]

    def _fits(self, shadow: Sequence, end: int, busy: list[Sequence]) -> bool:
        """Whether there are pages for its first `end` tokens, those of who guesses nothing now given up if need be."""
        idle = (sequence for sequence, other in [*self.shadows.items()] if other not in busy)
        while end <= self.context and not self.pages.grow(shadow.table, end):
            if (sequence := next(idle, None)) is None:
                return False
            self.forget(sequence)
        return end <= self.context
