"""What grows with what: depth and width by parameters, methods and caches by context, experts by batch."""

from __future__ import annotations

import torch

from cutaway.budget.figures import Figure, figure
from cutaway.errors import CutawayError
from cutaway.models.cost import Cost
from cutaway.models.spec import FeedSpec
from cutaway.nn.experts import ExpertsSpec
from cutaway.nn.positions import RopeSpec, rope_frequencies


def growth(factor: float) -> list[Figure]:
    """`factor` times the parameters, with N near 12·L·D²: depth and width together, or one of them alone."""
    return [
        figure("depth and width, each", "times", "f^(1/3)", f=factor),
        figure("width alone", "times", "f^(1/2)", f=factor),
        figure("depth alone", "times", "f", f=factor),
    ]


def context(factor: float, base: float, dim: int) -> list[Figure]:
    """What each method makes of rotary positions for a text `factor` times as long (see `nn.rope_scaling`).

    dim: K, what is rotated of a head. Errors: a factor below 1, fewer than two pairs.
    """
    if factor < 1 or dim < 4:
        raise CutawayError(f"factor {factor} must be at least 1 and dim {dim} at least 4", "context")
    return [
        figure("interpolation: positions times", "", "1/f", f=factor),
        figure("NTK: base", "", "θ·f^(K/(K − 2))", θ=base, f=factor, K=dim),
        figure("YaRN: queries and keys times", "", "0.1·ln(f) + 1", f=factor),
    ]


def unfinished(base: float, dim: int, trained: int) -> list[Figure]:
    """The slowest pair's wavelength, and how many pairs never finish a turn within `trained` tokens."""
    turns_k = trained * rope_frequencies(RopeSpec(base), dim) / (2 * torch.pi)
    return [
        figure("slowest wavelength", "tokens", "2·π·θ^((K − 2)/K)", π=torch.pi, θ=base, K=dim),
        figure("pairs", "", "K/2", K=dim),
        figure("pairs that never finish a turn", "", "u", u=int((turns_k < 1).sum())),
    ]


def context_of(cost: Cost, factor: float, dtype: str) -> list[Figure]:
    """The same for a model with rotary positions, and its cache. Errors: none of its layers rotates."""
    turning = [layer.attention for layer in cost.spec.layers if layer.attention.rope]
    if not turning:
        raise CutawayError("has no rotary positions to stretch", cost.spec.family)
    rope = max((a.rope for a in turning if a.rope), key=lambda r: r.base)
    now, then = (cost.kv_bytes(int(n), 1, dtype).value for n in (cost.spec.context, factor * cost.spec.context))
    return [
        *context(factor, rope.base, turning[0].rotated),
        *unfinished(rope.base, turning[0].rotated, cost.spec.context),
        figure("KV now", "bytes", "k", k=now),
        figure("KV then", "bytes", "k", k=then),
    ]


def distinct(count: int, chosen: int, tokens: int) -> Figure:
    """Experts of which a batch of `tokens` reads the weights, expected if each is as likely."""
    return figure("distinct experts read", "", "E·(1 − (1 − k/E)^B)", E=count, k=chosen, B=tokens)


def choices(count: int, chosen: int) -> Figure:
    """In how many ways a token can be routed."""
    return figure("choices per token", "", "choose(E, k)", E=count, k=chosen)


def exchanged(width: int, chosen: int, out: int = 1, back: int = 2) -> list[Figure]:
    """Bytes that a token sends to experts on other machines and gets back, in one layer, before limits to few nodes.

    out, back: bytes a number; DeepSeek-V3 sends FP8 and receives bfloat16.
    """
    sizes = {"k": chosen, "D": width}
    return [
        figure("sent", "bytes", "k·D·o", o=out, **sizes),
        figure("received", "bytes", "k·D·r", r=back, **sizes),
        figure("exchanged", "bytes", "k·D·(o + r)", o=out, r=back, **sizes),
    ]


def experts_of(cost: Cost, tokens: int) -> list[Figure]:
    """All three for a model's experts. Errors: it has none."""
    f = _experts(cost)
    read = figure("parameters read by the step", "", "r", r=round(cost.read(tokens)))
    routed = [distinct(f.count, f.router.top_k, tokens), choices(f.count, f.router.top_k), read]
    return [*routed, *exchanged(cost.spec.width, f.router.top_k)]


def _experts(cost: Cost) -> ExpertsSpec:
    feeds: list[FeedSpec] = [layer.ffn for layer in cost.spec.layers]
    found = next((f for f in feeds if isinstance(f, ExpertsSpec)), None)
    if found is None:
        raise CutawayError("has no experts", cost.spec.family, "for instance mixtral-8x7b has")
    return found


def attention_traffic(tokens: int, width: int, bytes_each: int = 2) -> list[Figure]:
    """Bytes that attention of one head moves: scores and weights stored and read again, or never leaving the chip.

    And by how much reordering the product (linear attention) shortens it. For tiles on a given chip see `nn.flash`.
    """
    sizes = {"n": tokens, "d": width, "b": bytes_each}
    return [
        figure("naive", "bytes", "b·(4·n·d + 4·n^2)", **sizes),
        figure("q, k, v and output once", "bytes", "b·4·n·d", **sizes),
        figure("pairs over states", "", "n/d", n=tokens, d=width),
    ]
