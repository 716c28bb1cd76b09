"""What an output layer split by frequency saves; it stays a distribution (Grave et al. 2017, arXiv:1609.04309).

A full softmax multiplies every token's hidden state with every row of the vocabulary. The adaptive one always does so
for a shortlist of frequent tokens, and for the rest, in narrower vectors, only when the token is there. What that saves
depends on how much of the text the shortlist covers: a given share, and Zipf's law (p ~ 1 / rank), are both counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.timing import interleaved
from cutaway.nn.adaptive_softmax import AdaptiveSoftmax

VOCAB, SHORTLIST, RARE = 100_000, 2000, 0.1  # the example that is computed by hand
SHORTLISTS = (500, 1000, 2000, 5000, 10_000, 20_000, 40_000)
LAYERS = {"one tail": 1, "two tails": 2}


class Cost(NamedTuple):
    """Multiplications per token, in units of the full product."""

    what: str
    shortlist: int
    rare: float
    share: float


@lab(
    "adaptive-softmax",
    title=both("An output layer split by frequency", "按词频拆分的输出层"),
    question=both(
        "How does a frequency-split output layer save work, and is it still a proper distribution?",
        "按词频拆分的输出层如何省计算？它还是一个正常的概率分布吗？",
    ),
    seconds={"quick": 1, "full": 25},
)
def adaptive_softmax(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the hidden states", "隐藏状态宽度", quick=64, min=16, max=8192)] = 512,
    vocab: Annotated[
        int, Knob("vocabulary of the layer that is run", "实际运行的词表大小", quick=20_000, min=10_000, max=10**6)
    ] = VOCAB,
    tokens: Annotated[int, Knob("tokens in a step", "一步的词元数", quick=200, min=10, max=8192)] = 500,
    repeats: Annotated[int, Knob("timings of each form, in turns", "交替计时的次数", quick=5, min=5, max=101)] = 9,
) -> Finding:
    if tokens % 10:
        raise CutawayError(f"must be a multiple of 10, got {tokens}", "knob tokens", "a tenth of them is rare")
    by_hand = example(width)
    zipf = [
        Cost(f"Zipf, {name}", shortlist, *zipfian(width, shortlist, count))
        for name, count in LAYERS.items()
        for shortlist in run.each(SHORTLISTS, f"{name}, shortlist")
    ]
    ran = measured(width, vocab, tokens, repeats, run.generator())
    exact = against_pytorch(run.generator())
    rows: list[list[Cell]] = [[c.what, c.shortlist, 100 * c.rare, 100 * c.share, 1 / c.share] for c in [by_hand, *zipf]]
    names = {"token frequencies": "", "shortlist": "tokens", "in the tails": "% of tokens", "products": "% of the full"}
    return Finding(
        table=table(names | {"less work by": "times"}, rows),
        plot=_plot(zipf),
        verdict=_verdict(by_hand, zipf, ran),
        checks=_checks(by_hand, zipf, ran, exact),
    )


# ---- counted


def example(width: int) -> Cost:
    """A shortlist of 2,000 of 100,000 tokens, a tenth of the text in a tail a quarter as wide."""
    layer = AdaptiveSoftmax(width, VOCAB, [SHORTLIST])
    return Cost("a tenth is rare", SHORTLIST, RARE, layer.products([RARE]) / (VOCAB * width))


def zipfian(width: int, shortlist: int, clusters: int) -> tuple[float, float]:
    """Share of tokens beyond the shortlist and share of the products, if the token of rank r has p ~ 1 / r."""
    p_V = 1 / torch.arange(1, VOCAB + 1, dtype=torch.float64)
    p_V /= p_V.sum()
    last = VOCAB // 2  # where the second tail begins
    cutoffs = [shortlist, last][:clusters]
    shares = [float(p_V[a:b].sum()) for a, b in zip(cutoffs, [*cutoffs[1:], VOCAB], strict=True)]
    with torch.device("meta"):
        layer = AdaptiveSoftmax(width, VOCAB, cutoffs)
    return sum(shares), layer.products(shares) / (VOCAB * width)


# ---- run


class Ran(NamedTuple):
    """A training step of the output layer alone: the full softmax, the adaptive one with a tenth of rare tokens."""

    flops: tuple[float, float]
    seconds: tuple[float, float]


def measured(width: int, vocab: int, tokens: int, repeats: int, generator: torch.Generator) -> Ran:
    """FLOPs of the products counted, time in turns."""
    hidden_TD = torch.randn(tokens, width, generator=generator).requires_grad_(True)
    shortlist = vocab // 50
    frequent, rare = tokens - tokens // 10, tokens // 10
    targets_T = torch.cat(
        [
            torch.randint(shortlist, (frequent,), generator=generator),
            torch.randint(shortlist, vocab, (rare,), generator=generator),
        ]
    )
    full, adaptive = nn.Linear(width, vocab, bias=False), AdaptiveSoftmax(width, vocab, [shortlist])
    steps: list[Callable[[], Tensor]] = [
        lambda: F.cross_entropy(full(hidden_TD), targets_T),
        lambda: -adaptive(hidden_TD, targets_T).mean(),
    ]
    ways = [lambda step=step: step().backward() for step in steps]
    flops = []
    for way in ways:
        with FlopCounterMode(display=False) as counter:
            way()
        flops.append(float(counter.get_total_flops()))
    slow, fast = interleaved(ways, repeats)
    return Ran((flops[0], flops[1]), (slow, fast))


def against_pytorch(generator: torch.Generator) -> tuple[float, float]:
    """Largest difference of a log-probability from PyTorch's layer with the same weights, and of a sum from one."""
    theirs = nn.AdaptiveLogSoftmaxWithLoss(32, 1000, [50, 300]).double().requires_grad_(False)
    ours = AdaptiveSoftmax(32, 1000, [50, 300]).double().requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        ours.get_parameter(name.replace("tail", "tails")).copy_(parameter)
    hidden_TD = torch.randn(64, 32, generator=generator, dtype=torch.float64)
    log_probs_TV = ours.log_probs(hidden_TD)
    sums_T = log_probs_TV.exp().sum(-1)
    return float((log_probs_TV - theirs.log_prob(hidden_TD)).abs().max()), float((sums_T - 1).abs().max())


# ---- what it comes to


def _plot(zipf: list[Cost]) -> Plot:
    def series(name: str) -> Series:
        costs = [c for c in zipf if c.what.endswith(name)]
        return Series(name=name, x=[float(c.shortlist) for c in costs], y=[100 * c.share for c in costs])

    return Plot(
        kind="line",
        x=Axis(label="shortlist, tokens", log=True),
        y=Axis(label="products, % of the full softmax (Zipf)"),
        series=[series(name) for name in LAYERS],
    )


def _checks(by_hand: Cost, zipf: list[Cost], ran: Ran, exact: tuple[float, float]) -> list[Check]:
    rule = (SHORTLIST + RARE * (VOCAB - SHORTLIST) / 4) / VOCAB
    extra = by_hand.share - rule
    apart, sums = exact
    done = ran.flops[1] / ran.flops[0]
    best = min(zipf, key=lambda c: c.share)
    return [
        check(
            abs(rule - 0.0445) < 1e-9 and 0 < extra < 0.0005,
            f"2,000 rows for all and 98,000 quarter rows for a tenth are {rule:.2%} of the full product, "
            f"{1 / rule:.1f} times less; with the way into the tail {by_hand.share:.3%}",
            f"全体用 2,000 行、十分之一用 98,000 个四分之一宽的行，合全乘积的 {rule:.2%}，少 {1 / rule:.1f} 倍；算上"
            f"进入尾部的投影为 {by_hand.share:.3%}",
        ),
        check(
            done < 0.1,
            f"counted in a training step with a tenth of rare tokens: {done:.2%} of the FLOPs",
            f"在十分之一词元为罕见词的训练步中计数：浮点运算为 {done:.2%}",
        ),
        check(
            apart < 1e-12 and sums < 1e-12,
            f"log-probabilities equal PyTorch's layer with the same weights (to {apart:.0e}) and sum to 1 (to "
            f"{sums:.0e})",
            f"对数概率与同权重的 PyTorch 层一致（相差 {apart:.0e}），概率之和为 1（相差 {sums:.0e}）",
        ),
        check(
            SHORTLISTS[0] < best.shortlist < SHORTLISTS[-1] and best.share < 0.5,
            f"under Zipf's law a shortlist of {best.shortlist:,} is best of those tried: {best.share:.1%} of the "
            "products",
            f"按齐普夫定律，试过的短表中 {best.shortlist:,} 最好：乘积为 {best.share:.1%}",
        ),
    ]


def _verdict(by_hand: Cost, zipf: list[Cost], ran: Ran) -> Words:
    best = min(zipf, key=lambda c: c.share)
    slow, fast = (1e3 * s for s in ran.seconds)
    same = next(c for c in zipf if c.shortlist == SHORTLIST)
    return both(
        f"Frequent tokens and one logit per cluster are always computed, a cluster only for its own tokens: "
        f"{by_hand.share:.2%} of the products ({1 / by_hand.share:.1f} times less) if a tenth of the text lies in the "
        f"tail. Under Zipf's law {same.rare:.0%} does with the same shortlist, and {same.share:.1%} of the products "
        f"remain; the best of those tried keeps {best.share:.1%} ({best.what.removeprefix('Zipf, ')}, shortlist "
        f"{best.shortlist:,}). Run with a tenth of rare tokens, the step took {fast:.0f} ms against {slow:.0f} ms. "
        f"Probabilities sum to one by construction, whatever the weights: it is a model of its own.",
        "常用词和每簇一个 logit 总要算，簇内只为属于它的词元计算：若十分之一的文本落在尾部，乘积为 "
        f"{by_hand.share:.2%}（少 {1 / by_hand.share:.1f} 倍）。按齐普夫定律，同样的短表有 {same.rare:.0%} 落在尾部，"
        f"还剩 {same.share:.1%} 的乘积；试过的最好设置为 {best.share:.1%}（短表 {best.shortlist:,}）。十分之一为罕见"
        f"词时，实际一步用 {fast:.0f} 毫秒，全 softmax 用 {slow:.0f} 毫秒。无论权重如何，概率之和由构造就是一：它本身"
        "就是一个模型。",
    )
