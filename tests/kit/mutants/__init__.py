"""The mutants: mistakes that people make, each with the proof that must notice it."""

from __future__ import annotations

from kit.mutants import (
    attention_forms,
    budget,
    calls,
    classics,
    constraints,
    denoising,
    encoders,
    experts,
    formats,
    grouped,
    inside,
    losses,
    models,
    norms,
    pages,
    positions,
    questions,
    running,
    sampling,
    search,
    text,
    vectors,
)
from kit.mutation import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *models.MUTANTS,
    *encoders.MUTANTS,
    *running.MUTANTS,
    *sampling.MUTANTS,
    *search.MUTANTS,
    *calls.MUTANTS,
    *constraints.MUTANTS,
    *formats.MUTANTS,
    *text.MUTANTS,
    *positions.MUTANTS,
    *questions.MUTANTS,
    *experts.MUTANTS,
    *grouped.MUTANTS,
    *norms.MUTANTS,
    *losses.MUTANTS,
    *classics.MUTANTS,
    *attention_forms.MUTANTS,
    *inside.MUTANTS,
    *budget.MUTANTS,
    *denoising.MUTANTS,
    *pages.MUTANTS,
    *vectors.MUTANTS,
)
