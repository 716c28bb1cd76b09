"""The engine: any number of sequences, one `step` at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch

from cutaway.engine.cache import KVCache, Spans
from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import sample
from cutaway.engine.sequence import Event, Sequence
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.text.tokenizer import Tokenizer


class TooLong(CutawayError):
    """A prompt that leaves no room for a reply in the context."""


class Engine:
    """Runs sequences on one decoder. Not thread-safe: one thread steps, see `cutaway.engine.service`.

    context: longest prompt plus reply, at most the model's own. budget: new tokens per step over all
    sequences, so that a long prompt is computed in chunks while others go on. running: sequences at a time.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, *, context: int | None = None, budget: int = 512, running: int = 16
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.context = min(context or model.spec.context, model.spec.context)
        self.budget, self.limit = budget, running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, prompt: list[int], params: SamplingParams, trace: int = 0) -> Sequence:
        """Queue a sequence; see `prepare`."""
        sequence = self.prepare(prompt, params, trace)
        self.waiting.append(sequence)
        return sequence

    def prepare(self, prompt: list[int], params: SamplingParams, trace: int = 0, kept: Iterable[int] = ()) -> Sequence:
        """A sequence that is not queued yet; any thread may ask for it. Errors: see `check`.

        An encoder-decoder reads the prompt with its encoder, and begins its reply after its start token.
        kept: tokens that the reply begins with; they count as its own, in max_tokens too.
        """
        reply, trace = [*kept], max(trace, params.top_logprobs)
        if not isinstance(self.model, EncoderDecoder):
            self.check(prompt + reply)
            return Sequence(prompt, params, self.tokenizer, trace, reply)
        self.check(prompt)
        self.check([start := self.model.spec.start, *reply])
        return Sequence([start], params, self.tokenizer, trace, reply, source=prompt)

    def check(self, prompt: list[int]) -> None:
        """Errors: no tokens, no room for a reply in the context (`TooLong`), ids beyond the vocabulary."""
        if not prompt:
            raise CutawayError("is empty", "prompt", "give at least one token")
        if len(prompt) >= self.context:
            raise TooLong(
                f"has {len(prompt)} tokens, the context holds {self.context} with the reply", "prompt", "shorten it"
            )
        if max(prompt) >= self.model.spec.vocab or min(prompt) < 0:
            raise CutawayError(f"has token ids outside 0 ... {self.model.spec.vocab - 1}", "prompt")

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence; its memory is free after the current step."""
        sequence.finish = sequence.finish or "abort"
        self._forget(sequence)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    @torch.inference_mode()
    def step(self) -> list[tuple[Sequence, Event]]:
        """Compute one batch of spans; the events of the sequences that got a token by it."""
        spans = self._plan()
        if not spans:
            return []
        device = self.model.device
        tokens_T = torch.tensor([t for s, n in spans for t in s.tokens[s.computed : s.computed + n]], device=device)
        positions_T = torch.cat([torch.arange(s.computed, s.computed + n, device=device) for s, n in spans])
        context = Spans([(self._cache(s), s.computed, n) for s, n in spans])
        hidden_TD = self.model(tokens_T, positions_T, context)
        ends = torch.tensor([n for _, n in spans]).cumsum(0) - 1
        for sequence, n in spans:
            sequence.computed += n
        ready = [(s, end) for (s, _), end in zip(spans, ends.tolist(), strict=True) if s.computed == len(s.tokens)]
        if not ready:
            return []
        logits_RV = self.model.logits(hidden_TD[[end for _, end in ready]])
        return [(s, self._advance(s, logits_V)) for (s, _), logits_V in zip(ready, logits_RV, strict=True)]

    def generate(self, prompt: list[int], params: SamplingParams, trace: int = 0) -> Iterator[Event]:
        """The events of one sequence, computed as they are asked for. Closing the iterator aborts it."""
        sequence = self.add(prompt, params, trace)
        try:
            while sequence.finish is None:
                yield from (event for owner, event in self.step() if owner is sequence)
        finally:
            self.abort(sequence)

    def _plan(self) -> list[tuple[Sequence, int]]:
        """Which sequences compute how many tokens: as many as they lack, in order of arrival.

        A long prompt does not hold up replies: whoever replies came before whoever still reads, and needs one token.
        """
        while self.waiting and len(self.running) < self.limit:
            self.running.append(self.waiting.popleft())
        spans, left = [], self.budget
        for sequence in self.running:
            n = min(len(sequence.tokens) - sequence.computed, left)
            if n > 0:
                spans.append((sequence, n))
                left -= n
        return spans

    def _cache(self, sequence: Sequence) -> KVCache:
        """What the sequence remembers; at first nothing but its source, read whole."""
        if sequence.cache is None:
            model, prompt = self.model, len(sequence.prompt)
            reach = min(self.context, prompt + sequence.params.max_tokens)
            sequence.cache = KVCache(model.spec, model.dtype, model.device, prompt + 64, reach)
            if isinstance(self.model, EncoderDecoder):
                source_M = torch.tensor(sequence.source, device=self.model.device)
                sequence.cache.memory_SD = self.model.encode(source_M, [len(source_M)])
        return sequence.cache

    def _advance(self, sequence: Sequence, logits_V: torch.Tensor) -> Event:
        choice = sample(logits_V, sequence.params, sequence.prompt, sequence.reply, trace=sequence.trace)
        event = sequence.commit(choice, room=self.context - len(sequence.tokens) - 1)
        if event.finish:
            self._forget(sequence)
        return event

    def _forget(self, sequence: Sequence) -> None:
        sequence.cache = None
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
