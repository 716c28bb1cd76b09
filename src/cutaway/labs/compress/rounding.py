"""What a model loses when its numbers are rounded: one loss on the labs' text per way to round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cutaway.compress.simulated import Rounding, with_inputs, with_weights
from cutaway.compress.uniform import Sharing, quantize
from cutaway.labs.subject import logits_of, loss_of
from cutaway.models.decoder import Decoder


@torch.inference_mode()
def loss(model: Decoder, tokens_T: Tensor) -> float:
    """Nats per token."""
    return loss_of(logits_of(model, tokens_T), tokens_T)


@torch.inference_mode()
def of_weights(model: Decoder, tokens_T: Tensor, rounding: Rounding) -> float:
    """The loss with the matrices of all linear maps rounded; embedding and head, which are one table, are not."""
    return loss(with_weights(model, rounding), tokens_T)


@torch.inference_mode()
def of_inputs(model: Decoder, tokens_T: Tensor, rounding: Rounding) -> float:
    """The loss with what all linear maps read, x_TD, rounded; what the head reads is not."""
    return loss(with_inputs(model, rounding), tokens_T)


def uniform(bits: int, per: Sharing, *, symmetric: bool = True) -> Callable[[Tensor], Tensor]:
    """Numbers -> their nearest in a uniform quantizer."""
    return lambda x: quantize(x, bits, per, symmetric=symmetric).numbers
