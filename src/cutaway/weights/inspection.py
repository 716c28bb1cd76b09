"""A checkpoint looked into: its tree, its figures and what it would take to run, without loading a weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.anatomy import Anatomist, Node
from cutaway.models.build import build
from cutaway.models.cost import Term
from cutaway.models.facts import Fact, facts
from cutaway.models.spec import Spec
from cutaway.weights.checkpoint import DTYPES, Checkpoint

CONTEXT = 2048  # tokens, if nobody says how many


@dataclass(frozen=True)
class Inspection:
    """stored: how many tensors of each type the file holds. parts, flops, memory: terms with formulas."""

    path: Path
    family: str
    kind: str
    spec: Spec
    stored: dict[str, int]
    context: int
    batch: int
    dtype: str
    facts: list[Fact]
    parts: list[Term]
    flops: list[Term]
    memory: list[Term]
    tree: Node

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        terms = {name: [t._asdict() for t in getattr(self, name)] for name in ("parts", "flops", "memory")}
        converted = {"path": str(self.path), "spec": self.spec.to_dict(), "tree": self.tree.to_dict()}
        return {**vars(self), **terms, **converted, "facts": [asdict(fact) for fact in self.facts]}


def inspect(opened: Checkpoint, context: int | None = None, batch: int = 1, dtype: str = "float32") -> Inspection:
    """What `opened` holds, and costs with `batch` sequences of `context` tokens in `dtype`.

    Errors: a context beyond the model's, an unknown dtype, tensors that the file lacks.
    """
    context = context_of(opened.spec, context)
    if dtype not in DTYPES:
        raise CutawayError(f"unknown dtype {dtype!r}", "dtype", f"known: {', '.join(DTYPES)}")
    model = build(opened.spec, "meta").to(DTYPES[dtype])
    model.cost.check(model)
    stored = Counter(opened.stored[name] for row in set(opened.bindings.values()) for name in row.theirs)
    return Inspection(
        path=opened.path,
        family=opened.family.name,
        kind=type(model).__name__.lower(),
        spec=opened.spec,
        stored=dict(stored.most_common()),
        context=context,
        batch=batch,
        dtype=dtype,
        facts=facts(model.cost, dtype, context),
        parts=model.cost.by_part(),
        flops=model.cost.per_token(context),
        memory=model.cost.memory(context, batch, dtype),
        tree=Anatomist(model, context, opened.stored_type).draw(),
    )


def context_of(spec: Spec, context: int | None) -> int:
    """A number of tokens that the model can see. Errors: more, or fewer than one."""
    if context is None:
        return min(CONTEXT, spec.context)
    if not 1 <= context <= spec.context:
        raise CutawayError(f"must be between 1 and {spec.context:,}, the model's, got {context:,}", "context")
    return context
