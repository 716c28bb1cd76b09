"""From a `Spec` to a model."""

from __future__ import annotations

import torch

from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.encoder import Encoder
from cutaway.models.spec import Spec


def build(spec: Spec, device: str | torch.device = "cpu") -> Decoder | Encoder:
    """The model that `spec` describes. On device "meta" it has shapes but no memory."""
    kind = Encoder if spec.pooling else EncoderDecoder if spec.encoder else Decoder
    with torch.device(device):
        return kind(spec)
