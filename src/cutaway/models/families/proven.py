"""What was proven of each family, as `tools/prove_families.py` wrote it down: errors against transformers, float64."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutaway.models.families import FAMILIES
from cutaway.models.families.table import Family

RECORD = Path(__file__).with_name("proven.json")
PAPER = re.compile(r"arXiv:\d{4}\.\d{5}")


@dataclass(frozen=True)
class Proven:
    """One family. kind: decoder, encoder or encoder-decoder. variants: how many models of transformers it was held to.

    values, gradients, cache: the largest relative errors seen; cache is None for encoders, which need none.
    replies: whether the engine's greedy replies are those of transformers, token for token.
    """

    name: str
    about: str
    papers: tuple[str, ...]
    kind: str
    architectures: tuple[str, ...]
    gguf: str
    variants: int
    values: float
    gradients: float
    cache: float | None
    replies: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def proven() -> list[Proven]:
    """Every family and what is on record for it."""
    twins = json.loads(RECORD.read_text())["twins"]
    return [
        _of(family, [found for twin, found in twins.items() if twin.partition("-")[0] == family.name])
        for family in FAMILIES.values()
    ]


def versions() -> dict[str, str]:
    """Of the packages that families were compared with."""
    return json.loads(RECORD.read_text())["versions"]


def _of(family: Family, twins: list[dict[str, float]]) -> Proven:
    said = importlib.import_module(f"cutaway.models.families.{family.name}").__doc__ or ""

    def worst(kind: str) -> float:
        return max((found[kind] for found in twins if kind in found), default=0.0)

    replies = any("generation" in found for found in twins)
    return Proven(
        name=family.name,
        about=" ".join(said.partition("\n\n")[0].split()),
        papers=tuple(dict.fromkeys(PAPER.findall(said))),
        kind=_kind(family),
        architectures=family.architectures,
        gguf=family.gguf,
        variants=len(twins),
        values=worst("values"),
        gradients=worst("gradients"),
        cache=worst("cache") if replies else None,
        replies=replies,
    )


def _kind(family: Family) -> str:
    if family.pools:
        return "encoder"
    return "encoder-decoder" if any(row.ours[:8] == "encoder." for row in family.rows) else "decoder"
