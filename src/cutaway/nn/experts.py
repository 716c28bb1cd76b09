"""Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538): many feed-forward layers, of which a token uses few.

    y_D = sum over the C chosen experts e of  weight_e * expert_e(x_D)   ( + a shared expert that every token uses )

Many small experts instead of a few large ones, and shared ones for what all tokens need: DeepSeekMoE (Dai et al.
2024, arXiv:2401.06066). Nothing loops over experts and tokens: the T*C pairs of token and chosen expert are sorted by
expert, so that each expert's tokens are neighbors, and one grouped matrix product serves them all
(MegaBlocks, Gale et al. 2022, arXiv:2211.15841).

    token      0  0  1  1  2  2          sorted      1  2 | 0 | 0  2 | 1
    expert     2  1  0  3  0  2          by expert   0  0 | 1 | 2  2 | 3

Axes: E experts   C chosen by a token   P pairs of token and chosen expert, sorted by expert
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.nn.feed_forward import ACTIVATIONS, FeedForward, FeedForwardSpec, faults, gated
from cutaway.nn.routing import GROUP_SCORES, SCORES, Router, RouterSpec, Routing

FUSED = {torch.float32, torch.bfloat16, torch.float16}  # what PyTorch's grouped product takes
ALIGNMENT = 16  # bytes, which it wants rows to be a multiple of


@dataclass(frozen=True)
class ExpertsSpec:
    """count: E experts like `expert`. shared: one more that every token uses, behind a sigmoid if `shared_gate`.

    capacity: an expert takes at most capacity * T * C / E tokens, rounded up; a token that finds no room keeps what
    its other experts give. What a token gets then depends on the batch it is in. Errors: inconsistent fields, by name.
    """

    count: int
    router: RouterSpec
    expert: FeedForwardSpec
    shared: FeedForwardSpec | None = None
    shared_gate: bool = False
    capacity: float | None = None

    def __post_init__(self) -> None:
        for field, wrong, why in _inconsistencies(self):
            if wrong:
                raise CutawayError(why, f"ExpertsSpec.{field}", "the checkpoint's configuration contradicts itself")

    def limit(self, tokens: int) -> int:
        """The most tokens of a batch of `tokens` that one expert takes."""
        return tokens if self.capacity is None else math.ceil(self.capacity * tokens * self.router.top_k / self.count)


def _inconsistencies(s: ExpertsSpec) -> Iterator[tuple[str, bool, str]]:
    """(field, is it wrong?, what is wrong)."""
    r, size = s.router, s.count // max(s.router.groups, 1)
    yield "count", s.count < 1, f"must be at least 1, got {s.count}"
    yield "router.score", r.score not in SCORES, f"{r.score!r} is not one of {list(SCORES)}"
    yield "router.group_score", r.group_score not in GROUP_SCORES, f"{r.group_score!r} is not one of {[*GROUP_SCORES]}"
    yield "router.groups", r.groups < 1 or size * r.groups != s.count, f"{r.groups} does not divide count = {s.count}"
    yield "router.kept_groups", not 1 <= r.kept_groups <= r.groups, f"must be 1 to {r.groups}, got {r.kept_groups}"
    yield "router.top_k", not 1 <= r.top_k <= s.count, f"must be 1 to count = {s.count}, got {r.top_k}"
    few = r.top_k > r.kept_groups * size
    yield "router.top_k", few, f"{r.top_k} of {r.kept_groups} groups with {size} experts each"
    lone = r.kept_groups < r.groups and r.group_score == "top2" and size < 2
    yield "router.group_score", lone, "the two best of groups that have one expert"
    yield "shared_gate", s.shared_gate and s.shared is None, "there is no shared expert to gate"
    yield "capacity", s.capacity is not None and s.capacity <= 0, f"must be above 0, got {s.capacity}"
    for name, f in (("expert", s.expert), ("shared", s.shared)):
        yield from ((f"{name}.{field}", wrong, why) for field, wrong, why in (faults(f) if f else ()))


class Experts(nn.Module):
    """x_TD -> x_TD. The weights of all experts are stacked: gate_EFD, up_EFD, down_EDF and biases with them."""

    def __init__(self, width: int, spec: ExpertsSpec) -> None:
        super().__init__()
        self.spec, f = spec, spec.expert
        self.activation = ACTIVATIONS[f.activation]
        self.router = Router(width, spec.count, spec.router, None if spec.capacity is None else spec.limit)
        self.gate = _stacked(spec.count, f.width, width) if f.gated else None
        self.up = _stacked(spec.count, f.width, width)
        self.down = _stacked(spec.count, width, f.width)
        self.gate_bias = nn.Parameter(torch.zeros(spec.count, f.width)) if f.bias and f.gated else None
        self.up_bias = nn.Parameter(torch.zeros(spec.count, f.width)) if f.bias else None
        self.down_bias = nn.Parameter(torch.zeros(spec.count, width)) if f.bias else None
        self.shared = FeedForward(width, spec.shared) if spec.shared else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if spec.shared_gate else None

    def forward(self, x_TD: Tensor) -> Tensor:
        mixed_TD = self.mix(x_TD, self.router(x_TD))
        if self.shared is None:
            return mixed_TD
        shared_TD = self.shared(x_TD)
        return mixed_TD + (shared_TD if self.shared_gate is None else self.shared_gate(x_TD).sigmoid() * shared_TD)

    def route(self, x_TD: Tensor) -> Routing:
        """Where the tokens go, without going there."""
        return self.router(x_TD)

    def mix(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The chosen experts' answers, weighted and summed in the order in which a token chose them."""
        tokens, choices = routing.chosen_TC.shape
        pair_P, counts_E = sorted_pairs(routing, self.spec.count)
        answer_PD = self._answers(x_TD[pair_P % tokens], counts_E)
        answer_CTD = answer_PD.new_zeros(choices * tokens, x_TD.shape[1]).index_copy(0, pair_P, answer_PD)
        answer_CTD = answer_CTD.view(choices, tokens, -1) * routing.weights_TC.T[..., None]
        return answer_CTD.sum(0).to(x_TD.dtype)

    def _answers(self, x_PD: Tensor, counts_E: Tensor) -> Tensor:
        up_PF = grouped(x_PD, self.up, self.up_bias, counts_E)
        if self.gate is None:
            return grouped(self.activation(up_PF), self.down, self.down_bias, counts_E)
        gate_PF = grouped(x_PD, self.gate, self.gate_bias, counts_E)
        return grouped(
            gated(self.activation, gate_PF, up_PF, self.spec.expert.limit), self.down, self.down_bias, counts_E
        )


def sorted_pairs(routing: Routing, count: int) -> tuple[Tensor, Tensor]:
    """The pairs that have room, sorted by expert, and how many each expert has: pair_P, counts_E.

    Pair c * T + t is the c-th choice of token t.
    """
    expert_P = routing.chosen_TC.T.flatten()
    if routing.kept_TC is not None:
        expert_P = expert_P.masked_fill(~routing.kept_TC.T.flatten(), count)  # one further expert, who stands last
    counts_E = expert_P.bincount(minlength=count)[:count]
    return expert_P.argsort(stable=True)[: counts_E.sum()], counts_E


def grouped(x_PI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, counts_E: Tensor) -> Tensor:
    """A linear layer per expert: the first counts_E[0] rows go through expert 0, the next through expert 1, ...: y_PO.

    One fused product where PyTorch has it for dtype and shape, else one product per expert that has rows.
    """
    if x_PI.dtype in FUSED and all(n * x_PI.element_size() % ALIGNMENT == 0 for n in weight_EOI.shape[1:]):
        y_PO = F.grouped_mm(x_PI, weight_EOI.transpose(1, 2), offs=counts_E.cumsum(0, dtype=torch.int32))
    else:
        parts = zip(x_PI.split(counts_E.tolist()), weight_EOI, strict=True)
        y_PO = torch.cat([F.linear(part, weight_OI) for part, weight_OI in parts if len(part)])
    return y_PO if bias_EO is None else y_PO + bias_EO.repeat_interleave(counts_E, 0)


def _stacked(count: int, rows: int, columns: int) -> nn.Parameter:
    """E matrices drawn as PyTorch draws a linear layer's."""
    return nn.Parameter(nn.init.uniform_(torch.empty(count, rows, columns), -(columns**-0.5), columns**-0.5))
