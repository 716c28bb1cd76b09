"""What the terminal shows: the card at several widths, and the command line around it."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from cutaway.cli.lab import DISPROVED, app
from cutaway.errors import CutawayError, NotFound
from cutaway.labs.card import Card, number
from cutaway.labs.catalogue import LABS
from cutaway.labs.drawing import drawing
from cutaway.labs.evidence import Axis, Evidence, Plot, Series, latest
from labs.test_lab import echo


def shown(evidence: Evidence, width: int, language: str = "en") -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(Card(evidence, language))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_card_fits_and_tells_everything(width: int) -> None:
    evidence = echo.run({"name": "[bold]not markup[/]"}, "quick")
    text = shown(evidence, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    flat = re.sub(r"[\s│]+", "", text)
    for part in ("Echo", "[bold]notmarkup[/]", "value", "✓itholds", "2counted,False", "quick,seed0"):
        assert part in flat


def test_card_in_chinese_and_of_a_failure() -> None:
    text = shown(echo.run({"right": False}), 80, "zh")
    assert "✗ 成立" in text
    assert "数了 5 个" in text


def test_wide_tables_are_cut_with_their_first_column_repeated() -> None:
    narrow, wide = (shown(echo.run({"name": "x" * 40}), width) for width in (40, 200))
    assert (narrow.count("value"), wide.count("value")) == (1, 1)
    heads = [re.findall(r"^│\s+i\b", text, re.M) for text in (narrow, wide)]
    assert len(heads[0]) > len(heads[1]) == 1


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("a", "a"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.0, "0"),
        (0, "0"),
        (12.3456, "12.35"),
        (1e-7, "1.00e-07"),
        (-2.5e12, "-2.50e+12"),
        (0.99996, "1.0000"),
        (123456.7, "123,457"),
    ],
)
def test_numbers_are_short(cell: object, text: str) -> None:
    assert number(cell) == text


def test_plots_mark_the_corners() -> None:
    axis = Axis(label="x", log=True)
    plot = Plot(kind="line", x=axis, y=axis, series=[Series(name="s", x=[1.0, 100.0], y=[10.0, 1000.0])])
    lines = drawing(plot, number).plain.splitlines()
    assert lines[1].startswith("     1,000 │")
    assert lines[1].endswith("●")
    assert "│●" in lines[12]
    assert lines[-1] == " ● s"
    level = Plot(kind="scatter", x=Axis(label=""), y=Axis(label=""), series=[Series(name="s", x=[1.0], y=[1.0])])
    assert "●" in drawing(level, number).plain


def test_bars_are_proportional_and_start_at_zero() -> None:
    series = Series(name="s", x=["one", "two"], y=[50.0, 100.0])
    plot = Plot(kind="bar", x=Axis(label=""), y=Axis(label=""), series=[series])
    one, two = (line.count("█") for line in drawing(plot, number).plain.splitlines()[:2])
    assert two == 2 * one > 0


# ---- the command line


@pytest.fixture
def echoing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setenv("CUTAWAY_RESULTS", str(tmp_path))
    monkeypatch.setitem(LABS, "echo", echo)
    return CliRunner()


def test_run_stores_shows_and_prints_one_json_line(echoing: CliRunner, tmp_path: Path) -> None:
    result = echoing.invoke(app, ["run", "echo", "--quick", "-k", "count=3", "--seed", "4", "--json"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    evidence = Evidence.from_json(result.stdout)
    assert (evidence.knobs["count"], evidence.seed, evidence.profile) == (3, 4, "quick")
    assert latest("echo", tmp_path) == evidence
    assert "3 counted" in result.stderr
    assert "stored in" in result.stderr


def test_show_repeats_the_latest(echoing: CliRunner) -> None:
    with pytest.raises(NotFound, match=r"no evidence yet.*cutaway lab run echo"):
        echoing.invoke(app, ["show", "echo"], catch_exceptions=False)
    echoing.invoke(app, ["run", "echo", "--quick"])
    assert "2 counted" in echoing.invoke(app, ["show", "echo"]).stdout
    assert "数了 2 个" in echoing.invoke(app, ["show", "echo", "--language", "zh"]).stdout
    assert Evidence.from_json(echoing.invoke(app, ["show", "echo", "--json"]).stdout).lab == "echo"


def test_a_disproved_claim_has_its_own_exit_status(echoing: CliRunner, tmp_path: Path) -> None:
    result = echoing.invoke(app, ["run", "echo", "--quick", "-k", "right=no"])
    assert result.exit_code == DISPROVED
    found = latest("echo", tmp_path)
    assert found is not None
    assert not found.holds


@pytest.mark.parametrize("text", ["count", "=3", ""])
def test_knobs_are_pairs(echoing: CliRunner, text: str) -> None:
    with pytest.raises(CutawayError, match="expected NAME=VALUE"):
        echoing.invoke(app, ["run", "echo", "-k", text], catch_exceptions=False)


def test_a_run_that_fails_stores_nothing(echoing: CliRunner, tmp_path: Path) -> None:
    with pytest.raises(CutawayError, match="knob count"):
        echoing.invoke(app, ["run", "echo", "-k", "count=99"], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_list_names_them_all(echoing: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LABS, "echo")
    listed = json.loads(echoing.invoke(app, ["list", "--json"]).stdout)["labs"]
    assert [lab["id"] for lab in listed] == list(LABS)
    text = echoing.invoke(app, ["list"]).stdout
    assert all(id in text for id in LABS)
