"""What the heads look at, and how far a token's attention reaches when layers are chained.

map       weights_HQS of a layer: how much each query takes from each key
reach     exp(entropy) of a row: over how many tokens it is spread, as if evenly
rollout   the product over layers of (mean over heads + residual) / 2: how much of each input is in each output,
          if all that ever happened were weighted sums (Abnar & Zuidema 2020, arXiv:2005.00928)
flow      the same graph as pipes: how much could flow from an input to an output if every weight were a
          capacity; the bottleneck decides, where rollout multiplies (same paper)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.inside.prompt import place_of, read, stack
from cutaway.inside.sites import check_layer, run
from cutaway.models.block import Stack
from cutaway.nn.attention import BlockDiagonal, Context, Project, Question, attention_weights
from cutaway.nn.norms import at_least_float32
from cutaway.weights.checkpoint import Loaded

TINY = 1e-12  # capacity that is rounding, not a pipe


class Recorder:
    """A context of one sequence without memory that answers as another does, and keeps each layer's weights_HQS."""

    remembers = False

    def __init__(self, context: Context) -> None:
        self.context = context
        self.weights: dict[int, Tensor] = {}

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        self.weights[layer] = attention_weights(q_THK.transpose(0, 1), k_TGK.transpose(0, 1), question)
        return self.context.attend(layer, q_THK, k_TGK, v_TGK, question)

    def recall(self, layer: int, q_THK: Tensor, project: Project, question: Question) -> Tensor:
        """See `Context.recall`."""
        return self.context.recall(layer, q_THK, project, question)

    def scan(self, layer: int, step: Callable[..., tuple[Tensor, Any]], *parts: Tensor) -> Tensor:
        """See `Context.scan`."""
        return self.context.scan(layer, step, *parts)

    def reach(self, positions_T: Tensor) -> Tensor:
        """See `Context.reach`."""
        return self.context.reach(positions_T)


def maps(model: Stack, tokens_T: Tensor) -> list[Tensor]:
    """weights_HQS of every layer for one sequence. Errors: a layer without attention weights."""
    recorder = Recorder(BlockDiagonal([len(tokens_T)]))
    run(model, tokens_T, recorder)
    for layer in range(len(model.spec.layers)):
        if layer not in recorder.weights:
            raise CutawayError(f"layer {layer} computes no attention weights", model.spec.family)
    return [at_least_float32(weights) for _, weights in sorted(recorder.weights.items())]


def reach(weights_HQS: Tensor) -> Tensor:
    """exp(entropy) of each head's rows, mean over queries: 1 for a head that looks at one token, at most S. [H]."""
    return torch.special.entr(weights_HQS).sum(-1).exp().mean(-1)


def mixed(maps_HQS: Sequence[Tensor]) -> list[Tensor]:
    """Per layer what a token is made of if heads count alike and the residual stream half: rows sum to 1, [T, T]."""
    own_TT = torch.eye(maps_HQS[0].shape[-1], device=maps_HQS[0].device)
    return [(weights_HQS.mean(0) + own_TT) / 2 for weights_HQS in maps_HQS]


def rollout(maps_HQS: Sequence[Tensor]) -> Tensor:
    """Share of each input token in each output token, [T, T]."""
    return reduce(lambda total_TT, layer_TT: layer_TT @ total_TT, mixed(maps_HQS))


Node = tuple[int, int]  # (number of blocks passed, token)


def flow(maps_HQS: Sequence[Tensor], position: int) -> list[float]:
    """The largest flow from each input token to the output at `position`, each by itself."""
    pipes: dict[tuple[Node, Node], float] = {}
    for n, layer_TT in enumerate(mixed(maps_HQS)):
        for query, row in enumerate(layer_TT.tolist()):
            pipes |= {((n, key), (n + 1, query)): weight for key, weight in enumerate(row) if weight > TINY}
    tokens = maps_HQS[0].shape[-1]
    return [max_flow(pipes, (0, token), (len(maps_HQS), position)) for token in range(tokens)]


def max_flow(capacities: Mapping[tuple[Node, Node], float], source: Node, sink: Node) -> float:
    """Dinic 1970: the shortest ways that are left are filled all at once, until there is no way left."""
    left: dict[Node, dict[Node, float]] = defaultdict(dict)
    for (a, b), capacity in capacities.items():
        left[a][b] = left[a].get(b, 0.0) + capacity
        left[b].setdefault(a, 0.0)
    total = 0.0
    while sink in (depth := _depths(left, source)):
        total += _push(left, depth, source, sink, float("inf"))
    return total


def _depths(left: Mapping[Node, Mapping[Node, float]], source: Node) -> dict[Node, int]:
    """How many pipes with room it takes to get to each node."""
    depth, waiting = {source: 0}, deque([source])
    while waiting:
        node = waiting.popleft()
        for other, room in left[node].items():
            if room > TINY and other not in depth:
                depth[other] = depth[node] + 1
                waiting.append(other)
    return depth


def _push(left: dict[Node, dict[Node, float]], depth: dict[Node, int], node: Node, sink: Node, room: float) -> float:
    """Send as much as possible, at most `room`, from `node` downhill to the sink; how much went."""
    if node == sink:
        return room
    sent = 0.0
    for other, capacity in left[node].items():
        if capacity > TINY and depth.get(other) == depth[node] + 1 and room - sent > TINY:
            part = _push(left, depth, other, sink, min(room - sent, capacity))
            left[node][other] -= part
            left[other][node] += part
            sent += part
    if room - sent > TINY:  # nothing more gets through here in this round
        depth[node] = -2
    return sent


@dataclass(frozen=True)
class Attention:
    """weights: [layer][head][query][key] of `layers`. reach: [layer][head]."""

    tokens: list[str]
    layers: list[int]
    weights: list[list[list[list[float]]]]
    reach: list[list[float]]


@dataclass(frozen=True)
class Influence:
    """Share of each input token in the output at `position`. rollout_all: for every position, [query][key]."""

    tokens: list[str]
    position: int
    rollout: list[float]
    flow: list[float]
    rollout_all: list[list[float]]


@torch.inference_mode()
def attention(loaded: Loaded, text: str, layers: Sequence[int] | None = None) -> Attention:
    """The maps of a prompt. Errors: see `read`, `maps`; no such layer."""
    prompt, model = read(loaded, text), stack(loaded)
    chosen = list(range(len(model.spec.layers))) if layers is None else list(layers)
    for layer in chosen:
        check_layer(model, layer)
    found = maps(model, prompt.tensor(model.device))
    return Attention(
        tokens=prompt.tokens,
        layers=chosen,
        weights=[found[layer].tolist() for layer in chosen],
        reach=[reach(found[layer]).tolist() for layer in chosen],
    )


@torch.inference_mode()
def influence(loaded: Loaded, text: str, position: int = -1) -> Influence:
    """Rollout and flow of a prompt. position: whose output, counted from the end if negative. Errors: no such."""
    prompt = read(loaded, text)
    position = place_of(position, len(prompt.ids))
    found = maps(stack(loaded), prompt.tensor(loaded.model.device))
    whole_TT = rollout(found)
    return Influence(prompt.tokens, position, whole_TT[position].tolist(), flow(found, position), whole_TT.tolist())
