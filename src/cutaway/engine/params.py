"""How a sequence wants its tokens drawn, and when it wants to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.errors import CutawayError


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy. Filters (top_k, top_p, min_p, typical_p) and penalties are off at their defaults.

    repetition_penalty: factor on scores of tokens of prompt or reply (Keskar et al. 2019, arXiv:1909.05858).
    presence_penalty, frequency_penalty: subtracted once, or per occurrence, from a reply's tokens (OpenAI).
    logit_bias: added to the scores of these tokens. no_repeat_ngram: no run of so many tokens comes twice, 0 is off.
    stop_token_ids: tokens that end the reply, as the tokenizer's own do, and are not shown. min_tokens: none of these
    comes earlier. seed: the same seed, prompt and settings give the same reply. top_logprobs: alternatives told.
    prompt_logprobs: the same for each token of the prompt, which is then computed whole; None is off.
    priority: higher goes first. tenant: who asks; tenants share time fairly, and no cached text. timeout: seconds.
    constraint: what the reply may be. adapter: the loaded one to compute with, by name. prediction: what the reply will
    probably be; it changes nothing but the time that takes.
    Errors: a value outside its range, by name.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    no_repeat_ngram: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    max_tokens: int = 256
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    priority: int = 0
    tenant: str = ""
    timeout: float | None = None
    constraint: ConstraintSpec | None = None
    adapter: str = ""
    prediction: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, (holds, expected) in RANGES.items():
            value = getattr(self, name)
            if not (holds(value) and value != math.inf):  # comparisons take integers of any size
                raise CutawayError(f"must be {expected}, got {value}", name)
        if any(not s for s in self.stop):
            raise CutawayError("must not contain an empty string", "stop")
        if not all(token >= 0 and -100 <= bias <= 100 for token, bias in self.logit_bias.items()):
            raise CutawayError("must give token ids a bias between -100 and 100", "logit_bias")
        if self.min_tokens > self.max_tokens:
            raise CutawayError(f"must be at most max_tokens, {self.max_tokens}, got {self.min_tokens}", "min_tokens")

    @cached_property
    def plainly_greedy(self) -> bool:
        """Whether the best token is drawn, whatever came before."""
        changes = (self.temperature, self.presence_penalty, self.frequency_penalty, self.no_repeat_ngram)
        return not any(changes) and self.repetition_penalty == 1 and not self.logit_bias and not self.min_tokens


RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda v: v == 0 or 1e-6 <= v <= 100, "0 (greedy) or between 0.000001 and 100"),
    "top_k": (lambda v: v >= 0, "at least 0 (0 is off)"),
    "top_p": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "min_p": (lambda v: 0 <= v <= 1, "between 0 and 1"),
    "typical_p": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "repetition_penalty": (lambda v: 0 < v <= 100, "above 0 and at most 100 (1 is off)"),
    "presence_penalty": (lambda v: -2 <= v <= 2, "between -2 and 2"),
    "frequency_penalty": (lambda v: -2 <= v <= 2, "between -2 and 2"),
    "no_repeat_ngram": (lambda v: v >= 0, "at least 0 (0 is off)"),
    "min_tokens": (lambda v: v >= 0, "at least 0"),
    "max_tokens": (lambda v: v >= 1, "at least 1"),
    "top_logprobs": (lambda v: 0 <= v <= 100, "between 0 and 100"),
    "prompt_logprobs": (lambda v: v is None or 0 <= v <= 100, "between 0 and 100"),
    "priority": (lambda v: -100 <= v <= 100, "between -100 and 100"),
    "timeout": (lambda v: v is None or v > 0, "above 0 seconds"),
}
