"""A decoder-only language model (Radford et al. 2018 and all that followed): hidden states, then logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.models.block import Stack
from cutaway.models.spec import Spec


class Decoder(Stack):
    """`forward` gives hidden states of every token; `logits` is asked only for the rows somebody will read."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        assert spec.head is not None, "a spec without head describes an encoder"
        self.head = None if spec.head.tied else nn.Linear(spec.width, spec.vocab, bias=False)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Unnormalized log-probabilities of the next token, logits_RV."""
        return F.linear(hidden_RD, self.embedding.tokens.weight) if self.head is None else self.head(hidden_RD)
