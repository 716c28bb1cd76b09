"""The build of the kernels: once, and without a compiler not at all, which is said and survived."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cutaway.engine import runner
from cutaway.errors import CutawayError
from cutaway.native import build
from engine.tiny import decoder


def test_a_build_is_made_once(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\necho once >> "$0.log"\nfor last; do :; done\necho library > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    first, again, other = build.compiled(), build.compiled(), build.compiled("x86-64-v2")
    assert first == again != other
    assert first.read_text() == "library\n"
    assert Path(f"{compiler}.log").read_text().count("once") == 2
    assert {*first.parent.iterdir()} == {first, other}, "nothing half-written is left"


def test_builds_that_nobody_loads_are_forgotten(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nfor last; do :; done\n: > $last\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    forgotten, loaded, fresh = (build.compiled(march) for march in ("a", "b", "c"))
    other = fresh.with_name("another.so")
    other.touch()
    for path in (forgotten, loaded, other):
        os.utime(path, (0, 0))
    assert build.compiled("b") == loaded
    made = build.compiled("d")
    assert {*made.parent.iterdir()} == {loaded, fresh, other, made}


def test_what_the_compiler_complains_of_is_told(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho kernels.cpp:1: no >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    with pytest.raises(CutawayError, match=r"kernels\.cpp:1: no"):
        build.compiled()


def test_without_a_compiler_a_line_says_so_and_the_modules_run(monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__() is None
    assert "no C++ compiler" in caplog.text
    monkeypatch.setattr(runner, "library", lambda: None)
    assert runner.native(cast(Any, SimpleNamespace(spec=decoder().spec))) is None
