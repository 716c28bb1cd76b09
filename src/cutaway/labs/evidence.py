"""Evidence: what a lab found, in a form that the terminal, the tests, the docs and the studio all show.

A `Finding` is what the lab's function returns; `Evidence` adds where, when, how and by which code it came
about. Every number is finite, every row as long as the header: a chart may rely on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from cutaway.errors import CutawayError
from cutaway.files import atomic

Cell = str | bool | int | FiniteFloat | None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Words(_Record):
    """The same sentence in both languages."""

    en: str = Field(min_length=1)
    zh: str = Field(min_length=1)


def both(en: str, zh: str) -> Words:
    """Shorthand for `Words`."""
    return Words(en=en, zh=zh)


class Column(_Record):
    """unit: "" for plain counts and shares."""

    name: str
    unit: str = ""


class Table(_Record):
    """One row per setting. An empty cell is None."""

    columns: list[Column]
    rows: list[list[Cell]]

    @model_validator(mode="after")
    def _rectangular(self) -> Table:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {i} has {len(row)} cells for {len(self.columns)} columns")
        return self


def table(columns: Mapping[str, str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Shorthand for `Table`. columns: names and their units."""
    return Table(columns=[Column(name=n, unit=u) for n, u in columns.items()], rows=[[*row] for row in rows])


class Axis(_Record):
    label: str
    log: bool = False


class Series(_Record):
    """Points (x[i], y[i]). The x of bars are names, all others numbers."""

    name: str
    x: Sequence[str | FiniteFloat]
    y: list[FiniteFloat]

    @model_validator(mode="after")
    def _paired(self) -> Series:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r} has {len(self.x)} x for {len(self.y)} y")
        return self


class Plot(_Record):
    """What to draw, not how. A logarithmic axis has positive values only."""

    kind: Literal["line", "bar", "scatter"]
    x: Axis
    y: Axis
    series: list[Series] = Field(min_length=1)

    @model_validator(mode="after")
    def _drawable(self) -> Plot:
        for series in self.series:
            numbers = [x for x in series.x if not isinstance(x, str)]
            if not series.x or len(numbers) != (0 if self.kind == "bar" else len(series.x)):
                raise ValueError(f"the x of series {series.name!r} do not suit a {self.kind}")
            if (self.y.log and min(series.y) <= 0) or (self.x.log and min(numbers, default=1) <= 0):
                raise ValueError(f"series {series.name!r} has values that a logarithmic axis cannot show")
        return self


class Check(_Record):
    """One claim and whether it held. Timings are reported, never checked: the machine has other users."""

    claim: Words
    holds: bool


def check(holds: bool, en: str, zh: str) -> Check:
    """Shorthand for `Check`."""
    return Check(claim=both(en, zh), holds=holds)


class Finding(_Record):
    """What a lab's function returns. verdict: the answer in a few sentences, its numbers all of this run."""

    table: Table
    plot: Plot | None
    verdict: Words
    checks: list[Check] = Field(min_length=1)


class Machine(_Record):
    """gpu: None if there is none that PyTorch can use.

    load: how many processes wanted a core in the last minute; much above `cores`, timings say little.
    """

    cpu: str
    cores: int
    memory_gb: FiniteFloat
    gpu: str | None
    load: FiniteFloat


class Evidence(Finding):
    """A finding on record. holds: all checks did. seconds: wall clock of the run. created: UTC, ISO 8601."""

    lab: str
    title: Words
    holds: bool
    knobs: dict[str, Cell]
    profile: Literal["quick", "full"]
    seed: int
    seconds: FiniteFloat
    machine: Machine
    versions: dict[str, str]
    commit: str
    created: datetime

    @model_validator(mode="after")
    def _consistent(self) -> Evidence:
        if self.holds != all(check.holds for check in self.checks):
            raise ValueError("`holds` contradicts the checks")
        return self

    def to_json(self) -> str:
        """One line."""
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str, where: str = "evidence") -> Evidence:
        """The inverse of `to_json`. Errors: not JSON, not evidence."""
        try:
            return Evidence.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise CutawayError(f"is not evidence: {place}: {first['msg']}", where, "run the lab again") from None


HINT = "name another folder in CUTAWAY_RESULTS"


def results_dir() -> Path:
    """Where evidence is kept: $CUTAWAY_RESULTS, else `results` in the working directory."""
    return Path(os.environ.get("CUTAWAY_RESULTS") or "results").expanduser()


def store(evidence: Evidence, folder: Path | None = None) -> Path:
    """Write `<folder>/<lab>/<UTC time>.json`; the name sorts by time. Errors: no room."""
    path = (folder or results_dir()) / evidence.lab / f"{evidence.created.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}.json"
    try:
        with atomic(path) as partial:
            partial.write_text(evidence.to_json() + "\n", "utf-8")
    except OSError as error:
        raise CutawayError(f"cannot be written: {error.strerror or error}", str(path), HINT) from error
    return path


def make_room(folder: Path | None = None) -> None:
    """See that evidence can be kept, before a long run. Errors: no folder can be made there."""
    where = folder or results_dir()
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CutawayError(f"cannot be made: {error.strerror or error}", str(where), HINT) from error


def latest(lab: str, folder: Path | None = None) -> Evidence | None:
    """The newest stored evidence of a lab, None if it was never run. Errors: a damaged file."""
    paths = sorted(((folder or results_dir()) / lab).glob("*.json"))
    return Evidence.from_json(paths[-1].read_text("utf-8"), str(paths[-1])) if paths else None


def now() -> datetime:
    return datetime.now(UTC)
