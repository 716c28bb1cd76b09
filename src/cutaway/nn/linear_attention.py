"""Linear attention: a kernel in place of the softmax (Katharopoulos et al. 2020, arXiv:2006.16236).

If a weight is a product of features, phi(q) . phi(k), instead of exp(q . k), the product of three can be taken in the
other order, and no n x n matrix comes up:

    (phi(Q) phi(K)^T) V    n^2 F + n^2 K multiply-adds      quadratic: every query meets every key
    phi(Q) (phi(K)^T V)    2 n F K                          linear: keys and values are summed up first, in F x K

Causally the sum is a running one: a state of F x K numbers and F for the norm, the same size after any number of
tokens. A sequence may be cut into chunks, quadratic inside and linear between them (Hua et al. 2022, arXiv:2202.10447);
chunks of one token are the recurrent form, one chunk of all is the quadratic form.

Axes: Q queries, S keys, H heads, K width of a head, F features, C a chunk, J blocks of random directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.nn.attention import Context, Place
from cutaway.nn.norms import at_least_float32
from cutaway.nn.positions import RopeSpec, rotate

State = tuple[Tensor, Tensor]
"""memory_HFK, the sum of phi(k) v^T over all tokens so far, and norm_HF, the sum of phi(k)."""


def elu_features(x_SHK: Tensor) -> Tensor:
    """elu(x) + 1, the positive map of Katharopoulos et al.: as many features as the head is wide."""
    return F.elu(x_SHK) + 1


def taylor_features(x_SHK: Tensor) -> Tensor:
    """phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(K): exp(s) to second order, never below 1/2.

    1 + K + K^2 features (Arora et al. 2024, arXiv:2402.18668).
    """
    x_SHK = x_SHK * x_SHK.shape[-1] ** -0.25
    square_SHK2 = (x_SHK[..., None] * x_SHK[..., None, :]).flatten(-2) / math.sqrt(2)
    return torch.cat([torch.ones_like(x_SHK[..., :1]), x_SHK, square_SHK2], -1)


def random_features(x_SHK: Tensor, count: int, seed: int) -> Tensor:
    """Performer's positive features (Choromanski et al. 2020, arXiv:2009.14794): on average exp(q . k / sqrt(K)).

    With directions w from a normal distribution the mean of exp(w . q - |q|^2 / 2) exp(w . k - |k|^2 / 2) is
    exp(q . k).
    """
    x_SHK = x_SHK * x_SHK.shape[-1] ** -0.25
    w_FK = directions(count, x_SHK.shape[-1], seed).to(x_SHK)
    return (x_SHK @ w_FK.mT - x_SHK.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(count)


@cache
def directions(count: int, width: int, seed: int) -> Tensor:
    """w_FK: orthogonal within each block of `width` rows, which estimates better than independent rows; lengths as
    normal vectors have them. They are no parameters: the seed says what they are."""
    generator = torch.Generator().manual_seed(seed)
    normal_JKK = torch.randn(-(-count // width), width, width, generator=generator, dtype=torch.float64)
    turned_JKK, r_JKK = torch.linalg.qr(normal_JKK)
    turned_JKK = turned_JKK * r_JKK.diagonal(dim1=1, dim2=2).sign()[:, None]  # else some directions never come up
    turned_FK = turned_JKK.mT.flatten(0, 1)[:count]
    lengths_F = torch.randn(count, width, generator=generator, dtype=torch.float64).norm(dim=-1)
    return turned_FK * lengths_F[:, None]


def quadratic(q_QHF: Tensor, k_SHF: Tensor, v_SHK: Tensor, causal: bool) -> Tensor:
    """Out_QHK by the matrix of weights, as softmax attention has it. q, k: features, here and below."""
    weights_HQS = torch.einsum("qhf,shf->hqs", q_QHF, k_SHF)
    weights_HQS = weights_HQS.tril() if causal else weights_HQS
    return _divided(torch.einsum("hqs,shk->qhk", weights_HQS, v_SHK), weights_HQS.sum(-1).T)


def linear(q_QHF: Tensor, k_SHF: Tensor, v_SHK: Tensor) -> Tensor:
    """Out_QHK where every query sees every key: the sums are taken once."""
    memory_HFK, norm_HF = torch.einsum("shf,shk->hfk", k_SHF, v_SHK), k_SHF.sum(0)
    return _read(q_QHF, memory_HFK, norm_HF)


def prefix_sums(q_SHF: Tensor, k_SHF: Tensor, v_SHK: Tensor) -> Tensor:
    """Causal out_SHK, every token with the sums up to itself. Simple, but it holds S states at once."""
    memory_SHFK, norm_SHF = torch.einsum("shf,shk->shfk", k_SHF, v_SHK).cumsum(0), k_SHF.cumsum(0)
    return _divided(torch.einsum("shf,shfk->shk", q_SHF, memory_SHFK), (q_SHF * norm_SHF).sum(-1))


def advance(state: State, q_CHF: Tensor, k_CHF: Tensor, v_CHK: Tensor) -> tuple[Tensor, State]:
    """Causal out_CHK of a chunk that follows what `state` sums up, and the state after it."""
    memory_HFK, norm_HF = state
    weights_HCC = torch.einsum("qhf,shf->hqs", q_CHF, k_CHF).tril()
    mixed_CHK = torch.einsum("hqs,shk->qhk", weights_HCC, v_CHK) + torch.einsum("qhf,hfk->qhk", q_CHF, memory_HFK)
    total_CH = weights_HCC.sum(-1).T + torch.einsum("qhf,hf->qh", q_CHF, norm_HF)
    memory_HFK = memory_HFK + torch.einsum("shf,shk->hfk", k_CHF, v_CHK)
    return _divided(mixed_CHK, total_CH), (memory_HFK, norm_HF + k_CHF.sum(0))


def chunked(
    q_SHF: Tensor, k_SHF: Tensor, v_SHK: Tensor, chunk: int, state: State | None = None
) -> tuple[Tensor, State]:
    """Causal out_SHK, `chunk` tokens at a time, and the state after them; 1 is the recurrent form."""
    (heads, features), width = k_SHF.shape[1:], v_SHK.shape[-1]
    state = state or (v_SHK.new_zeros(heads, features, width), v_SHK.new_zeros(heads, features))
    outs = []
    for parts in zip(*(x.split(chunk) for x in (q_SHF, k_SHF, v_SHK)), strict=True):
        out_CHK, state = advance(state, *parts)
        outs.append(out_CHK)
    return torch.cat(outs), state


def _read(q_QHF: Tensor, memory_HFK: Tensor, norm_HF: Tensor) -> Tensor:
    return _divided(torch.einsum("qhf,hfk->qhk", q_QHF, memory_HFK), torch.einsum("qhf,hf->qh", q_QHF, norm_HF))


def _divided(mixed_QHK: Tensor, total_QH: Tensor) -> Tensor:
    """Weights are positive, but random features of long vectors can all come out as zero."""
    return mixed_QHK / total_QH.clamp_min(torch.finfo(total_QH.dtype).tiny)[..., None]


@dataclass(frozen=True)
class LinearSpec:
    """heads, head_dim: H and K. features: how many random ones, the other maps have no choice. chunk: see above.

    rope: rotates queries and keys before their features are taken. bias: of q, k and v. Errors: sizes below 1, a
    number of features that the map does not take.
    """

    heads: int
    head_dim: int
    feature: Literal["elu", "taylor", "random"] = "elu"
    features: int | None = None
    seed: int = 0
    chunk: int = 64
    rope: RopeSpec | None = None
    bias: bool = False
    out_bias: bool = False

    causal = True
    window = None
    position_bias = None
    cached = ()  # a state instead of a growing cache
    per_pair = 0

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "chunk"):
            if getattr(self, name) < 1:
                raise CutawayError(f"must be at least 1, got {getattr(self, name)}", f"LinearSpec.{name}")
        if (self.feature == "random") != (self.features is not None and self.features > 0):
            what = f"random features need a number of at least 1, other maps take none: got {self.features}"
            raise CutawayError(what, "LinearSpec.features")

    @property
    def map(self) -> Callable[[Tensor], Tensor]:
        """phi."""
        maps = {"elu": elu_features, "taylor": taylor_features}
        return maps.get(self.feature) or partial(random_features, count=self.features or 0, seed=self.seed)

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def rotated(self) -> int:
        """Width of what is rotated."""
        return self.head_dim if self.rope is None else self.rope.dim or self.head_dim

    @property
    def per_token(self) -> int:
        """Multiply-adds to add a token to the state and to read it."""
        return 2 * math.prod(self.state[0])

    @property
    def state(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of what a sequence keeps, however long it is."""
        k = self.head_dim
        count = {"elu": k, "taylor": 1 + k + k * k}.get(self.feature, self.features or 0)
        return (self.heads, count, k), (self.heads, count)


class LinearAttention(nn.Module):
    """x_TD -> x_TD: project to heads, take features, let the context scan every sequence, project back."""

    def __init__(self, width: int, spec: LinearSpec) -> None:
        super().__init__()
        self.spec = spec
        inner = spec.heads * spec.head_dim
        self.q, self.k, self.v = (nn.Linear(width, inner, spec.bias) for _ in range(3))
        self.out = nn.Linear(inner, width, spec.out_bias)

    def forward(self, x_TD: Tensor, layer: int, place: Place, context: Context) -> Tensor:
        q_THK, k_THK, v_THK = (p(x_TD).unflatten(-1, (-1, self.spec.head_dim)) for p in (self.q, self.k, self.v))
        if place.turn is not None:
            q_THK, k_THK = rotate(q_THK, place.turn), rotate(k_THK, place.turn)
        return self.out(context.scan(layer, self.step, q_THK, k_THK, v_THK).flatten(1))

    def step(self, state: State | None, q_QHK: Tensor, k_QHK: Tensor, v_QHK: Tensor) -> tuple[Tensor, State]:
        """New tokens of one sequence: out_QHK and the state after them, in float32 at least."""
        phi = self.spec.map
        q_QHF, k_QHF = phi(at_least_float32(q_QHK)), phi(at_least_float32(k_QHK))
        out_QHK, state = chunked(q_QHF, k_QHF, at_least_float32(v_QHK), self.spec.chunk, state)
        return out_QHK.to(v_QHK.dtype), state
