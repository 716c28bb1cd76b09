"""Mistakes in reading calls of tools out of a text."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

import re

from kit.mutation import edit, mutants, put

CALLS = "cutaway.serve.tool_calls:"

# fmt: off
MUTANTS = mutants(
    ("calls: strings are read as text", "calls read", put("cutaway.serve.tool_calls", "_tokens", lambda _: lambda end: re.compile(r"[{}\[\]]|" + re.escape(end)))),
    ("calls: half a mark is let out", "calls split", edit(CALLS + "_calls", "rest[:len(rest) - held(rest, (form.begin,))].rstrip()", "rest.rstrip()")),
    ("calls: white space before a call is let out", "calls split", edit(CALLS + "_calls", "(form.begin,))].rstrip()", "(form.begin,))]")),
    ("calls: half an end is let out with arguments", "calls split", edit(CALLS + "_balanced", "len(text) - (held(text, (end,)) if end else 0)", "len(text)")),
    ("calls: half a mark is let out with thoughts", "calls split", edit(CALLS + "_reasoning", "said[:len(said) - held(said, (THOUGHT,))]", "said")),
    ("calls: thoughts end with their white space", "calls split", edit(CALLS + "_reasoning", "said.rstrip()", "said.strip() + ' ' * (stop < 0)")),
    ("calls: what is no call is lost", "calls read", edit(CALLS + "_calls", "search = begin + 1", "start = search = begin + 1")),
    ("calls: the name must come first", "calls read", edit(CALLS + "_wrapped", "(_loaded(text[at:stop]), stop) if whole", "(None, stop) if whole")),
    ("calls: only the first of several", "calls read", edit(CALLS + "_calls", "start = search = _skip(text, after)", "start = search = len(text)")),
)
# fmt: on
