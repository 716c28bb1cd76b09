"""One chip beside another: what of it matters for running a model, and what for training it."""

from __future__ import annotations

from cutaway.budget.chips import Chip
from cutaway.budget.figures import Figure, figure
from cutaway.budget.roofline import latency
from cutaway.budget.running import fit
from cutaway.budget.training import training_time
from cutaway.models.cost import Cost


def candidate(cost: Cost, chip: Chip, dtype: str, *, context: int, prompt: int, tokens: float) -> list[Figure]:
    """Ridge, sequences of `context` tokens that fit, time of a prompt and of a token, hours of training on `tokens`.

    Reading a prompt at half of what the chip can compute, training at 40 %. Errors: a dtype it has no figure for.
    """
    return [
        figure("ridge", "FLOP/byte", "R/M", R=chip.rate(dtype), M=chip.bandwidth),
        *fit(cost, chip, context, dtype),
        *latency(cost, chip, dtype, prompt),
        *training_time(cost.parameters, tokens, chip, dtype),
    ]
