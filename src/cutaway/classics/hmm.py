"""A hidden Markov model (Baum & Petrie 1966; Rabiner 1989): a state that nobody sees moves, and emits tokens.

    state   z0 ─► z1 ─► z2        start_S, then move_SS[z, z']
             │     │     │
    token   x0    x1    x2        emit_SV[z, x]

The forward algorithm keeps what is believed about the state after each token; the normalizers are the probabilities
of the tokens. Baum-Welch needs how often each move and each emission is expected to have happened, given the tokens:

    expected count of a parameter  =  parameter * d log p(tokens) / d parameter

so that the backward algorithm is backpropagation through the forward one (Eisner 2016, "Inside-outside and
forward-backward algorithms are just backprop").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.classics.ragged import Steps, steps_of


class HMM(NamedTuple):
    """Probabilities; every row sums to 1. start_S, move_SS[from, to], emit_SV."""

    start_S: Tensor
    move_SS: Tensor
    emit_SV: Tensor

    @property
    def parameters(self) -> int:
        """How many numbers."""
        return sum(table.numel() for table in self)


def fresh(states: int, vocab: int, seed: int) -> HMM:
    """Random tables in float64; equal ones would stay equal under Baum-Welch."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((states,), (states, states), (states, vocab))
    return HMM(*(_rows(1 + torch.rand(*shape, generator=generator, dtype=torch.float64)) for shape in shapes))


def log_probabilities(model: HMM, tokens_T: Tensor, lengths: list[int]) -> Tensor:
    """log p of each token given those before it in its sequence, nats: [T]. Their sum is that of the sequences."""
    steps = steps_of(lengths, tokens_T.device)
    found = torch.cat(_forward(model, tokens_T, steps))
    return found[steps.order_T.argsort()]


def baum_welch(model: HMM, tokens_T: Tensor, lengths: list[int], prior: float = 0.0) -> tuple[HMM, float]:
    """One step of expectation-maximization: the better model, and log p of all tokens under the one given, nats.

    prior: a count that every start, move and emission has beforehand, so that what never happened stays possible.
    """
    leaves = HMM(*(table.detach().clone().requires_grad_() for table in model))
    log_p = torch.cat(_forward(leaves, tokens_T, steps_of(lengths, tokens_T.device))).sum()
    slopes = torch.autograd.grad(log_p, leaves)
    counts = [table.detach() * slope + prior for table, slope in zip(leaves, slopes, strict=True)]
    return HMM(*map(_rows, counts)), log_p.item()


def _forward(model: HMM, tokens_T: Tensor, steps: Steps) -> list[Tensor]:
    """log p of the tokens of each step, [B] each, longest sequence first."""
    emitted = model.emit_SV.T[tokens_T[steps.order_T]].split(steps.counts)  # p of the token in every state, [B, S]
    expected_BS, found = model.start_S.expand(steps.counts[0], -1), []
    for emitted_BS in emitted:
        joint_BS = expected_BS[: len(emitted_BS)] * emitted_BS
        p_B = joint_BS.sum(1)
        found.append(p_B.log())
        expected_BS = joint_BS / p_B[:, None] @ model.move_SS
    return found


def _rows(counts: Tensor) -> Tensor:
    """As probabilities; a row of nothing becomes uniform."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=torch.finfo(counts.dtype).tiny), 1 / counts.shape[-1])
