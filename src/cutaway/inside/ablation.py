"""Ablation: take a part out of a running model, and see what it had been good for.

    zero    what passes is replaced by nothing
    mean    it is replaced by its mean over the tokens of the text: what is the same everywhere stays, what it says
            about this token goes

A part may be a head, a neuron of a feed-forward layer, or a whole attention or feed-forward sublayer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.inside.prompt import Each, Guess, decoder, guesses, read, silent
from cutaway.inside.sites import ALL, Part, Site, Touch, check_layer, in_groups, states, touched
from cutaway.models.decoder import Decoder
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.weights.checkpoint import Loaded

How = Literal["zero", "mean"]
FILL: Mapping[How, Callable[[Tensor], Tensor]] = {"zero": torch.zeros_like, "mean": lambda x: x.mean(0, keepdim=True)}


@dataclass(frozen=True)
class Target:
    """What is taken out. index: which head or neuron; None for the whole sublayer."""

    part: Part
    layer: int
    index: int | None = None


@dataclass(frozen=True)
class Effect:
    """What it costs. change: of the loss, nats per token. kl: of the last token's distribution, nats.

    best: the most probable next tokens without the part.
    """

    part: str
    layer: int
    index: int | None
    loss: float
    change: float
    kl: float
    best: list[Guess]


@dataclass(frozen=True)
class Ablation:
    """loss, best: of the whole model on the text; the loss of a text of one token is 0."""

    tokens: list[str]
    how: str
    loss: float
    best: list[Guess]
    effects: list[Effect]


def count_of(model: Decoder, part: Part, layer: int) -> int:
    """How many heads or neurons a layer has. Errors: no such layer; experts instead of one feed-forward layer."""
    check_layer(model, layer)
    spec = model.spec.layers[layer]
    if part == "heads":
        return spec.attention.heads
    if not isinstance(spec.ffn, FeedForwardSpec):
        raise CutawayError(f"layer {layer} has experts, not one feed-forward layer", model.spec.family)
    return spec.ffn.width


def every(model: Decoder, part: Part, layers: Sequence[int] | None = None) -> list[Target]:
    """All targets of a kind in some layers, or in all."""
    chosen = range(len(model.spec.layers)) if layers is None else layers
    if part in ("attention", "ffn"):
        return [Target(part, layer) for layer in chosen]
    return [Target(part, layer, i) for layer in chosen for i in range(count_of(model, part, layer))]


def width_of(model: Decoder, target: Target) -> int:
    """How many numbers a head's answer, or a neuron, has."""
    out = model.block(target.layer).get_submodule("attention.out")
    assert isinstance(out, nn.Linear)
    return 1 if target.part == "neurons" else out.in_features // count_of(model, "heads", target.layer)


def knockout(model: Decoder, target: Target, how: How) -> Touch:
    """The touch that takes a target out. Errors: no such layer, head or neuron."""
    site = Site(target.part, target.layer)
    if target.index is None:
        return Touch(site, FILL[how])
    if target.part not in ("heads", "neurons"):
        raise CutawayError(f"is taken out whole, there is no number {target.index} of it", target.part)
    count = count_of(model, target.part, target.layer)
    if not 0 <= target.index < count:
        what = f"{target.index} is not one of the {count} {target.part} of layer {target.layer}"
        raise CutawayError(what, target.part)
    width = width_of(model, target)
    return Touch(site, FILL[how], ALL, slice(target.index * width, (target.index + 1) * width))


def without(model: Decoder, tokens_T: Tensor, groups: Sequence[Sequence[Target]], how: How) -> Tensor:
    """Hidden states of a sequence without the targets of each group, hidden_CTD."""
    copies = [[knockout(model, target, how) for target in group] for group in groups]
    return touched(model, states(model, tokens_T), copies)


def token_losses(model: Decoder, hidden_TD: Tensor, tokens_T: Tensor) -> Tensor:
    """Negative log-probability of each token after the first, nats, [T - 1]."""
    return F.cross_entropy(model.logits(hidden_TD[:-1]).float(), tokens_T[1:], reduction="none")


def losses(model: Decoder, hidden_CTD: Tensor, tokens_T: Tensor) -> list[float]:
    """Mean of `token_losses` per copy; 0 for a text of one token."""
    if len(tokens_T) < 2:
        return [0.0] * len(hidden_CTD)
    return [float(token_losses(model, hidden_TD, tokens_T).mean()) for hidden_TD in hidden_CTD]


@torch.inference_mode()
def ablate(
    loaded: Loaded, text: str, targets: Sequence[Target], *, how: How = "zero", top: int = 5, each: Each = silent
) -> Ablation:
    """The effect of taking out each target by itself. Errors: see `read`, `knockout`."""
    model, prompt = decoder(loaded), read(loaded, text)
    tokens_T = prompt.tensor(model.device)
    streams = states(model, tokens_T)
    whole_1TD = touched(model, streams, [[]])
    logits_V, (loss,) = model.logits(whole_1TD[0, -1:])[0], losses(model, whole_1TD, tokens_T)
    effects: list[Effect] = []
    for group in in_groups(targets, len(tokens_T)):
        each(len(effects), len(targets))
        hidden_CTD = touched(model, streams, [[knockout(model, target, how)] for target in group])
        after_CV = model.logits(hidden_CTD[:, -1])
        for target, after_V, other in zip(group, after_CV, losses(model, hidden_CTD, tokens_T), strict=True):
            best = guesses(loaded.tokenizer, after_V, top)
            kl = divergence(logits_V, after_V)
            effects.append(Effect(target.part, target.layer, target.index, other, other - loss, kl, best))
    each(len(targets), len(targets))
    return Ablation(prompt.tokens, how, loss, guesses(loaded.tokenizer, logits_V, top), effects)


def divergence(before_V: Tensor, after_V: Tensor) -> float:
    """KL(before || after) of the two distributions, nats."""
    before_V, after_V = before_V.double().log_softmax(-1), after_V.double().log_softmax(-1)
    return float(F.kl_div(after_V, before_V, reduction="sum", log_target=True))
