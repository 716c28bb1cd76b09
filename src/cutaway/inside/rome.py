"""Rewriting one fact by a rank-one change of one matrix (ROME; Meng et al. 2022, arXiv:2202.05262).

A matrix W that turns keys into values is a linear memory: W k is what it has stored under k. To store v* under k*
while every other key keeps its value as well as least squares allows:

    W' = W + (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)          C = mean of k k^T over ordinary text

    k*   what enters the matrix at the last token of the subject, averaged over a few contexts
    v*   what should leave it there: found by gradient steps until the model says the new answer, while what it says
         of the subject otherwise, and the length of the change, are held back

The matrix is the feed-forward layer's `down`, as in the paper, or attention's `out`, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.inside.prompt import Each, silent
from cutaway.inside.sites import Site, altered, check_layer, embedded, finished, record, through
from cutaway.models.decoder import Decoder

Matrix = Literal["ffn", "attention"]


@dataclass(frozen=True)
class Place:
    """Which matrix of which layer is changed."""

    layer: int
    matrix: Matrix = "ffn"

    @property
    def keys(self) -> Site:
        """Where its keys pass."""
        return Site("neurons" if self.matrix == "ffn" else "heads", self.layer)


@dataclass(frozen=True)
class Search:
    """How v* is found. rate, steps: of Adam, which ends early once the answer's loss is `enough`, nats.

    essence: weight of keeping what is said of the subject otherwise. decay: weight of the squared relative length
    of the change. limit: its greatest relative length. ridge: added to C's diagonal, in units of its mean, for a C
    from fewer tokens than keys have numbers.
    """

    steps: int = 20
    rate: float = 0.5
    enough: float = 0.05
    essence: float = 0.0625
    decay: float = 0.1
    limit: float = 4.0
    ridge: float = 0.01


class Wish(NamedTuple):
    """A sequence and the position of its subject's last token. answer: how many of its last tokens are to be said.

    With no answer its next token is to stay what it is.
    """

    ids: list[int]
    subject: int
    answer: int = 0


@dataclass(frozen=True)
class Edited:
    """The model with the fact rewritten; all other tensors are those of the model it came from.

    losses: of the answer, nats, at each step. changed: numbers in the matrix. size: of the change, relative to the
    matrix (Frobenius). length: of v* - W k* relative to W k*.
    """

    model: Decoder
    losses: list[float]
    changed: int
    size: float
    length: float


def matrix_of(model: Decoder, place: Place) -> nn.Linear:
    """The linear layer that would be changed. Errors: no such layer, or experts instead of one matrix."""
    check_layer(model, place.layer)
    name = "ffn.down" if place.matrix == "ffn" else "attention.out"
    try:
        module = model.block(place.layer).get_submodule(name)
    except AttributeError:
        raise CutawayError(f"layer {place.layer} has no single {name}", model.spec.family) from None
    assert isinstance(module, nn.Linear)
    return module


@torch.no_grad()
def covariance(model: Decoder, place: Place, texts: Sequence[Tensor]) -> Tensor:
    """Mean of k k^T over the tokens of texts (tokens_T each), C_NN in float64."""
    keys_RN = torch.cat([record(model, tokens_T, [place.keys])[place.keys] for tokens_T in texts]).double()
    return keys_RN.T @ keys_RN / len(keys_RN)


def rank_one(weight_DN: Tensor, key_N: Tensor, change_D: Tensor, covariance_NN: Tensor, ridge: float = 0.0) -> Tensor:
    """W' with W' k = W k + change and the least E |W' k' - W k'|^2 over keys k' with this covariance; float64."""
    key_N, eye_NN = key_N.double(), torch.eye(len(key_N), dtype=torch.float64, device=key_N.device)
    steady_NN = covariance_NN + ridge * covariance_NN.diagonal().mean() * eye_NN
    direction_N = torch.linalg.solve(steady_NN, key_N)
    return weight_DN.double() + torch.outer(change_D.double(), direction_N) / (key_N @ direction_N)


@torch.no_grad()
def edit(
    model: Decoder,
    place: Place,
    wishes: Sequence[Wish],
    covariance_NN: Tensor,
    *,
    search: Search,
    each: Each = silent,
) -> Edited:
    """A copy that answers as wished. wishes: the fact in one context or several, the plain one first, and what to keep.

    Errors: see `matrix_of`.
    """
    linear = matrix_of(model, place)
    asking = [wish for wish in wishes if wish.answer]
    keys = [
        record(model, torch.tensor(w.ids, device=model.device), [place.keys])[place.keys][w.subject] for w in asking
    ]
    key_N, plain_D, mean_D = torch.stack(keys).mean(0), linear(keys[0]), linear(torch.stack(keys).mean(0))
    with torch.enable_grad():
        wished_D, losses = sought(model, place, wishes, plain_D=plain_D, search=search, each=each)
    change_D = wished_D - mean_D
    new_DN = rank_one(linear.weight, key_N, change_D, covariance_NN, search.ridge)
    twin = altered(model, {})
    matrix_of(twin, place).weight = nn.Parameter(new_DN.to(linear.weight.dtype))
    size = (new_DN - linear.weight).norm() / linear.weight.norm()
    return Edited(twin, losses, new_DN.numel(), float(size), float(change_D.norm() / mean_D.norm()))


class Batch:
    """Wishes laid end to end: where their subjects are, what is to be said, and what is to stay.

    x_RD: what enters the changed block; what comes before it does not depend on the change.
    """

    def __init__(self, model: Decoder, layer: int, wishes: Sequence[Wish]) -> None:
        self.layer, self.lengths = layer, [len(wish.ids) for wish in wishes]
        starts = [sum(self.lengths[:i]) for i in range(len(wishes))]
        self.tokens_R = torch.tensor([id for wish in wishes for id in wish.ids], device=model.device)
        self.subjects = self.tokens_R.new_tensor(
            [start + wish.subject for start, wish in zip(starts, wishes, strict=True)]
        )
        ends = [(start + n, wish.answer) for start, n, wish in zip(starts, self.lengths, wishes, strict=True)]
        self.asked = self.tokens_R.new_tensor([at for end, answer in ends for at in range(end - answer, end)])
        self.kept = self.tokens_R.new_tensor([end - 1 for end, answer in ends if not answer])
        with torch.no_grad():
            self.x_RD = through(model, embedded(model, self.tokens_R, self.lengths), self.lengths, end=layer)

    def says(self, model: Decoder) -> tuple[Tensor, Tensor]:
        """Mean loss of the answers, nats, and log-probabilities of what follows the rest, [N, V]."""
        hidden_RD = finished(model, through(model, self.x_RD, self.lengths, self.layer))
        loss = F.cross_entropy(model.logits(hidden_RD[self.asked - 1]), self.tokens_R[self.asked])
        return loss, model.logits(hidden_RD[self.kept]).log_softmax(-1)


def sought(
    model: Decoder, place: Place, wishes: Sequence[Wish], *, plain_D: Tensor, search: Search, each: Each
) -> tuple[Tensor, list[float]]:
    """v*, the matrix's output at the subjects that makes the model answer, and the answer's loss at each step."""
    batch, twin = Batch(model, place.layer, wishes), altered(model, {})
    change_D = torch.zeros_like(plain_D, requires_grad=True)
    matrix_of(twin, place).register_forward_hook(
        lambda _, inputs, out: out.index_add(0, batch.subjects, change_D.expand(len(batch.subjects), -1))
    )
    optimizer, losses = torch.optim.Adam([change_D], lr=search.rate), list[float]()
    with torch.no_grad():
        _, before_NV = batch.says(twin)
    for step in range(search.steps):
        each(step, search.steps)
        answer, after_NV = batch.says(twin)
        losses.append(answer.item())
        if losses[-1] < search.enough:
            break
        moved = F.kl_div(after_NV, before_NV, reduction="sum", log_target=True) / max(len(batch.kept), 1)
        length = change_D.square().sum() / plain_D.square().sum()
        (change_D.grad,) = torch.autograd.grad(answer + search.essence * moved + search.decay * length, change_D)
        optimizer.step()
        with torch.no_grad():
            change_D *= (search.limit * plain_D.norm() / change_D.norm()).clamp(max=1)
    each(search.steps, search.steps)
    return plain_D + change_D.detach(), losses
