"""Cross-entropy: what every language model minimizes, written out, and a form that never holds T x V logits.

    loss_T    = logsumexp(logits_TV) - logits_TV[target]        nats: the negative log-probability of the target
    gradient  = p_TV - y_TV                                     what was said minus what is true, one-hot

With a vocabulary of 128,256 the logits of 8,192 tokens take 4 GB, their gradient as much again. Nobody needs them all
at once: `linear_cross_entropy` goes through the rows in chunks and computes each chunk a second time on the way back
(Wijmans et al. 2024, "Cut Your Losses", arXiv:2411.09009; Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989).

z-loss: z * logsumexp^2 keeps the normalizer near one, and so logits small (Chowdhery et al. 2022, "PaLM",
arXiv:2204.02311). Soft-cap: logits = c * tanh(logits / c) (Gemma Team 2024, arXiv:2408.00118).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.errors import CutawayError
from cutaway.nn.norms import at_least_float32

IGNORED = -100
"""The target of a token that nothing is asked about."""


def cross_entropy(logits_TV: Tensor, targets_T: Tensor, z_loss: float = 0.0) -> Tensor:
    """losses_T in nats, 0 where the target is `IGNORED`. Errors: a target that is no token, unequal lengths."""
    asked_T = _asked(targets_T, *logits_TV.shape)
    losses_R = _CrossEntropy.apply(at_least_float32(logits_TV[asked_T]), targets_T[asked_T], z_loss)
    return losses_R.new_zeros(len(targets_T)).masked_scatter(asked_T, losses_R)


def linear_cross_entropy(
    hidden_TD: Tensor,
    table_VD: Tensor,
    targets_T: Tensor,
    bias_V: Tensor | None = None,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk: int = 256,
) -> Tensor:
    """`cross_entropy` of the logits hidden_TD . table_VD + bias_V, of which at most `chunk` rows exist at a time.

    Costs one more product than keeping them: four instead of three. Ignored rows cost nothing. Errors: as
    `cross_entropy`, a chunk below 1.
    """
    if chunk < 1:
        raise CutawayError(f"must be at least 1, got {chunk}", "chunk")
    asked_T = _asked(targets_T, len(hidden_TD), len(table_VD))
    settings = _Settings(softcap, z_loss, chunk)
    losses_R = _Chunked.apply(settings, targets_T[asked_T], hidden_TD[asked_T], table_VD, bias_V)
    return losses_R.new_zeros(len(targets_T)).masked_scatter(asked_T, losses_R)


def mean_loss(losses_T: Tensor, targets_T: Tensor) -> Tensor:
    """Mean over the targets that count; not a number if there are none, as with PyTorch."""
    return losses_T.sum() / (targets_T != IGNORED).sum()


def _asked(targets_T: Tensor, rows: int, vocab: int) -> Tensor:
    """Which rows have a target, a mask_T."""
    if targets_T.shape != (rows,):
        raise CutawayError(f"{list(targets_T.shape)} targets for {rows} rows", "targets_T", "give one per row")
    asked_T = targets_T != IGNORED
    if bool(((targets_T < 0) | (targets_T >= vocab))[asked_T].any()):
        raise CutawayError(
            f"hold a target outside 0 ... {vocab - 1}", "targets_T", f"{IGNORED} marks tokens that do not count"
        )
    return asked_T


def _losses(logits_RV: Tensor, targets_R: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """losses_R, and the logarithms of the normalizers, lse_R."""
    lse_R = logits_RV.logsumexp(-1)
    return lse_R - logits_RV.gather(-1, targets_R[:, None])[:, 0] + z_loss * lse_R.square(), lse_R


def _slopes(logits_RV: Tensor, lse_R: Tensor, targets_R: Tensor, z_loss: float) -> Tensor:
    """d loss / d logits, slopes_RV: p - y, and p again for the z-loss."""
    p_RV = (logits_RV - lse_R[:, None]).exp_()
    slopes_RV = p_RV.mul_((1 + 2 * z_loss * lse_R)[:, None])
    return slopes_RV.scatter_add_(-1, targets_R[:, None], slopes_RV.new_full((len(targets_R), 1), -1.0))


class _CrossEntropy(torch.autograd.Function):
    """logits_RV, targets_R -> losses_R."""

    @staticmethod
    def forward(ctx: Any, logits_RV: Tensor, targets_R: Tensor, z_loss: float) -> Tensor:
        losses_R, lse_R = _losses(logits_RV, targets_R, z_loss)
        ctx.save_for_backward(logits_RV, lse_R, targets_R)
        ctx.z_loss = z_loss
        return losses_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_R: Tensor) -> tuple[Tensor | None, ...]:
        logits_RV, lse_R, targets_R = ctx.saved_tensors
        return _slopes(logits_RV, lse_R, targets_R, ctx.z_loss).mul_(upstream_R[:, None]), None, None


class _Settings(NamedTuple):
    softcap: float | None
    z_loss: float
    chunk: int


class _Chunked(torch.autograd.Function):
    """hidden_RD, table_VD, bias_V -> losses_R; keeps the logarithms of the normalizers, computes logits again."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, targets_R: Tensor, *tensors: Tensor) -> Tensor:
        hidden_RD, table_VD, bias_V = tensors
        parts = [
            _losses(_logits(rows_D, table_VD, bias_V, settings.softcap), targets, settings.z_loss)
            for rows_D, targets in zip(hidden_RD.split(settings.chunk), targets_R.split(settings.chunk), strict=True)
        ]
        losses_R, lse_R = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(*tensors, targets_R, lse_R)
        ctx.settings = settings
        return losses_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_R: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RD, table_VD, bias_V, targets_R, lse_R = ctx.saved_tensors
        softcap, z_loss, chunk = ctx.settings
        to_hidden_RD = torch.empty_like(hidden_RD)
        to_table_VD, to_bias_V = (
            torch.zeros_like(at_least_float32(t)) if needed else None
            for t, needed in zip((table_VD, bias_V), ctx.needs_input_grad[3:], strict=True)
        )
        for start in range(0, len(hidden_RD), chunk):
            rows = slice(start, start + chunk)
            logits_RV = _logits(hidden_RD[rows], table_VD, bias_V, softcap)
            slopes_RV = _slopes(logits_RV, lse_R[rows], targets_R[rows], z_loss).mul_(upstream_R[rows, None])
            if softcap is not None:
                slopes_RV.mul_(logits_RV.div_(softcap).square_().neg_().add_(1))  # tanh' = 1 - tanh^2
            to_hidden_RD[rows] = slopes_RV.to(table_VD.dtype) @ table_VD
            if to_table_VD is not None:  # a sum over chunks: in bfloat16 it would lose the small ones
                to_table_VD.addmm_(slopes_RV.T, hidden_RD[rows].to(slopes_RV.dtype))
            if to_bias_V is not None:
                to_bias_V += slopes_RV.sum(0)
        return None, None, to_hidden_RD, _like(to_table_VD, table_VD), _like(to_bias_V, bias_V)


def _logits(hidden_RD: Tensor, table_VD: Tensor, bias_V: Tensor | None, softcap: float | None) -> Tensor:
    logits_RV = at_least_float32(F.linear(hidden_RD, table_VD, bias_V))
    return logits_RV if softcap is None else torch.tanh(logits_RV.div_(softcap)).mul_(softcap)


def _like(sum_: Tensor | None, other: Tensor | None) -> Tensor | None:
    """A sum kept in float32, in the dtype of what it is the gradient of."""
    return None if sum_ is None or other is None else sum_.to(other.dtype)
