"""A bidirectional encoder (Devlin et al. 2018, "BERT", arXiv:1810.04805) and its sentence vectors.

Sentence vectors: the mean of a sentence's hidden states, scaled to unit length (Reimers & Gurevych 2019,
"Sentence-BERT", arXiv:1908.10084).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.models.block import Stack
from cutaway.models.spec import Spec


class Encoder(Stack):
    """`forward` gives hidden states of every token, `pool` one vector per sequence."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        assert spec.pooling is not None, "a spec without pooling describes a decoder"
        self.pooling = spec.pooling
        # BERT's next-sentence layer: kept so that nothing of a checkpoint is lost, unused for sentence vectors.
        self.pooler = nn.Linear(spec.width, spec.width) if spec.pooling.dense else None

    def pool(self, hidden_TD: Tensor, lengths: list[int]) -> Tensor:
        """Vectors of N sequences of the given lengths, vectors_ND."""
        rows = hidden_TD.split(lengths)
        reduce = {"mean": lambda row: row.mean(0), "cls": lambda row: row[0]}[self.pooling.kind]
        vectors_ND = torch.stack([reduce(row) for row in rows])
        return F.normalize(vectors_ND, dim=-1) if self.pooling.normalize else vectors_ND
