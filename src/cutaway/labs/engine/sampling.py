"""What temperature, top-k, top-p and min-p do to a distribution, and that draws follow what they make of it.

Three distributions: one small enough to check by hand, a peaked and a flat one of a real model. Each row of
the table is one setting; the engine's own sampler shapes it and draws from it, and a chi-square test (Pearson
1900) compares the counts with the probabilities. The kept sets are held against an oracle that sorts everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Shaped, draw, shape
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.statistics import chi_square
from cutaway.labs.subject import MODEL, decoder, last_logits, logits_of, reading, subject

BY_HAND = "logits 2, 1, 0"
TEMPERATURES = (0.5, 1.0, 2.0)
LEAST_P = 1e-4  # some 25 tests a run: one in 400 runs would fail by chance


class Row(NamedTuple):
    """One setting on one distribution. tail: probability beyond the ten most probable.

    off: largest difference between a frequency and its probability. p: of the chi-square test.
    """

    where: str
    setting: str
    survivors: int
    entropy: float
    top: float
    tail: float
    draws: int
    off: float
    p: float


def by(**settings: Any) -> Callable[[Tensor], Shaped]:
    """The engine's sampler at these settings."""
    return lambda logits_V: shape(logits_V, SamplingParams(**settings), [], [])


def filter_first(logits_V: Tensor) -> Shaped:
    """The other order: top-p on the model's own distribution, temperature on what is left."""
    kept_V = kept(by(top_p=0.9)(logits_V))
    return shape(logits_V.masked_fill(~kept_V, -torch.inf), SamplingParams(temperature=1.5), [], [])


MODEL_ITSELF, TEMPERATURE_FIRST, FILTER_FIRST = (
    "the model's own",
    "T 1.5, then top-p 0.9",
    "top-p 0.9, then T 1.5",
)
SETTINGS: Mapping[str, Callable[[Tensor], Shaped]] = {
    MODEL_ITSELF: by(),
    "T 0": by(temperature=0),
    "T 0.5": by(temperature=0.5),
    "T 2": by(temperature=2),
    "top-k 10": by(top_k=10),
    "top-k 50": by(top_k=50),
    "top-p 0.9": by(top_p=0.9),
    "min-p 0.1": by(min_p=0.1),
    TEMPERATURE_FIRST: by(temperature=1.5, top_p=0.9),
    FILTER_FIRST: filter_first,
}


@lab(
    "sampling",
    title=both("What the sampling settings do to a distribution", "采样参数如何改变概率分布"),
    question=both(
        "What do temperature, top-k, top-p and min-p do to a real next-token distribution, and "
        "does their order matter?",
        "温度、top-k、top-p、min-p 对真实的下一词元分布做了什么？先后顺序要紧吗？",
    ),
    seconds={"quick": 3, "full": 35},
)
def sampling(
    run: Run,
    *,
    model: Annotated[str, Knob("whose distributions", "取谁的分布")] = MODEL,
    peaked: Annotated[
        str, Knob("a prompt whose next token is clear", "下一词元很明确的提示")
    ] = "The capital of France is",
    flat: Annotated[str, Knob("a prompt that leaves it open", "下一词元很开放的提示")] = "My favorite thing is",
    draws: Annotated[
        int, Knob("draws per small distribution", "小分布上的抽样次数", quick=5000, min=100, max=10**7)
    ] = 100_000,
    real_draws: Annotated[
        int, Knob("draws per real one", "真实分布上的抽样次数", quick=200, min=100, max=10**6)
    ] = 2000,
    rows: Annotated[
        int, Knob("random rows for the oracle", "与排序神谕比对的随机行数", quick=300, min=1, max=10**6)
    ] = 10_000,
    length: Annotated[
        int, Knob("tokens of text for nucleus sizes", "统计核大小的文本词元数", quick=96, min=2, max=8192)
    ] = 512,
) -> Finding:
    by_hand = torch.tensor([2.0, 1.0, 0.0])
    with torch.inference_mode():
        found = [
            measure(BY_HAND, f"T {t:g}", by(temperature=t)(by_hand), draws, run.seed)
            for t in run.each(TEMPERATURES, f"{draws:,} draws at T")
        ]
        for prompt in (peaked, flat):
            logits_V = next_logits(model, prompt)
            found += [
                measure(prompt, name, SETTINGS[name](logits_V), real_draws, run.seed)
                for name in run.each(SETTINGS, f"“{prompt}”")
            ]
        nuclei, constant = widths(model, length, run)
    wrong = disagreements(rows, run)
    return Finding(
        table=table(COLUMNS, found),
        plot=_plot(nuclei, constant),
        verdict=_verdict(found, by_hand, nuclei, peaked, flat),
        checks=_checks(found, by_hand=by_hand, nuclei=nuclei, constant=constant, wrong=wrong, rows=rows),
    )


def next_logits(model: str, prompt: str) -> Tensor:
    """Logits_V of the token after a prompt."""
    loaded = subject(model)
    return last_logits(decoder(loaded), torch.tensor(loaded.tokenizer.encode(prompt)))


def kept(shaped: Shaped) -> Tensor:
    """Which tokens can still be drawn, a mask_V."""
    return (shaped.scores_V >= shaped.floor) & shaped.scores_V.isfinite()


def measure(where: str, setting: str, shaped: Shaped, draws: int, seed: int) -> Row:
    """Describe a shaped distribution and draw from it, at as many positions of one seed."""
    p_V = shaped.probabilities().double()
    params = SamplingParams(temperature=0 if setting == "T 0" else 1, seed=seed)
    counts_V = torch.zeros_like(p_V)
    for token, count in Counter(draw(shaped, params, position) for position in range(draws)).items():
        counts_V[token] = count
    return Row(
        where=where,
        setting=setting,
        survivors=int(kept(shaped).sum()),
        entropy=float(torch.special.entr(p_V).sum()),
        top=float(p_V.max()),
        tail=float(p_V.sort(descending=True).values[10:].sum()),
        draws=draws,
        off=float((counts_V / draws - p_V).abs().max()),
        p=chi_square(counts_V, p_V),
    )


def widths(model: str, length: int, run: Run) -> tuple[list[int], list[int]]:
    """Survivors of top-p 0.9 and of top-k 50 at every position of the text."""
    loaded = subject(model)
    logits_TV = logits_of(decoder(loaded), reading(loaded, length))
    shapes = [(by(top_p=0.9)(row_V), by(top_k=50)(row_V)) for row_V in run.each(list(logits_TV), "nucleus sizes")]
    nuclei, constant = zip(*((int(kept(p).sum()), int(kept(k).sum())) for p, k in shapes), strict=True)
    return [*nuclei], [*constant]


def disagreements(rows: int, run: Run) -> int:
    """How often the kept set is not the oracle's: random logits with many ties, random settings."""
    generator, wrong = run.generator(), 0
    for _ in run.each(range(rows), "kept sets against the oracle"):
        logits_V = (torch.randn(40, generator=generator) * 8).round() / 4
        t, k, p, m = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        params = {
            "temperature": 0.3 + 2 * t,
            "top_k": int(k * 45),
            "top_p": 0.05 + 0.95 * p,
            "min_p": 0.3 * m,
        }
        wrong += oracle(logits_V.tolist(), **params) != set(kept(by(**params)(logits_V)).nonzero()[:, 0].tolist())
    return wrong


def oracle(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The kept set by sorting, in plain Python: top-k, then the nucleus of the rest, then min-p. Ties stay."""
    scores = {i: z / temperature for i, z in enumerate(logits)}
    order = sorted(scores, key=lambda i: -scores[i])
    if top_k:
        order = [i for i in order if scores[i] >= scores[order[min(top_k, len(order)) - 1]]]
    if top_p < 1:
        total, mass = sum(math.exp(scores[i]) for i in order), 0.0
        for last in order:
            mass += math.exp(scores[last]) / total
            if mass >= top_p:
                break
        order = [i for i in order if scores[i] >= scores[last]]
    return {i for i in order if min_p == 0 or scores[i] >= scores[order[0]] + math.log(min_p)}


COLUMNS = {
    "distribution": "",
    "setting": "",
    "survivors": "tokens",
    "entropy": "nats",
    "top probability": "",
    "beyond the top 10": "",
    "draws": "",
    "frequency off by": "",
    "chi-square p": "",
}


def _plot(nuclei: list[int], constant: list[int]) -> Plot:
    x = [float(i) for i in range(len(nuclei))]
    return Plot(
        kind="scatter",
        x=Axis(label="position in the text"),
        y=Axis(label="tokens that survive", log=True),
        series=[
            Series(name="top-p 0.9", x=x, y=[float(n) for n in nuclei]),
            Series(name="top-k 50", x=x, y=[float(n) for n in constant]),
        ],
    )


def _checks(
    found: list[Row], *, by_hand: Tensor, nuclei: list[int], constant: list[int], wrong: int, rows: int
) -> list[Check]:
    worst = min(row.p for row in found)
    hot = by(temperature=100)(by_hand).probabilities()
    warmer = [[row.entropy for row in found if row.where == BY_HAND]]
    warmer += [
        [row.entropy for row in _of(found, where, "T 0", "T 0.5", MODEL_ITSELF, "T 2")] for where in _prompts(found)
    ]
    orders = [_of(found, where, TEMPERATURE_FIRST, FILTER_FIRST) for where in _prompts(found)]
    return [
        check(
            worst > LEAST_P,
            f"draws follow the shaped probabilities: smallest chi-square p of {len(found)} tests is {worst:.3f}",
            f"抽样符合整形后的概率：{len(found)} 个卡方检验中最小 p 值为 {worst:.3f}",
        ),
        check(
            all(a < b for row in warmer for a, b in pairwise(row))
            and all(row.survivors == 1 for row in found if row.setting == "T 0")
            and float((hot - 1 / 3).abs().max()) < 0.01,
            "entropy rises with temperature; T 0 leaves the best token alone, T 100 is uniform within 1 %",
            "熵随温度上升；T = 0 只剩最优词元，T = 100 与均匀分布相差不到 1 %",
        ),
        check(
            min(nuclei) == 1 and max(nuclei) > 100 and set(constant) == {50},
            f"over the text the 0.9 nucleus spans {min(nuclei)} to {max(nuclei):,} tokens, top-k 50 always keeps 50",
            f"整段文本上，0.9 核的大小从 {min(nuclei)} 到 {max(nuclei):,} 个词元，而 top-k 50 恒为 50",
        ),
        check(
            wrong == 0,
            f"kept sets equal the sorting oracle's on {rows:,} random rows with ties ({wrong} differ)",
            f"{rows:,} 行带并列的随机 logits 上，保留集合与排序神谕一致（{wrong} 行不同）",
        ),
        check(
            all(first.survivors > late.survivors for first, late in orders),
            "the order matters: temperature before top-p keeps more tokens than after",
            "顺序要紧：先升温再 top-p，比先 top-p 再升温保留更多词元",
        ),
    ]


def _prompts(found: list[Row]) -> list[str]:
    return [where for where in dict.fromkeys(row.where for row in found) if where != BY_HAND]


def _of(found: list[Row], where: str, *settings: str) -> list[Row]:
    """The rows of one distribution at some settings, in that order."""
    return [next(row for row in found if row.where == where and row.setting == name) for name in settings]


def _verdict(found: list[Row], by_hand: Tensor, nuclei: list[int], peaked: str, flat: str) -> Words:
    shares = "; ".join(
        f"T {t:g}: " + " / ".join(f"{p:.3f}" for p in by(temperature=t)(by_hand).probabilities().tolist())
        for t in TEMPERATURES
    )
    names = ("top-p 0.9", "min-p 0.1", TEMPERATURE_FIRST, FILTER_FIRST)
    sharp, broad = ([row.survivors for row in _of(found, prompt, *names)] for prompt in (peaked, flat))
    middle = sorted(nuclei)[len(nuclei) // 2]
    return both(
        f"Temperature reshapes (logits 2, 1, 0 become {shares}), filters cut. Top-k cuts at a "
        f"fixed count whatever the model knows; top-p 0.9 keeps {sharp[0]:,} tokens after “{peaked}” and "
        f"{broad[0]:,} after “{flat}” ({middle:,} at the median position of the text); min-p 0.1 keeps "
        f"{sharp[1]:,} and {broad[1]:,}. Temperature 1.5 before top-p keeps {sharp[2]:,} and {broad[2]:,} "
        f"tokens, after it {sharp[3]:,} and {broad[3]:,}: the order is part of the setting.",
        "温"
        f"度改变形状（logits 2、1、0 变为 {shares}），过滤器截断。top-k 不管模型有多确定都按固定个数截断；"
        f"top-p 0.9 在“{peaked}”后保留 {sharp[0]:,} 个词元，在“{flat}”后保留 {broad[0]:,} 个（全文位置的中"
        f"位数为 {middle:,}）；min-p 0.1 分别保留 {sharp[1]:,} 与 {broad[1]:,} 个。温度 1.5 放在 top-p 之前"
        f"保留 {sharp[2]:,} 与 {broad[2]:,} 个，放在之后保留 {sharp[3]:,} 与 {broad[3]:,} 个：先后顺序也是"
        "参数的一部分。",
    )
