"""Masked language modelling (Devlin et al. 2018, BERT, arXiv:1810.04805, section 3.1): which tokens are to be guessed.

Of all tokens 15 % are chosen. Of those 80 % are replaced by [MASK], 10 % by a random token and 10 % stay, so that the
model cannot know which of the words that it reads are right. BERT chose once and wrote the masked text down; RoBERTa
(Liu et al. 2019, arXiv:1907.11692, section 4.1) chooses anew each time a text is read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.nn.losses import IGNORED


class Masked(NamedTuple):
    """inputs: what the model reads. targets: the token at each chosen place, `IGNORED` elsewhere."""

    inputs_T: Tensor
    targets_T: Tensor


def mask_tokens(
    tokens_T: Tensor,
    generator: torch.Generator,
    *,
    mask: int,
    vocab: int,
    share: float = 0.15,
    replaced: float = 0.8,
    random: float = 0.1,
    special: tuple[int, ...] = (),
) -> Masked:
    """Tokens of any shape, some of them hidden. mask: the id of [MASK]. special: ids that are never chosen.

    Errors: shares that are none, or add up to more than one.
    """
    for name, value in (("share", share), ("replaced", replaced), ("random", random), ("random", replaced + random)):
        if not 0 <= value <= 1:
            raise CutawayError(f"{value} is no share", name, "replaced and random together are at most 1")

    def drawn() -> Tensor:
        return torch.rand(tokens_T.shape, generator=generator)

    chosen_T = drawn() < share
    for id in special:
        chosen_T &= tokens_T != id
    fate_T, others_T = drawn(), torch.randint(vocab, tokens_T.shape, generator=generator)
    inputs_T = torch.where(chosen_T & (fate_T < replaced), mask, tokens_T)
    inputs_T = torch.where(chosen_T & (fate_T >= replaced) & (fate_T < replaced + random), others_T, inputs_T)
    return Masked(inputs_T, torch.where(chosen_T, tokens_T, IGNORED))
