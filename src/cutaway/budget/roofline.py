"""Time at best: the longer of computing and reading (Williams et al. 2009, "Roofline").

A step that generates a token for each of B sequences reads all weights once and every sequence's own cache. Weights
are shared, so a larger batch computes more per byte; caches are not, and past some length no batch reaches the ridge.
width: bytes of a weight as it is stored, where that is not the dtype of the cache: 0.5625 with 4 bits and a scale.
"""

from __future__ import annotations

from typing import NamedTuple

from cutaway.budget.chips import Chip
from cutaway.budget.figures import Figure, figure
from cutaway.models.cost import Cost, width_of


class Step(NamedTuple):
    """Seconds, at best, of one decoding step: of computing, of reading weights and caches."""

    compute: float
    weights: float
    cache: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.weights + self.cache)

    @property
    def bottleneck(self) -> str:
        """compute, weights or cache: what takes longest."""
        if self.compute >= self.weights + self.cache:
            return "compute"
        return "weights" if self.weights >= self.cache else "cache"


def step(cost: Cost, chip: Chip, dtype: str, batch: int, context: int, *, width: float | None = None) -> Step:
    """By the exact cost model: experts that the batch reaches, windows, the input table not read."""
    return Step(
        compute=batch * cost.flops_per_token(context) / chip.rate(dtype),
        weights=cost.read(batch) * (width or width_of(dtype)) / chip.bandwidth,
        cache=cost.kv_bytes(context, batch, dtype).value / chip.bandwidth,
    )


def roofline(cost: Cost, chip: Chip, dtype: str, *, batch: int = 1, context: int = 1) -> list[Figure]:
    """Intensity and time of a step, and the batch at which it turns from reading to computing.

    Errors: a dtype that the chip has no figure for.
    """
    found = step(cost, chip, dtype, batch, context)
    work, read = batch * cost.flops_per_token(context), chip.bandwidth * (found.weights + found.cache)
    return [
        figure("ridge", "FLOP/byte", "R/M", R=chip.rate(dtype), M=chip.bandwidth),
        figure("intensity of the step", "FLOP/byte", "f/r", f=work, r=read),
        figure("computing", "s", "f/R", f=work, R=chip.rate(dtype)),
        figure("reading", "s", "r/M", r=read, M=chip.bandwidth),
        figure("tokens per second, at most", "tokens/s", "B/t", B=batch, t=found.seconds),
        *balance(cost, chip, dtype, context),
    ]


def balance(cost: Cost, chip: Chip, dtype: str, context: int, *, width: float | None = None) -> list[Figure]:
    """The batch at which computing takes as long as reading, 2 FLOPs for each of all N parameters.

    B·(2·N + a·C)/R = (N·b + B·C·k)/M: none if C is past the last line. Of experts a batch reads more and more of them,
    so that theirs is later than this says.
    """
    a, k = cost.flops_per_token(2) - cost.flops_per_token(1), cost.kv_bytes_per_token(dtype).value
    b = width or width_of(dtype)
    sizes = {"N": cost.parameters, "b": b, "R": chip.rate(dtype), "M": chip.bandwidth, "a": a, "k": k}
    longest = _last(sizes)
    reached = longest is None or context < longest.value
    at = [figure("batch at balance", "", "N·b/M/((2·N + a·C)/R − C·k/M)", C=context, **sizes)] if reached else []
    return [*at, *([longest] if longest else [])]


def _last(sizes: dict[str, float]) -> Figure | None:
    """Tokens of context past which a sequence reads its cache for longer than it computes, whatever the batch."""
    if sizes["k"] * sizes["R"] <= sizes["a"] * sizes["M"]:
        return None
    return figure("no batch reaches it past", "tokens", "2·N/(k·R/M − a)", **{s: sizes[s] for s in "NkRMa"})


def latency(
    cost: Cost, chip: Chip, dtype: str, prompt: int, utilization: float = 0.5, *, width: float | None = None
) -> list[Figure]:
    """Time to the first token and between tokens of one sequence, by two FLOPs and one read for each parameter."""
    sizes = {"N": cost.parameters, "b": width or width_of(dtype), "M": chip.bandwidth}
    return [
        figure("first token", "s", "2·N·P/(u·R)", N=cost.parameters, P=prompt, u=utilization, R=chip.rate(dtype)),
        figure("next token, at least", "s", "N·b/M", **sizes),
        figure("tokens per second, at most", "tokens/s", "M/(N·b)", **sizes),
    ]
