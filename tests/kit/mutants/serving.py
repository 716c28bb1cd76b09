"""Mistakes between the engine's thread and those who listen to it."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

SERVICE = "cutaway.engine.service:"

# fmt: off
MUTANTS = mutants(
    ("service: the first of a request hears for all", "service told", edit(SERVICE + "Service._tell", "(index, event)", "(0, event)")),
    ("service: a wake-up for each token", "service told", edit(SERVICE + "Service._tell", "mail.setdefault(loop, []).append((inbox, (index, event)))", "loop.call_soon_threadsafe(_deliver, [(inbox, (index, event))])")),
)
# fmt: on
