"""What the key/value cache saves: work that is counted, and time that is measured beside it.

Without a cache, token n + 1 costs a forward pass over all n tokens before it; with one, over the newest
alone, which looks at the keys and values of the others. Two ways to the same logits, timed in turns.

The cost of a whole reply is measured in full at small lengths, where both ways must choose the same tokens.
At large ones it is the sum of the measured costs of single tokens, at sampled lengths and on straight lines
between them: generating 2,048 tokens without a cache would take hours and teach nothing more.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.statistics import growth, summed
from cutaway.labs.subject import MODEL, Cached, decoder, last_logits, reading, subject
from cutaway.labs.timing import interleaved
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder

CHUNKS = (1, 7, 64)
TOLERANCE = 1e-5  # of the largest logit: float32, with sums in another order


class Both(NamedTuple):
    """A quantity without the cache and with it."""

    without: float
    cached: float

    @property
    def ratio(self) -> float:
        return self.without / self.cached


class Point(NamedTuple):
    """Choosing the next token after n: FLOPs, seconds; then positions and seconds of all tokens so far."""

    n: int
    flops: Both
    seconds: Both
    positions_so_far: Both
    seconds_so_far: Both


@lab(
    "kv-cache",
    title=both("What decoding costs without a KV cache", "没有 KV 缓存，解码要付出多少"),
    question=both("What work does the KV cache remove, in numbers?", "KV 缓存到底省下了多少计算？"),
    seconds={"quick": 5, "full": 180},
)
def kv_cache(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that decodes", "用来解码的模型")] = MODEL,
    prompt: Annotated[int, Knob("tokens of the prompt", "提示词的词元数", quick=16, min=1, max=4096)] = 64,
    longest: Annotated[
        int, Knob("tokens in all; doubled up to it", "总词元数；逐次翻倍到此", quick=64, min=8, max=8192)
    ] = 2048,
    generate: Annotated[
        int, Knob("tokens really generated both ways", "两种方式各真实生成的词元数", quick=8, min=2, max=512)
    ] = 64,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=2, min=1, max=99)] = 5,
) -> Finding:
    if prompt + generate > longest:
        raise CutawayError(f"must be at least prompt + generate = {prompt + generate}", "knob longest")
    lengths, loaded = doubled(prompt, longest), subject(model)
    tokens_T, subject_model = reading(loaded, longest), decoder(loaded)
    with torch.inference_mode():
        seconds = [time_both(subject_model, tokens_T[:n], repeats) for n in run.each(lengths, "tokens")]
        steps, replies = generate_both(subject_model, tokens_T[:prompt], generate, run)
        apart = chunked_difference(subject_model, tokens_T[: min(longest // 2, 256)], run)
    points = trace(Cost(subject_model.spec), lengths, seconds)
    return Finding(
        table=table(COLUMNS, map(_row, points)),
        plot=_plot(points),
        verdict=_verdict(points, generate, steps),
        checks=_checks(points, replies, *apart),
    )


def doubled(first: int, last: int) -> list[int]:
    """first, twice that, and so on, and last."""
    return [*itertools.takewhile(lambda n: n < last, (first * 2**i for i in itertools.count())), last]


def work(prompt: int, new: int) -> Both:
    """Positions computed to choose `new` tokens after P: the sum of P + i for i < new, or P + new - 1."""
    return Both(sum(prompt + i for i in range(new)), prompt + new - 1)


def time_both(model: Decoder, tokens_T: Tensor, repeats: int) -> Both:
    """Seconds to choose the token after tokens_T: medians, measured in turns."""
    cached = Cached(model, len(tokens_T))
    cached.logits(tokens_T)
    return Both(*interleaved([lambda: last_logits(model, tokens_T), lambda: cached.again(tokens_T)], repeats))


def generate_both(model: Decoder, prompt_T: Tensor, count: int, run: Run) -> tuple[Both, tuple[list[int], list[int]]]:
    """Seconds of greedy generation, and what was generated, without a cache and with it."""
    cached = Cached(model, len(prompt_T) + count)
    ways: list[Callable[[Tensor], Tensor]] = [lambda tokens_T: last_logits(model, tokens_T), cached.logits]
    seconds, replies = [0.0, 0.0], (prompt_T.tolist(), prompt_T.tolist())
    for _ in run.each(range(count), "generating both ways"):
        for i, way in enumerate(ways):
            began = time.perf_counter()
            token = int(way(torch.tensor(replies[i])).argmax())
            seconds[i] += time.perf_counter() - began
            replies[i].append(token)
    return Both(*seconds), replies


def chunked_difference(model: Decoder, tokens_T: Tensor, run: Run) -> tuple[float, float]:
    """Largest difference of the last logits when the cache is filled in chunks; the largest logit itself."""
    whole_V, differences = last_logits(model, tokens_T), []
    for chunk in run.each([c for c in CHUNKS if c < len(tokens_T)], "filling the cache in chunks of"):
        cached = Cached(model, len(tokens_T))
        for end in [*range(chunk, len(tokens_T), chunk), len(tokens_T)]:
            logits_V = cached.logits(tokens_T[:end])
        differences.append(float((logits_V - whole_V).abs().max()))
    return max(differences), float(whole_V.abs().max())


def trace(cost: Cost, lengths: list[int], seconds: list[Both]) -> list[Point]:
    """Counted work and measured time side by side; "so far" begins with the token after the prompt."""
    prompt = lengths[0]
    return [
        Point(
            n=n,
            flops=Both(cost.flops(n, rows=1), cost.flops(1, past=n - 1, rows=1)),
            seconds=second,
            positions_so_far=work(prompt, n - prompt + 1),
            seconds_so_far=so_far(lengths, seconds, n),
        )
        for n, second in zip(lengths, seconds, strict=True)
    ]


def so_far(lengths: list[int], seconds: list[Both], n: int) -> Both:
    """Seconds to choose the tokens after lengths[0] ... n; the first costs a pass over the prompt anyway."""
    without, cached = ([*column] for column in zip(*seconds, strict=True))
    first = lengths[0]
    return Both(summed(lengths, without, first, n), without[0] + summed(lengths, cached, first + 1, n))


COLUMNS = {
    "tokens": "",
    "work, no cache": "GFLOP/token",
    "work, cache": "GFLOP/token",
    "time, no cache": "ms/token",
    "time, cache": "ms/token",
    "time ratio": "",
    "positions so far, ratio": "",
    "time so far, no cache": "s, interpolated",
    "time so far, cache": "s, interpolated",
}


def _row(p: Point) -> list[Cell]:
    work, milliseconds = (f / 1e9 for f in p.flops), (1e3 * s for s in p.seconds)
    return [p.n, *work, *milliseconds, p.seconds.ratio, p.positions_so_far.ratio, *p.seconds_so_far]


def _plot(points: list[Point]) -> Plot:
    x = [float(p.n) for p in points]
    return Plot(
        kind="line",
        x=Axis(label="tokens before", log=True),
        y=Axis(label="ms per token", log=True),
        series=[
            Series(name="without a cache", x=x, y=[1e3 * p.seconds.without for p in points]),
            Series(name="with a cache", x=x, y=[1e3 * p.seconds.cached for p in points]),
        ],
    )


def exponents(points: list[Point]) -> tuple[Both, Both]:
    """How FLOPs and seconds per token grow with n: 0 is flat, 1 proportional."""
    n = [p.n for p in points]
    flops, seconds = (
        Both(*(growth(n, column) for column in zip(*values, strict=True)))
        for values in ([p.flops for p in points], [p.seconds for p in points])
    )
    return flops, seconds


def _checks(
    points: list[Point], replies: tuple[list[int], list[int]], difference: float, largest: float
) -> list[Check]:
    flops, _ = exponents(points)
    return [
        check(replies[0] == replies[1], "both ways choose the same tokens", "两种方式逐个生成的词元完全一致"),
        check(
            difference < TOLERANCE * largest,
            f"logits, up to {largest:.0f}, differ by at most {difference:.1e} whatever the chunks the "
            "cache is filled in",
            f"无论分多大的块填充缓存，logits（最大 {largest:.0f}）相差至多 {difference:.1e}",
        ),
        check(
            flops.without > 0.8 and flops.cached < 0.3,
            f"counted FLOPs per token grow as n^{flops.without:.2f} without the cache, n^{flops.cached:.2f} with it",
            f"按计数，每词元 FLOPs 无缓存时随 n^{flops.without:.2f} 增长，有缓存时为 n^{flops.cached:.2f}",
        ),
    ]


def _verdict(points: list[Point], generate: int, steps: Both) -> Words:
    last, (_, grown) = points[-1], exponents(points)
    n, prompt, spent = last.n, points[0].n, last.seconds_so_far
    said = so_far([p.n for p in points], [p.seconds for p in points], prompt + generate - 1)
    ms = Both(*(1e3 * s for s in last.seconds))
    return both(
        f"After {n:,} tokens the next one takes {ms.without:,.0f} ms without a cache and {ms.cached:,.1f} "
        f"ms with it: {ms.ratio:,.0f} times as long, for {last.flops.ratio:,.0f} times the FLOPs. Measured "
        f"time per token grows as n^{grown.without:.2f} without and n^{grown.cached:.2f} with. A reply of "
        f"{n - prompt + 1:,} tokens to a prompt of {prompt} computes {last.positions_so_far.ratio:,.0f} "
        f"times the positions and takes {spent.without:,.0f} s instead of {spent.cached:,.1f} s "
        f"(interpolated between the sampled lengths). Really generated, {generate} tokens took "
        f"{steps.without:.1f} s without and {steps.cached:.1f} s with; interpolation says "
        f"{said.without:.1f} and {said.cached:.1f}.",
        f"已有 {n:,} 个词元时，下一个词元无缓存需 {ms.without:,.0f} 毫秒，有缓存 {ms.cached:,.1f} 毫秒：用"
        f"时 {ms.ratio:,.0f} 倍，FLOPs {last.flops.ratio:,.0f} 倍。实测每词元用时无缓存随 "
        f"n^{grown.without:.2f} 增长，有缓存随 n^{grown.cached:.2f}。对 {prompt} 个词元的提示生成 "
        f"{n - prompt + 1:,} 个词元，计算的位置数为 {last.positions_so_far.ratio:,.0f} 倍，用时 "
        f"{spent.without:,.0f} 秒对 {spent.cached:,.1f} 秒（在抽样长度之间插值）。真实生成 {generate} 个词"
        f"元，无缓存 {steps.without:.1f} 秒，有缓存 {steps.cached:.1f} 秒；插值所得为 {said.without:.1f} 与"
        f" {said.cached:.1f} 秒。",
    )
