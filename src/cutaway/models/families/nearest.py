"""Which families come nearest to an unknown checkpoint, and what differs: by its tensors, then by its own name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cutaway.errors import CutawayError
from cutaway.models.families.table import Family, Row, spec_of

NUMBER = re.compile(r"\\\{[a-z]\\\}")


class Near(NamedTuple):
    """How much of a checkpoint a family accounts for. likeness: of names, 0 to 1. unknown: the first few tensors."""

    name: str
    explained: int
    tensors: int
    likeness: float
    unknown: tuple[str, ...]
    refused: str

    def __str__(self) -> str:
        parts = [f"{self.explained} of {self.tensors} tensors fit"] if self.tensors else []
        parts += [f"not {', '.join(map(repr, self.unknown))}"] if self.explained and self.unknown else []
        parts += [self.refused] if self.explained and self.refused else []
        return f"{self.name} ({'; '.join(parts)})" if parts else self.name


def nearest(
    names: Mapping[str, Family], name: str, config: Mapping[str, Any], tensors: Iterable[str], count: int = 2
) -> list[Near]:
    """The families that fit best. names: what each is called in this format. config, tensors: of the checkpoint."""
    held = sorted(tensors)
    found = [_near(theirs, family, name, config, held) for theirs, family in names.items()]
    best = sorted(found, key=lambda near: (near.explained, near.likeness), reverse=True)[:count]
    return [near for near in best if near.explained or near.likeness > 0.4]


def _near(theirs: str, family: Family, name: str, config: Mapping[str, Any], held: list[str]) -> Near:
    patterns = re.compile("|".join(_pattern(row, family.prefix) for row in (*family.rows, *family.gguf_rows)))
    unknown = [tensor for tensor in held if not patterns.fullmatch(tensor)]
    likeness = difflib.SequenceMatcher(None, name.lower(), theirs.lower()).ratio()
    return Near(theirs, len(held) - len(unknown), len(held), likeness, tuple(unknown[:2]), _refused(family, config))


def _pattern(row: Row, prefix: str) -> str:
    """The names that a row stands for, the family's prefix being optional."""
    name = NUMBER.sub(r"\\d+", re.escape(row.theirs.removeprefix(prefix)))
    return f"(?:{re.escape(prefix)})?{name}"


def _refused(family: Family, config: Mapping[str, Any]) -> str:
    """Why the family cannot read the configuration, if it cannot."""
    try:
        spec_of(family, config)
    except CutawayError as error:
        return error.what
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        return f"its configuration lacks {error}" if isinstance(error, KeyError) else "its configuration is other"
    return ""
