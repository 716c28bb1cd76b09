"""What is wrong with a JSON Schema, and where, before a reply is made to follow it.

The grammar engine says that a schema cannot be kept, but not which part of it is to blame; and it does not notice a
schema that no finite value satisfies, such as an object that must contain one of its own kind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from cutaway.engine.constraints.json_schema import parts, resolve
from cutaway.errors import CutawayError

DEEPEST = 64
BROADEST = 1_000_000  # sum over objects of the square of their properties: the time to compile them is as long
PATIENCE = 0.5  # seconds to look for the part that is to blame
FINITE_WORK = 20_000  # parts looked at


def parsed(source: str, where: str) -> Any:
    """The JSON of a text. Errors: it is none."""
    try:
        return json.loads(source)
    except ValueError as error:
        raise CutawayError(f"is not JSON: {error}", where) from None


def check(schema: Any, where: str, reason: Callable[[Any], str]) -> None:
    """Nothing if a reply can follow the schema. reason: why a schema cannot be kept, "" if it can.

    Errors: not a schema, too deep, not supported, contradictory; with the path of the part to blame.
    """
    if not isinstance(schema, dict | bool):
        raise CutawayError(f"a schema is an object or a boolean, not {type(schema).__name__}", where)
    if _depth(schema) > DEEPEST:
        raise CutawayError(f"is nested more than {DEEPEST} deep", where, "make it flatter")
    counts = [_width(part) for _, part in parts(schema)]
    if sum(n * n for n in counts) > BROADEST:
        raise CutawayError(f"has {sum(counts):,} properties, {max(counts):,} in one object", where, "split it up")
    if why := reason(schema):
        path, why = _blame(schema, why, reason)
        raise CutawayError(why, where + path)
    if not _Finite(schema).holds(schema):
        raise CutawayError("no finite value satisfies it: it must contain itself", where, "make a property optional")


def _blame(schema: Any, why: str, reason: Callable[[Any], str]) -> tuple[str, str]:
    """The innermost part that fails for the same reason, or, in a contradiction, the first that has one of its own."""
    shared = {k: schema[k] for k in ("$defs", "definitions") if isinstance(schema, dict) and k in schema}
    found, until = [], time.monotonic() + PATIENCE
    for path, part in parts(schema):
        if time.monotonic() > until:
            break
        if isinstance(part, dict) and path and (own := reason({**part, **shared})):
            if own == why:
                return path, own
            found.append((path, own))
    contradictory = why.startswith("Unsatisfiable")
    return found[0] if found and contradictory else ("", why)


def _width(schema: Any) -> int:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return len(properties) if isinstance(properties, dict) else 0


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested; no recursion, for depth is what it is afraid of."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child for v in level for child in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())
        ]
        if depth > DEEPEST:
            return depth
    return depth


class _Finite:
    """Which parts of a schema have a finite instance: a least fixed point, found by entering no reference twice.

    A smallest instance never passes through the same reference twice on its way down, so one in progress counts as no.
    """

    def __init__(self, root: Any) -> None:
        self.root, self.work, self.open, self.known = root, FINITE_WORK, set[str](), set[str]()

    def holds(self, schema: Any) -> bool:
        self.work -= 1
        if not isinstance(schema, dict) or self.work < 0:
            return schema is not False
        return (
            self._reference(schema.get("$ref"))
            and all(map(self.holds, schema.get("allOf", ())))
            and all(any(map(self.holds, schema[key])) for key in ("anyOf", "oneOf") if schema.get(key))
            and self._own(schema)
        )

    def _reference(self, name: Any) -> bool:
        if not isinstance(name, str) or name in self.known:
            return True
        if name in self.open:
            return False
        self.open.add(name)
        found = self.holds(resolve(self.root, name))
        self.open.remove(name)
        if found:
            self.known.add(name)
        return found

    def _own(self, schema: dict[str, Any]) -> bool:
        kinds = schema.get("type", "any")
        ways = {"object": self._object, "array": self._array}
        if "enum" in schema or "const" in schema:
            return True
        return any(
            ways[kind](schema) if kind in ways else True for kind in ([kinds] if isinstance(kinds, str) else kinds)
        )

    def _object(self, schema: dict[str, Any]) -> bool:
        properties = schema.get("properties", {})
        return all(self.holds(properties.get(name, True)) for name in schema.get("required", ()))

    def _array(self, schema: dict[str, Any]) -> bool:
        least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        return all(map(self.holds, first[:least])) and (least <= len(first) or self.holds(schema.get("items", True)))
