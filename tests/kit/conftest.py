"""The mutation score at the end of a test run."""

from __future__ import annotations

from typing import Any

import pytest

from kit.threads import one_thread

__all__ = ["one_thread"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """killed/total, and who survived."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    results = dict(p for r in reports if r.when == "call" for p in r.user_properties if p[0].startswith("mutant "))
    if results:
        survivors = [name.removeprefix("mutant ") for name, killed in results.items() if not killed]
        terminalreporter.section("mutants")
        terminalreporter.line(f"killed {len(results) - len(survivors)} of {len(results)}")
        for name in survivors:
            terminalreporter.line(f"  survived: {name}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mutants last: first it must be known that the proofs hold without them."""
    items.sort(key=lambda item: item.path.name == "test_mutants.py")
