"""Small models with experts: how they are made, trained with a remedy against uneven load or without, and watched."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.lab import Run
from cutaway.labs.training import Task, fit, fresh, held_out, loss_of, next_bytes, prose
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.balance import balance_loss, balance_step, recorded, z_loss
from cutaway.nn.experts import ExpertsSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.routing import Router, RouterSpec, Routing

LENGTH, ROWS, TESTED = 64, 8, 8  # bytes of a training sequence, sequences of a step, batches of held-out text
CHOSEN = 2


class Remedy(NamedTuple):
    """auxiliary, z: weights of `balance_loss` and `z_loss`. speed: of the choice bias, falling evenly to zero."""

    auxiliary: float = 0.0
    z: float = 0.0
    speed: float = 0.0
    capacity: float | None = None


class Trained(NamedTuple):
    """counts_SLE: choices that fell on each expert, by step and layer. loss: on held-out text, nats per byte.

    routings: of held-out text, a list of batches per layer with experts, the lowest first.
    """

    model: Decoder
    counts_SLE: Tensor
    loss: float
    routings: list[list[Routing]]

    def busiest(self, first: int, last: int) -> float:
        """Largest load over the mean load, of steps `first` to `last` pooled, mean over layers."""
        counts_LE = self.counts_SLE[first:last].sum(0).double()
        return float((counts_LE.amax(-1) / counts_LE.mean(-1)).mean())


def experts_like(
    width: int, count: int, score: Literal["softmax", "sigmoid"], capacity: float | None = None
) -> ExpertsSpec:
    """Experts of which a token uses two; the logits have a bias, and the choice one of its own."""
    router = RouterSpec(CHOSEN, score, bias=True, choice_bias=True)
    return ExpertsSpec(count, router, FeedForwardSpec(width, "silu", gated=True), capacity=capacity)


def sparse(spec: Spec, experts: ExpertsSpec, dense: int = 0) -> Spec:
    """Experts in all layers but the first `dense`, which get a layer as wide as the experts that a token uses."""
    one = replace(experts.expert, width=experts.router.top_k * experts.expert.width)
    ffns = [one if i < dense else experts for i in range(len(spec.layers))]
    return replace(spec, layers=tuple(replace(layer, ffn=ffn) for layer, ffn in zip(spec.layers, ffns, strict=True)))


def routers(model: Decoder) -> list[Router]:
    """The lowest layer's first."""
    return [module for module in model.modules() if isinstance(module, Router)]


@torch.no_grad()
def favor(model: Decoder, head_start: float) -> None:
    """Add to the logits of the first two experts of every layer; training may take it away again."""
    for router in routers(model):
        assert router.bias is not None
        router.bias[:CHOSEN] += head_start


def train(
    spec: Spec, remedy: Remedy, steps: int, seed: int, run: Run, *, note: str, lr: float, head_start: float = 0.0
) -> Trained:
    """On nine tenths of the text; what comes of it is asked of the rest."""
    model, text, counts = fresh(spec, seed), prose(), list[Tensor]()
    favor(model, head_start)
    cut = len(text) * 9 // 10
    learned, test = (next_bytes(part, LENGTH, ROWS) for part in (text[:cut], text[cut:]))

    def loss(draws: torch.Generator) -> Tensor:
        with recorded(model) as found:
            value = loss_of(model, learned(draws))
        made = [routing for batches in found.values() for routing in batches]
        speed = remedy.speed * (1 - len(counts) / steps)
        counts.append(torch.stack([routing.counts_E for routing in made]))
        for router, routing in zip(routers(model), made, strict=True):
            if router.choice_bias is not None:
                balance_step(router.choice_bias, routing.counts_E, speed)  # there is one batch per optimizer step
        return value + sum(remedy.auxiliary * balance_loss(r) + remedy.z * z_loss(r) for r in made)

    fit(model.parameters(), loss, steps, run, note, seed=seed, lr=lr)
    return Trained(model, torch.stack(counts), *read(model, test))


@torch.no_grad()
def read(model: Decoder, task: Task) -> tuple[float, list[list[Routing]]]:
    """The loss on held-out text, and how its tokens were routed."""
    with recorded(model) as found:
        loss = held_out(model, task, TESTED)
    return loss, list(found.values())
