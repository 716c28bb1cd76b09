"""What experts save and what they do not: work, weights read, bytes exchanged - each counted beside its formula.

Work by a counter of PyTorch's products. Weights read by routing random tokens through random routers. Bytes exchanged
by placing DeepSeek-V3's experts (2024, arXiv:2412.19437) on eight machines and counting rows that leave their own; that
rows really travel between processes is not shown here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cutaway.budget import shape
from cutaway.budget.published import PUBLISHED
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.timing import interleaved
from cutaway.models.cost import Cost
from cutaway.nn.experts import Experts, ExpertsSpec
from cutaway.nn.feed_forward import FeedForward, FeedForwardSpec
from cutaway.nn.routing import Router, RouterSpec

CHOSEN = 2
COUNTS = (4, 8, 16, 32, 64)  # experts
TOKENS = (1, 8, 32)  # of a step
ROUTERS = {
    "8 experts, 2 chosen (Mixtral)": (8, RouterSpec(2)),
    "256 experts, 8 chosen": (256, RouterSpec(8)),
    "256 experts, 8 chosen of 4 of 8 groups (DeepSeek-V3)": (
        256,
        RouterSpec(8, "sigmoid", groups=8, kept_groups=4, group_score="top2"),
    ),
}
MACHINES = 8


class Work(NamedTuple):
    """FLOPs of one layer over some tokens, counted and by the formula: the experts', and the router's beside them."""

    experts: int
    counted: int
    router: int
    formula: int


class Read(NamedTuple):
    """Distinct experts that a step reads, on average and by the formula."""

    router: str
    tokens: int
    found: float
    expected: float

    @property
    def off(self) -> float:
        return abs(self.found / self.expected - 1)


class Pace(NamedTuple):
    """A step of a layer of experts beside a dense one of the active size: milliseconds, and numbers read."""

    tokens: int
    dense_ms: float
    sparse_ms: float
    dense_read: float
    sparse_read: float


class Exchange(NamedTuple):
    """Bytes a token and layer: if every choice travels, what leaves a token's machine, and once for each machine."""

    formula: float
    leaving: float
    once: float


@lab(
    "experts-counted",
    title=both("What experts save, and what they do not", "专家模型省下了什么，没省下什么"),
    question=both(
        "How can a model hold far more parameters than it uses per token, and what does it cost in memory and traffic?",
        "模型怎样拥有远多于每个词元所用的参数？这在内存与通信上要付出什么？",
    ),
    seconds={"quick": 4, "full": 20},
)
def experts_counted(
    run: Run,
    *,
    width: Annotated[int, Knob("of the layer", "层的宽度", quick=64, min=16, max=4096)] = 256,
    draws: Annotated[
        int, Knob("random routers for each row", "每行的随机路由器个数", quick=60, min=20, max=10**5)
    ] = 400,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=5, min=5, max=1001)] = 15,
) -> Finding:
    generator = run.generator()
    with torch.no_grad():
        work = [worked(count, width, generator) for count in run.each(COUNTS, "experts")]
        read = [reads(name, n, draws, generator) for name in run.each(ROUTERS, "routing") for n in TOKENS]
        paces = [pace(n, width, repeats, generator) for n in run.each(TOKENS, "timing a step of tokens")]
        sent = exchanged(draws, generator)
    return Finding(
        table=_table(work, read, paces, sent),
        plot=_plot(read),
        verdict=_verdict(read, paces, sent),
        checks=_checks(work, read, sent),
    )


def grouped_flops(a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    """Of a product of rows [P, I] with one of several matrices [E, I, O] each."""
    return 2 * a[0] * a[1] * b[-1]


def worked(count: int, width: int, generator: torch.Generator, tokens: int = 32) -> Work:
    """One layer of `count` experts, of which each token uses `CHOSEN`."""
    layer, x_TD = experts(count, width), torch.randn(tokens, width, generator=generator)
    mapping = {torch.ops.aten._grouped_mm: grouped_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        layer(x_TD)
    router = 2 * tokens * count * width
    return Work(count, counter.get_total_flops() - router, router, tokens * CHOSEN * 3 * 2 * width * 2 * width)


def experts(count: int, width: int) -> Experts:
    """Experts twice as wide as the stream."""
    return Experts(width, ExpertsSpec(count, RouterSpec(CHOSEN), FeedForwardSpec(2 * width, "silu", gated=True)))


def routed(count: int, spec: RouterSpec, tokens: int, generator: torch.Generator, width: int = 256) -> Tensor:
    """chosen_TC of a new random router, whose experts are equally strong."""
    router = Router(width, count, spec)
    router.weight.copy_(nn.functional.normalize(torch.randn(count, width, generator=generator)))
    return router(torch.randn(tokens, width, generator=generator)).chosen_TC


def reads(name: str, tokens: int, draws: int, generator: torch.Generator) -> Read:
    """Mean over new routers and tokens."""
    count, spec = ROUTERS[name]
    found = sum(len(routed(count, spec, tokens, generator).unique()) for _ in range(draws)) / draws
    return Read(name, tokens, found, shape.distinct(count, spec.top_k, tokens).value)


def pace(tokens: int, width: int, repeats: int, generator: torch.Generator, count: int = 32) -> Pace:
    """Medians of steps in turns, each on the same tokens."""
    sparse = experts(count, width)
    dense = FeedForward(width, FeedForwardSpec(CHOSEN * 2 * width, "silu", gated=True))
    x_TD, one = torch.randn(tokens, width, generator=generator), 3 * width * 2 * width
    ways: list[Callable[[], object]] = [lambda: dense(x_TD), lambda: sparse(x_TD)]
    dense_s, sparse_s = interleaved(ways, repeats)
    distinct = len(sparse.route(x_TD).chosen_TC.unique())
    return Pace(tokens, 1e3 * dense_s, 1e3 * sparse_s, CHOSEN * one, distinct * one)


def exchanged(tokens: int, generator: torch.Generator) -> Exchange:
    """DeepSeek-V3's choices, a group of experts on each machine, tokens spread over all; FP8 out, bfloat16 back."""
    cost = Cost(PUBLISHED["deepseek-v3"].spec)
    formula = next(f.value for f in shape.experts_of(cost, 1) if f.name == "exchanged")
    count, spec = ROUTERS["256 experts, 8 chosen of 4 of 8 groups (DeepSeek-V3)"]
    machine_TC = routed(count, spec, tokens, generator) // (count // MACHINES)
    home_T1 = (torch.arange(tokens) % MACHINES)[:, None]
    leaving = float((machine_TC != home_T1).sum()) / tokens
    once = sum(len(set(there) - {home}) for there, [home] in zip(machine_TC.tolist(), home_T1.tolist(), strict=True))
    row = formula / spec.top_k
    return Exchange(formula, leaving * row, once / tokens * row)


# ---- what it comes to


def _table(work: list[Work], read: list[Read], paces: list[Pace], sent: Exchange) -> Table:
    """One quantity a row."""
    rows: list[list[Cell]] = []
    for w in work:
        rows.append([f"experts' products, {w.experts} experts", "MFLOP", w.counted / 1e6, w.formula / 1e6])
        rows.append([f"router's products, {w.experts} experts", "MFLOP", w.router / 1e6, None])
    for r in read:
        rows.append([f"{r.router}: distinct in a step of {r.tokens}", "experts", r.found, r.expected])
    for p in paces:
        step = f"a step of {p.tokens}, experts over dense"
        rows.append([f"{step}: numbers read", "times", p.sparse_read / p.dense_read, None])
        rows.append([f"{step}: time", "times", p.sparse_ms / p.dense_ms, None])
    for name, value in zip(("all choices travel", "leave the machine", "once a machine"), sent, strict=True):
        rows.append([f"DeepSeek-V3, exchanged by a token and layer: {name}", "bytes", value, sent.formula])
    return table({"quantity": "", "unit": "", "counted": "", "formula": ""}, rows)


def _plot(read: list[Read]) -> Plot:
    named = {name: [r for r in read if r.router == name] for name in ROUTERS}
    return Plot(
        kind="line",
        x=Axis(label="tokens of a step", log=True),
        y=Axis(label="distinct experts read", log=True),
        series=[
            Series(name=name, x=[float(r.tokens) for r in rows], y=[r.found for r in rows])
            for name, rows in named.items()
        ],
    )


def _checks(work: list[Work], read: list[Read], sent: Exchange) -> list[Check]:
    mixtral = Cost(PUBLISHED["mixtral-8x7b"].spec)
    active = mixtral.active + mixtral.spec.vocab * mixtral.spec.width
    off = max(r.off for r in read)
    return [
        check(
            {w.counted for w in work} == {work[0].formula},
            f"the experts' FLOPs are the same with {' to '.join(map(str, (COUNTS[0], COUNTS[-1])))} experts; only the "
            f"router's grow, from {work[0].router / 1e6:,.2f} to {work[-1].router / 1e6:,.2f} MFLOP",
            f"专家从 {COUNTS[0]} 个到 {COUNTS[-1]} 个，专家的计算量不变；只有路由器从 {work[0].router / 1e6:,.2f} 增至 "
            f"{work[-1].router / 1e6:,.2f} MFLOP",
        ),
        check(
            (round(mixtral.parameters / 1e9, 2), round(active / 1e9, 2)) == (46.7, 12.88),
            f"Mixtral 8x7B holds {mixtral.parameters / 1e9:.2f} billion, not 56, and a token uses {active / 1e9:.2f} "
            f"({active / mixtral.parameters:.1%})",
            f"Mixtral 8x7B 共 {mixtral.parameters / 1e9:.2f} 十亿参数，而非 56；每个词元用 {active / 1e9:.2f} 十亿"
            f"（{active / mixtral.parameters:.1%}）",
        ),
        check(
            off < 0.03,
            f"distinct experts of random routers are E(1-(1-k/E)^B) to {off:.1%}",
            f"随机路由读到的不同专家数符合 E(1-(1-k/E)^B)，相差 {off:.1%}",
        ),
        check(
            sent.formula == 172_032 and sent.once < sent.leaving < sent.formula,
            f"DeepSeek-V3 exchanges {sent.formula:,.0f} bytes a token and layer if every choice travels; "
            f"{sent.leaving:,.0f} leave the machine, {sent.once:,.0f} if a row is sent once to each",
            f"若每个选择都要传输，DeepSeek-V3 每词元每层交换 {sent.formula:,.0f} 字节；真正离开本机的 "
            f"{sent.leaving:,.0f}，每台机器只发一次则为 {sent.once:,.0f}",
        ),
    ]


def _verdict(read: list[Read], paces: list[Pace], sent: Exchange) -> Words:
    most, last = read[-1], paces[-1]
    times = ", ".join(f"{p.sparse_ms / p.dense_ms:.1f}" for p in paces)
    bytes_ = ", ".join(f"{p.sparse_read / p.dense_read:.1f}" for p in paces)
    steps = ", ".join(str(p.tokens) for p in paces)
    return both(
        f"A token's work does not depend on how many experts there are, what a step reads does: {most.tokens} tokens "
        f"read {most.found:.0f} of 256 experts where a single one reads 8. Beside a dense layer of the active size, "
        f"steps of {steps} tokens read {bytes_} times as many weights and took {times} times as long on this machine "
        f"({last.sparse_ms:.2f} ms for {last.tokens}). Between machines a token of DeepSeek-V3 exchanges "
        f"{sent.formula / 1024:.0f} KiB a layer at most, {sent.once / 1024:.0f} KiB if rows are sent once to each.",
        f"每个词元的计算量与专家总数无关，但一步要读的权重有关：{most.tokens} 个词元会读到 256 个专家中的 "
        f"{most.found:.0f} 个，而单个词元只读 8 个。与激活规模相同的稠密层相比，{steps} 个词元的一步读取权重为 "
        f"{bytes_} 倍，本机用时 {times} 倍（{last.tokens} 个词元 {last.sparse_ms:.2f} 毫秒）。在机器之间，DeepSeek-V3 "
        f"每词元每层最多交换 {sent.formula / 1024:.0f} KiB；若每台机器只发一次，为 {sent.once / 1024:.0f} KiB。",
    )
