"""Induction heads (Olsson et al. 2022, arXiv:2209.11895): heads that continue what they have seen before.

    ... A B ... A  ->  B        look for an earlier copy of this token, and at what came after it

Random tokens, repeated once, tell such heads from all others: nothing but the repetition can be used. A head's score
is the weight that it gives, from each token of the second half, to the one after that token's first copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.inside.ablation import token_losses
from cutaway.inside.attention import maps
from cutaway.inside.sites import run
from cutaway.models.decoder import Decoder


@dataclass(frozen=True)
class Induction:
    """scores: [layer][head], mean over the sequences. losses: of the first half and of the second, nats per token."""

    scores: list[list[float]]
    losses: tuple[float, float]


def repeated(vocab: int, length: int, generator: torch.Generator) -> Tensor:
    """`length` random tokens, twice: tokens_T with T = 2 * length."""
    return torch.randint(vocab, (length,), generator=generator).repeat(2)


def score(weights_HQS: Tensor) -> Tensor:
    """Mean weight from position i of the second half to i - length + 1, per head, [H]."""
    length = weights_HQS.shape[-1] // 2
    return weights_HQS.diagonal(1 - length, -2, -1)[:, 1:].mean(-1)


def halves(model: Decoder, hidden_TD: Tensor, tokens_T: Tensor) -> tuple[float, float]:
    """Loss on the first half and on the second, whose first token is still a surprise and does not count."""
    length, loss_T = len(tokens_T) // 2, token_losses(model, hidden_TD, tokens_T)
    return float(loss_T[: length - 1].mean()), float(loss_T[length:].mean())


@torch.inference_mode()
def induction(model: Decoder, length: int = 50, sequences: int = 4, seed: int = 0) -> Induction:
    """Scores of all heads. Errors: too short to repeat, or longer than the context."""
    if not 2 <= length <= model.spec.context // 2 or sequences < 1:
        raise CutawayError(f"{length} tokens cannot be repeated", "length", f"2 to {model.spec.context // 2}")
    generator = torch.Generator().manual_seed(seed)
    texts = [repeated(model.spec.vocab, length, generator).to(model.device) for _ in range(sequences)]
    scores = torch.stack([torch.stack([score(weights) for weights in maps(model, tokens_T)]) for tokens_T in texts])
    losses = torch.tensor([halves(model, run(model, tokens_T), tokens_T) for tokens_T in texts]).mean(0)
    return Induction(scores.mean(0).tolist(), (float(losses[0]), float(losses[1])))
