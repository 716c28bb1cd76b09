"""From logits to a token.

    logits ── rules ── penalties ── / temperature ── top_k ── top_p ── min_p ── typical_p ── draw

Rules forbid tokens. Each filter comes down to a band of scores: a token survives if its score lies in every band.
(Tokens that tie with the last survivor survive too.) The draw is Gumbel-max: with independent noise g of the
Gumbel distribution, argmax(score + g) is distributed as softmax(score). The noise depends on (seed, position, token)
alone, so a reply does not depend on what else was in the batch, or on how often the position was computed,
and a token that survives a filter comes with the same luck as without it.

Whatever goes over a whole vocabulary is native or NumPy's: PyTorch would split it among threads, which takes longer
than the work, and milliseconds where a thread waits for a processor that others use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cutaway.engine.constraints.constraint import allowed, allows
from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.native.sampling import draw as draw_natively
from cutaway.native.sampling import fence as fence_natively
from cutaway.native.sampling import kernels, reach

LOWEST = torch.finfo(torch.float32).min


class Logits(NamedTuple):
    """What the model says comes next: float32 values_V, the likeliest token, and the logarithm of the sum of all e^x,
    which is no finite number if one of them is none."""

    values_V: Tensor
    best: int
    total: float

    @staticmethod
    def of(values_V: Tensor) -> Logits:
        """Of one row."""
        return Logits.each(values_V[None])[0]

    @staticmethod
    def each(values_RV: Tensor) -> list[Logits]:
        """Of several rows."""
        return [*map(Logits, values_RV, values_RV.argmax(-1).tolist(), values_RV.logsumexp(-1).tolist())]


class DeadEnd(CutawayError):
    """Constraint and rules together forbid every token."""


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


class Band(NamedTuple):
    """The scores that a filter lets pass, ends included."""

    filter: str
    low: float
    high: float


@dataclass(frozen=True)
class Shaped:
    """What the settings make of the logits: scores_V, minus infinity for what is forbidden, and a band per filter.

    bands: of the active filters, first to last. forbidden: the tokens of each rule. Who else is at minus infinity was
    forbidden by the constraint.
    """

    scores_V: Tensor
    bands: tuple[Band, ...] = ()
    forbidden: tuple[tuple[str, Collection[int]], ...] = ()

    @property
    def floor(self) -> float:
        return max((band.low for band in self.bands), default=LOWEST)

    @property
    def ceiling(self) -> float:
        return min((band.high for band in self.bands), default=math.inf)

    def survivors(self) -> Tensor:
        """The tokens that can be drawn, ids_N in ascending order."""
        scores_V = self.scores_V.numpy()
        kept_V = scores_V >= max(self.floor, LOWEST)
        if self.ceiling < math.inf:
            kept_V &= scores_V <= self.ceiling
        return torch.from_numpy(kept_V.nonzero()[0])

    def probabilities(self) -> Tensor:
        """The distribution that is drawn from, p_V."""
        ids_N = self.survivors()
        return torch.zeros_like(self.scores_V).index_copy_(0, ids_N, self.scores_V[ids_N].softmax(-1))

    def cut(self, token: int) -> str | None:
        """The rule that forbids `token`, or the first filter that removes it; None if it survives."""
        score = float(self.scores_V[token])
        if score == -math.inf:
            return next((rule for rule, tokens in self.forbidden if token in tokens), "constraint")
        return next((band.filter for band in self.bands if not band.low <= score <= band.high), None)


def shape(
    logits_V: Tensor, params: SamplingParams, prompt: Collection[int], reply: Collection[int], *,
    ends: Collection[int] = (), mask_W: Tensor | None = None,
) -> Shaped:  # fmt: skip
    """Apply rules, penalties, temperature and filters. At temperature 0 only the best token survives.

    ends: the tokens that end a reply. mask_W: the tokens that a constraint allows, packed.
    Errors: `DeadEnd`.
    """
    scores_V = penalize(logits_V.float(), params, prompt, reply)
    if mask_W is not None:
        fence(scores_V, mask_W)
    forbidden = tuple((name, tokens) for name, rule in RULES if (tokens := rule(params, prompt, reply, ends)))
    for _, tokens in forbidden:
        scores_V[[token for token in tokens if token < len(scores_V)]] = -torch.inf
    best = float(scores_V.numpy().max())
    if best == -math.inf:
        raise DeadEnd("no token is left: constraint, min_tokens and no_repeat_ngram forbid them all", "sampling")
    if params.temperature == 0:
        return Shaped(scores_V, (Band("temperature", best, best),), forbidden)
    scaled_V = scores_V.numpy()
    scaled_V -= best  # at most 0: no temperature makes it overflow
    scaled_V /= params.temperature
    return Shaped(scores_V, _bands(scores_V, params), forbidden)


def fence(scores_V: Tensor, mask_W: Tensor) -> None:
    """Minus infinity, in place, for what a packed mask forbids, and for what lies beyond it."""
    if native := kernels():
        return fence_natively(native, scores_V, mask_W)
    allowed_V = allowed(mask_W)[: len(scores_V)]
    scores_V[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
    scores_V[len(allowed_V) :] = -torch.inf


def _bands(scores_V: Tensor, params: SamplingParams) -> tuple[Band, ...]:
    """Each active filter sees the survivors of those before it."""
    low, bands = LOWEST, list[Band]()
    for name, active, filter in FILTERS:
        if active(params):
            bands.append(Band(name, *filter(scores_V, low, params)))
            low = max(low, bands[-1].low)
    return tuple(bands)


def penalize(scores_V: Tensor, params: SamplingParams, prompt: Iterable[int], reply: Iterable[int]) -> Tensor:
    """Scores after bias and penalties; repetition divides a positive score and multiplies a negative one."""
    scores_V = torch.from_numpy(scores_V.numpy().copy())
    if params.logit_bias:
        scores_V[[*params.logit_bias]] += torch.tensor([*params.logit_bias.values()])
    if params.repetition_penalty != 1:
        seen = torch.tensor([*{*prompt, *reply}])
        raised = scores_V[seen]
        scores_V[seen] = torch.where(raised > 0, raised / params.repetition_penalty, raised * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        used, count = torch.tensor([*reply], dtype=torch.long).unique(return_counts=True)
        scores_V[used] -= params.presence_penalty + params.frequency_penalty * count
    return scores_V


def repeating(tokens: Collection[int], size: int) -> frozenset[int]:
    """The tokens that would complete a run of `size` tokens again (Paulus et al. 2017, arXiv:1705.04304)."""
    if not 0 < size <= len(tokens):
        return frozenset()
    runs_RN = np.lib.stride_tricks.sliding_window_view(np.fromiter(tokens, np.int64, len(tokens)), size)
    last = [*tokens][len(tokens) - size + 1 :]
    return frozenset(runs_RN[(runs_RN[:, :-1] == last).all(-1), -1].tolist())


Rule = Callable[[SamplingParams, Collection[int], Collection[int], Collection[int]], Collection[int]]
RULES: tuple[tuple[str, Rule], ...] = (
    ("min_tokens", lambda p, prompt, reply, ends: ends if len(reply) < p.min_tokens else ()),
    (
        "no_repeat_ngram",
        lambda p, prompt, reply, ends: repeating([*prompt, *reply], p.no_repeat_ngram) if p.no_repeat_ngram else (),
    ),
)


def top_k_band(scores_V: Tensor, low: float, params: SamplingParams) -> tuple[float, float]:
    """From the score of the k-th best token up (Fan et al. 2018, arXiv:1805.04833)."""
    if native := kernels():
        return reach(native, scores_V, low, most=params.top_k), math.inf
    alive_N = scores_V[scores_V >= low]
    return float(alive_N.topk(min(params.top_k, len(alive_N))).values[-1]), math.inf


def top_p_band(scores_V: Tensor, low: float, params: SamplingParams) -> tuple[float, float]:
    """From the last token of the smallest set with mass >= p up (Holtzman et al. 2020, arXiv:1904.09751)."""
    if native := kernels():
        return reach(native, scores_V, low, share=params.top_p), math.inf
    alive_N = scores_V[scores_V >= low]
    return _reaching(params.top_p, alive_N, alive_N), math.inf


def min_p_band(scores_V: Tensor, low: float, params: SamplingParams) -> tuple[float, float]:
    """From a token min_p times as probable as the best, whose score is 0, up (Nguyen et al. 2024, arXiv:2407.01082)."""
    return math.log(params.min_p), math.inf


def typical_p_band(scores_V: Tensor, low: float, params: SamplingParams) -> tuple[float, float]:
    """Around the mean surprise, the entropy: the smallest set with mass >= p (Meister et al. 2022, arXiv:2202.00666).

    Surprise falls as the score rises, so what is near its mean is a band of scores. The last filter: it cuts the best
    off, too.
    """
    alive_N = scores_V[scores_V >= low]
    surprise_N = -alive_N.log_softmax(-1)
    off_N = (surprise_N - torch.special.entr((-surprise_N).exp()).sum()).abs()
    kept = alive_N[off_N <= -_reaching(params.typical_p, -off_N, alive_N)]
    return float(kept.min()), float(kept.max())


def _reaching(mass: float, keys_N: Tensor, scores_N: Tensor) -> float:
    """The key of the last token needed, highest keys first, for so much probability of the whole."""
    share_N = scores_N.exp().double()  # a sum of float32 would err by whole tokens of the tail
    order_N = torch.from_numpy(np.argsort(-keys_N.numpy()))
    reached_N = (share_N / share_N.sum())[order_N].cumsum(-1) >= mass
    last = int(reached_N.int().argmax()) if reached_N.any() else -1  # rounding may keep the sum of all below the mass
    return float(keys_N[order_N[last]])


Filter = Callable[[Tensor, float, SamplingParams], tuple[float, float]]  # scores, those alive begin at; low, high
FILTERS: tuple[tuple[str, Callable[[SamplingParams], bool], Filter], ...] = (
    ("top_k", lambda p: p.top_k > 0, top_k_band),
    ("top_p", lambda p: p.top_p < 1, top_p_band),
    ("min_p", lambda p: p.min_p > 0, min_p_band),
    ("typical_p", lambda p: p.typical_p < 1, typical_p_band),
)


def draw(shaped: Shaped, params: SamplingParams, position: int) -> int:
    """The token for `position`."""
    if params.temperature == 0:
        return int(shaped.scores_V.numpy().argmax())
    if native := kernels():
        return draw_natively(native, shaped.scores_V, shaped.floor, shaped.ceiling, key(params.seed, position))
    ids_N = shaped.survivors()
    noisy_N = shaped.scores_V.index_select(0, ids_N).add_(gumbel(key(params.seed, position), ids_N))
    return int(ids_N[noisy_N.numpy().argmax()])


def key(seed: int, position: int) -> int:
    """64 bits from a generator that counts (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    There is no state to carry along. Seeds are taken modulo 2^64.
    """
    return int(np.random.Philox(key=np.array([seed % 2**64, position], dtype=np.uint64)).random_raw())


def gumbel(key: int, ids_N: Tensor) -> Tensor:
    """Gumbel noise_N of some tokens: minus the logarithm of exponential noise, minus the logarithm of uniform noise.

    The key's two halves hash the token; nothing is computed for other tokens. Where uniform noise is near 1 the noise
    peaks; it is kept as its distance from 1, which float32 holds well there.
    """
    bits_N = ids_N.numpy().astype(np.uint32) ^ np.uint32(key % 2**32)
    bits_N = mixed(mixed(bits_N) + np.uint32(key >> 32))
    below_one_N = torch.from_numpy(bits_N.astype(np.float32)).mul_(2**-32).clamp_(2**-33, 1 - 2**-24)
    return below_one_N.neg_().log1p_().neg_().log_().neg_()


def mixed(bits_N: np.ndarray) -> np.ndarray:
    """32 bits of which each depends on each of those given, in place (Wellons 2018, "lowbias32", revised 2023)."""
    for shift, factor in MIX:
        bits_N ^= bits_N >> shift
        bits_N *= factor
    bits_N ^= bits_N >> np.uint32(15)
    return bits_N


MIX = ((np.uint32(16), np.uint32(0x21F0AAAD)), (np.uint32(15), np.uint32(0x735A2D97)))


def sample(
    logits: Logits, params: SamplingParams, prompt: list[int], reply: list[int], *, trace: int = 0,
    ends: Collection[int] = (), mask_W: Tensor | None = None,
) -> Choice:  # fmt: skip
    """Draw the next token after prompt + reply. trace: how many alternatives to describe in full. Rest: see `shape`.

    Errors: FloatingPointError if the model computed something that is not a number; `shape`'s.
    """
    if not math.isfinite(logits.total):
        raise FloatingPointError("the model's logits are not finite")
    if params.plainly_greedy and not trace and (mask_W is None or allows(mask_W, logits.best)):
        return Choice(logits.best, float(logits.values_V[logits.best]) - logits.total)
    shaped = shape(logits.values_V, params, prompt, reply, ends=ends, mask_W=mask_W)
    token = draw(shaped, params, len(prompt) + len(reply))
    if not trace:
        return Choice(token, float(logits.values_V[token]) - logits.total)
    return _describe(token, logits.values_V - logits.total, shaped, trace)


def given(logits: Logits, token: int, count: int) -> Choice:
    """What the model thought of a token that was not drawn. count: how many alternatives are told.

    Errors: FloatingPointError if the model computed something that is not a number.
    """
    if not math.isfinite(logits.total):
        raise FloatingPointError("the model's logits are not finite")
    ids = logits.values_V.topk(min(count, len(logits.values_V))).indices.tolist() if count else []
    logprobs = {i: float(logits.values_V[i]) - logits.total for i in [token, *ids]}
    return Choice(token, logprobs[token], tuple(Alternative(i, logprobs[i], math.exp(logprobs[i]), None) for i in ids))


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
        candidates=len(shaped.survivors()),
    )
