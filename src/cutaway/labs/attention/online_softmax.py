"""A softmax in pieces (Milakov & Gimelshein 2018, arXiv:1805.02867), and what tiled and split attention owe to it.

Random attention in float64, cut up in random ways, against PyTorch's kernel on the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.nn.flash import Tile, flash, split
from cutaway.nn.online_softmax import Running, merge
from cutaway.nn.patterns import Everything

HEADS, GROUPS, WIDTH, SCALE = 4, 2, 16, 0.25
SIZES = (1, 3, 10, 30, 100, 300)  # scores are this many times as large as usual
EVERYTHING = Everything()


class Outcome(NamedTuple):
    """One way of cutting: how often it was tried, and the largest difference of outputs and of gradients, if taken."""

    way: str
    tried: int
    output: float
    gradient: float | None


@lab(
    "online-softmax",
    title=both("A softmax piece by piece", "一段一段算 softmax"),
    question=both(
        "How can a softmax be computed piece by piece, and which later kernels rest on that?",
        "softmax 怎样一段一段算出来，哪些内核建立在这之上？",
    ),
    seconds={"quick": 2, "full": 5},
)
def online_softmax(
    run: Run,
    *,
    tokens: Annotated[int, Knob("queries and keys", "查询与键的个数", quick=48, min=8, max=4096)] = 160,
    trials: Annotated[int, Knob("random ways to cut, each", "每种随机切法的次数", quick=20, min=2, max=1000)] = 60,
) -> Finding:
    generator = run.generator()
    inputs = [
        torch.randn(tokens, heads, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, GROUPS, GROUPS)
    ]
    found = [outcome(name, way, inputs, times, generator) for name, way, times in run.each(_ways(trials), "cutting")]
    off = {dtype: [overflow(size, dtype, run) for size in SIZES] for dtype in (torch.float32, torch.float16)}
    return Finding(
        table=table({"way": "", "tried": "", "outputs apart": "", "gradients apart": ""}, found),
        plot=_plot(off[torch.float32]),
        verdict=_verdict(found, off),
        checks=_checks(found, off[torch.float32]),
    )


Way = Callable[[list[Tensor], int, torch.Generator], Tensor]


def _ways(trials: int) -> list[tuple[str, Way, int]]:
    return [
        ("keys in pieces of any size", pieces, trials),
        ("tiles of any shape, backward by recomputation", tiles, trials),
        ("keys in 1 to 16 ranges, each by itself", ranges, 16),
        ("one query over 1 to 16 ranges, as in decoding", decoding, 16),
        ("partial results merged in any order", shuffled, trials),
    ]


def outcome(name: str, way: Way, inputs: list[Tensor], times: int, generator: torch.Generator) -> Outcome:
    """The largest differences from PyTorch's attention."""
    outputs, gradients = [], []
    for trial in range(times):
        out_QHK = way(inputs, trial, generator)
        wanted_QHK = reference(inputs)[-len(out_QHK) :]
        outputs.append(float((out_QHK - wanted_QHK).detach().abs().max()))
        if way in (tiles, ranges) and trial % 4 == 0:
            up_QHK = torch.randn(out_QHK.shape, generator=generator, dtype=torch.float64)
            sides = [torch.autograd.grad(out, inputs, up_QHK) for out in (out_QHK, wanted_QHK)]
            gradients.append(max(float((a - b).abs().max()) for a, b in zip(*sides, strict=True)))
    return Outcome(name, times, max(outputs), max(gradients, default=None))


def reference(inputs: list[Tensor]) -> Tensor:
    """PyTorch's attention over everything."""
    q, k, v = (x.transpose(0, 1) for x in inputs)
    return F.scaled_dot_product_attention(q, k, v, scale=SCALE, enable_gqa=True).transpose(0, 1)


def cuts(total: int, generator: torch.Generator) -> list[int]:
    """Where to cut `total` keys, at random."""
    share = torch.rand((), generator=generator)
    return (torch.nonzero(torch.rand(total - 1, generator=generator) < share).flatten() + 1).tolist()


def pieces(inputs: list[Tensor], trial: int, generator: torch.Generator) -> Tensor:
    """The recurrence itself, a piece of keys after the other."""
    q, k, v = (x.detach().transpose(0, 1) for x in inputs)
    k, v = (x.repeat_interleave(HEADS // GROUPS, 0) for x in (k, v))
    scores, at = q @ k.mT * SCALE, cuts(k.shape[1], generator)
    running = Running.none(torch.zeros_like(q))
    for part, values in zip(scores.tensor_split(at, -1), v.tensor_split(at, 1), strict=True):
        running = running.absorb(part, values)
    return running.finished()[0].transpose(0, 1)


def tiles(inputs: list[Tensor], trial: int, generator: torch.Generator) -> Tensor:
    """FlashAttention with a tile of random shape."""
    rows, keys = torch.randint(1, len(inputs[0]) + 5, (2,), generator=generator).clamp_min(4).tolist()
    return flash(*inputs, scale=SCALE, rule=EVERYTHING, tile=Tile(rows, keys)).out_QHV


def ranges(inputs: list[Tensor], trial: int, generator: torch.Generator) -> Tensor:
    """Split keys, all queries."""
    return split(*inputs, scale=SCALE, parts=trial + 1, rule=EVERYTHING).out_QHV


def decoding(inputs: list[Tensor], trial: int, generator: torch.Generator) -> Tensor:
    """Split keys, the last query alone."""
    q, k, v = (x.detach() for x in inputs)
    return split(q[-1:], k, v, scale=SCALE, parts=trial + 1).out_QHV


def shuffled(inputs: list[Tensor], trial: int, generator: torch.Generator) -> Tensor:
    """Partial results over random ranges, merged in random order."""
    q, k, v = (x.detach() for x in inputs)
    at = cuts(len(k), generator)
    parts = [
        flash(q, some_k, some_v, scale=SCALE, rule=EVERYTHING)
        for some_k, some_v in zip(k.tensor_split(at), v.tensor_split(at), strict=True)
    ]
    return merge([parts[i] for i in torch.randperm(len(parts), generator=generator)]).out_QHV


def overflow(size: int, dtype: torch.dtype, run: Run) -> tuple[float, float]:
    """Share of weights that are no number, for scores of this size: by exp(s) / sum exp(s) itself, and in pieces."""
    scores_GRS = (size * torch.randn(1, 64, 64, generator=run.generator())).to(dtype)
    plain = scores_GRS.exp() / scores_GRS.exp().sum(-1, keepdim=True)
    running = Running.none(torch.zeros(1, 64, 64, dtype=dtype))
    identity = torch.eye(64, dtype=dtype)[None]
    for part, values in zip(scores_GRS.split(16, -1), identity.split(16, 1), strict=True):
        running = running.absorb(part, values)
    shares = [float((~torch.isfinite(x)).double().mean()) for x in (plain, running.finished()[0])]
    return shares[0], shares[1]


def _plot(off: list[tuple[float, float]]) -> Plot:
    def series(name: str, side: int) -> Series:
        return Series(name=name, x=[float(s) for s in SIZES], y=[pair[side] for pair in off])

    return Plot(
        kind="line",
        x=Axis(label="standard deviation of scores", log=True),
        y=Axis(label="share of weights that are no number (float32)"),
        series=[series("exp(s) / sum exp(s)", 0), series("in pieces, relative to the largest", 1)],
    )


def _checks(found: list[Outcome], off: list[tuple[float, float]]) -> list[Check]:
    output = max(o.output for o in found)
    gradient = max(_gradients(found))
    return [
        check(
            output < 1e-12,
            f"in {sum(o.tried for o in found)} ways of cutting, outputs equal PyTorch's to {output:.0e}",
            f"共 {sum(o.tried for o in found)} 种切法，输出与 PyTorch 相差不超过 {output:.0e}",
        ),
        check(
            gradient < 1e-9,
            f"backward by recomputation gives autograd's gradients to {gradient:.0e}",
            f"重算得到的反向梯度与自动求导相差不超过 {gradient:.0e}",
        ),
        check(
            off[-1][0] > 0 and all(pair[1] == 0 for pair in off),
            "large scores overflow where no largest score is subtracted, never in pieces that keep track of it",
            "不减最大值时大分数会溢出；分段并随时记住最大值则从不溢出",
        ),
    ]


def _gradients(found: list[Outcome]) -> Iterator[float]:
    return (o.gradient for o in found if o.gradient is not None)


def _verdict(found: list[Outcome], off: dict[torch.dtype, list[tuple[float, float]]]) -> Words:
    first = {str(dtype).removeprefix("torch."): _first(pairs) for dtype, pairs in off.items()}
    output, gradient = max(o.output for o in found), max(_gradients(found))
    seen = " and ".join(f"{size} in {dtype}" for dtype, size in first.items())
    where_zh = "、".join(f"{dtype} 中为 {size}" for dtype, size in first.items())
    return both(
        f"The largest score, the sum and the mix of values so far are all that a row needs: cut anywhere, outputs "
        f"differ by {output:.0e} at most and gradients by {gradient:.0e}, in float64. Tiled attention takes pieces one "
        f"after the other, split-key decoding side by side, to be merged in any order. The largest score is there for "
        f"safety: without it weights stop being numbers once scores spread by {seen}.",
        f"每行只需记住目前的最大分数、指数和与加权值：无论怎么切，float64 下输出最多相差 {output:.0e}，梯度 "
        f"{gradient:.0e}。分块注意力一段接一段，按键切分的解码则各段并行，再以任意次序合并。减去最大分数是为了安全："
        f"不减的话，分数的标准差达到以下数值时权重就不再是数：{where_zh}。",
    )


def _first(pairs: list[tuple[float, float]]) -> str:
    """The smallest size at which the plain formula fails."""
    return next((str(size) for size, pair in zip(SIZES, pairs, strict=True) if pair[0] > 0), f"more than {SIZES[-1]}")
