"""What a million tokens cost: the price of an hour over the tokens that it writes.

The hour costs the same whatever it brings forth, so that an optimization that doubles the tokens halves their price.
Whether something can be offered at all is a question of price: what a reader pays is fixed, what a token costs is not.
Measured as a ladder, each rung beside the one before: float32 modules that compute the whole text for every token; a
key/value cache; requests together; native kernels on the weights as stored.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from cutaway.budget.price import per_million
from cutaway.labs.engine.replay import finish
from cutaway.labs.engine.speed import (
    MANY,
    MODULES,
    Arm,
    Seconds,
    arms,
    decode,
    in_turns,
    numbers,
    on_threads,
    reply,
    timed,
)
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, last_logits, reading

HOUR = 2.0  # dollars, of an accelerator
EXAMPLES = {127: 4.37, 2000: 0.28}  # tokens per second, dollars for a million


class Rung(NamedTuple):
    """rate: tokens per second. cost: dollars for a million. read: MB of weights that a token needs read."""

    name: str
    batch: int
    rate: float
    cost: float
    read: float


@lab(
    "efficiency-economics",
    title=both("What a million tokens cost", "百万词元的成本"),
    question=both("Why does efficiency decide whether a model can be deployed at all?", "为何效率决定能否上线？"),
    seconds={"quick": 4, "full": 150},
)
def efficiency_economics(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    price: Annotated[float, Knob("dollars for an hour of this machine", "本机每小时美元", min=1e-6)] = 0.1,
    paid: Annotated[float, Knob("dollars paid for a million tokens", "每百万词元所得美元", min=1e-6)] = 0.25,
    batches: Annotated[str, Knob("requests together, with commas", "批大小，逗号分隔", quick="1,2")] = "1,8,32",
    context: Annotated[int, Knob("tokens before the reply", "回答前的词元数", quick=8, min=2, max=4096)] = 128,
    tokens: Annotated[int, Knob("tokens of a reply", "回答词元数", quick=4, min=4, max=512)] = 16,
    threads: Annotated[int, Knob("threads", "线程数", min=1, max=64)] = 1,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=1, min=1, max=99)] = 3,
) -> Finding:
    sizes = numbers(batches, "batches", MANY // 2)
    with on_threads(threads):
        some = arms(model, running=sizes[-1], context=context + reply(sizes[-1], tokens, context) + 1)
        ladder = climb(run, some[::-1], sizes, context=context, tokens=tokens, repeats=repeats, price=price)
        alike = same_replies(some[0], sizes, context, tokens)
    return Finding(
        table=table(COLUMNS, [_row(rung, ladder[0], paid) for rung in ladder]),
        plot=_plot(ladder, paid),
        verdict=_verdict(ladder, price, paid, threads),
        checks=_checks(alike, some[0].name != MODULES, ladder, price),
    )


def climb(
    run: Run, some: list[Arm], sizes: list[int], *, context: int, tokens: int, repeats: int, price: float
) -> list[Rung]:
    """Every rung, timed in turns."""
    asked = [(arm, batch) for arm in some for batch in sizes]
    ways = [without_cache(some[0], context), *(decode(arm, batch, tokens, context) for arm, batch in asked)]
    run.report(0, 1, "timing all rungs in turns")
    seconds = in_turns(ways, repeats)
    names = [(f"{MODULES}, no cache", some[0], 1), *((arm.name, arm, batch) for arm, batch in asked)]
    return [
        Rung(name, batch, batch / s, per_million(price, batch / s).value, _weights(arm) / batch / 1e6)
        for (name, arm, batch), s in zip(names, seconds, strict=True)
    ]


def _weights(arm: Arm) -> float:
    return arm.cost.parameters * arm.width


def without_cache(arm: Arm, context: int) -> Seconds:
    """The next token from the whole text."""
    tokens_T = reading(arm.loaded, context)
    return timed(torch.inference_mode()(lambda: last_logits(decoder(arm.loaded), tokens_T)))


def same_replies(arm: Arm, sizes: list[int], context: int, tokens: int) -> bool:
    """Whether as many requests as the largest batch get the same replies in batches of the smallest size."""
    texts = arm.texts(sizes[-1], context)
    few, all_ = (replies(arm, texts, size, tokens) for size in (sizes[0], sizes[-1]))
    return few == all_


def replies(arm: Arm, texts: list[list[int]], size: int, tokens: int) -> list[list[int]]:
    """So many at a time."""
    found: list[list[int]] = []
    for at in range(0, len(texts), size):
        asked = arm.ask(texts[at : at + size], tokens)
        finish(arm.engine)
        found += [sequence.reply for sequence in asked]
    return found


COLUMNS = {
    "rung": "",
    "batch": "",
    "weights read": "MB/token",
    "speed": "tokens/s",
    "times the first": "",
    "cost": "$/million",
    "worth offering": "",
}


def _row(rung: Rung, first: Rung, paid: float) -> list[Cell]:
    return [rung.name, rung.batch, rung.read, rung.rate, rung.rate / first.rate, rung.cost, rung.cost < paid]


def _plot(ladder: list[Rung], paid: float) -> Plot:
    x = [f"{rung.name}, batch {rung.batch}" for rung in ladder]
    series = [
        Series(name="cost", x=x, y=[rung.cost for rung in ladder]),
        Series(name="paid", x=x, y=[paid] * len(ladder)),
    ]
    return Plot(kind="bar", x=Axis(label="rung"), y=Axis(label="$ per million tokens", log=True), series=series)


def _checks(alike: bool, native: bool, ladder: list[Rung], price: float) -> list[Check]:
    told = {rate: per_million(HOUR, rate).value for rate in EXAMPLES}
    said = {rate: f"{value:.2f} $" for rate, value in told.items()}
    spent = [rung.cost * rung.rate * 3600 / 1e6 for rung in ladder]
    same = check(
        alike,
        "on native kernels the replies of the largest batch are those of the smallest, token for token",
        "原生内核上最大批的回答与最小批逐词元相同",
    )
    return [
        check(
            {rate: round(value, 2) for rate, value in told.items()} == EXAMPLES,
            f"at {HOUR:g} $ an hour a million tokens cost {said[127]} at 127 tokens/s and {said[2000]} at 2,000",
            f"每小时 {HOUR:g} 美元时，每秒 127 个词元则百万词元 {said[127]}，每秒 2,000 个则 {said[2000]}",
        ),
        check(
            all(abs(s / price - 1) < 1e-9 for s in spent),
            "every rung's tokens of an hour cost what the hour does",
            "每一级一小时所写词元的成本恰为一小时的价格",
        ),
        *([same] if native else []),
    ]


def _verdict(ladder: list[Rung], price: float, paid: float, threads: int) -> Words:
    first, best = ladder[0], min(ladder, key=lambda rung: rung.cost)
    enough = next((rung for rung in ladder if rung.cost < paid), None)
    steps = [f"{r.name} at batch {r.batch}: {r.rate:,.0f} tokens/s, {r.cost:.3g} $" for r in ladder]
    zh = [f"{r.name}，批 {r.batch}：每秒 {r.rate:,.0f} 个，{r.cost:.3g} 美元" for r in ladder]
    pays = f"first pays with {enough.name} at batch {enough.batch}" if enough else "does not pay on any rung"
    pays_zh = f"从 {enough.name}、批 {enough.batch} 起才不亏" if enough else "哪一级都亏"
    return both(
        f"At {price:g} $ for an hour of this machine ({threads} threads), a million tokens cost {first.cost:.3g} $ on "
        f"the first rung and {best.cost:.3g} $ on the best, {first.cost / best.cost:,.0f} times less. Sold at "
        f"{paid:g} $ a million, this model {pays}. {'; '.join(steps)}.",
        f"本机每小时 {price:g} 美元（{threads} 线程），百万词元的成本由第一级的 {first.cost:.3g} 美元降到最佳的 "
        f"{best.cost:.3g} 美元，相差 {first.cost / best.cost:,.0f} 倍。若每百万售 {paid:g} 美元，该模型{pays_zh}。"
        f"{'；'.join(zh)}。",
    )
