"""What a lab is: a question, a function with knobs, and the rules by which it becomes evidence.

    @lab("coin", title=both(...), question=both(...), seconds={"quick": 1, "full": 20})
    def coin(run: Run, *, tosses: Annotated[int, Knob("how often", "次数", quick=99)] = 9999) -> Finding:
        heads = sum(... for _ in run.each(range(tosses), "tossing"))
        return Finding(table=..., plot=..., verdict=..., checks=[...])

The knobs are the function's own typed keywords: int, float, str, bool, or `Literal[...]` for a choice. Their
defaults are the full profile; `Knob.quick` replaces them in the quick one. `cutaway.labs.catalogue` has all labs.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Evidence, Finding, Words, now
from cutaway.labs.machine import PACKAGE, commit, machine, versions

Value = int | float | str | bool
Profile = Literal["quick", "full"]
Report = Callable[[int, int, str], None]
"""Called with steps done, steps in all and a note. It may raise: that ends the run, and nothing is stored."""

T = TypeVar("T")


def silent(done: int, total: int, note: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Run:
    """One run of a lab, as its function sees it."""

    profile: Profile = "quick"
    seed: int = 0
    report: Report = silent

    def each(self, items: Collection[T], note: str) -> Iterator[T]:
        """The items, with a report before each and after the last."""
        for i, item in enumerate(items):
            self.report(i, len(items), f"{note}: {item}" if isinstance(item, int | float | str) else note)
            yield item
        self.report(len(items), len(items), note)

    def generator(self) -> torch.Generator:
        """Random numbers that depend on the seed alone."""
        return torch.Generator().manual_seed(self.seed)


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
        if (low is not None and float(value) < low) or (high is not None and float(value) > high):
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


@dataclass(frozen=True)
class Lab:
    """seconds: about how long each profile takes on two cores."""

    id: str
    title: Words
    question: Words
    seconds: Mapping[str, float]
    function: Callable[..., Finding]

    @property
    def settings(self) -> dict[str, Setting]:
        """The knobs, by name."""
        hints = get_type_hints(self.function, include_extras=True)
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {p.name: _setting(p.name, hints[p.name], p.default) for p in parameters}

    def values(self, given: Mapping[str, object], profile: Profile) -> dict[str, Value]:
        """All knobs' values: those given, the profile's for the rest. Errors: unknown knobs, bad values."""
        settings = self.settings
        for name in given:
            if name not in settings:
                known = ", ".join(settings)
                raise CutawayError(f"has no knob {name!r}", f"lab {self.id}", f"it has: {known}")
        return {
            name: setting.parse(given[name], f"knob {name}") if name in given else setting.value(profile)
            for name, setting in settings.items()
        }

    def run(
        self,
        given: Mapping[str, object] | None = None,
        profile: Profile = "full",
        seed: int = 0,
        report: Report = silent,
    ) -> Evidence:
        """Run the lab; nothing is stored, see `evidence.store`. Errors: as `values`, and the lab's own."""
        knobs = self.values(given or {}, profile)
        began = time.perf_counter()
        finding = self.function(Run(profile, seed, report), **knobs)
        return Evidence(
            **dict(finding),
            lab=self.id,
            title=self.title,
            holds=all(check.holds for check in finding.checks),
            knobs={**knobs},
            profile=profile,
            seed=seed,
            seconds=round(time.perf_counter() - began, 3),
            machine=machine(),
            versions=versions(),
            commit=commit(),
            created=now(),
        )

    def describe(self) -> dict[str, Any]:
        """JSON for the studio; code is where to read on, the path relative to the package."""
        path = Path(inspect.getfile(self.function)).relative_to(PACKAGE)
        return {
            "id": self.id,
            "title": self.title.model_dump(),
            "question": self.question.model_dump(),
            "knobs": [setting.describe() for setting in self.settings.values()],
            "seconds": dict(self.seconds),
            "code": {"path": path.as_posix(), "line": inspect.getsourcelines(self.function)[1]},
        }


def _setting(name: str, hint: Any, default: Value) -> Setting:
    kind, knob = get_args(hint)
    if get_origin(kind) is Literal:
        return Setting(name, "choice", default, knob, get_args(kind))
    return Setting(name, kind.__name__, default, knob)


def lab(
    id: str, *, title: Words, question: Words, seconds: Mapping[str, float]
) -> Callable[[Callable[..., Finding]], Lab]:
    """Declare a function to be the lab `id`."""
    return lambda function: Lab(id, title, question, seconds, function)
