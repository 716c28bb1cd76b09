"""Knobs: a lab's parameters, how they are declared, read from text or JSON, checked and described."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from cutaway.errors import CutawayError

Value = int | float | str | bool
Profile = Literal["quick", "full"]


@dataclass(frozen=True)
class Knob:
    """What a parameter's annotation says: its help in both languages, its quick value, inclusive bounds."""

    en: str
    zh: str
    quick: Value | None = None
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Setting:
    """A knob in its place: name, kind and default read off the function's signature."""

    name: str
    kind: str
    default: Value
    knob: Knob
    choices: tuple[Value, ...] = ()

    @staticmethod
    def of(name: str, annotation: Any, default: Value) -> Setting:
        """The setting that a parameter `name: Annotated[kind, Knob(...)] = default` declares."""
        kind, knob = get_args(annotation)
        if get_origin(kind) is Literal:
            return Setting(name, "choice", default, knob, get_args(kind))
        return Setting(name, kind.__name__, default, knob)

    def value(self, profile: Profile) -> Value:
        """The knob's value in a profile."""
        return self.default if profile == "full" or self.knob.quick is None else self.knob.quick

    def parse(self, raw: object, where: str) -> Value:
        """`raw`, text or a JSON value, as this knob's type. Errors: not that type, out of range."""
        try:
            value = PARSERS[self.kind](raw)
        except (ValueError, TypeError, OverflowError):
            raise CutawayError(f"expected {EXPECTED[self.kind]}, got {raw!r}", where) from None
        low, high = self.knob.min, self.knob.max
        if self.choices and value not in self.choices:
            raise CutawayError(f"must be one of {', '.join(map(str, self.choices))}, got {raw!r}", where)
        if (low is not None and value < low) or (high is not None and value > high):  # type: ignore[operator]
            raise CutawayError(f"must be {_bounds(low, high)}, got {value}", where)
        return value

    def describe(self) -> dict[str, Any]:
        """JSON for the studio."""
        bounds = {"min": self.knob.min, "max": self.knob.max, "choices": list(self.choices) or None}
        return {
            "name": self.name,
            "type": self.kind,
            "default": self.default,
            "quick": self.value("quick"),
            "help": {"en": self.knob.en, "zh": self.knob.zh},
        } | {key: bound for key, bound in bounds.items() if bound is not None}


def _bounds(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"between {low} and {high}"


def _int(raw: object) -> int:
    if isinstance(raw, bool) or (isinstance(raw, float) and not raw.is_integer()):
        raise ValueError(raw)
    return int(raw)  # type: ignore[call-overload]


def _float(raw: object) -> float:
    if isinstance(raw, bool) or not math.isfinite(value := float(raw)):  # type: ignore[arg-type]
        raise ValueError(raw)
    return value


def _bool(raw: object) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(raw, bool):
        return raw
    if not isinstance(raw, str) or raw.lower() not in words:
        raise ValueError(raw)
    return words[raw.lower()]


def _str(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError(raw)
    return raw


PARSERS: dict[str, Callable[[object], Value]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "str": _str,
    "choice": _str,
}
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "choice": "text",
}
