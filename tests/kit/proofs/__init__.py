"""Proofs: functions without arguments that return if ours agrees with an independent reference, and raise if not.

Tests run them as they are, and mutants must make them fail. `PROOFS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable

from kit.proofs import (
    adapters,
    ahead,
    attention_forms,
    budget,
    calls,
    classics,
    compress,
    constraints,
    denoising,
    encoders,
    experts,
    formats,
    grouped,
    guessing,
    inside,
    kept,
    labels,
    losses,
    models,
    norms,
    packed,
    paged,
    pages,
    positions,
    questions,
    running,
    sampling,
    search,
    text,
    vectors,
)

PROOFS: dict[str, Callable[[], object]] = {
    **models.PROOFS,
    **encoders.PROOFS,
    **formats.PROOFS,
    **sampling.PROOFS,
    **search.PROOFS,
    **calls.PROOFS,
    **constraints.PROOFS,
    **running.PROOFS,
    **text.PROOFS,
    **positions.PROOFS,
    **questions.PROOFS,
    **experts.PROOFS,
    **norms.PROOFS,
    **losses.PROOFS,
    **classics.PROOFS,
    **attention_forms.PROOFS,
    **inside.PROOFS,
    **budget.PROOFS,
    **ahead.PROOFS,
    **denoising.PROOFS,
    **vectors.PROOFS,
    **packed.PROOFS,
    **paged.PROOFS,
    **grouped.PROOFS,
    **guessing.PROOFS,
    **pages.PROOFS,
    **labels.PROOFS,
    **compress.PROOFS,
    **kept.PROOFS,
    **adapters.PROOFS,
}
