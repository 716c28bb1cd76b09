"""Why a token of a long chain of thought costs more than one of a short answer by the same model.

A reply holds a cache as long as itself. Memory that holds 52 replies of 8,192 tokens holds 13 of 32,768: each step then
writes a quarter of the tokens, and reads the same weights for them and as much cache. So the price of a token rises
with the length of the reply it belongs to, though its arithmetic hardly does.

Simulated with the engine's scheduler, for a large model on a chip by its data sheet; then run with a small one, whose
cache is as large as the longest reply. No more replies begin than the memory holds at their full length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

from cutaway.budget import roofline, running
from cutaway.budget.chips import CHIPS
from cutaway.budget.figures import named
from cutaway.budget.price import of_replies, per_million
from cutaway.budget.published import spec_named
from cutaway.engine.pages import Pages
from cutaway.engine.scheduler import Scheduler
from cutaway.errors import CutawayError
from cutaway.labs.engine.replay import Request
from cutaway.labs.engine.speed import Arm, fastest, numbers, on_threads, timed
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.models.cost import Cost

LARGE, CARD, DTYPE = "llama-3-8b", "a100-80gb", "bfloat16"
LENGTHS = (8192, 16_384, 32_768)
STEP = 128  # tokens that the simulation writes at a time
WAVES = 4  # times as many requests as fit


class Priced(NamedTuple):
    """Replies of one length. together: tokens of a step, mean. weights, cache: bytes read for a token, mean.

    held: tokens that the cache has room for while most is held. rise: seconds of the last steps of a reply over those
    of the first, an eighth of it each: what its own cache does, whoever shares the weights.
    """

    what: str
    length: int
    together: float
    weights: float
    cache: float
    seconds: float
    dollars: float
    held: int
    rise: float


@lab(
    "reasoning-token-price",
    title=both("The price of a token in a long reply", "长思维链的单价"),
    question=both(
        "A reasoning model of the same size costs me more per token; where does the difference come from?",
        "同样大小的推理模型，每个词元却更贵；差别从何而来？",
    ),
    seconds={"quick": 4, "full": 90},
)
def reasoning_token_price(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    lengths: Annotated[
        str,
        Knob("tokens of a reply, with commas; memory is that of the longest", "回答词元数，逗号分隔", quick="64,256"),
    ] = "256,1024,4096",
    price: Annotated[float, Knob("dollars for an hour of the chip", "芯片每小时美元", min=1e-6)] = 2.0,
    here: Annotated[float, Knob("dollars for an hour of this machine", "本机每小时美元", min=1e-6)] = 0.1,
    threads: Annotated[int, Knob("threads", "线程数", min=1, max=64)] = 1,
) -> Finding:
    sizes = numbers(lengths, "lengths", 8192)
    if any(sizes[-1] % size for size in sizes) or sizes[0] < 2:
        raise CutawayError(f"must divide the longest, {sizes[-1]}", "knob lengths")
    paper = [simulate(length, price) for length in LENGTHS]
    with on_threads(threads):
        arm = fastest(model, running=sizes[-1] // sizes[0], context=sizes[-1] + 1)
        found = [answer(arm, size, sizes[-1] // size, here) for size in run.each(sizes, "replies of so many tokens")]
    return Finding(
        table=table(COLUMNS, [_row(p) for p in [*paper, *found]]),
        plot=_plot(paper, found),
        verdict=_verdict(paper, found, price, here),
        checks=_checks(paper, found, price),
    )


def simulate(length: int, price: float) -> Priced:
    """Requests of one length, four times as many as fit, on the large model's chip."""
    cost, chip = Cost(spec_named(LARGE)), CHIPS[CARD]
    fitting = named(running.fit(cost, chip, length, DTYPE))
    places, k = int(fitting["sequences that fit"]), fitting["KV of a sequence"] / length
    steps = [*seen(WAVES * places, length // STEP, places)]
    took = [roofline.step(cost, chip, DTYPE, len(some), STEP * sum(some) // len(some)).seconds for some in steps]
    tokens, seconds = sum(map(len, steps)), sum(took)
    return Priced(
        f"{LARGE} on {CARD}",
        length,
        tokens / len(steps),
        fitting["weights"] * len(steps) / tokens,
        k * STEP * sum(map(sum, steps)) / tokens,
        seconds / tokens,
        per_million(price, tokens / seconds).value,
        STEP * max(map(sum, steps)),
        rise(took[: length // STEP]),
    )


def rise(seconds: list[float]) -> float:
    """The last eighth of the steps of a reply over the first."""
    eighth = max(1, len(seconds) // 8)
    return sum(seconds[-eighth:]) / sum(seconds[:eighth])


def seen(requests: int, length: int, places: int) -> Iterator[list[int]]:
    """For each step the tokens, in units of `STEP`, that each running request sees."""
    scheduler: Scheduler[Request] = Scheduler(
        Pages(places * (length + 1), 1), places=places, budget=places, queue=requests
    )
    for i in range(requests):
        scheduler.add(Request([i], length + 1))
    while scheduler.busy:
        spans = scheduler.plan()
        yield [span.start + span.count for span in spans]
        for span in spans:
            request = span.sequence
            if span.start + span.count == length:
                request.finish = "length"
            elif span.start + span.count == len(request.tokens):
                request.tokens.append(0)
            scheduler.commit(span)


def answer(arm: Arm, length: int, batch: int, price: float) -> Priced:
    """As many replies at once as told, of `length` tokens with their prompt of one, from the first to the last."""
    engine = arm.engine
    engine.scheduler.places = batch
    arm.ask(arm.texts(batch, 1), length - 1)
    took, tokens, read, held = list[float](), 0, 0, 0
    while engine.busy:
        took.append(timed(engine.step)())
        spans, (_, _, pages) = engine.steps[-1].spans, engine.steps[-1].pages
        held = max(held, pages * engine.runner.size)
        tokens += len(spans)
        read += sum(start + count for _, start, count, _, _ in spans)
    seconds, steps = sum(took), len(took)
    weights, each = arm.cost.parameters * arm.width, arm.cost.kv_bytes_per_token(arm.dtype).value
    return Priced(
        arm.loaded.name, length, tokens / steps, weights * steps / tokens, each * read / tokens, seconds / tokens,
        per_million(price, tokens / seconds).value, held, rise(took),
    )  # fmt: skip


COLUMNS = {
    "model": "",
    "reply": "tokens",
    "together": "tokens/step",
    "weights read": "MB/token",
    "cache read": "MB/token",
    "time": "ms/token",
    "cost": "$/million",
    "last tokens over first": "",
}


def _row(p: Priced) -> list[Cell]:
    return [p.what, p.length, p.together, p.weights / 1e6, p.cache / 1e6, 1e3 * p.seconds, p.dollars, p.rise]


def _plot(paper: list[Priced], found: list[Priced]) -> Plot:
    names = dict.fromkeys(p.what for p in [*paper, *found])
    rows = {name: [p for p in [*paper, *found] if p.what == name] for name in names}
    series = [
        Series(name=name, x=[float(p.length) for p in mine], y=[p.seconds / mine[0].seconds for p in mine])
        for name, mine in rows.items()
    ]
    return Plot(
        kind="line", x=Axis(label="tokens of a reply", log=True), y=Axis(label="times the shortest"), series=series
    )


def _checks(paper: list[Priced], found: list[Priced], price: float) -> list[Check]:
    """Counted; times are shown."""
    short, _, long = paper
    figures = [
        named(of_replies(Cost(spec_named(LARGE)), CHIPS[CARD], DTYPE, p.length, price=price)) for p in (short, long)
    ]
    fits = [f["sequences that fit"] for f in figures]
    first, last = found[0], found[-1]
    times = last.length // first.length
    apart = max(
        abs(p.seconds * f["tokens per second, at most"] - 1) for p, f in zip((short, long), figures, strict=True)
    )
    return [
        check(
            fits == [52, 13] and [short.together, long.together] == fits,
            f"beside {LARGE} 72 GB hold {fits[0]:.0f} replies of {short.length:,} tokens and {fits[1]:.0f} of "
            f"{long.length:,}; the scheduler runs {short.together:.0f} and {long.together:.0f} together",
            f"72 GB 放下 {LARGE} 后容 {fits[0]:.0f} 个 {short.length:,} 词元的回答或 {fits[1]:.0f} 个 {long.length:,} "
            f"词元的；调度器同时运行 {short.together:.0f} 与 {long.together:.0f} 个",
        ),
        check(
            abs(long.weights / short.weights - 4) < 1e-9 and abs(long.dollars / short.dollars - 4) < 0.1,
            f"of a reply 4 times as long a token needs {long.weights / short.weights:.0f} times the weights read, and "
            f"costs {long.dollars / short.dollars:.2f} times as much",
            f"回答长 4 倍时，每个词元要读的权重为 {long.weights / short.weights:.0f} 倍，成本为 "
            f"{long.dollars / short.dollars:.2f} 倍",
        ),
        check(
            apart < 0.05,
            f"simulation and formula differ by {apart:.1%}: the input table is not read, replies grow by {STEP} tokens",
            f"模拟与公式相差 {apart:.1%}：输入表不读取，回答每次增长 {STEP} 个词元",
        ),
        check(
            all(0.9 * last.length < p.held < 1.1 * last.length + 64 * last.length // p.length for p in found),
            f"run here, replies of every length hold at most {max(p.held for p in found):,} tokens of cache at once",
            f"本机运行：各种长度的回答同时最多占 {max(p.held for p in found):,} 个词元的缓存",
        ),
        check(
            abs(last.weights / first.weights / times - 1) < 0.02 and last.cache > 0.9 * first.cache * times,
            f"for a token of {last.length:,} here {last.weights / first.weights:.1f} times the weights are read and "
            f"{last.cache / first.cache:.1f} times the cache as for one of {first.length}",
            f"本机 {last.length:,} 词元的回答，每词元读权重为 {first.length} 词元的 "
            f"{last.weights / first.weights:.1f} 倍，读缓存为 {last.cache / first.cache:.1f} 倍",
        ),
    ]


def _verdict(paper: list[Priced], found: list[Priced], price: float, here: float) -> Words:
    short, _, long = paper
    first, last = found[0], found[-1]
    read = (last.weights + last.cache) / (first.weights + first.cache)
    said = "; ".join(
        f"{p.length:,} tokens: {p.together:.0f} together, {1e3 * p.seconds:.2f} ms, {p.dollars:.3g} $" for p in found
    )
    zh = "；".join(
        f"{p.length:,} 词元：同时 {p.together:.0f} 个，{1e3 * p.seconds:.2f} 毫秒，{p.dollars:.3g} 美元" for p in found
    )
    return both(
        f"{short.what} at {price:g} $ an hour: a million tokens cost {short.dollars:.2f} $ in "
        f"replies of {short.length:,} and {long.dollars:.2f} $ in replies of {long.length:,}, because "
        f"{long.together:.0f} instead of {short.together:.0f} share the reading of the weights and each reads a longer "
        f"cache. {first.what} here, at {here:g} $ an hour, in a cache of {last.length:,} tokens: {said}. "
        f"A token of the longest takes {last.seconds / first.seconds:.1f} times as long as one of the shortest, for "
        f"{read:.1f} times the bytes; its own last tokens, behind a longer cache, {last.rise:.2f} times as long as its "
        "first.",
        f"{LARGE} 在 {CARD} 上，每小时 {price:g} 美元：回答为 {short.length:,} 词元时百万词元 {short.dollars:.2f} "
        f"美元，{long.length:,} 时 {long.dollars:.2f} 美元：分摊权重读取的由 {short.together:.0f} 个减为 "
        f"{long.together:.0f} 个，每个读的缓存也更长。本机 {first.what}，每小时 "
        f"{here:g} 美元，缓存容 {last.length:,} 词元：{zh}。最长回答的每个词元用时为最短的 "
        f"{last.seconds / first.seconds:.1f} 倍，读取字节为 {read:.1f} 倍；仅自身缓存变长，就使末尾词元用时为开头的 "
        f"{last.rise:.2f} 倍。",
    )
