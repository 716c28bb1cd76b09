"""How a mutant is made: a function gets other code, or a table another entry, for as long as a proof runs.

`edit` changes the source text of a function and puts the new code into the *same* function object, so that everyone
who holds a reference to it, in a table or a `partial`, runs the mutant. The text is that of `ast.unparse`: one
statement a line, single quotes, no comments, however the file is formatted. An edit whose text is no longer found is
an error, not a survivor: whoever rewrites a mechanism is told to rewrite its mutants.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import pytest

Change = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Mutant:
    """A mistake that somebody could make: its name, the proof that must notice, and how the mistake is made."""

    name: str
    proof: str
    change: Change


def mutants(*rows: tuple[str, str, Change]) -> tuple[Mutant, ...]:
    """A table of them: name, proof, change."""
    return tuple(Mutant(*row) for row in rows)


class Stale(Exception):
    """A mutant that cannot be made, because the code it was written for is no longer there."""


def find(path: str) -> Any:
    """The object at "package.module:Class.attribute"; a number takes an element of a tuple."""
    module, _, names = path.partition(":")
    at: Any = importlib.import_module(module)
    for name in filter(None, names.split(".")):
        at = at[int(name)] if name.isdigit() else getattr(at, name)
    return at


def edit(path: str, old: str, new: str) -> Change:
    """Replace `old` in the source of the function at `path`, where it must occur exactly once, by `new`."""

    @contextmanager
    def change() -> Iterator[None]:
        function = inspect.unwrap(find(path))
        function = getattr(function, "__func__", function)
        before = function.__code__
        function.__code__ = _edited(function, path, old, new)
        try:
            yield
        finally:
            function.__code__ = before

    return change


def put(path: str, name: str, value: Callable[[Any], Any]) -> Change:
    """Replace attribute or entry `name` of the object at `path` by a function of what is there."""

    @contextmanager
    def change() -> Iterator[None]:
        owner = find(path)
        entry = isinstance(owner, dict)
        before = owner[name] if entry else getattr(owner, name)
        with pytest.MonkeyPatch.context() as patch:
            (patch.setitem if entry else patch.setattr)(owner, name, value(before))
            yield

    return change


def _edited(function: FunctionType, path: str, old: str, new: str) -> Any:
    source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    if source.count(old) != 1 or old == new:
        raise Stale(f"{path} holds {old!r} {source.count(old)} times, write the mutant anew")
    definition = ast.parse(source.replace(old, new)).body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list, definition.name = [], "mutant"
    outer = ast.parse(f"def outer({', '.join(function.__code__.co_freevars)}): return mutant")
    outer.body[0].body.insert(0, definition)  # type: ignore[attr-defined]  # where a closure finds its variables
    made: dict[str, Any] = {}
    exec(compile(outer, f"<mutant of {path}>", "exec"), function.__globals__, made)
    code = made["outer"](*function.__code__.co_freevars).__code__
    if code.co_freevars != function.__code__.co_freevars:
        raise Stale(f"{path} is a closure, and its mutant does not use the same outer variables")
    return code


def killed(mutant: Mutant, proof: Callable[[], Any]) -> str | None:
    """Run the proof against the mutant: why it failed, or None if it noticed nothing.

    Only a failed comparison counts. A mutant that cannot run proves nothing about the proof, so its exception passes.
    """
    with mutant.change():
        try:
            proof()
        except AssertionError as failure:
            return str(failure)
    return None
