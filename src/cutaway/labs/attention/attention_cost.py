"""How attention's time and memory grow with length, and when that dominates a real model.

Measured on this machine: attention written naively, in tiles (`cutaway.nn.flash`) and by PyTorch's fused kernel.
Computed: which share of Llama-3-8B's forward pass attention takes (`cutaway.models.cost`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.memory import peak_bytes
from cutaway.labs.statistics import growth
from cutaway.labs.timing import interleaved
from cutaway.labs.training import small_spec, with_layers
from cutaway.models.cost import Cost
from cutaway.nn.attention import Question, attention_weights
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.flash import Tile, flash
from cutaway.nn.patterns import Everything

WIDTH, TILE, EVERYTHING = 64, Tile(128, 128), Everything()
WAYS = ("naive", "in tiles", "PyTorch's kernel")
CONTEXTS = {1024: 0.016, 8192: 0.118, 32768: 0.348}  # the share of attention when 2 FLOPs per parameter are the rest
LLAMA_3_8B = with_layers(
    small_spec(vocab=128_256, width=4096, layers=32, heads=32, kv_heads=8, context=8192),
    lambda layer: replace(layer, ffn=FeedForwardSpec(14_336, "silu", gated=True)),
)


class Measured(NamedTuple):
    """Of n tokens: milliseconds and MiB of each way."""

    tokens: int
    ms: list[float]
    mib: list[float]


class Share(NamedTuple):
    """Of a context: attention's FLOPs by the rest's that are counted, and with 2 per parameter for the rest."""

    context: int
    counted: float
    usual: float


@lab(
    "attention-cost",
    title=both("What length costs attention", "长度让注意力付出多少"),
    question=both(
        "How do time and memory of attention grow with length, and when does that dominate a real model?",
        "注意力的时间和内存怎样随长度增长，何时主导真实模型的开销？",
    ),
    seconds={"quick": 2, "full": 12},
)
def attention_cost(
    run: Run,
    *,
    longest: Annotated[
        int, Knob("tokens; from 512 on, doubled", "最多词元数；从 512 起翻倍", quick=2048, min=2048, max=16384)
    ] = 4096,
    repeats: Annotated[int, Knob("times each is timed", "每种方法计时次数", quick=3, min=1, max=100)] = 7,
) -> Finding:
    lengths = [n for n in (512 * 2**i for i in range(6)) if n <= longest]
    measured = [measure(n, repeats, run) for n in run.each(lengths, "attending over")]
    shares = [share(context) for context in CONTEXTS]
    return Finding(
        table=table(_columns(), [*map(_measured_row, measured), *map(_share_row, shares)]),
        plot=_plot(measured),
        verdict=_verdict(measured, shares),
        checks=_checks(measured, shares),
    )


@torch.no_grad()
def measure(n: int, repeats: int, run: Run) -> Measured:
    """Bidirectional attention of one head over n tokens, in float32."""
    q, k, v = torch.randn(3, n, 1, WIDTH, generator=run.generator())
    q_HQK, k_HSK, v_HSV = (x.transpose(0, 1) for x in (q, k, v))
    question, scale = Question(WIDTH**-0.5, causal=False), WIDTH**-0.5
    ways: list[Callable[[], object]] = [
        lambda: attention_weights(q_HQK, k_HSK, question) @ v_HSV,
        lambda: flash(q, k, v, scale=scale, rule=EVERYTHING, tile=TILE),
        lambda: F.scaled_dot_product_attention(q_HQK[None], k_HSK[None], v_HSV[None], scale=scale),
    ]
    seconds = interleaved(ways, repeats)
    return Measured(n, [1e3 * s for s in seconds], [peak_bytes(way) / 2**20 for way in ways])


def share(context: int) -> Share:
    """Attention's part of Llama-3-8B's forward pass over `context` tokens, with logits for each."""
    cost = Cost(LLAMA_3_8B)
    terms = {term.name: term.value for term in cost.per_token(1)}
    attention = terms["attention"] * context * (context + 1) // 2
    whole = cost.flops(context, rows=context)
    return Share(context, attention / whole, attention / (attention + 2 * cost.parameters * context))


def _columns() -> dict[str, str]:
    timed, held = {f"time, {way}": "ms" for way in WAYS}, {f"memory, {way}": "MiB" for way in WAYS}
    shares = {"attention's share of Llama-3-8B's FLOPs": "%", "share beside 2 FLOPs per parameter": "%"}
    return {"tokens": ""} | timed | held | shares


def _measured_row(m: Measured) -> list[Cell]:
    return [m.tokens, *m.ms, *m.mib, None, None]


def _share_row(s: Share) -> list[Cell]:
    return [s.context, *[None] * 6, 100 * s.counted, 100 * s.usual]


def exponents(measured: list[Measured]) -> list[tuple[float, float]]:
    """Of each way: the powers of the length with which time and memory grow.

    Time by regression over all lengths; memory by what the last two doublings added, so that what does not grow (the
    tile itself) does not count.
    """
    tokens, (before, middle, last) = [float(m.tokens) for m in measured], measured[-3:]
    return [
        (
            growth(tokens, [m.ms[i] for m in measured]),
            math.log2((last.mib[i] - middle.mib[i]) / (middle.mib[i] - before.mib[i])),
        )
        for i in range(len(WAYS))
    ]


def _plot(measured: list[Measured]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="tokens", log=True),
        y=Axis(label="ms for one head", log=True),
        series=[
            Series(name=way, x=[float(m.tokens) for m in measured], y=[m.ms[i] for m in measured])
            for i, way in enumerate(WAYS)
        ],
    )


def _checks(measured: list[Measured], shares: list[Share]) -> list[Check]:
    (_, naive), (_, tiled), (_, kernel) = exponents(measured)
    off = max(abs(s.usual - CONTEXTS[s.context]) for s in shares)
    told, counted = (_percent(values) for values in zip(*((s.usual, s.counted) for s in shares), strict=True))
    return [
        check(
            abs(naive - 2) < 0.1 and abs(tiled - 1) < 0.1 and abs(kernel - 1) < 0.1,
            f"memory grows as n^{naive:.2f} naively, as n^{tiled:.2f} in tiles and as n^{kernel:.2f} in PyTorch's "
            "kernel, whose inner workspace is not seen",
            f"内存增长：不分块为 n^{naive:.2f}，分块为 n^{tiled:.2f}，PyTorch 内核（不计内部工作区）为 n^{kernel:.2f}",
        ),
        check(
            off < 5e-4,
            f"causal attention's share of Llama-3-8B's forward FLOPs at 1k, 8k and 32k tokens is {told} if the rest is "
            f"2 per parameter",
            f"若其余部分按每参数 2 次浮点运算计，1k、8k、32k 词元时因果注意力占 Llama-3-8B 前向运算量的 {told}",
        ),
        check(
            all(s.counted > s.usual for s in shares),
            f"and {counted} if only matrices that are multiplied count, which the embedding is not",
            f"若只计真正相乘的矩阵（词嵌入不算），则为 {counted}",
        ),
    ]


def _percent(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * share:.1f} %" for share in shares)


def _verdict(measured: list[Measured], shares: list[Share]) -> Words:
    (naive, held), (tiled, linear), (kernel, _) = exponents(measured)
    last, half = measured[-1], half_way()
    return both(
        f"From {measured[0].tokens:,} to {last.tokens:,} tokens, time grew as n^{naive:.2f} naively, n^{tiled:.2f} in "
        f"tiles and n^{kernel:.2f} in PyTorch's kernel on this machine; memory as n^{held:.2f} naively and "
        f"n^{linear:.2f} in tiles ({last.mib[0]:.0f} against {last.mib[1]:.1f} MiB per head at the end). Tiles save "
        f"memory, not arithmetic. In Llama-3-8B the square is small for long: attention takes "
        f"{_percent([s.counted for s in shares])} of the forward FLOPs at 1k, 8k and 32k tokens, and half at {half:,}.",
        f"从 {measured[0].tokens:,} 到 {last.tokens:,} 个词元，本机上时间增长：不分块 n^{naive:.2f}，"
        f"分块 n^{tiled:.2f}，PyTorch 内核 n^{kernel:.2f}；内存：不分块 n^{held:.2f}，分块 n^{linear:.2f}（末尾每头 "
        f"{last.mib[0]:.0f} 对 {last.mib[1]:.1f} MiB）。分块省内存，不省算术。在 Llama-3-8B 中平方项长期很小："
        f"1k、8k、32k 词元时注意力占前向运算量的 {_percent([s.counted for s in shares])}，到 {half:,} 个词元才占一半。",
    )


def half_way() -> int:
    """The context, in tokens, at which attention takes half of Llama-3-8B's forward FLOPs."""
    terms = {term.name: term.value for term in Cost(LLAMA_3_8B).per_token(1)}
    pair = terms.pop("attention")
    return round(2 * sum(terms.values()) / pair) - 1
