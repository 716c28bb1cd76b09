"""XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116): RoBERTa on a hundred languages, with a vocabulary of 250,002."""

from __future__ import annotations

from cutaway.models.families import roberta

FAMILY = roberta.family("xlm_roberta", "xlm-roberta", "XLMRoberta")
