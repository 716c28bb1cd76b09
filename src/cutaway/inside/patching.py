"""Activation patching: which part of a model carries the difference between two prompts.

    clean      The capital of France is      " Paris"      corrupt    The capital of Poland is      " Warsaw"

The model reads the corrupt prompt, but one activation is taken from its reading of the clean one. If the answer
swings over, that activation carried what tells the two apart (Meng et al. 2022, arXiv:2202.05262; Wang et al. 2023,
arXiv:2211.00593). The measure is the difference of two answers' logits, 0 as in the corrupt run, 1 as in the clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.inside.geometry import word_id
from cutaway.inside.prompt import Each, Prompt, decoder, read, silent
from cutaway.inside.sites import Part, Site, Touch, record, run, states, touched
from cutaway.models.decoder import Decoder
from cutaway.weights.checkpoint import Loaded

PARTS: tuple[Part, ...] = ("residual", "attention", "ffn")


@dataclass(frozen=True)
class Patching:
    """clean, corrupt: logit of the clean answer minus that of the corrupt one, in either run.

    effects: part -> [layer][position], how much of the way from corrupt to clean one patch goes.
    """

    clean_tokens: list[str]
    corrupt_tokens: list[str]
    answers: tuple[str, str]
    clean: float
    corrupt: float
    effects: dict[str, list[list[float]]]


def patched(model: Decoder, clean_T: Tensor, corrupt_T: Tensor, part: Part) -> Tensor:
    """The corrupt run's last hidden state after each patch, layer by layer and position by position: [L*T, D]."""
    sites = [Site(part, layer) for layer in range(len(model.spec.layers))]
    kept = record(model, clean_T, sites)
    touches = [
        Touch(site, partial(_instead, kept[site][[t]]), slice(t, t + 1)) for site in sites for t in range(len(clean_T))
    ]
    return touched(model, states(model, corrupt_T), [[touch] for touch in touches])[:, -1]


def _instead(clean_1D: Tensor, corrupt_1D: Tensor) -> Tensor:
    return clean_1D


@torch.inference_mode()
def patch(
    loaded: Loaded,
    clean: str,
    corrupt: str,
    *,
    answers: tuple[str, str] | None = None,
    parts: Sequence[Part] = PARTS,
    each: Each = silent,
) -> Patching:
    """Effects of patching every layer and position, one at a time.

    answers: after the clean and after the corrupt prompt; None: what the model says. Errors: prompts of different
    numbers of tokens; answers that are the same, or not one token each; runs that answer alike.
    """
    model, (a, b) = (
        decoder(loaded),
        (read(loaded, text, where) for text, where in ((clean, "clean"), (corrupt, "corrupt"))),
    )
    _check_lengths(a, b)
    ends = [model.logits(run(model, prompt.tensor(model.device))[-1:])[0] for prompt in (a, b)]
    ids = (
        [int(logits_V.argmax()) for logits_V in ends]
        if answers is None
        else [word_id(loaded.tokenizer, word) for word in answers]
    )
    if ids[0] == ids[1]:
        said = loaded.tokenizer.display(ids[0])
        raise CutawayError(f"both answers are {said!r}", "answers", "name one answer for each prompt")
    high, low = (float(logits_V[ids[0]] - logits_V[ids[1]]) for logits_V in ends)
    if abs(high - low) < 1e-6:
        raise CutawayError("both prompts lead to the same logits", "corrupt", "change what decides the answer")
    effects: dict[str, list[list[float]]] = {}
    for i, part in enumerate(parts):
        each(i, len(parts))
        logits_CV = model.logits(patched(model, a.tensor(model.device), b.tensor(model.device), part))
        share_C = (logits_CV[:, ids[0]] - logits_CV[:, ids[1]] - low) / (high - low)
        effects[part] = share_C.unflatten(0, (-1, len(a.ids))).tolist()
    each(len(parts), len(parts))
    names = loaded.tokenizer.display(ids[0]), loaded.tokenizer.display(ids[1])
    return Patching(a.tokens, b.tokens, names, high, low, effects)


def _check_lengths(a: Prompt, b: Prompt) -> None:
    if len(a.ids) != len(b.ids):
        counted = " and ".join(f"{len(p.ids)} ({' '.join(p.tokens)})" for p in (a, b))
        raise CutawayError(f"have different numbers of tokens: {counted}", "the prompts", "use names of equal length")
