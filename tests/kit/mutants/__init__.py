"""The mutants: mistakes that people make, each with the proof that must notice it."""

from __future__ import annotations

from kit.mutants import (
    attention_forms,
    budget,
    classics,
    constraints,
    denoising,
    encoders,
    experts,
    formats,
    inside,
    losses,
    models,
    norms,
    pages,
    positions,
    questions,
    running,
    sampling,
    text,
    vectors,
)
from kit.mutation import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *models.MUTANTS,
    *encoders.MUTANTS,
    *running.MUTANTS,
    *sampling.MUTANTS,
    *constraints.MUTANTS,
    *formats.MUTANTS,
    *text.MUTANTS,
    *positions.MUTANTS,
    *questions.MUTANTS,
    *experts.MUTANTS,
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
