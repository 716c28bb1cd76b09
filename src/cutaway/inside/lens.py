"""The logit lens (nostalgebraist 2020): what the model would say if it stopped after each block.

    logits after n blocks = head(final_norm(residual n))

The residual stream is one running sum that the head reads at the end; read earlier, it shows a guess in the making.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.inside.prompt import Guess, decoder, guesses, place_of, read
from cutaway.inside.sites import finished, states
from cutaway.models.decoder import Decoder
from cutaway.weights.checkpoint import Loaded


@dataclass(frozen=True)
class View:
    """What the model says after `blocks` blocks at one position. probability, rank: of its final choice; 0 is best.

    entropy: of the distribution, nats.
    """

    blocks: int
    best: list[Guess]
    probability: float
    rank: int
    entropy: float


@dataclass(frozen=True)
class Lens:
    """final: the model's choice at each position. views: [position][blocks]."""

    tokens: list[str]
    positions: list[int]
    final: list[Guess]
    views: list[list[View]]


def lens_logits(model: Decoder, state_TD: Tensor) -> Tensor:
    """Logits read from a residual stream, logits_TV."""
    return model.logits(finished(model, state_TD))


@torch.inference_mode()
def lens(loaded: Loaded, text: str, positions: Sequence[int] | None = (-1,), top: int = 5) -> Lens:
    """Views at the positions (None: all; negative: from the end). Errors: see `read`; no such position."""
    model, prompt = decoder(loaded), read(loaded, text)
    count = len(prompt.ids)
    chosen = [place_of(p, count) for p in (range(count) if positions is None else positions)]
    streams = [state_TD[chosen] for state_TD in states(model, prompt.tensor(model.device))]
    final_RV = lens_logits(model, streams[-1])
    views: list[list[View]] = [[] for _ in chosen]
    for blocks, stream_RD in enumerate(streams):
        for row, logits_V, choice in zip(
            views, lens_logits(model, stream_RD), final_RV.argmax(-1).tolist(), strict=True
        ):
            row.append(_view(loaded, blocks, logits_V, choice, top))
    final = [guesses(loaded.tokenizer, logits_V, 1)[0] for logits_V in final_RV]
    return Lens(prompt.tokens, chosen, final, views)


def _view(loaded: Loaded, blocks: int, logits_V: Tensor, choice: int, top: int) -> View:
    p_V = logits_V.float().softmax(-1)
    return View(
        blocks=blocks,
        best=guesses(loaded.tokenizer, logits_V, top),
        probability=float(p_V[choice]),
        rank=int((logits_V > logits_V[choice]).sum()),
        entropy=float(torch.special.entr(p_V).sum()),
    )
