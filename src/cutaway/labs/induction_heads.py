"""Which heads of a trained model continue what they have seen before, and whether the model needs them for it.

Random tokens are read twice in a row. The second time everything can be known, from the first; nothing else helps. A
head's score is the weight it gives to the token after the first copy of the present one (Olsson et al. 2022,
arXiv:2209.11895). A score is only a look, so the best heads are taken out, and as many others drawn at random.
"""

from __future__ import annotations

import statistics
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.inside.ablation import Target, without
from cutaway.inside.induction import induction, repeated
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.models.decoder import Decoder

Place = tuple[int, int]  # layer, head


class Losses(NamedTuple):
    """On the first reading and on the second, nats per token."""

    first: float
    second: float


@lab(
    "induction",
    title=both("Induction heads", "归纳头"),
    question=both(
        "Which heads of a real model continue a pattern that they have seen, and does it fail without them?",
        "真实模型里哪些头在续写见过的模式？去掉它们还行吗？",
    ),
    seconds={"quick": 5, "full": 60},
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
    found = decoder(subject(model))
    seen = induction(found, length, sequences, run.seed)
    scores = {(n, h): value for n, row in enumerate(seen.scores) for h, value in enumerate(row)}
    ranked = sorted(scores, key=lambda place: -scores[place])
    generator = run.generator()
    groups = [ranked[:taken], *(drawn(ranked[taken:], taken, generator) for _ in range(draws))]
    texts = [repeated(found.spec.vocab, length, generator) for _ in range(sequences)]
    losses = ablated(found, texts, [[], *groups])
    return Finding(
        table=_table(scores, ranked[: max(12, taken)], losses),
        plot=_plot(scores),
        verdict=_verdict(scores, ranked, losses, taken),
        checks=_checks(scores, ranked, losses, taken),
    )


def drawn(places: list[Place], count: int, generator: torch.Generator) -> list[Place]:
    """Some of them, at random."""
    return [places[i] for i in torch.randperm(len(places), generator=generator)[:count].tolist()]


@torch.inference_mode()
def ablated(model: Decoder, texts: list[Tensor], groups: list[list[Place]]) -> list[Losses]:
    """Losses without each group of heads, mean over texts."""
    targets = [[Target("heads", n, h) for n, h in group] for group in groups]
    runs = [[halves(model, h_TD, tokens_T) for h_TD in without(model, tokens_T, targets, "mean")] for tokens_T in texts]
    return [Losses(*map(statistics.mean, zip(*losses, strict=True))) for losses in zip(*runs, strict=True)]


def halves(model: Decoder, hidden_TD: Tensor, tokens_T: Tensor) -> Losses:
    """Loss on the first reading and on the second, whose first token is still a surprise and does not count."""
    length = len(tokens_T) // 2
    log_TV = model.logits(hidden_TD[:-1]).float().log_softmax(-1)
    loss_T = -log_TV.gather(-1, tokens_T[1:, None])[:, 0]
    return Losses(float(loss_T[: length - 1].mean()), float(loss_T[length:].mean()))


# ---- what it comes to


def _table(scores: dict[Place, float], best: list[Place], losses: list[Losses]) -> Table:
    names = [
        "whole model",
        "without the best heads",
        *(f"without others, draw {i + 1}" for i in range(len(losses) - 2)),
    ]
    rows: list[list[str | float | None]] = [[f"head {h} of layer {n}", scores[n, h], None, None] for n, h in best]
    rows += [[name, None, *loss] for name, loss in zip(names, losses, strict=True)]
    return table({"what": "", "score": "", "first reading": "nats/token", "second reading": "nats/token"}, rows)


def _plot(scores: dict[Place, float]) -> Plot:
    series = Series(name="heads", x=[float(n) for n, _ in scores], y=list(scores.values()))
    return Plot(kind="scatter", x=Axis(label="layer"), y=Axis(label="induction score"), series=[series])


def _checks(scores: dict[Place, float], ranked: list[Place], losses: list[Losses], taken: int) -> list[Check]:
    whole, best, *others = losses
    top, middle = scores[ranked[0]], statistics.median(scores.values())
    harm, chance = best.second - whole.second, max(other.second - whole.second for other in others)
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
            f"without the best {taken} the second reading costs {harm:.1f} nats more, without as many others "
            f"{chance:.1f}",
            f"去掉最高的 {taken} 个头，第二遍多损失 {harm:.1f} 奈特；去掉同样多的其他头，多 {chance:.1f}",
        ),
    ]


def _verdict(scores: dict[Place, float], ranked: list[Place], losses: list[Losses], taken: int) -> Words:
    whole, best, *others = losses
    strong = [place for place in ranked if scores[place] > 0.4]
    layers = sorted({n for n, _ in strong})
    named = ", ".join(f"{n}.{h} {scores[n, h]:.2f}" for n, h in ranked[:6])
    other = statistics.mean(loss.second for loss in others)
    where = ", ".join(map(str, layers)) or "-"
    return both(
        f"{len(strong)} of {len(scores)} heads score above 0.4, in layers {where}; the best are {named}. The second "
        f"reading of random tokens costs {whole.second:.2f} nats per token instead of {whole.first:.2f}. Without the "
        f"best {taken} heads it costs {best.second:.2f}, without as many others {other:.2f} (mean of {len(others)} "
        f"draws); the first reading then costs {best.first:.2f}.",
        f"{len(scores)} 个头里有 {len(strong)} 个得分超过 0.4，位于第 {where} 层；最高的是 {named}。随机词元读第二遍时"
        f"每词元损失 {whole.second:.2f} 奈特，第一遍是 {whole.first:.2f}。去掉最高的 {taken} 个头后第二遍为 "
        f"{best.second:.2f}，去掉同样多的其他头为 {other:.2f}（{len(others)} 次抽取平均）；此时第一遍为 "
        f"{best.first:.2f}。",
    )
