"""What the engine's labs replay: requests without text for the scheduler alone, prompts and settings for a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from cutaway.engine.engine import Engine
from cutaway.engine.pages import Chain
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Batch, Runner
from cutaway.engine.sampler import Logits
from cutaway.labs.subject import TEXT
from cutaway.weights.checkpoint import Loaded, load


@dataclass(eq=False)
class Request:
    """What a scheduler asks of a sequence, and no model behind it: tokens are numbers that mean nothing."""

    tokens: list[int]
    limit: int
    drafts: list[int] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)
    priority: int = 0
    tenant: str = ""
    deadline: float | None = None
    finish: str | None = None
    computed: int = 0
    cached: int = 0
    table: list[int] = field(default_factory=list)
    rank: tuple[float, int] = (0, 0)
    awaited: int = 0
    preempted: int = 0


@lru_cache(maxsize=1)
def stored(source: str) -> Loaded:
    """The model that `source` names, its weights as the file stores them. Errors: loading's."""
    with torch.inference_mode(False):
        return load(source, "stored")


class Overheard:
    """A runner whose last logits can be looked at: values_RV."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.values_RV = runner, torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def run(self, spans: Batch, wanted: list[int]) -> list[Logits]:
        """See `Runner`."""
        logits = self.runner.run(spans, wanted)
        if logits:  # a piece of a long prompt has none
            self.values_RV = torch.stack([row.values_V for row in logits])
        return logits


def greedy(count: int, tenant: str = "") -> SamplingParams:
    """Exactly `count` of the likeliest tokens. Texts of different tenants share no pages."""
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, tenant=tenant)


def prompts(loaded: Loaded, lengths: list[int]) -> list[list[int]]:
    """Stretches of prose; each begins with another token, so that no two have a beginning in common."""
    ids, first = loaded.tokenizer.encode(TEXT), loaded.checkpoint.spec.vocab // 2
    return [[first + i, *(ids[(7 * i + j) % len(ids)] for j in range(n - 1))] for i, n in enumerate(lengths)]


def finish(engine: Engine) -> int:
    """Step until nothing is left to do; how many steps that took."""
    before = engine.stats.steps
    while engine.busy:
        engine.step()
    return engine.stats.steps - before
