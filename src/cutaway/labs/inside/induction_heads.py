"""Heads with a habit: which look at the token before, at the first token, or at what followed last time.

Random tokens are read twice in a row. The second time everything can be known, from the first; nothing else helps.

    before       weight on the token before
    first        weight on the very first token, where attention rests when there is nothing to fetch
    induction    weight on the token after the first copy of the present one (Olsson et al. 2022, arXiv:2209.11895)

An induction head can only work if an earlier head has told each token what stood before it. A score is a look, not a
proof: the best heads of each habit are taken out, and as many others drawn at random.
"""

from __future__ import annotations

import statistics
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.inside.ablation import Target, token_losses, without
from cutaway.inside.attention import maps
from cutaway.inside.induction import halves, repeated, score
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, reading, subject
from cutaway.models.decoder import Decoder

Place = tuple[int, int]  # layer, head
HABITS = ("induction", "before", "first")


class Losses(NamedTuple):
    """Nats per token: of random tokens at the first reading, at the second, and of prose."""

    first: float
    second: float
    prose: float


@lab(
    "induction",
    title=both("Heads with a habit: induction", "有习惯的头：归纳头"),
    question=both(
        "Which heads of a real model continue a pattern that they have seen, and does it fail without them?",
        "真实模型里哪些头在续写见过的模式？去掉它们还行吗？",
    ),
    seconds={"quick": 4, "full": 25},
)
def induction_heads(
    run: Run,
    *,
    model: Annotated[str, Knob("the trained model", "训练好的模型")] = MODEL,
    length: Annotated[int, Knob("random tokens, read twice", "读两遍的随机词元数", quick=25, min=4, max=1000)] = 50,
    sequences: Annotated[int, Knob("such texts", "这样的文本条数", quick=1, min=1, max=100)] = 4,
    taken: Annotated[int, Knob("heads taken out", "去掉的头数", min=1, max=100)] = 8,
    draws: Annotated[int, Knob("draws of as many other heads", "另抽同样多头的次数", quick=2, min=1, max=100)] = 5,
) -> Finding:
    loaded, generator = subject(model), run.generator()
    found = decoder(loaded)
    texts = [repeated(found.spec.vocab, length, generator) for _ in range(sequences)]
    scores = scored(found, texts)
    best = {habit: sorted(of, key=lambda place, of=of: -of[place])[:taken] for habit, of in scores.items()}  # type: ignore[misc]
    others = [place for place in scores["induction"] if not any(place in places for places in best.values())]
    groups = {"whole model": [], **{f"without {habit} heads": places for habit, places in best.items()}}
    groups |= {f"without others, draw {i + 1}": drawn(others, taken, generator) for i in range(draws)}
    losses = ablated(found, texts, reading(loaded, 2 * length), groups, run)
    return Finding(
        table=_table(scores, best, losses),
        plot=_plot(scores),
        verdict=_verdict(scores, best, losses, taken),
        checks=_checks(scores, best, losses, taken),
    )


@torch.inference_mode()
def scored(model: Decoder, texts: list[Tensor]) -> dict[str, dict[Place, float]]:
    """By habit and head, mean over texts."""
    ways = {
        "induction": score,
        "before": lambda weights_HQS: weights_HQS.diagonal(-1, -2, -1).mean(-1),
        "first": lambda weights_HQS: weights_HQS[:, 1:, 0].mean(-1),
    }
    layers = [torch.stack(same, 0).mean(0) for same in zip(*(maps(model, tokens_T) for tokens_T in texts), strict=True)]
    return {
        habit: {(n, h): value for n, weights in enumerate(layers) for h, value in enumerate(way(weights).tolist())}
        for habit, way in ways.items()
    }


def drawn(places: list[Place], count: int, generator: torch.Generator) -> list[Place]:
    """Some of them, at random."""
    return [places[i] for i in torch.randperm(len(places), generator=generator)[:count].tolist()]


@torch.inference_mode()
def ablated(
    model: Decoder, texts: list[Tensor], prose_T: Tensor, groups: dict[str, list[Place]], run: Run
) -> dict[str, Losses]:
    """Losses without each group of heads, whose answers are replaced by their mean over the text."""
    targets = [[Target("heads", n, h) for n, h in group] for group in groups.values()]
    by_text = [
        [halves(model, hidden_TD, tokens_T) for hidden_TD in without(model, tokens_T, targets, "mean")]
        for tokens_T in run.each(texts, "taking out heads")
    ]
    prose = [token_losses(model, hidden_TD, prose_T) for hidden_TD in without(model, prose_T, targets, "mean")]
    random = [[statistics.mean(part) for part in zip(*same, strict=True)] for same in zip(*by_text, strict=True)]
    return {
        name: Losses(first, second, float(loss_T.mean()))
        for name, (first, second), loss_T in zip(groups, random, prose, strict=True)
    }


# ---- what it comes to


def _table(scores: dict[str, dict[Place, float]], best: dict[str, list[Place]], losses: dict[str, Losses]) -> Table:
    columns = {"what": "", **dict.fromkeys((f"weight: {habit}" for habit in HABITS), "")}
    columns |= dict.fromkeys(("first reading", "second reading", "prose"), "nats/token")
    places = dict.fromkeys(place for habit in HABITS for place in best[habit])
    rows: list[list[Cell]] = [
        [f"head {n}.{h}", *(scores[habit][n, h] for habit in HABITS), None, None, None] for n, h in places
    ]
    return table(columns, [*rows, *([name, None, None, None, *loss] for name, loss in losses.items())])


def _plot(scores: dict[str, dict[Place, float]]) -> Plot:
    series = [Series(name=habit, x=[float(n) for n, _ in of], y=list(of.values())) for habit, of in scores.items()]
    return Plot(kind="scatter", x=Axis(label="layer"), y=Axis(label="weight"), series=series)


def _harm(losses: dict[str, Losses], habit: str) -> Losses:
    """What taking out the heads of a habit adds."""
    return Losses(*(a - b for a, b in zip(losses[f"without {habit} heads"], losses["whole model"], strict=True)))


def _chance(losses: dict[str, Losses]) -> Losses:
    """The most that a draw of other heads adds, to each."""
    whole, drawn_ = losses["whole model"], [loss for name, loss in losses.items() if "draw" in name]
    return Losses(*(max(column) - w for column, w in zip(zip(*drawn_, strict=True), whole, strict=True)))


def _checks(
    scores: dict[str, dict[Place, float]], best: dict[str, list[Place]], losses: dict[str, Losses], taken: int
) -> list[Check]:
    whole, harm, chance = losses["whole model"], _harm(losses, "induction").second, _chance(losses).second
    of = scores["induction"]
    top, middle = of[best["induction"][0]], statistics.median(of.values())
    return [
        check(
            top > 0.5 and middle < 0.05,
            f"a few heads do it and the rest do not: the best scores {top:.2f}, the median {middle:.3f}",
            f"只有少数头在做：最高分 {top:.2f}，中位数 {middle:.3f}",
        ),
        check(
            whole.second < whole.first / 2,
            f"the second reading is easy: {whole.first:.1f} nats, then {whole.second:.1f}",
            f"第二遍容易得多：{whole.first:.1f} 奈特降到 {whole.second:.1f}",
        ),
        check(
            harm > 1 and harm > 2 * chance,
            f"without the best {taken} the second reading costs {harm:.1f} nats more, without as many others at most "
            f"{chance:.1f}",
            f"去掉最高的 {taken} 个头，第二遍多损失 {harm:.1f} 奈特；去掉同样多的其他头，至多 {chance:.1f}",
        ),
    ]


def _verdict(
    scores: dict[str, dict[Place, float]], best: dict[str, list[Place]], losses: dict[str, Losses], taken: int
) -> Words:
    of, whole, without_ = scores["induction"], losses["whole model"], losses["without induction heads"]
    strong = sorted({n for (n, _), value in of.items() if value > 0.4})
    count = sum(value > 0.4 for value in of.values())
    named = {h: ", ".join(f"{n}.{i} {scores[h][n, i]:.2f}" for n, i in best[h][:4]) for h in HABITS}
    before, first, chance = _harm(losses, "before"), _harm(losses, "first"), _chance(losses)
    layers = ", ".join(map(str, strong)) or "-"
    return both(
        f"{count} of {len(of)} heads score above 0.4 for induction, in layers {layers}; the best are "
        f"{named['induction']}. On the token before: {named['before']}; on the first: {named['first']}. The second "
        f"reading of random tokens costs {whole.second:.2f} nats per token instead of {whole.first:.2f}. Without "
        f"{taken} induction heads it costs {without_.second:.2f} and prose {_harm(losses, 'induction').prose:+.2f}; "
        f"without {taken} that look one back {before.second:+.2f} on the second reading and {before.prose:+.2f} on "
        f"prose; without {taken} that rest on the first token {first.second:+.2f} and {first.prose:+.2f}; without as "
        f"many others at most {chance.second:+.2f} and {chance.prose:+.2f}.",
        f"{len(of)} 个头里有 {count} 个归纳得分超过 0.4，位于第 {layers} 层，最高的是 {named['induction']}。看前一个词"
        f"元的：{named['before']}；看首词元的：{named['first']}。随机词元读第二遍时每词元损失 {whole.second:.2f} 奈"
        f"特，第一遍是 {whole.first:.2f}。去掉 {taken} 个归纳头后第二遍为 {without_.second:.2f}，普通文本 "
        f"{_harm(losses, 'induction').prose:+.2f}；去掉 {taken} 个看前一个词元的头，第二遍 {before.second:+.2f}，普通"
        f"文本 {before.prose:+.2f}；去掉 {taken} 个停在首词元的头，分别 {first.second:+.2f} 与 {first.prose:+.2f}；去"
        f"掉同样多的其他头，至多 {chance.second:+.2f} 与 {chance.prose:+.2f}。",
    )
