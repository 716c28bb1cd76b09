"""JSON Schema as a tree that can be walked and rewritten: its parts, its references, its unions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

LONGEST_CHAIN = 64  # references that lead to references

_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")


def parts(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every schema within, the innermost first, with its path."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in _ONE:
                yield from parts(value, f"{path}.{key}")
            elif key in _NAMED and isinstance(value, dict):
                for name, part in value.items():
                    yield from parts(part, f"{path}.{key}.{name}")
            elif key in _LISTED and isinstance(value, list):
                for i, part in enumerate(value):
                    yield from parts(part, f"{path}.{key}[{i}]")
    yield path, schema


def mapped(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The schema with `change` made to every schema within, the innermost first."""
    if not isinstance(schema, dict):
        return schema
    again, new = partial(mapped, change=change), dict[str, Any]()
    for key, value in schema.items():
        if key in _ONE:
            new[key] = again(value)
        elif key in _NAMED and isinstance(value, dict):
            new[key] = {name: again(part) for name, part in value.items()}
        elif key in _LISTED and isinstance(value, list):
            new[key] = [again(part) for part in value]
        else:
            new[key] = value
    return change(new)


def resolve(root: Any, name: str) -> Any:
    """What a local reference points to; anything that is not local, or not there, counts as `True`."""
    at = root
    for step in name.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(at, list) and key.isdigit() and int(key) < len(at):
            at = at[int(key)]
        elif isinstance(at, dict) and key in at:
            at = at[key]
        else:
            return True
    return at


def moved(schema: Any, place: str) -> Any:
    """The schema as a part of another, where it is found at `place` ("#/$defs/name"): its references follow it."""

    def change(part: dict[str, Any]) -> dict[str, Any]:
        target = part.get("$ref")
        return {**part, "$ref": place + target[1:]} if isinstance(target, str) and target.startswith("#") else part

    return mapped(schema, change)


def exclusive(schema: Any) -> Any:
    """The schema with `anyOf` for every `oneOf` whose parts cannot hold at once, as in unions with a tag."""

    def change(part: dict[str, Any]) -> dict[str, Any]:
        if "anyOf" in part or not isinstance(part.get("oneOf"), list) or not _apart(part["oneOf"], schema):
            return part
        return {"anyOf" if key == "oneOf" else key: value for key, value in part.items()}

    return mapped(schema, change)


def _apart(choices: list[Any], root: Any) -> bool:
    """Whether no value fits two of the schemas: their types differ, their values, or those of a required property."""
    found = [_target(choice, root) for choice in choices]
    tags = found[0].get("required", ()) if found else ()
    ways: list[Callable[[dict[str, Any]], set[Any]]] = [_kinds, _values]
    ways += [partial(_tag, name=name) for name in tags]
    return any(_disjoint([way(part) for part in found]) for way in ways)


def _disjoint(sets: list[set[Any]]) -> bool:
    """Whether they are; an empty set stands for "anything"."""
    return all(sets) and sum(map(len, sets)) == len(set().union(*sets))


def _target(schema: Any, root: Any) -> dict[str, Any]:
    """Where its references lead: whatever holds for all values there holds here too."""
    for _ in range(LONGEST_CHAIN):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = resolve(root, schema["$ref"])
    return schema if isinstance(schema, dict) else {}


def _kinds(schema: dict[str, Any]) -> set[Any]:
    kinds = schema.get("type", [])
    return {"number" if kind == "integer" else kind for kind in ([kinds] if isinstance(kinds, str) else kinds)}


def _values(schema: dict[str, Any]) -> set[Any]:
    """The values that are listed, if they are simple enough to compare."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum", [])
    simple = all(value is None or isinstance(value, str | int) for value in listed)
    return {(type(value), value) for value in listed} if simple else set()


def _tag(schema: dict[str, Any], name: str) -> set[Any]:
    """The listed values of a property that every value has."""
    if schema.get("type") != "object" or name not in schema.get("required", ()):
        return set()
    part = schema.get("properties", {}).get(name)
    return _values(part) if isinstance(part, dict) else set()
