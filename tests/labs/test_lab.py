"""The framework: knobs are checked, evidence keeps its promises, a run can be ended, nothing half-written stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from cutaway.errors import CutawayError, NotFound
from cutaway.labs import evidence as records
from cutaway.labs.catalogue import LABS, find
from cutaway.labs.evidence import Axis, Evidence, Finding, Plot, Series, both, check, latest, make_room, store, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.machine import commit, machine


@lab("echo", title=both("Echo", "回声"), question=both("?", "？"), seconds={"quick": 0, "full": 0})
def echo(
    run: Run,
    *,
    count: Annotated[int, Knob("how many", "多少", quick=2, min=1, max=10)] = 5,
    rate: Annotated[float, Knob("how fast", "多快", min=0.0)] = 0.5,
    name: Annotated[str, Knob("who", "谁")] = "nobody",
    loud: Annotated[bool, Knob("loud", "响")] = False,
    kind: Annotated[Literal["a", "b"], Knob("which", "哪个", quick="b")] = "a",
    right: Annotated[bool, Knob("whether the claim holds", "是否成立")] = True,
) -> Finding:
    rows = [[i, rate * i, name] for i in run.each(range(count), "counting")]
    x = [float(i) for i in range(count)]
    return Finding(
        table=table({"i": "", "value": "s", "name": ""}, rows),
        plot=Plot(kind="line", x=Axis(label="i"), y=Axis(label="v"), series=[Series(name=kind, x=x, y=x)]),
        verdict=both(f"{count} counted, {loud}", f"数了 {count} 个，{loud}"),
        checks=[check(right, "it holds", "成立")],
    )


# ---- knobs


def test_defaults_are_the_full_profile_and_quick_replaces_some() -> None:
    full = {"count": 5, "rate": 0.5, "name": "nobody", "loud": False, "kind": "a", "right": True}
    assert echo.values({}, "full") == full
    assert echo.values({}, "quick") == full | {"count": 2, "kind": "b"}


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("count", "7", 7),
        ("count", 7, 7),
        ("count", 7.0, 7),
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("name", "中文", "中文"),
        ("loud", "yes", True),
        ("loud", "False", False),
        ("loud", True, True),
        ("kind", "b", "b"),
    ],
)
def test_knobs_are_read_from_text_and_json(name: str, raw: object, value: object) -> None:
    read = echo.values({name: raw}, "full")[name]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("cuont", 1, "no knob 'cuont'.*count, rate"),
        ("count", "three", "knob count: expected a whole number, got 'three'"),
        ("count", 2.5, "expected a whole number"),
        ("count", True, "expected a whole number"),
        ("count", None, "expected a whole number"),
        ("count", 0, "knob count: must be between 1 and 10, got 0"),
        ("count", 11, "between 1 and 10"),
        ("rate", -0.1, "knob rate: must be at least 0"),
        ("rate", "nan", "expected a number"),
        ("rate", "inf", "expected a number"),
        ("rate", [1], "expected a number"),
        ("name", 3, "expected text"),
        ("loud", "maybe", "expected true or false"),
        ("kind", "c", "must be one of a, b"),
    ],
)
def test_bad_knobs_are_refused_by_name(name: str, raw: object, said: str) -> None:
    with pytest.raises(CutawayError, match=said):
        echo.run({name: raw})


def test_describe_is_what_the_studio_reads() -> None:
    described = {s.name: s.describe() for s in echo.settings.values()}
    assert described["count"] == {
        "name": "count",
        "type": "int",
        "default": 5,
        "quick": 2,
        "help": {"en": "how many", "zh": "多少"},
        "min": 1,
        "max": 10,
    }
    assert described["kind"]["type"] == "choice"
    assert described["kind"]["choices"] == ["a", "b"]
    assert "max" not in described["rate"]


# ---- a run


def test_evidence_says_how_it_came_about() -> None:
    seen: list[tuple[int, int, str]] = []
    found = echo.run({"count": "3"}, "quick", seed=7, report=lambda *step: seen.append(step))
    assert [row[0] for row in found.table.rows] == [0, 1, 2]
    assert (found.lab, found.profile, found.seed, found.knobs["count"]) == ("echo", "quick", 7, 3)
    assert found.holds
    assert found.machine.model_copy(update={"load": 0}) == machine().model_copy(update={"load": 0})
    assert found.versions["torch"]
    assert found.commit == commit() != ""
    assert seen == [(0, 3, "counting: 0"), (1, 3, "counting: 1"), (2, 3, "counting: 2"), (3, 3, "counting")]
    assert Evidence.from_json(found.to_json()) == found


def test_a_claim_that_does_not_hold_is_evidence_too() -> None:
    assert not echo.run({"right": False}).holds


def test_the_report_may_end_a_run() -> None:
    class Cancelled(Exception):
        pass

    def report(done: int, total: int, note: str) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        echo.run(report=report)


# ---- evidence


def test_the_same_seed_gives_the_same_numbers() -> None:
    draws = [Run(seed=seed).generator().initial_seed() for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_tables_are_rectangular_and_numbers_finite() -> None:
    with pytest.raises(ValidationError, match="row 1 has 1 cells for 2 columns"):
        table({"a": "", "b": ""}, [[1, 2], [1]])
    with pytest.raises(ValidationError, match="finite"):
        table({"a": ""}, [[float("nan")]])
    with pytest.raises(ValidationError, match="2 x for 1 y"):
        Series(name="s", x=[1.0, 2.0], y=[1.0])


@pytest.mark.parametrize(
    ("kind", "x", "y", "log", "said"),
    [
        ("line", ["a"], [1.0], False, "do not suit a line"),
        ("bar", [1.0], [1.0], False, "do not suit a bar"),
        ("line", [], [], False, "do not suit"),
        ("line", [1.0], [0.0], True, "logarithmic"),
        ("line", [0.0], [1.0], True, "logarithmic"),
    ],
)
def test_plots_can_be_drawn(kind: str, x: list, y: list, log: bool, said: str) -> None:
    axis = Axis(label="", log=log)
    with pytest.raises(ValidationError, match=said):
        Plot(kind=kind, x=axis, y=axis, series=[Series(name="s", x=x, y=y)])


def test_holds_cannot_contradict_the_checks() -> None:
    values = json.loads(echo.run().to_json())
    with pytest.raises(CutawayError, match=r"is not evidence.*contradicts"):
        Evidence.from_json(json.dumps(values | {"holds": False}))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"lab": 3}'])
def test_damaged_evidence_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "20260101T000000.000000Z.json").write_text(text)
    with pytest.raises(CutawayError, match=r"20260101T000000.*is not evidence"):
        latest("echo", tmp_path)


def test_stored_evidence_comes_back_and_the_newest_is_shown(tmp_path: Path) -> None:
    assert latest("echo", tmp_path) is None
    first, second = echo.run({"count": 1}), echo.run({"count": 2})
    paths = [store(found, tmp_path) for found in (second, first)]
    assert latest("echo", tmp_path) == second
    assert all(path.parent == tmp_path / "echo" for path in paths)
    assert len(set(paths)) == 2


def test_results_go_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUTAWAY_RESULTS", raising=False)
    assert store(echo.run()).resolve().parent == tmp_path / "results" / "echo"
    monkeypatch.setenv("CUTAWAY_RESULTS", str(tmp_path / "elsewhere"))
    assert store(echo.run()).parent == tmp_path / "elsewhere" / "echo"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cutaway.files.os.replace", fail)
    with pytest.raises(CutawayError, match=r"cannot be written: disk full.*CUTAWAY_RESULTS"):
        store(echo.run(), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_place_that_cannot_be_a_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CutawayError, match=r"cannot be made.*CUTAWAY_RESULTS"):
        make_room(tmp_path / "file" / "results")


def test_a_lab_without_numbers_says_so() -> None:
    with pytest.raises(CutawayError, match="lab echo: came to nothing that can be shown"):
        echo.run({"rate": 1e308, "count": 10})


def test_names_of_files_sort_by_time_in_any_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime, timedelta, timezone

    east = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=9)))
    monkeypatch.setattr("cutaway.labs.lab.now", lambda: east)
    assert store(echo.run(), tmp_path).name == "20251231T160000.000000Z.json"
    assert records.now().tzinfo is UTC


# ---- the catalogue


def test_a_lab_is_found_by_its_id_and_a_slip_is_guessed() -> None:
    assert find("kv-cache").id == "kv-cache"
    with pytest.raises(NotFound, match="did you mean kv-cache"):
        find("kv-cahce")


@pytest.mark.parametrize("found", LABS.values(), ids=LABS)
def test_every_lab_describes_itself_in_both_languages(found) -> None:
    described = found.describe()
    assert json.loads(json.dumps(described)) == described
    assert set(described["seconds"]) == {"quick", "full"}
    root = Path(records.__file__).parent.parent
    line = (root / described["code"]["path"]).read_text().splitlines()[described["code"]["line"] - 1]
    assert line.startswith("@lab(")
    for setting in found.settings.values():
        for profile in ("quick", "full"):
            assert setting.parse(setting.value(profile), setting.name) == setting.value(profile)
