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
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from pydantic import ValidationError

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Evidence, Finding, Words, now
from cutaway.labs.knobs import Profile, Setting, Value
from cutaway.labs.machine import PACKAGE, commit, machine, versions

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
        return {p.name: Setting.of(p.name, hints[p.name], p.default) for p in parameters}

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
        """Run the lab; nothing is stored, see `evidence.store`. Errors: as `values`, the lab's own, no numbers."""
        knobs = self.values(given or {}, profile)
        began = time.perf_counter()
        try:
            finding = self.function(Run(profile, seed, report), **knobs)
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            raise CutawayError(f"came to nothing that can be shown: {why}", f"lab {self.id}") from error
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


def lab(
    id: str, *, title: Words, question: Words, seconds: Mapping[str, float]
) -> Callable[[Callable[..., Finding]], Lab]:
    """Declare a function to be the lab `id`."""
    return lambda function: Lab(id, title, question, seconds, function)
