"""What running a model takes: FLOPs of a prompt and of a step, the cache, and how many sequences a chip holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cutaway.budget.chips import Chip
from cutaway.budget.figures import Figure, figure, named, of_term
from cutaway.errors import CutawayError
from cutaway.models.cost import Cost, width_of
from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.latent import LatentSpec


def flops(cost: Cost, context: int, source: int = 0) -> list[Figure]:
    """Of reading `context` tokens at once, forward and in training; of one more token with a cache and without.

    Exact by the cost model, except where a name says by rule of thumb: 2 a parameter and token, 6 in training.
    """
    n, sizes = context, {"N": cost.parameters, "C": context}
    prompt, whole = cost.flops(n, rows=1, source=source), cost.flops(n, rows=n, source=source)
    step = cost.flops(1, n - 1, rows=1, source=source)
    return [
        *(of_term(term, "FLOP") for term in cost.per_token(n, source)),
        figure("one token, with a cache", "FLOP", "s", s=step),
        figure("one token, without", "FLOP", "p", p=prompt),
        figure("without over with", "", "p/s", p=prompt, s=step),
        figure("forward, all logits", "FLOP", "f", f=whole),
        figure("backward", "FLOP", "2·f", f=whole),
        figure("training step", "FLOP", "3·f", f=whole),
        figure("training step, rule of thumb", "FLOP", "6·N·C", **sizes),
    ]


def attention_share(cost: Cost, context: int) -> list[Figure]:
    """Attention's part of a forward pass over `context` tokens, exactly and as usually told.

    exact: all logits, the input table not multiplied. rule of thumb: 2 FLOPs for each of all parameters, n²/2 pairs.
    """
    each = sum(2 * layer.attention.per_pair for layer in cost.spec.layers)
    rule = {"a": each, "C": context, "N": cost.parameters}
    return [
        figure("attention's share", "%", "100·a/f", a=cost.attended(context), f=cost.flops(context, rows=context)),
        figure("attention's share, rule of thumb", "%", "100·a·C^2/2/(a·C^2/2 + 2·N·C)", **rule),
    ]


def kv(cost: Cost, context: int, batch: int, dtype: str, source: int = 0) -> list[Figure]:
    """Bytes of the cache: of a token, of `batch` sequences of `context` tokens."""
    return [
        of_term(cost.kv_bytes_per_token(dtype), "bytes"),
        of_term(cost.kv_bytes(context, batch, dtype, source), "bytes"),
        of_term(Cost(without_windows(cost.spec)).kv_bytes(context, batch, dtype, source), "bytes")._replace(
            name="if every layer saw everything"
        ),
    ]


def kv_by_sharing(cost: Cost, dtype: str) -> list[Figure]:
    """Bytes of one token as it is, and with as many key/value heads as there are heads, with 8, and with one.

    The width of a head is the first layer's, in latent attention that of a value. An encoder keeps nothing.
    """
    a, layers = cost.spec.layers[0].attention, len(cost.spec.layers)
    sizes: dict[str, Any] = {"L": layers, "b": width_of(dtype)}
    kept = of_term(cost.kv_bytes_per_token(dtype), "bytes")._replace(name="as it is")
    width = a.value_dim if isinstance(a, LatentSpec) else a.head_dim
    shared = sorted({a.heads, min(a.heads, 8), getattr(a, "kv_heads", 1), 1}, reverse=True)
    others = [figure(f"{g} key/value heads", "bytes", "2·L·G·K·b", G=g, K=width, **sizes) for g in shared]
    ratios = [figure(f"{f.name}, ratio", "", "o/k", o=f.value, k=kept.value) for f in others if kept.value]
    return [kept, *others, *ratios]


def without_windows(spec: Spec) -> Spec:
    """The same with every layer seeing everything."""

    def opened(layer: Any) -> Any:
        windowed = isinstance(layer.attention, AttentionSpec) and layer.attention.window
        return replace(layer, attention=replace(layer.attention, window=None, anchors=0)) if windowed else layer

    return replace(spec, layers=tuple(map(opened, spec.layers)))


def fit(cost: Cost, chip: Chip, context: int, dtype: str, usable: float = 0.9) -> list[Figure]:
    """How many sequences of `context` tokens a chip holds beside the weights; `usable` of its memory is ours.

    Errors: a share that is none.
    """
    if not 0 < usable <= 1:
        raise CutawayError(f"must be above 0 and at most 1, got {usable}", "usable")
    weights, each = cost.parameters * width_of(dtype), cost.kv_bytes(context, 1, dtype).value
    sizes = {"u": usable, "M": chip.memory, "w": weights, "k": max(each, 1)}
    return [
        figure("weights", "bytes", "N·b", N=cost.parameters, b=width_of(dtype)),
        figure("KV of a sequence", "bytes", "k", k=each),
        figure("sequences that fit", "", "max(floor((u·M − w)/k), 0)", **sizes),
    ]


def generating(prompt: int, new: int) -> list[Figure]:
    """Positions that a reply's linear layers compute: the newest only, or everything before it each time."""
    sizes = {"P": prompt, "n": new}
    found = [
        figure("positions, with a cache", "", "P + n − 1", **sizes),
        figure("positions, without", "", "n·P + n·(n − 1)/2", **sizes),
    ]
    values = named(found)
    return [*found, figure("ratio", "", "o/w", o=values["positions, without"], w=values["positions, with a cache"])]
