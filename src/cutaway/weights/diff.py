"""What two checkpoints differ in: configuration, tensors, what every module makes of a prompt, and what comes out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor

from cutaway.models.compare import Difference, Divergence, Setting, compare, difference, first, settings
from cutaway.weights.sides import Answer, Side

PROMPT = "The capital of France is Paris. 法国的首都是巴黎。 def add(a, b): return a + b  # 1 + 2 = 3"


class Stored(NamedTuple):
    """A tensor: how each side stores it ("" if it has none), and how far apart its numbers are."""

    name: str
    a: str
    b: str
    gap: Difference


class Outcome(NamedTuple):
    """What comes out in the end. kl_mean, kl_max: KL(A || B) of the next token in nats, over positions.

    agreement: share of positions where both have the same best token. cosine: the least between hidden states of an
    encoder, which has no tokens to predict. None where it does not apply.
    """

    gap: Difference
    kl_mean: float | None = None
    kl_max: float | None = None
    agreement: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that `diff` found. tensors: those that differ. modules: all that both sides have, as they finish."""

    a: str
    b: str
    tokens: int
    tolerance: float
    settings: list[Setting]
    tensors: list[Stored]
    modules: list[Divergence]
    outcome: Outcome

    @property
    def first(self) -> Divergence | None:
        """The first module that differs by more than the tolerance."""
        return first(self.modules, self.tolerance)

    @property
    def same(self) -> bool:
        """Nothing differs by more than the tolerance, and no setting at all."""
        tensors = all(t.gap.relative <= self.tolerance for t in self.tensors)
        return not self.settings and tensors and self.first is None and self.outcome.gap.relative <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes its name."""
        found = self.first
        return _plain(
            {
                **asdict(self),
                "settings": [s._asdict() for s in self.settings],
                "tensors": [{**t._asdict(), "gap": t.gap._asdict()} for t in self.tensors],
                "modules": [_module(d) for d in self.modules],
                "outcome": {**self.outcome._asdict(), "gap": self.outcome.gap._asdict()},
                "first": found and {**_module(found), "where": found.where(self.tolerance)},
                "same": self.same,
            }
        )


def diff(a: Side, b: Side, ids: list[int], tolerance: float) -> Report:
    """Compare two sides on one sequence of tokens. tolerance: relative, for tensors and modules alike."""
    answer_a, answer_b = a.answer(ids), b.answer(ids)
    return Report(
        a=a.name,
        b=b.name,
        tokens=len(ids),
        tolerance=tolerance,
        settings=settings(a.spec, b.spec),
        tensors=tensors(a, b),
        modules=compare(answer_a.traces, answer_b.traces),
        outcome=outcome(answer_a, answer_b, decoder=a.spec.head is not None),
    )


def tensors(a: Side, b: Side) -> list[Stored]:
    """The tensors whose numbers differ, or that one side lacks."""
    found = []
    for name in dict.fromkeys([*a.tensors, *b.tensors]):
        left, right = (side.stored_type(name) if name in side.tensors else "" for side in (a, b))
        known = left and right
        gap = difference(a.tensors[name], b.tensors[name]) if known else Difference(math.inf, math.inf)
        if gap.absolute != 0:
            found.append(Stored(name, left, right, gap))
    return found


def outcome(a: Answer, b: Answer, decoder: bool) -> Outcome:
    """How far apart the results are, in the measure that fits the kind of model."""
    left_TN, right_TN = a.result_TN.double(), b.result_TN.double()
    gap = difference(left_TN, right_TN)
    if left_TN.shape != right_TN.shape:
        return Outcome(gap)
    if not decoder:
        return Outcome(gap, cosine=float(_cosine(left_TN, right_TN).min()))
    log_a, log_b = left_TN.log_softmax(-1), right_TN.log_softmax(-1)
    kl_T = (log_a.exp() * (log_a - log_b)).sum(-1).clamp(min=0)  # rounding can make nothing a little less
    alike = (left_TN.argmax(-1) == right_TN.argmax(-1)).double().mean()
    return Outcome(gap, float(kl_T.mean()), float(kl_T.max()), float(alike))


def _cosine(a_TN: Tensor, b_TN: Tensor) -> Tensor:
    return (a_TN * b_TN).sum(-1) / (a_TN.norm(dim=-1) * b_TN.norm(dim=-1))


def _module(d: Divergence) -> dict[str, Any]:
    return {"module": d.module, "entered": d.entered._asdict(), "left": d.left._asdict()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
