"""From logits to a token.

    logits ── penalties ── / temperature ── top_k ── top_p ── min_p ── draw

Each filter comes down to a threshold on the scores: a token survives if its score reaches every threshold.
(Tokens that tie with the last survivor survive too.) The draw is Gumbel-max: with independent noise g of the
Gumbel distribution, argmax(score + g) is distributed as softmax(score). The noise depends on (seed, position)
alone, so a reply does not depend on what else was in the batch, or on how often the position was computed,
and a token that survives a filter comes with the same luck as without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cutaway.engine.constraints.constraint import apply
from cutaway.engine.params import SamplingParams


@dataclass(frozen=True)
class Alternative:
    """A token that could have come.

    logprob: the model's own. sampled: probability after the settings. cut: the first filter that removed it.
    """

    id: int
    logprob: float
    sampled: float
    cut: str | None


@dataclass(frozen=True)
class Choice:
    """The token that came.

    logprob, entropy (nats), rank (0 is the most probable): in the model's distribution, before any setting.
    alternatives: the most probable, in order. candidates: how many tokens were left to draw from.
    """

    token: int
    logprob: float
    alternatives: tuple[Alternative, ...] = ()
    entropy: float = 0.0
    rank: int = 0
    candidates: int = 1


@dataclass(frozen=True)
class Shaped:
    """What the settings make of the logits: scores_V, and a threshold per active filter, first to last."""

    scores_V: Tensor
    thresholds: tuple[tuple[str, float], ...]

    @property
    def floor(self) -> float:
        return max((t for _, t in self.thresholds), default=-math.inf)

    def probabilities(self) -> Tensor:
        """The distribution that is drawn from, p_V."""
        return self.scores_V.masked_fill(self.scores_V < self.floor, -torch.inf).softmax(-1)

    def cut(self, token: int) -> str | None:
        """The first filter that removes `token`, None if it survives."""
        score = float(self.scores_V[token])
        return next((name for name, threshold in self.thresholds if score < threshold), None)


def shape(logits_V: Tensor, params: SamplingParams, prompt: Iterable[int], reply: Iterable[int]) -> Shaped:
    """Apply penalties, temperature and filters. At temperature 0 only the best token survives."""
    scores_V = penalize(logits_V.float(), params, prompt, reply)
    if params.temperature == 0:
        return Shaped(scores_V, (("temperature", float(scores_V.max())),))
    scores_V = (scores_V - scores_V.max()) / params.temperature  # at most 0: no temperature makes it overflow
    thresholds: list[tuple[str, float]] = []
    for name, active, threshold in FILTERS:
        if active(params):
            floor = max((t for _, t in thresholds), default=-math.inf)
            thresholds.append((name, threshold(scores_V, params, floor)))
    return Shaped(scores_V, tuple(thresholds))


def penalize(scores_V: Tensor, params: SamplingParams, prompt: Iterable[int], reply: Iterable[int]) -> Tensor:
    """Scores after the three penalties; repetition divides a positive score and multiplies a negative one."""
    scores_V, reply_T = scores_V.clone(), torch.tensor([*reply], dtype=torch.long)
    if params.repetition_penalty != 1:
        seen = torch.cat([torch.tensor([*prompt], dtype=torch.long), reply_T]).unique()
        raised = scores_V[seen]
        scores_V[seen] = torch.where(raised > 0, raised / params.repetition_penalty, raised * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        used, count = reply_T.unique(return_counts=True)
        scores_V[used] -= params.presence_penalty + params.frequency_penalty * count
    return scores_V


def top_k_threshold(scores_V: Tensor, params: SamplingParams, floor: float) -> float:
    """Score of the k-th best token (Fan et al. 2018, arXiv:1805.04833)."""
    return float(scores_V.topk(min(params.top_k, len(scores_V))).values[-1])


def top_p_threshold(scores_V: Tensor, params: SamplingParams, floor: float) -> float:
    """Score of the last token of the smallest set with mass >= p (Holtzman et al. 2020, arXiv:1904.09751).

    The mass is that of the survivors of earlier filters. Ever longer heads are sorted, not the vocabulary.
    """
    log_total = scores_V[scores_V >= floor].double().logsumexp(-1)  # float32 would err by whole tokens of the tail
    size = 64
    while True:
        best = scores_V.topk(min(size, len(scores_V))).values
        mass = (best.double() - log_total).exp().cumsum(-1)
        reached = (mass >= params.top_p).nonzero()
        if len(reached):
            return float(best[reached[0]])
        if len(best) == len(scores_V) or best[-1] < floor:  # rounding kept the sum below p: everything stays
            return floor
        size *= 8


def min_p_threshold(scores_V: Tensor, params: SamplingParams, floor: float) -> float:
    """Score of a token min_p times as probable as the best (Nguyen et al. 2024, arXiv:2407.01082)."""
    return float(scores_V.max()) + math.log(params.min_p)


FILTERS: tuple[tuple[str, Callable[[SamplingParams], bool], Callable[[Tensor, SamplingParams, float], float]], ...] = (
    ("top_k", lambda p: p.top_k > 0, top_k_threshold),
    ("top_p", lambda p: p.top_p < 1, top_p_threshold),
    ("min_p", lambda p: p.min_p > 0, min_p_threshold),
)


def draw(shaped: Shaped, params: SamplingParams, position: int) -> int:
    """The token for `position`."""
    if params.temperature == 0:
        return int(shaped.scores_V.argmax())
    scores_V = shaped.scores_V.masked_fill(shaped.scores_V < shaped.floor, -torch.inf)
    return int((scores_V + gumbel(params.seed, position, len(scores_V))).argmax())


def gumbel(seed: int, position: int, size: int) -> Tensor:
    """Gumbel noise_V: minus the log of exponential noise, whose finest part makes the peaks, so float64.

    The generator counts, and (seed, position) is its key (Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3"): no state to carry along, and no two keys share a stream. Seeds are taken modulo 2^64.
    """
    philox = np.random.Philox(key=np.array([seed % 2**64, position], dtype=np.uint64))
    return -torch.from_numpy(np.random.Generator(philox).standard_exponential(size)).log()


def sample(
    logits_V: Tensor, params: SamplingParams, prompt: list[int], reply: list[int], *, trace: int = 0,
    mask_W: Tensor | None = None,
) -> Choice:  # fmt: skip
    """Draw the next token after prompt + reply. trace: how many alternatives to describe in full.

    mask_W: the tokens that a constraint allows, packed.

    Errors: FloatingPointError if the model computed something that is not a number.
    """
    logits_V = logits_V.float().cpu()
    if not logits_V.sum().isfinite():
        raise FloatingPointError("the model's logits are not finite")
    allowed_V = logits_V if mask_W is None else apply(logits_V.clone()[None], mask_W[None])[0]
    shaped = shape(allowed_V, params, prompt, reply)
    token = draw(shaped, params, len(prompt) + len(reply))
    logprobs_V = logits_V.log_softmax(-1)
    if not trace:
        return Choice(token, float(logprobs_V[token]))
    return _describe(token, logprobs_V, shaped, trace)


def _describe(token: int, logprobs_V: Tensor, shaped: Shaped, count: int) -> Choice:
    best = logprobs_V.topk(min(count, len(logprobs_V))).indices.tolist()
    sampled_V = shaped.probabilities()
    ids = best if token in best else [*best, token]
    return Choice(
        token=token,
        logprob=float(logprobs_V[token]),
        alternatives=tuple(Alternative(i, float(logprobs_V[i]), float(sampled_V[i]), shaped.cut(i)) for i in ids),
        entropy=float(torch.special.entr(logprobs_V.exp()).sum()),
        rank=int((logprobs_V > logprobs_V[token]).sum()),
        candidates=int((shaped.scores_V >= shaped.floor).sum()),
    )
