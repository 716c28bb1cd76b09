"""Where a hand can be put into a running model: to read what passes there, or to change it.

    residual n    what enters block n; of the last n, what leaves the last block       [T, D]
    attention n   what the attention of block n adds to the residual stream            [T, D]
    ffn n         what its feed-forward layer adds                                     [T, D]
    heads n       the answers of its heads, end to end, before they are mixed          [T, H*K]
    neurons n     the hidden units of its feed-forward layer                           [T, F]

Hooks are never put on the model itself, which others may be using, but on a twin: the same weights in modules of
its own. Several changes are tried at once, as copies of one sequence in one ragged batch; what comes before the
first block that any of them touches is computed once.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.models.block import Block, Stack, positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal, Context

Part = Literal["residual", "attention", "ffn", "heads", "neurons"]
Change = Callable[[Tensor], Tensor | None]
"""What passes a site -> what passes instead, or None to leave it."""

S = TypeVar("S", bound=Stack)
T = TypeVar("T")
ALL = slice(None)
TOKENS = 512  # computed at a time, unless one copy of a sequence is longer


class Site(NamedTuple):
    """A place in a model; layer counts blocks from 0."""

    part: Part
    layer: int


class Touch(NamedTuple):
    """Replace numbers `columns` of tokens `rows` of what passes `site` by `value` of them: x_RN -> x_RN."""

    site: Site
    value: Callable[[Tensor], Tensor]
    rows: slice = ALL
    columns: slice = ALL


def added_by(block: Block, sublayer: Literal["attention", "ffn"]) -> nn.Module:
    """The module whose output a sublayer adds: a norm behind it, if there is one."""
    behind = {"sandwich": f"{sublayer}_post_norm", "after": f"{sublayer}_norm"}
    return block.get_submodule(behind.get(block.spec.placement, sublayer))


MODULES: Mapping[Part, Callable[[Block], nn.Module]] = {
    "residual": lambda block: block,
    "attention": lambda block: added_by(block, "attention"),
    "ffn": lambda block: added_by(block, "ffn"),
    "heads": lambda block: block.get_submodule("attention.out"),
    "neurons": lambda block: block.get_submodule("ffn.down"),
}


def check_layer(model: Stack, layer: int, last: int = -1) -> None:
    """Errors: no such layer. last: the highest one allowed, counted from the number of layers."""
    depth = len(model.spec.layers) + last
    if not 0 <= layer <= depth:
        raise CutawayError(f"{layer} is not one of the layers 0 to {depth}", "layer")


def altered(model: S, changes: Mapping[Site, Change]) -> S:
    """A twin with the same weights in which what passes each site is changed. Errors: no such site."""
    twin = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for (part, layer), change in changes.items():
        ended = part == "residual" and layer == len(model.spec.layers)
        check_layer(model, layer, last=0 if part == "residual" else -1)
        module = _module(twin, part, layer - ended)
        if part in ("attention", "ffn") or ended:
            module.register_forward_hook(lambda _, inputs, out, change=change: change(out))
        else:
            module.register_forward_pre_hook(lambda _, inputs, change=change: _first(inputs, change))
    return twin


def _module(model: Stack, part: Part, layer: int) -> nn.Module:
    try:
        if model.spec.distinct is not None:
            raise CutawayError("shares blocks between layers, they cannot be touched one by one", model.spec.family)
        return MODULES[part](model.block(layer))
    except AttributeError:
        raise CutawayError(f"layer {layer} has no {part} to be told apart", model.spec.family) from None


def _first(inputs: tuple[Tensor, ...], change: Change) -> tuple[Tensor, ...] | None:
    changed = change(inputs[0])
    return None if changed is None else (changed, *inputs[1:])


def run(model: Stack, tokens_T: Tensor, context: Context | None = None) -> Tensor:
    """Hidden states of one sequence, hidden_TD."""
    positions_T = positions_of([len(tokens_T)], tokens_T.device)
    return model(tokens_T, positions_T, context or BlockDiagonal([len(tokens_T)]))


def through(model: Stack, x_RD: Tensor, lengths: list[int], first: int = 0, end: int | None = None) -> Tensor:
    """What enters block `first`, of sequences laid end to end -> what leaves the block before `end`."""
    positions_R, context = positions_of(lengths, x_RD.device), BlockDiagonal(lengths)
    for n, place in list(enumerate(model.places(model.spec.layers, positions_R, x_RD)))[first:end]:
        x_RD = model.block(n)(x_RD, n, place, context)
    return x_RD


def finished(model: Stack, x_RD: Tensor) -> Tensor:
    """The residual stream after the last block -> hidden states."""
    return x_RD if model.final_norm is None else model.final_norm(x_RD)


def embedded(model: Stack, tokens_R: Tensor, lengths: list[int]) -> Tensor:
    """What enters the first block, x_RD."""
    return model.embedding(tokens_R, positions_of(lengths, tokens_R.device))


def record(model: Stack, tokens_T: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """What passes the sites when the model reads one sequence; nothing behind the last of them is computed."""
    seen: dict[Site, Tensor] = {}
    twin = altered(model, {site: partial(_keep, seen, site) for site in sites})
    through(twin, embedded(twin, tokens_T, [len(tokens_T)]), [len(tokens_T)], end=max(layer for _, layer in sites) + 1)
    return seen


def _keep(seen: dict[Site, Tensor], site: Site, x_TN: Tensor) -> None:
    seen[site] = x_TN


def states(model: Stack, tokens_T: Tensor) -> list[Tensor]:
    """The residual stream before each block and after the last: L + 1 times x_TD."""
    sites = [Site("residual", n) for n in range(len(model.spec.layers) + 1)]
    seen = record(model, tokens_T, sites)
    return [seen[site] for site in sites]


def touched(model: Decoder, states_TD: Sequence[Tensor], copies: Sequence[Sequence[Touch]]) -> Tensor:
    """Hidden states of copies of a sequence, each touched in its own way: hidden_CTD. states_TD: see `states`."""
    groups = in_groups(copies, len(states_TD[0]))
    return torch.cat([_touched(model, states_TD, group) for group in groups])


def in_groups(copies: Sequence[T], tokens: int) -> list[Sequence[T]]:
    """As many copies of a sequence at a time as make `TOKENS`."""
    size = max(1, TOKENS // tokens)
    return [copies[i : i + size] for i in range(0, len(copies), size)]


def _touched(model: Decoder, states_TD: Sequence[Tensor], copies: Sequence[Sequence[Touch]]) -> Tensor:
    by_site: dict[Site, list[tuple[int, Touch]]] = defaultdict(list)
    for i, touches in enumerate(copies):
        for touch in touches:
            by_site[touch.site].append((i, touch))
    twin = altered(model, {site: _replacer(len(copies), group) for site, group in by_site.items()})
    first = min([len(states_TD) - 2, *(site.layer for site in by_site)])
    lengths = [len(states_TD[0])] * len(copies)
    x_RD = through(twin, states_TD[first].repeat(len(copies), 1), lengths, first)
    return finished(twin, x_RD).unflatten(0, (len(copies), -1))


def _replacer(copies: int, touches: Sequence[tuple[int, Touch]]) -> Change:
    def change(x_RN: Tensor) -> Tensor:
        x_CTN = x_RN.clone().unflatten(0, (copies, -1))
        for i, touch in touches:
            x_CTN[i, touch.rows, touch.columns] = touch.value(x_CTN[i, touch.rows, touch.columns])
        return x_CTN.flatten(0, 1)

    return change
