"""Attention over pages by the kernel for GPUs, in Triton's interpreter: against the definition, alone and in company."""

from __future__ import annotations

from functools import partial

from engine.paging import CASES, agrees, interpreted, same_bits


def _interpreted(proof: partial[None]) -> None:
    with interpreted():
        proof()


PROOFS = {
    **{f"paged {name}": partial(_interpreted, partial(agrees, case)) for name, case in CASES.items()},
    "paged to the bit": partial(_interpreted, partial(same_bits, CASES["window"])),
}
