"""The mutants: mistakes that people make, each with the proof that must notice it."""

from __future__ import annotations

from kit.mutants import formats, models, running, sampling, text
from kit.mutation import Mutant

MUTANTS: tuple[Mutant, ...] = (*models.MUTANTS, *running.MUTANTS, *sampling.MUTANTS, *formats.MUTANTS, *text.MUTANTS)
