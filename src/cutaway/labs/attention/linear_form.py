"""How another order of multiplication makes attention linear in length (Katharopoulos et al. 2020, arXiv:2006.16236).

All forms of `cutaway.nn.linear_attention` are held against the definition; multiplications are counted by PyTorch's own
counter; times are taken side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.timing import interleaved
from cutaway.nn.linear_attention import LinearSpec, chunked, linear, prefix_sums, quadratic

SHORTEST, CHUNK = 16, 64
MAPS = (LinearSpec(2, 8), LinearSpec(2, 8, "taylor"), LinearSpec(2, 8, "random", 24))


class Bill(NamedTuple):
    """Of n tokens: FLOPs of both orders and their ratio; milliseconds of the two, of both causally, of a softmax."""

    tokens: int
    quadratic: int
    linear: int
    ratio: float
    quadratic_ms: float
    linear_ms: float
    causal_ms: float
    chunked_ms: float
    softmax_ms: float


COLUMNS = {
    "tokens": "",
    "FLOPs, (φ(Q)φ(K)ᵀ)V": "",
    "FLOPs, φ(Q)(φ(K)ᵀV)": "",
    "ratio": "",
    "time, (φ(Q)φ(K)ᵀ)V": "ms",
    "time, φ(Q)(φ(K)ᵀV)": "ms",
    "time, causal, (φ(Q)φ(K)ᵀ)V": "ms",
    "time, causal, in chunks": "ms",
    "time, softmax (PyTorch's kernel)": "ms",
}


@lab(
    "linear-attention",
    title=both("Attention in the other order", "换个次序做注意力"),
    question=both(
        "How does reordering the product make attention linear in length?", "调换乘法次序怎样让注意力变成线性复杂度？"
    ),
    seconds={"quick": 1, "full": 10},
)
def linear_attention(
    run: Run,
    *,
    longest: Annotated[
        int, Knob("tokens; from 16 on, doubled", "最多词元数；从 16 起翻倍", quick=1024, min=256, max=16384)
    ] = 4096,
    width: Annotated[int, Knob("width of the head, and features", "头的宽度，也是特征数", min=8, max=256)] = 64,
    repeats: Annotated[int, Knob("times each is timed", "每种方法计时次数", quick=3, min=1, max=100)] = 9,
) -> Finding:
    lengths = [n for n in (SHORTEST * 2**i for i in range(12)) if n <= longest]
    bills = [bill(n, width, repeats, run) for n in run.each(lengths, "tokens")]
    apart: dict[str, float] = {
        spec.feature: max(differences(spec, run)) for spec in run.each(MAPS, "against the definition")
    }
    return Finding(
        table=table(COLUMNS, bills),
        plot=_plot(bills),
        verdict=_verdict(bills, width),
        checks=_checks(bills, width, apart),
    )


@torch.no_grad()
def bill(n: int, width: int, repeats: int, run: Run) -> Bill:
    """One head over n tokens; the features are taken beforehand, they cost both orders the same."""
    q, k, v = torch.randn(3, n, 1, width, generator=run.generator())
    phi = LinearSpec(1, width).map
    features = phi(q), phi(k), v
    q_BHSK, k_BHSK, v_BHSK = (x.transpose(0, 1)[None] for x in (q, k, v))
    ways: list[Callable[[], object]] = [
        lambda: quadratic(*features, causal=False),
        lambda: linear(*features),
        lambda: quadratic(*features, causal=True),
        lambda: chunked(*features, chunk=CHUNK),
        lambda: F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK),
    ]
    squared, reordered = (flops(way) for way in ways[:2])
    ms = [1e3 * seconds for seconds in interleaved(ways, repeats)]
    return Bill(n, squared, reordered, squared / reordered, *ms)


def flops(way: Callable[[], object]) -> int:
    """Multiplications and additions of its matrix products."""
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def differences(spec: LinearSpec, run: Run) -> Iterator[float]:
    """Of every form from every weight written out, in float64."""
    q, k, v = torch.randn(3, 37, spec.heads, spec.head_dim, generator=run.generator(), dtype=torch.float64)
    phi_q, phi_k = spec.map(q), spec.map(k)
    for causal, forms in ((True, CAUSAL), (False, BIDIRECTIONAL)):
        wanted = definition(phi_q, phi_k, v, causal)
        yield from (float((form(phi_q, phi_k, v) - wanted).abs().max()) for form in forms)


CAUSAL: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    prefix_sums,
    lambda q, k, v: quadratic(q, k, v, causal=True),
    *(lambda q, k, v, c=c: chunked(q, k, v, c)[0] for c in (1, 5, 64)),
]
BIDIRECTIONAL: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    linear,
    lambda q, k, v: quadratic(q, k, v, causal=False),
]


def definition(phi_q: Tensor, phi_k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Every query by itself: a weight for each key that it sees, and the values in these shares."""
    out = torch.zeros_like(v)
    for i, h in itertools.product(range(len(v)), range(v.shape[1])):
        seen = slice(0, i + 1 if causal else len(v))
        weights_S = phi_k[seen, h] @ phi_q[i, h]
        out[i, h] = weights_S @ v[seen, h] / weights_S.sum()
    return out


def crossover(bills: list[Bill], slow: str, fast: str) -> float | None:
    """The length from which `fast` stays ahead of `slow`: on straight lines in log-log between lengths, or None."""
    lead = [math.log(getattr(b, slow) / getattr(b, fast)) for b in bills]
    ahead = next((i for i in range(len(bills)) if min(lead[i:]) > 0), None)
    if not ahead:
        return None if ahead is None else float(bills[0].tokens)
    part = -lead[ahead - 1] / (lead[ahead] - lead[ahead - 1])
    return float(bills[ahead - 1].tokens * 2**part)


def _plot(bills: list[Bill]) -> Plot:
    names = ("quadratic_ms", "linear_ms", "causal_ms", "chunked_ms", "softmax_ms")
    return Plot(
        kind="line",
        x=Axis(label="tokens", log=True),
        y=Axis(label="ms", log=True),
        series=[
            Series(name=column, x=[float(b.tokens) for b in bills], y=[getattr(b, name) for b in bills])
            for name, column in zip(names, list(COLUMNS)[4:], strict=True)
        ],
    )


def _checks(bills: list[Bill], width: int, apart: dict[str, float]) -> list[Check]:
    off = max(abs(b.ratio * width / b.tokens - 1) for b in bills)
    worst = max(apart.values())
    return [
        check(
            worst < 1e-10,
            f"prefix sums, chunks, recurrent steps and both orders equal the definition to {worst:.0e}, for the maps "
            f"{', '.join(apart)}",
            f"前缀和、分块、逐步递推和两种次序都与定义一致，相差 {worst:.0e}（特征映射：{', '.join(apart)}）",
        ),
        check(
            off < 0.05,
            f"the counted FLOPs of the two orders are n/d to 1, to within {off:.1%} (the norm of each row)",
            f"两种次序的计数运算量之比为 n/d，误差不超过 {off:.1%}（每行的归一化项）",
        ),
    ]


def _verdict(bills: list[Bill], width: int) -> Words:
    last = bills[-1]
    pairs = {
        "plain": ("quadratic_ms", "linear_ms"),
        "causal": ("causal_ms", "chunked_ms"),
        "softmax": ("softmax_ms", "linear_ms"),
    }
    en, zh = zip(*(_length(crossover(bills, *pair), last.tokens) for pair in pairs.values()), strict=True)
    return both(
        f"Multiplying keys by values first costs 2·n·d² multiply-adds instead of 2·n²·d: {last.ratio:.1f} times fewer "
        f"FLOPs, counted, at n = {last.tokens:,} and d = {width}. On this machine it is the faster order {en[0]}; "
        f"causally, in chunks of {CHUNK}, {en[1]}; and faster than PyTorch's softmax kernel {en[2]}. At n = "
        f"{last.tokens:,} it took {last.linear_ms:.2f} ms against {last.quadratic_ms:.1f}, and {last.softmax_ms:.1f} "
        "for the softmax.",
        f"先把键与值相乘，需 2·n·d² 次乘加而不是 2·n²·d：n = {last.tokens:,}、d = {width} 时计数的运算量少 "
        f"{last.ratio:.1f} 倍。本机上{zh[0]}这种次序更快；因果情形按 {CHUNK} 个词元分块，{zh[1]}更快；{zh[2]}快过 "
        f"PyTorch 的 softmax 内核。n = {last.tokens:,} 时用时 {last.linear_ms:.2f} 毫秒，另一次序 "
        f"{last.quadratic_ms:.1f}，softmax {last.softmax_ms:.1f}。",
    )


def _length(at: float | None, longest: int) -> tuple[str, str]:
    if at is None:
        return f"nowhere up to {longest:,} tokens", f"直到 {longest:,} 个词元都不能"
    return f"from about {at:,.0f} tokens on", f"约 {at:,.0f} 个词元起"
