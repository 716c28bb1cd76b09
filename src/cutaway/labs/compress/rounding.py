"""What a model loses when its numbers are rounded: one loss on the labs' text per way to round."""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.compress.floats import FORMATS
from cutaway.compress.simulated import Rounding, with_inputs, with_weights
from cutaway.compress.uniform import Sharing, quantize, shared
from cutaway.labs.subject import logits_of, loss_of
from cutaway.models.decoder import Decoder
from cutaway.weights import blocks


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


def uniform(bits: int, per: Sharing, *, symmetric: bool = True) -> Rounding:
    """Numbers -> their nearest in a uniform quantizer."""
    return lambda x: quantize(x, bits, per, symmetric=symmetric).numbers


def floating(name: str, per: Sharing | None = None) -> Rounding:
    """Numbers -> their nearest in a float format, as they are; or those that share a scale up to its largest number."""
    form = FORMATS[name]

    def scaled(x: Tensor, per: Sharing) -> Tensor:
        x_SE = shared(x, per)
        scale_S1 = x_SE.abs().amax(1, keepdim=True).clamp(min=1e-30) / form.largest
        return (form.round(x_SE / scale_S1) * scale_S1).view(x.shape)

    return lambda x: (form.round(x) if per is None else scaled(x, per)).to(x.dtype)


def of_file(type: str) -> Rounding:
    """Numbers -> what a GGUF file stores of them in a format of `weights.blocks`."""
    return lambda x: blocks.dequantize(blocks.quantize(x, type), type, x.shape)
