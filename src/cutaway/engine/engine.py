"""The engine: any number of sequences, one `step` at a time.

Scheduler.plan ──► spans ──► Runner.run ──► logits of the rows wanted ──► sample ──► Sequence.commit ──► events
      ▲                                                                                   │
      └───────────────────────────── Scheduler.commit ◄───────────────────────────────────┘
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch

from cutaway.engine.adapters import Adapters
from cutaway.engine.draft_model import DraftModel
from cutaway.engine.drafter import Drafter, InTurn, Pass, Predicted, PromptLookup
from cutaway.engine.look_ahead import LookAhead
from cutaway.engine.pages import Chain, Pages
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Batch, Modules, Runner, ends_of, has_states, pages_for, runner_of, salt
from cutaway.engine.sampler import Logits, sample
from cutaway.engine.scheduler import Scheduler
from cutaway.engine.sequence import Event, Sequence
from cutaway.engine.span import Span
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import Loaded

log = logging.getLogger(__name__)

LOOKED = 64  # rows of a step that are looked at beside those that something is drawn from


class TooLong(CutawayError):
    """A prompt that leaves no room for a reply in the context."""


class TimedOut(CutawayError):
    """A sequence whose deadline passed before it ended."""


class Failed(CutawayError):
    """Computing a sequence failed, or drawing from what was computed."""


Told = tuple[Sequence, Event | CutawayError]
Noted = tuple[int, int, int, int, int]


class Step(NamedTuple):
    """What one step did. seconds: of the runner, and of all. spans: (who, start, count, drafts, accepted).

    who: a sequence's number by arrival. pages: free, cached, held. replied: tokens that were drawn.
    """

    ended: float
    seconds: tuple[float, float]
    spans: tuple[Noted, ...]
    waiting: int
    pages: tuple[int, int, int]
    replied: int = 0


@dataclass
class Stats:
    """Counted since the beginning. tokens: computed. replied: drawn. drafted, accepted: by place in the draft."""

    steps: int = 0
    tokens: int = 0
    replied: int = 0
    drafted: Counter[int] = field(default_factory=Counter)
    accepted: Counter[int] = field(default_factory=Counter)


class Engine:
    """Runs sequences on one decoder. Not thread-safe: one thread steps, see `cutaway.engine.service`.

    model: a decoder, computed by its own modules, or another `Runner`. context: longest prompt plus reply, at most the
    model's own and what the cache holds. budget: new tokens per step over all sequences, so that a long prompt is
    computed in chunks while others go on. running: sequences at a time. cache: bytes for keys and values; by
    default the runner's `room`. drafter: proposes tokens, so that a step may give several; they are those that would
    have come anyway.

    tolerant: what fails is told to the sequence whose fault it is, instead of raised.
    """

    tolerant = False

    def __init__(
        self, model: Decoder | Runner, tokenizer: Tokenizer, *, context: int | None = None, budget: int = 512,
        running: int = 16, cache: int | None = None, drafter: Drafter | None = None,
    ) -> None:  # fmt: skip
        self.runner: Runner = model if hasattr(model, "allocate") else Modules(model)  # type: ignore[arg-type,assignment]
        self.tokenizer, self.drafter = tokenizer, drafter
        spec, size = self.runner.spec, self.runner.size
        wanted, running = min(context or spec.context, spec.context), min(running, budget)
        pages = pages_for(self.runner, wanted, running, self.runner.room if cache is None else cache)
        self.context, self.limit = min(wanted, pages * size), running
        self.scheduler: Scheduler[Sequence] = Scheduler(
            Pages(pages, size), places=running, budget=budget, queue=sys.maxsize, most=self._most
        )
        self.runner.allocate(pages, self.context, budget, budget)
        if drafter:
            drafter.join(self.runner, self.context, running)
        self.passes = Pass()
        for member in drafter.members() if drafter else ():
            member.passes = self.passes
        self.adapters = Adapters(spec, self.runner.fit)
        self.stats, self.steps = Stats(), deque[Step](maxlen=256)

    def add(self, prompt: list[int], params: SamplingParams, trace: int = 0) -> Sequence:
        """Queue a sequence; see `prepare`."""
        sequence = self.prepare(prompt, params, trace)
        self.scheduler.add(sequence)
        return sequence

    def prepare(self, prompt: list[int], params: SamplingParams, trace: int = 0, kept: Iterable[int] = ()) -> Sequence:
        """A sequence that is not queued yet; any thread may ask for it.

        Errors: see `check`; an unknown adapter; ids of `params` beyond the vocabulary.

        An encoder-decoder reads the prompt with its encoder, and begins its reply after its start token.
        kept: tokens that the reply begins with; they count as its own, in max_tokens too.
        """
        reply, source, spec = [*kept], [], self.runner.spec
        if spec.encoder:
            self.check(prompt)
            source, prompt = prompt, [spec.start]
        self.check(prompt + reply)
        self._known(params.logit_bias, "logit_bias")
        self._known(params.stop_token_ids, "stop_token_ids")
        self._known(params.prediction, "prediction")
        limit = min(self.context, len(prompt) + params.max_tokens)
        adapter = self.adapters.find(params.adapter)
        looks = params.prompt_logprobs is not None
        if looks and spec.encoder:
            raise CutawayError("are those of a source, which is not predicted", "prompt_logprobs")
        chain = Chain(os.urandom(16) if looks else salt(spec, params.tenant, limit, adapter))  # all is computed anew
        return Sequence(
            prompt, params, self.tokenizer, max(trace, params.top_logprobs), reply, source, limit, chain,
            params.priority, params.tenant, None if params.timeout is None else time.monotonic() + params.timeout,
            params.constraint.compile(self.tokenizer) if params.constraint else None, adapter,
        )  # fmt: skip

    def check(self, prompt: list[int]) -> None:
        """Errors: no tokens, no room for a reply in the context (`TooLong`), ids beyond the vocabulary."""
        if not prompt:
            raise CutawayError("is empty", "prompt", "give at least one token")
        if len(prompt) >= self.context:
            raise TooLong(
                f"has {len(prompt)} tokens, the context holds {self.context} with the reply", "prompt", "shorten it"
            )
        self._known(prompt, "prompt")

    def _known(self, ids: Iterable[int], where: str) -> None:
        """Errors: one is beyond the vocabulary."""
        vocab = self.runner.spec.vocab
        if (unknown := next((token for token in ids if not 0 <= token < vocab), None)) is not None:
            raise CutawayError(f"has token id {unknown}, the vocabulary's {vocab} ids end at {vocab - 1}", where)

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence; its memory is free after the current step."""
        self.scheduler.cancel(sequence)
        self._forget(sequence)

    @property
    def busy(self) -> bool:
        return self.scheduler.busy

    @torch.inference_mode()
    def step(self) -> list[Told]:
        """Compute one batch of spans; what that brought to whom."""
        began = time.monotonic()
        spans = self.scheduler.plan(began)
        told: list[Told] = [(s, TimedOut("its deadline has passed")) for s in self.scheduler.late]
        for sequence in self.scheduler.late:
            self._forget(sequence)
        if not spans:
            return told
        noted, self._ran = list[Noted](), 0.0
        told += self._compute(spans, began, noted)
        self._draft([*dict.fromkeys(sequence for sequence, _ in told if not sequence.finish)])
        self._note(began, self._ran, noted, sum(isinstance(event, Event) for _, event in told))
        return told

    def _compute(self, spans: Batch, began: float, noted: list[Noted]) -> list[Told]:
        """Run spans and draw from them; if together they cannot be run, each by itself."""
        rows, told, asked = [*zip(_looked(spans), _wanted(spans), strict=True)], list[Told](), time.monotonic()
        try:
            logits = iter(self.runner.run(spans, [row for looked, some in rows for row in (*looked, *some)]))
        except Exception as error:
            if not self.tolerant:
                raise
            if len(spans) == 1 or has_states(self.runner.spec):  # nobody knows how far states have gone on
                return [each for span in spans for each in self._failed(span, error)]
            return [each for span in spans for each in self._compute([span], began, noted)]
        self._ran += time.monotonic() - asked
        for span, (looked, some) in zip(spans, rows, strict=True):
            drafts, span.sequence.began = len(span.sequence.drafts), span.sequence.began or began
            seen, drawn = [*islice(logits, len(looked))], [*islice(logits, len(some))]
            try:
                span.sequence.look(seen)
                brought = self._advance(span, drawn)
            except Exception as error:
                brought = self._failed(span, error)
            told += brought
            noted.append((span.sequence.rank[1], span.start, span.count, drafts, max(0, len(brought) - 1)))
        return told

    def _failed(self, span: Span[Sequence], error: Exception) -> list[Told]:
        """The end of a sequence. Errors: this one, unless `tolerant`."""
        if not self.tolerant:
            raise error
        log.error("a sequence failed", exc_info=error)
        self.scheduler.fail(span.sequence)
        self._forget(span.sequence)
        return [(span.sequence, Failed("the server failed to answer this request; its log says why"))]

    def generate(self, prompt: list[int], params: SamplingParams, trace: int = 0) -> Iterator[Event]:
        """The events of one sequence, computed as they are asked for. Closing the iterator aborts it."""
        sequence = self.add(prompt, params, trace)
        try:
            while sequence.finish is None:
                for event in [event for owner, event in self.step() if owner is sequence]:
                    if isinstance(event, CutawayError):
                        raise event
                    yield event
        finally:
            self.abort(sequence)

    def _advance(self, span: Span[Sequence], rows: list[Logits]) -> list[Told]:
        """Draw from each row as long as the drafts say the same; none if the span does not reach the end."""
        sequence, events = span.sequence, list[Event | CutawayError]()
        for logits, draft in zip(rows, [*sequence.drafts, -1], strict=False):
            try:
                events.append(event := self._draw(sequence, logits))
            except CutawayError as error:  # its constraint can go no further; the others can
                sequence.finish = "error"
                events.append(error)
                break
            if event.choice.token != draft or sequence.finish:
                break
        accepted = max(0, len(events) - 1)
        if sequence.drafter and sequence.drafts:
            sequence.drafter.learn(sequence, len(sequence.drafts), accepted)
        self.scheduler.commit(span, accepted)
        if sequence.finish:
            self._forget(sequence)
        return [(sequence, event) for event in events]

    def _draw(self, sequence: Sequence, logits: Logits) -> Event:
        constraint = sequence.constraint
        choice = sample(
            logits, sequence.params, sequence.prompt, sequence.reply, trace=sequence.trace,
            ends=() if constraint and constraint.done else sequence.ends,  # it knows better than min_tokens
            mask_W=constraint.mask() if constraint else None,
        )  # fmt: skip
        return sequence.commit(choice, room=self.context - len(sequence.tokens) - 1)

    def _draft(self, sequences: list[Sequence]) -> None:
        """What their constraints leave no choice about, else what the drafter guesses."""
        if has_states(self.runner.spec):
            return
        pays = len(sequences) == 1 or self.passes.checking(len(sequences)) < 1  # to say at once what is said anyway
        try:
            for sequence in sequences:
                sequence.drafter, sequence.drafts = None, []
                if sequence.constraint and pays:
                    sequence.drafts = sequence.constraint.forced()
            if self.drafter and sequences:
                self.drafter.draft(sequences)
        except Exception:
            if not self.tolerant:
                raise
            log.exception("guessing failed")  # replies do not need it
            for sequence in sequences:
                sequence.drafts = []
                if self.drafter:
                    self.drafter.forget(sequence)

    def _most(self, sequence: Sequence) -> int:
        """Who looks at all rows gets few at a time: each is a distribution over the vocabulary."""
        return max(1, LOOKED // sum(bool(s.unseen) for s in self.scheduler.running)) if sequence.unseen else sys.maxsize

    def _forget(self, sequence: Sequence) -> None:
        self.runner.forget(sequence)
        if self.drafter:
            self.drafter.forget(sequence)

    def _note(self, began: float, ran: float, spans: list[Noted], replied: int) -> None:
        pages, ended = self.scheduler.pages, time.monotonic()
        self.stats.steps += 1
        self.stats.replied += replied
        if spans and all(count == 1 + drafts for _, _, count, drafts, _ in spans):
            self.passes.note(sum(count for _, _, count, _, _ in spans), ran)
        for _, _, count, drafts, accepted in spans:
            self.stats.tokens += count
            self.stats.drafted.update(range(drafts))
            self.stats.accepted.update(range(accepted))
        room = pages.free, pages.cached, pages.held
        waiting = len(self.scheduler.waiting)
        self.steps.append(Step(ended, (ran, ended - began), tuple(spans), waiting, room, replied))


def engine_of(
    loaded: Loaded,
    *,
    speculate: bool = False,
    draft: Loaded | None = None,
    cache_dtype: str | None = None,
    **limits: Any,
) -> Engine:
    """An engine for a decoder: on native kernels if it was loaded to run as stored and they know its architecture.

    speculate: guess tokens from the text so far, and with the model's blocks ahead where they run. draft: a smaller
    model that guesses what these leave. cache_dtype: of keys and values, see `runner_of`. Errors: of `runner_of`; the
    two models' vocabularies differ.
    """
    runner, drafters = runner_of(loaded, cache_dtype), list[Drafter]([Predicted()])
    if speculate:
        drafters += [PromptLookup(), *([LookAhead()] if isinstance(runner, Modules) and runner.spec.ahead else [])]
    if draft:
        if draft.tokenizer.recipe.vocab != loaded.tokenizer.recipe.vocab:
            raise CutawayError(f"{draft.name} has other tokens than {loaded.name}", "draft model", "they must agree")
        drafters.append(DraftModel(runner_of(draft)))
    limits.setdefault("drafter", InTurn(*drafters))
    return Engine(runner, loaded.tokenizer, **limits)


def _looked(spans: Batch) -> list[range]:
    """Per span the rows that say what the model thought of the prompt's next tokens, if somebody wants to know."""
    ends, rows = ends_of(spans), list[range]()
    for (sequence, start, count), end in zip(spans, ends, strict=True):
        first, last = max(start, sequence.unseen.start), min(start + count, sequence.unseen.stop)
        rows.append(range(end - (start + count) + first, end - (start + count) + last))
    return rows


def _wanted(spans: Batch) -> list[list[int]]:
    """Per span the rows whose logits say what follows: of its sequence's last token, and of the drafts after it."""
    rows = []
    for (sequence, start, count), end in zip(spans, ends_of(spans), strict=True):
        beyond = start + count - len(sequence.tokens)
        rows.append([*range(end - 1 - beyond, end)] if beyond >= 0 else [])
    return rows
