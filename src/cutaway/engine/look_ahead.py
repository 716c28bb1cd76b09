"""Blocks for multi-token prediction as drafter (DeepSeek-V3, 2024, arXiv:2412.19437, section 2.2).

The model's first block ahead turns the hidden state of position t and token t+1 into a guess at token t+2; a further
guess takes the block's own hidden state in place of the model's. Its keys and values are in the pages of the sequence,
as those of a further layer. Position t is read when token t+1 is known; until then its hidden state waits here.

(A shared page's last place knows the token that came next for whoever filled it. If another came for who shares it, a
guess may be worse for that, never a reply.)
"""

from __future__ import annotations

from itertools import compress

import torch
from torch import Tensor

from cutaway.engine.cache import Spans
from cutaway.engine.drafter import Asked, Drafter, extend
from cutaway.engine.runner import Batch, Modules, Runner
from cutaway.engine.sampler import Logits
from cutaway.engine.sequence import Sequence
from cutaway.errors import CutawayError
from cutaway.models.cost import Cost

Part = tuple[Sequence, int, list[int]]  # positions from the second on, each with the token after it


class LookAhead(Drafter):
    """waiting: for each sequence the first position that is not read, and the hidden states from there on, [N, D]."""

    def __init__(self, most: int = 1) -> None:
        super().__init__(most)
        self.waiting: dict[Sequence, tuple[int, Tensor]] = {}

    def join(self, runner: Runner, context: int, running: int) -> None:
        """See `Drafter`. Errors: the model has no block ahead, or does not run on its own modules."""
        if not isinstance(runner, Modules) or not runner.spec.ahead:
            raise CutawayError("has no blocks that look ahead, or runs without them", "model", "guess in another way")
        self.runner, runner.hear = runner, self.hear
        cost = Cost(runner.spec)
        block = sum(part.parameters * part.active for part in cost.parts if part.module.startswith("ahead.0."))
        self.cost = float(block + runner.spec.vocab * runner.spec.width) / cost.active

    def hear(self, spans: Batch, hidden_TD: Tensor) -> None:
        """Keep the hidden states of a step; read them where enough are known to be worth it."""
        rows = hidden_TD.split([span.count for span in spans])
        for (sequence, start, _), new_ND in zip(spans, rows, strict=True):
            at, old_ND = self.waiting.get(sequence, (start, new_ND[:0]))
            if not at <= start <= at + len(old_ND):  # it begins again
                at, old_ND = start, new_ND[:0]
            self.waiting[sequence] = at, torch.cat([old_ND[: start - at], new_ND])  # without those of wrong guesses
        if long := [span.sequence for span in spans if len(self._known(span.sequence)[2]) >= self.runner.size]:
            self._read(long)

    def propose(self, asked: Asked) -> list[list[int]]:
        """See `Drafter`."""
        drafts: dict[Sequence, list[int]] = {sequence: [] for sequence, _ in asked}
        most, going = dict(asked), [*drafts]
        ready_RD, made_RD = self._read(going)
        while going:
            rows = Logits.each(self.runner.model.logits(ready_RD).float().cpu())
            on = [
                extend(s, drafts[s], logits) and self._more(s, drafts[s], most[s])
                for s, logits in zip(going, rows, strict=True)
            ]
            going = [*compress(going, on)]
            if going:
                parts = [(s, len(s.tokens) + len(drafts[s]) - 2, drafts[s][-1:]) for s in going]
                ready_RD, made_RD = self._compute(parts, made_RD[torch.tensor(on)])
        return [*drafts.values()]

    def forget(self, sequence: Sequence) -> None:
        """See `Drafter`."""
        self.waiting.pop(sequence, None)

    def _known(self, sequence: Sequence) -> Part:
        """The positions that wait, up to the last whose next token is known."""
        at, hidden_ND = self.waiting[sequence]
        return sequence, at, sequence.tokens[at + 1 : at + 1 + len(hidden_ND)]

    def _more(self, sequence: Sequence, drafts: list[int], most: int) -> bool:
        """Whether the last guess shall be read too, and has a place in the sequence's pages: there are no others."""
        return len(drafts) < most and len(sequence.tokens) + len(drafts) - 2 < len(sequence.table) * self.runner.size

    def _read(self, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
        """Compute what waits and is known; what `_compute` gives."""
        parts = [self._known(sequence) for sequence in sequences]
        hidden_TD = torch.cat([self.waiting[sequence][1][: len(tokens)] for sequence, _, tokens in parts])
        for sequence, at, tokens in parts:
            self.waiting[sequence] = at + len(tokens), self.waiting[sequence][1][len(tokens) :]
        return self._compute(parts, hidden_TD)

    def _compute(self, parts: list[Part], hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Of each part's last position what `look_ahead` gives."""
        model, counts = self.runner.model, [len(tokens) for _, _, tokens in parts]
        next_T = torch.tensor([token for _, _, tokens in parts for token in tokens], device=model.device)
        positions_T = torch.cat([torch.arange(at, at + n) for (_, at, _), n in zip(parts, counts, strict=True)])
        context = Spans([(self.runner.memories[s], at, len(tokens)) for s, at, tokens in parts])
        ready_TD, made_TD = model.look_ahead(hidden_TD, next_T, positions_T.to(model.device), context)
        last_R = torch.tensor(counts).cumsum(0) - 1
        return ready_TD[last_R], made_TD[last_R]
