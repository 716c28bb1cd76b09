"""`docs/coverage.md` tells the truth: what it names exists, and every lab settles something."""

from __future__ import annotations

import re
from pathlib import Path

from cutaway.labs.catalogue import LABS

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|")
][2:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_rows_are_whole_and_ids_unique() -> None:
    assert {len(row) for row in ROWS} == {5}
    ids = [id for _, cell, *_ in ROWS for id in quoted(cell)]
    assert len(ids) == len(set(ids)) == len(ROWS)
    assert all(settled for *_, settled in ROWS)
    assert all(lab or tests for _, _, lab, tests, _ in ROWS)


def test_labs_exist_and_each_settles_something() -> None:
    named = {lab for _, _, cell, *_ in ROWS for lab in quoted(cell)}
    assert named == set(LABS)


def test_tests_exist() -> None:
    for *_, cell, _ in ROWS:
        for pointer in quoted(cell):
            path, _, name = pointer.partition("::")
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), pointer
