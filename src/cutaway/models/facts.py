"""What a reader wants to know of a model first: a few numbers, each with the formula it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cutaway.models.cost import Cost, Term, hidden, width_of


@dataclass(frozen=True)
class Fact:
    """unit: "", "bytes" or "FLOP". A value that differs between layers is a text, "256, 512"."""

    key: str
    value: int | str
    unit: str = ""
    formula: str = ""


def facts(cost: Cost, dtype: str, context: int) -> list[Fact]:
    """Sizes from the spec; costs for weights and cache in `dtype` and a token that sees `context` tokens.

    Errors: an unknown dtype.
    """
    spec, kv = cost.spec, cost.kv_bytes_per_token(dtype)
    weights = f"{cost.parameters:,} × {width_of(dtype)}"
    attentions = [layer.attention for layer in spec.layers]
    found = [
        Fact("parameters", cost.parameters, formula=_groups(cost.by_part())),
        Fact("layers", len(spec.layers)),
        Fact("width", spec.width),
        Fact("heads", _one(a.heads for a in attentions)),
        Fact("kv_heads", _one(a.kv_heads for a in attentions)),
        Fact("head_dim", _one(a.head_dim for a in attentions)),
        Fact("ffn_width", _one(hidden(layer.ffn) for layer in spec.layers)),
        Fact("vocabulary", spec.vocab),
        Fact("context", spec.context),
        Fact("flops_per_token", cost.flops_per_token(context), "FLOP", _spelled(cost.per_token(context))),
        Fact("kv_bytes_per_token", kv.value, "bytes", kv.numbers),
        Fact("weight_bytes", cost.parameters * width_of(dtype), "bytes", weights),
    ]
    return [fact for fact in found if not spec.pooling or fact.key != "kv_bytes_per_token"]


def _one(values: Iterable[int]) -> int | str:
    distinct = sorted(set(values))
    return distinct[0] if len(distinct) == 1 else ", ".join(f"{v:,}" for v in distinct)


def _groups(terms: list[Term]) -> str:
    """ "embedding 28,311,552 + attention 26,542,080 + ...": norms of all places together."""
    sums: dict[str, int] = {}
    for term in terms:
        names = term.name.removeprefix("layers.*.").split(".")
        group = "norms" if names[-1].endswith("norm") else names[0]
        sums[group] = sums.get(group, 0) + term.value
    return " + ".join(f"{group} {value:,}" for group, value in sums.items())


def _spelled(terms: list[Term]) -> str:
    return " + ".join(f"{term.name} {term.value:,}" for term in terms)
