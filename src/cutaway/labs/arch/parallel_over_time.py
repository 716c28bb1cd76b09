"""Why a transformer learns from all positions at once (Vaswani et al. 2017, arXiv:1706.03762, section 4).

In training every token is known beforehand. A causal layer computes position t from the inputs of positions 0 ... t
alone, so that one pass gives what as many single steps would; a recurrent layer computes it from its own output at
t - 1, and has to wait for that. In generation both wait: the next input is what the model itself said.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.classics.recurrent import RecurrentLM, RecurrentSpec
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.older_models import attentions, calls, recurrences, seeded, size_of
from cutaway.labs.subject import MODEL, Cached, decoder, logits_of, reading, subject
from cutaway.labs.timing import interleaved
from cutaway.labs.training import fresh, small_spec
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import Attention, BlockDiagonal

VOCAB = 256
PASS, LOOP, THEIRS, STEPS = "transformer, one pass", "LSTM", "LSTM, PyTorch's loop", "transformer, single steps"
TOLERANCE = 1e-4  # of the largest logit: float32, with sums in another order


class Same(NamedTuple):
    """Largest differences, over the largest logit. steps: between one pass and single steps with a cache. unmasked:
    the same without the causal mask. future: in earlier logits, when the last token is another."""

    steps: float
    unmasked: float
    future: float


class Point(NamedTuple):
    """Sequences of n tokens. rate: tokens per second of each way. waits: how often a position has to wait for what
    another made."""

    n: int
    rows: int
    rate: dict[str, float]
    waits: dict[str, int]


@lab(
    "parallel-over-time",
    title=both("All positions at once, or one after the other", "所有位置同时算，还是一个接一个"),
    question=both(
        "What in the architecture allows training on all positions at once, and what stays sequential?",
        "架构中的什么让所有位置可以同时训练？哪些仍然只能顺序进行？",
    ),
    seconds={"quick": 5, "full": 90},
)
def parallel_over_time(
    run: Run,
    *,
    model: Annotated[str, Knob("the model whose logits are compared", "用来比较 logits 的模型")] = MODEL,
    length: Annotated[int, Knob("tokens that it reads", "读入的词元数", quick=24, min=2, max=4096)] = 512,
    width: Annotated[int, Knob("of the models that are timed", "计时模型的宽度", quick=64, min=16, max=1024)] = 256,
    layers: Annotated[int, Knob("their layers", "它们的层数", quick=1, min=1, max=8)] = 2,
    rows: Annotated[int, Knob("sequences in a timed batch", "计时批次中的序列数", quick=2, min=1, max=64)] = 8,
    longest: Annotated[
        int, Knob("longest sequence; from 64 in steps of 4", "最长序列；从 64 起每步乘 4", quick=256, min=64, max=4096)
    ] = 1024,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=3, min=3, max=99)] = 5,
) -> Finding:
    loaded = subject(model)
    same = compared(decoder(loaded), reading(loaded, length), run)
    lengths = [n for n in (64 * 4**i for i in range(5)) if n <= longest]
    transformer = fresh(small_spec(vocab=VOCAB, width=width, layers=layers, context=longest), run.seed)
    lstm = seeded(lambda: RecurrentLM(VOCAB, RecurrentSpec("lstm", width, layers)), run.seed)
    shapes = [(n, count) for count in sorted({1, rows}) for n in lengths]
    points = [timed((transformer, lstm), *shape, repeats, run) for shape in run.each(shapes, "timing")]
    rates = dict.fromkeys(points[0].rate, "tokens/s")
    waits = {f"waits: {way}": "" for way in points[0].waits}
    return Finding(
        table=table(
            {"sequences": "", "tokens": ""} | rates | waits,
            ([p.rows, p.n, *p.rate.values(), *p.waits.values()] for p in points),
        ),
        plot=_plot(points),
        verdict=_verdict(same, points, length, size_of(transformer) / size_of(lstm)),
        checks=_checks(same, points, layers),
    )


# ---- the same numbers


@torch.inference_mode()
def compared(model: Decoder, tokens_T: Tensor, run: Run) -> Same:
    """One pass over tokens_T against single steps; the same model blind to nothing; and with another last token."""
    passed_TV, cached = logits_of(model, tokens_T), Cached(model, len(tokens_T))
    steps = run.each(range(1, len(tokens_T) + 1), "single steps, token")
    stepped_TV = torch.stack([cached.logits(tokens_T[:n]) for n in steps])
    other_T = tokens_T.clone()
    other_T[-1] = (other_T[-1] + 1) % model.spec.vocab
    largest = passed_TV.abs().max()
    pairs = [
        (passed_TV, stepped_TV),
        (logits_of(unmasked(model), tokens_T), stepped_TV),
        (logits_of(model, other_T)[:-1], passed_TV[:-1]),
    ]
    return Same(*(float((a - b).abs().max() / largest) for a, b in pairs))


def unmasked(model: Decoder) -> Decoder:
    """The same weights in modules of their own, where every position sees every other."""
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})
    for module in twin.modules():
        if isinstance(module, Attention):
            module.spec = replace(module.spec, causal=False)
    return twin


# ---- time


def timed(models: tuple[Decoder, RecurrentLM], n: int, rows: int, repeats: int, run: Run) -> Point:
    """Learn from `rows` sequences of n tokens, forward and backward; and read one of them in single steps."""
    (transformer, lstm), lengths = models, [n] * rows
    tokens_T = torch.randint(VOCAB, (rows * n,), generator=run.generator())
    positions_T, context, reference = positions_of(lengths), BlockDiagonal(lengths), pytorchs(lstm)

    def learn(logits: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: F.cross_entropy(logits()[:-1], tokens_T[1:]).backward()

    def packed() -> Tensor:
        return lstm.logits(reference(lstm.embedding(tokens_T.view(rows, n)))[0].flatten(0, 1))

    ways = {
        PASS: learn(lambda: transformer.logits(transformer(tokens_T, positions_T, context))),
        LOOP: learn(lambda: lstm.logits(lstm(tokens_T, lengths)[0])),
        THEIRS: learn(packed),
        STEPS: lambda: single_steps(transformer, tokens_T[:n]),
    }
    counts = [n if name == STEPS else n * rows for name in ways]
    seconds = interleaved([*ways.values()], repeats)
    links = {PASS: attentions(transformer), LOOP: recurrences(lstm), STEPS: attentions(transformer)}
    return Point(
        n=n,
        rows=rows,
        rate={name: count / s for name, count, s in zip(ways, counts, seconds, strict=True)},
        waits={name: calls(modules, ways[name]) for name, modules in links.items()},
    )


@torch.inference_mode()
def single_steps(model: Decoder, tokens_T: Tensor) -> None:
    """Read tokens_T one by one, each with what is kept of those before it, as generation has to."""
    cached = Cached(model, len(tokens_T))
    for n in range(1, len(tokens_T) + 1):
        cached.logits(tokens_T[:n])


def pytorchs(lstm: RecurrentLM) -> nn.LSTM:
    """The same layers, their loop compiled."""
    spec = lstm.stack.spec
    return nn.LSTM(spec.width, spec.width, spec.layers, batch_first=True)


# ---- what it comes to


def _by_rows(points: Sequence[Point]) -> dict[int, list[Point]]:
    return {rows: [p for p in points if p.rows == rows] for rows in dict.fromkeys(p.rows for p in points)}


def _plot(points: Sequence[Point]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="tokens", log=True),
        y=Axis(label="tokens/s", log=True),
        series=[
            Series(name=f"{way}, {rows} at a time", x=[float(p.n) for p in part], y=[p.rate[way] for p in part])
            for rows, part in _by_rows(points).items()
            for way in points[0].rate
        ],
    )


def _checks(same: Same, points: Sequence[Point], layers: int) -> list[Check]:
    counted = [(p.waits[PASS], p.waits[LOOP], p.waits[STEPS]) for p in points]
    return [
        check(
            same.steps < TOLERANCE,
            f"one pass gives the logits of single steps (to {same.steps:.0e} of the largest)",
            f"一次前向与逐步计算给出相同的 logits（相差最大值的 {same.steps:.0e}）",
        ),
        check(
            same.future < TOLERANCE < same.unmasked,
            f"that is the mask's doing: another last token changes earlier logits by {same.future:.0e}, and without "
            f"the mask one pass is {same.unmasked:.2f} off",
            f"这是掩码的功劳：换掉最后一个词元，前面的 logits 变化 {same.future:.0e}；去掉掩码，一次前向相差 "
            f"{same.unmasked:.2f}",
        ),
        check(
            counted == [(layers, p.n * layers, p.n * layers) for p in points],
            f"counted: a pass waits {layers} times for other positions at any length, a recurrent network and "
            f"generation {points[-1].n * layers} times at {points[-1].n} tokens",
            f"按计数：一次前向无论多长都只等其他位置 {layers} 次；循环网络和逐词生成在 {points[-1].n} 个词元时要等 "
            f"{points[-1].n * layers} 次",
        ),
    ]


def _verdict(same: Same, points: Sequence[Point], length: int, larger: float) -> Words:
    last, threads = [part[-1] for part in _by_rows(points).values()], torch.get_num_threads()

    def ratios(way: str) -> str:
        return " / ".join(f"{p.rate[PASS] / p.rate[way]:.2f}" for p in last)

    counts, stepping = " / ".join(str(p.rows) for p in last), last[0].rate[STEPS] / last[0].rate[PASS]
    return both(
        f"Known targets and the causal mask allow it: over {length} tokens one pass and single steps differ by "
        f"{same.steps:.0e} of the largest logit. Learning from {counts} sequences of {last[0].n} tokens at a time "
        f"({threads} threads), a transformer took in {ratios(LOOP)} times the tokens per second of an LSTM loop of "
        f"equal width, and {ratios(THEIRS)} times those of PyTorch's compiled loop; it has {larger:.2f} times the "
        f"parameters. Generation stays sequential: read in single steps, one sequence goes at {stepping:.2f} of the "
        "speed of learning from it.",
        f"靠的是已知的目标和因果掩码：{length} 个词元上，一次前向与逐步计算相差最大 logit 的 {same.steps:.0e}。每批 "
        f"{counts} 个长 {last[0].n} 的序列（{threads} 个线程），Transformer 学习时每秒处理的词元数是等宽 LSTM 循环的 "
        f"{ratios(LOOP)} 倍，是 PyTorch 编译循环的 {ratios(THEIRS)} 倍；参数量是其 {larger:.2f} 倍。生成仍只能顺序进行"
        f"：单个序列逐词元读入，速度是学习它时的 {stepping:.2f} 倍。",
    )
