"""What tokens cost: the price of an hour divided by the tokens that it writes, and what long replies do to it."""

from __future__ import annotations

from cutaway.budget.chips import Chip
from cutaway.budget.figures import Figure, figure, named
from cutaway.budget.running import fit
from cutaway.errors import CutawayError
from cutaway.models.cost import Cost, width_of


def per_million(price: float, rate: float) -> Figure:
    """Dollars for a million tokens. price: of an hour. rate: tokens per second."""
    return figure("cost per million tokens", "$", "p/(r·3600)·10^6", p=price, r=rate)


def of_replies(cost: Cost, chip: Chip, dtype: str, length: int, *, price: float, usable: float = 0.9) -> list[Figure]:
    """A chip full of replies that grow to `length` tokens, each holding memory for all of them from the start.

    On average their caches are half full. The weights of a step are read for as many tokens as there are replies.
    Errors: not one fits.
    """
    fitting = fit(cost, chip, length, dtype, usable)
    batch, k = named(fitting)["sequences that fit"], cost.kv_bytes(length, 1, dtype).value
    if not batch:
        raise CutawayError(f"not one reply of {length:,} tokens fits", chip.name, "a larger chip, or shorter replies")
    w = cost.parameters * width_of(dtype)
    reading = figure("reading, a step", "s", "(w + B·k/2)/M", w=w, B=batch, k=k, M=chip.bandwidth)
    work = cost.flops_per_token(length // 2)
    computing = figure("computing, a step", "s", "B·f/R", B=batch, f=work, R=chip.rate(dtype))
    rate = figure("tokens per second, at most", "tokens/s", "B/max(r, c)", B=batch, r=reading.value, c=computing.value)
    return [
        *fitting,
        figure("weights read for a token", "bytes", "w/B", w=w, B=batch),
        figure("cache read for a token", "bytes", "k/2", k=k),
        reading,
        computing,
        rate,
        per_million(price, rate.value),
    ]
