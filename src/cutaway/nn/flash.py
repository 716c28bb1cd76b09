"""FlashAttention: exact attention in tiles that fit on the chip (Dao et al. 2022, arXiv:2205.14135).

Memory is large and slow, the chip's own is small and fast. Written naively, attention stores n x n scores, reads them
to make weights, stores those and reads them again. In tiles, scores never leave the chip: a softmax can be taken piece
by piece (`cutaway.nn.online_softmax`), and backward computes scores again instead of keeping them.

                keys, a tile at a time ->          the order of FlashAttention-2 (Dao 2023, arXiv:2307.08691):
    queries    [   ][   ][   ][   ]  out           a tile of queries stays on the chip while keys and values
    a tile     [   ][   ][   ][   ]  ...           pass by; tiles in which nobody sees anybody are left out

`Traffic` counts what moves. With n tokens of width d and a chip that holds M numbers it is Theta(n d + n^2) naively and
Theta(n^2 d^2 / M) in tiles (Theorem 2); beyond its result, the tiled form stores one number per row.

Axes: G key/value heads, R rows (the queries of all heads that share one of these), S keys, K their width, V that of
values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.errors import CutawayError
from cutaway.nn.norms import at_least_float32
from cutaway.nn.online_softmax import Partial, Running, finite, merge
from cutaway.nn.patterns import CAUSAL, Rule


@dataclass
class Traffic:
    """Numbers read from slow memory, and written to it."""

    read: int = 0
    written: int = 0

    def load(self, x: Tensor) -> Tensor:
        """Bring x on the chip, where one computes in float32 or better."""
        self.read += x.numel()
        return at_least_float32(x)

    def store(self, x: Tensor) -> Tensor:
        """Send x back."""
        self.written += x.numel()
        return x


@dataclass(frozen=True)
class Tile:
    """How many rows and keys are on the chip at once. Errors: less than one."""

    rows: int = 64
    keys: int = 64

    def __post_init__(self) -> None:
        if min(self.rows, self.keys) < 1:
            raise CutawayError(f"must have at least 1 row and 1 key, got {self.rows} and {self.keys}", "Tile")

    @staticmethod
    def fitting(memory: int, width: int) -> Tile:
        """The tile for a chip that holds `memory` numbers: many rows, for keys pass by once per tile of rows.

        Errors: not even one row and one key of this width fit.
        """
        keys = max(1, min(width, memory // (8 * width)))
        rows = (memory - 2 * keys * width) // (2 * width + keys + 2)
        if rows < 1:
            raise CutawayError(f"a chip of {memory} numbers does not hold a row and a key of width {width}", "Tile")
        return Tile(rows, keys)

    def held(self, width: int) -> int:
        """Numbers on the chip: queries and outputs, keys and values, scores, largest score and sum of each row."""
        return self.rows * (2 * width + self.keys + 2) + 2 * self.keys * width


@dataclass(frozen=True)
class _Plan:
    """What all tiles have in common. q_R, s_S: positions, which the rule is asked about."""

    scale: float
    rule: Rule
    tile: Tile
    q_R: Tensor
    s_S: Tensor
    traffic: Traffic

    @property
    def rows(self) -> list[slice]:
        return [slice(i, i + self.tile.rows) for i in range(0, len(self.q_R), self.tile.rows)]

    @property
    def keys(self) -> list[slice]:
        return [slice(i, i + self.tile.keys) for i in range(0, len(self.s_S), self.tile.keys)]

    def tiles(self, rows: list[slice], keys: list[slice]) -> Iterator[tuple[slice, slice, Tensor]]:
        """Those in which some row sees some key, with seen_RS."""
        for r, s in product(rows, keys):
            seen_RS = self.rule(self.q_R[r, None], self.s_S[None, s])
            if seen_RS.any():
                yield r, s, seen_RS

    def scores(self, q_GRK: Tensor, k_GSK: Tensor, seen_RS: Tensor) -> Tensor:
        return (q_GRK @ k_GSK.mT * self.scale).masked_fill(~seen_RS, -torch.inf)


class _Tiled(torch.autograd.Function):
    """q_GRK, k_GSK, v_GSV -> out_GRV, logsumexp_GR."""

    @staticmethod
    def forward(ctx: Any, q_GRK: Tensor, k_GSK: Tensor, v_GSV: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        load, store = plan.traffic.load, plan.traffic.store
        out_GRV = q_GRK.new_empty(*q_GRK.shape[:2], v_GSV.shape[-1])
        logsumexp_GR = at_least_float32(q_GRK.new_empty(q_GRK.shape[:2]))
        for r in plan.rows:
            row_GRK = load(q_GRK[:, r])
            running = Running.none(at_least_float32(out_GRV[:, r]))
            for _, s, seen_RS in plan.tiles([r], plan.keys):
                running = running.absorb(plan.scores(row_GRK, load(k_GSK[:, s]), seen_RS), load(v_GSV[:, s]))
            out_GRV[:, r], logsumexp_GR[:, r] = map(store, running.finished())
        ctx.save_for_backward(q_GRK, k_GSK, v_GSV, out_GRV, logsumexp_GR)
        ctx.plan = plan
        return out_GRV, logsumexp_GR

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_GRV: Tensor, dlogsumexp_GR: Tensor) -> tuple[Tensor | None, ...]:
        """With weights p and dp = dout . v, the gradient of the scores is ds = p (dp - sum of p dp).

        That sum is dout . out, so no row of p is needed whole. logsumexp has the gradient p: what is asked of it
        adds to dp.
        """
        q_GRK, k_GSK, v_GSV, out_GRV, logsumexp_GR = ctx.saved_tensors
        plan, load, store = ctx.plan, ctx.plan.traffic.load, ctx.plan.traffic.store
        same_GR = store((load(dout_GRV) * load(out_GRV)).sum(-1) - load(dlogsumexp_GR))
        base_GR = finite(logsumexp_GR, torch.inf)  # a row that saw no key gets weights of zero
        dq_GRK, dk_GSK, dv_GSV = (torch.zeros_like(at_least_float32(x)) for x in (q_GRK, k_GSK, v_GSV))
        for s in plan.keys:
            key_GSK, value_GSV = load(k_GSK[:, s]), load(v_GSV[:, s])
            for r, _, seen_RS in plan.tiles(plan.rows, [s]):
                row_GRK, up_GRV = load(q_GRK[:, r]), load(dout_GRV[:, r])
                p_GRS = (plan.scores(row_GRK, key_GSK, seen_RS) - load(base_GR[:, r])[..., None]).exp()
                ds_GRS = p_GRS * (up_GRV @ value_GSV.mT - load(same_GR[:, r])[..., None]) * plan.scale
                dv_GSV[:, s] += p_GRS.mT @ up_GRV
                dk_GSK[:, s] += ds_GRS.mT @ row_GRK
                dq_GRK[:, r] = store(load(dq_GRK[:, r]) + ds_GRS @ key_GSK)
            store(dk_GSK[:, s]), store(dv_GSV[:, s])
        return dq_GRK.to(q_GRK.dtype), dk_GSK.to(k_GSK.dtype), dv_GSV.to(v_GSV.dtype), None


DEFAULT = Tile()


def flash(
    q_QHK: Tensor,
    k_SGK: Tensor,
    v_SGV: Tensor,
    *,
    scale: float,
    rule: Rule = CAUSAL,
    tile: Tile = DEFAULT,
    start: int | None = None,
    keys_start: int = 0,
    traffic: Traffic | None = None,
) -> Partial:
    """Attention of one sequence in tiles: out_QHV and logsumexp_QH, both with gradients.

    start, keys_start: positions of the first query and the first key, which `rule` is asked about; by default the
    last query stands beside the last key. traffic: counts forward and, later, backward. Errors: heads that do not
    share keys evenly.
    """
    (queries, heads, _), (keys, groups, _) = q_QHK.shape, k_SGK.shape
    if heads % groups:
        raise CutawayError(f"{groups} key/value heads do not divide {heads} query heads", "flash")
    start = keys_start + keys - queries if start is None else start
    at_Q, at_S = torch.arange(queries, device=q_QHK.device), torch.arange(keys, device=q_QHK.device)
    q_R = (start + at_Q).repeat(heads // groups)
    q_GRK = q_QHK.transpose(0, 1).unflatten(0, (groups, -1)).flatten(1, 2)
    plan = _Plan(scale, rule, tile, q_R, keys_start + at_S, traffic or Traffic())
    found = _Tiled.apply(q_GRK, k_SGK.transpose(0, 1), v_SGV.transpose(0, 1), plan)
    return Partial(*(x.unflatten(1, (-1, queries)).flatten(0, 1).transpose(0, 1) for x in found))


def split(
    q_QHK: Tensor, k_SGK: Tensor, v_SGV: Tensor, *, scale: float, parts: int, rule: Rule = CAUSAL, tile: Tile = DEFAULT
) -> Partial:
    """The same with the keys in `parts` ranges, each of which another worker could compute."""
    start = len(k_SGK) - len(q_QHK)
    ranges = (keys for keys in torch.arange(len(k_SGK)).tensor_split(parts) if len(keys))
    found = [
        flash(q_QHK, k_SGK[s], v_SGV[s], scale=scale, rule=rule, tile=tile, start=start, keys_start=int(s[0]))
        for s in ranges
    ]
    return merge(found)


def naive(q_QHK: Tensor, k_SGK: Tensor, v_SGV: Tensor, *, scale: float, rule: Rule, traffic: Traffic) -> Tensor:
    """out_QHV in three passes over memory: scores, weights, mix. What the tiled form is compared with."""
    load, store, group = traffic.load, traffic.store, q_QHK.shape[1] // k_SGK.shape[1]
    at_S = torch.arange(len(k_SGK), device=q_QHK.device)
    at_Q = at_S[len(k_SGK) - len(q_QHK) :]
    k_HSK, v_HSV = (x.transpose(0, 1).repeat_interleave(group, 0) for x in (k_SGK, v_SGV))
    scores_HQS = load(q_QHK.transpose(0, 1)) @ load(k_HSK).mT * scale
    scores_HQS = store(scores_HQS.masked_fill(~rule(at_Q[:, None], at_S[None]), -torch.inf))
    weights_HQS = store(load(scores_HQS).softmax(-1))
    return store(load(weights_HQS) @ load(v_HSV)).transpose(0, 1)
