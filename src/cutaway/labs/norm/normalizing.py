"""What a norm does for optimization and for generalization.

norm(c W x) = norm(W x): the size of a weight matrix before a norm has no meaning. Its gradient goes as 1 / c, so a
step that was too long makes the matrix larger and the next step smaller (van Laarhoven 2017, arXiv:1706.05350): norms
forgive learning rates. First the algebra, then the largest rate at which small models stay stable, with norms and
without any, then how far apart training and held-out losses are.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit, held_out, loss_of, next_bytes, prose, small_spec, with_layers
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.nn.init import initialize
from cutaway.nn.norms import NormSpec, make_norm

Kind = Literal["rms", "layer", "batch"]
KINDS: tuple[Kind, ...] = ("rms", "layer", "batch")
ARMS = {"with norms": NormSpec("layer", 1e-5), "without": None}
LENGTH, ROWS = 48, 8  # bytes per sequence, sequences per step
FACTOR = 10.0


class Scaled(NamedTuple):
    """A matrix made `FACTOR` times as large before a norm. output: largest change. gradient: ratio of norms."""

    output: float
    gradient: float


class Fit(NamedTuple):
    """Losses after training on a small text, nats per byte: on that text, and on another part of the book.

    best: the lowest of the latter on the way.
    """

    learned: float
    held_out: float
    best: float


@lab(
    "what-norms-buy",
    title=both("What normalizing buys", "归一化层的作用"),
    question=both(
        "What does a normalization layer do for optimization and for generalization?",
        "归一化层对优化和泛化各有什么作用？",
    ),
    seconds={"quick": 4, "full": 100},
)
def normalizing(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the models", "模型宽度", quick=32, min=16, max=512)] = 64,
    layers: Annotated[int, Knob("their blocks", "层数", quick=2, min=1, max=32)] = 4,
    steps: Annotated[int, Knob("training steps at each rate", "每个学习率的步数", quick=20, min=10, max=10**5)] = 60,
    per_decade: Annotated[
        int, Knob("learning rates per factor of ten", "每个数量级的学习率数", quick=1, min=1, max=8)
    ] = 2,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
    small: Annotated[int, Knob("bytes of the small text", "小文本的字节数", quick=1500, min=100, max=10**6)] = 6000,
    passes: Annotated[int, Knob("passes over it", "遍数", quick=10, min=1, max=1000)] = 30,
) -> Finding:
    scaled = {kind: ten_times(kind, run.generator()) for kind in KINDS}
    rates = [10 ** (i / per_decade - 3) for i in range(3 * per_decade + 1)]
    every = range(run.seed, run.seed + seeds)
    losses = {
        arm: [
            [at_rate(fresh_arm(arm, layers, width, seed), lr, steps=steps, seed=seed, run=run) for lr in rates]
            for seed in every
        ]
        for arm in ARMS
    }
    largest = {arm: [stable(rates, of_seed) for of_seed in losses[arm]] for arm in ARMS}
    rate = min(min(of_arm) for of_arm in largest.values()) or rates[0]
    fits = {
        arm: [
            small_text(fresh_arm(arm, layers, width, seed), rate, small=small, passes=passes, seed=seed, run=run)
            for seed in every
        ]
        for arm in ARMS
    }
    return Finding(
        table=_table(scaled, rates, losses, largest, fits),
        plot=_plot(rates, losses),
        verdict=_verdict(scaled, largest, fits, rate, rates[-1]),
        checks=_checks(scaled, largest, fits),
    )


# ---- algebra


def ten_times(kind: Kind, generator: torch.Generator) -> Scaled:
    """norm(W x) against norm(10 W x), without epsilon, under a random linear loss."""
    x_TD, weight_FD, probe_TF = (torch.randn(n, 24, generator=generator, dtype=torch.float64) for n in (16, 24, 16))
    norm = make_norm(NormSpec(kind, 0.0), 24).double()

    def at(factor: float) -> tuple[Tensor, Tensor]:
        scaled_FD = (factor * weight_FD).requires_grad_(True)
        out_TF = norm(x_TD @ scaled_FD.T)
        return out_TF.detach(), torch.autograd.grad((out_TF * probe_TF).sum(), scaled_FD)[0]

    (out, gradient), (out_ten, gradient_ten) = at(1.0), at(FACTOR)
    return Scaled(float((out - out_ten).abs().max()), float(gradient.norm() / gradient_ten.norm()))


# ---- trained models


def fresh_arm(arm: str, layers: int, width: int, seed: int) -> Decoder:
    """A decoder with layer norms everywhere, or nowhere."""
    norm = ARMS[arm]
    spec = with_layers(small_spec(layers=layers, width=width), lambda layer: replace(layer, norm=norm))
    model = build(replace(spec, final_norm=norm))
    assert isinstance(model, Decoder)
    initialize(model, "lecun", torch.Generator().manual_seed(seed))
    return model


def at_rate(model: Decoder, lr: float, *, steps: int, seed: int, run: Run) -> float:
    """Loss after training at a rate: the mean of the last steps, infinite if it is no number."""
    task = next_bytes(prose(), LENGTH, ROWS)
    fitted = fit(
        model.parameters(),
        lambda generator: loss_of(model, task(generator)),
        steps,
        run,
        f"rate {lr:.1e}",
        seed=seed,
        lr=lr,
    )
    loss = statistics.mean(fitted.losses[-5:])
    return loss if math.isfinite(loss) else math.inf


def stable(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The largest rate that takes the loss below 3/4 of guessing's ln 256; 0 if none does."""
    return max((r for r, loss in zip(rates, losses, strict=True) if loss < 0.75 * math.log(256)), default=0.0)


def small_text(model: Decoder, lr: float, *, small: int, passes: int, seed: int, run: Run) -> Fit:
    """Train on a small text again and again, with ten looks at another text."""
    text = prose()
    cut, steps = len(text) * 9 // 10, max(10, small * passes // (LENGTH * ROWS))
    learned, other = (next_bytes(part, LENGTH, ROWS) for part in (text[:small], text[cut:]))
    looks: list[float] = []
    step = itertools.count()

    def loss(generator: torch.Generator) -> Tensor:
        if next(step) % (steps // 10) == 0:
            looks.append(held_out(model, other, 16))
        return loss_of(model, learned(generator))

    fit(model.parameters(), loss, steps, run, "a small text", seed=seed, lr=lr)
    end = held_out(model, other, 16)
    return Fit(held_out(model, learned, 16), end, min(*looks, end))


# ---- what it comes to


def gap(fits: list[Fit]) -> float:
    """Held-out minus training loss, mean over seeds."""
    return statistics.mean(f.held_out - f.learned for f in fits)


def _table(
    scaled: dict[Kind, Scaled],
    rates: list[float],
    losses: dict[str, list[list[float]]],
    largest: dict[str, list[float]],
    fits: dict[str, list[Fit]],
) -> Table:
    rows: list[list[Cell]] = [
        [f"{FACTOR:g} W before a {kind} norm: change of outputs", "", s.output, None] for kind, s in scaled.items()
    ]
    rows += [
        [f"{FACTOR:g} W before a {kind} norm: gradient, before / after", "", s.gradient, None]
        for kind, s in scaled.items()
    ]
    for i, rate in enumerate(rates):
        seen = [[of_seed[i] for of_seed in losses[arm] if math.isfinite(of_seed[i])] for arm in ARMS]
        rows.append([f"loss at rate {rate:.2g}", "nats/byte", *(statistics.mean(s) if s else None for s in seen)])
    rows.append(["largest stable rate", "", *(statistics.median(of_arm) for of_arm in largest.values())])
    rows.append(["loss on the small text", "nats/byte", *(statistics.mean(f.learned for f in fits[a]) for a in ARMS)])
    rows.append(["held-out loss", "nats/byte", *(statistics.mean(f.held_out for f in fits[a]) for a in ARMS)])
    rows.append(
        ["held-out loss, the lowest on the way", "nats/byte", *(statistics.mean(f.best for f in fits[a]) for a in ARMS)]
    )
    rows.append(["gap", "nats/byte", *(gap(fits[a]) for a in ARMS)])
    return table(dict.fromkeys(("what", "unit", *ARMS), ""), rows)


def _plot(rates: list[float], losses: dict[str, list[list[float]]]) -> Plot:
    """Runs that came to no number have no point."""
    series = []
    for arm, by_seed in losses.items():
        points = [(lr, statistics.median(column)) for lr, column in zip(rates, zip(*by_seed, strict=True), strict=True)]
        x, y = zip(*((lr, loss) for lr, loss in points if math.isfinite(loss)), strict=True)
        series.append(Series(name=arm, x=[*x], y=[*y]))
    return Plot(
        kind="line",
        x=Axis(label="learning rate", log=True),
        y=Axis(label="loss after training, nats/byte", log=True),
        series=series,
    )


def _checks(scaled: dict[Kind, Scaled], largest: dict[str, list[float]], fits: dict[str, list[Fit]]) -> list[Check]:
    moved = max(s.output for s in scaled.values())
    off = max(abs(s.gradient / FACTOR - 1) for s in scaled.values())
    kept, bare = (statistics.median(of_arm) for of_arm in largest.values())
    return [
        check(
            moved < 1e-12 and off < 1e-12,
            f"{FACTOR:g} W before a norm gives the same outputs (to {moved:.0e}) and a {FACTOR:g}th of the gradient",
            f"归一化前的 W 放大 {FACTOR:g} 倍，输出不变（相差 {moved:.0e}），梯度变为十分之一",
        ),
        check(
            bare > 0 and kept > 2 * bare,
            f"models with norms stay stable up to rate {kept:.2g}, models without up to {bare:.2g}",
            f"有归一化的模型学习率到 {kept:.2g} 仍稳定，没有的只到 {bare:.2g}",
        ),
        check(
            all(f.learned < f.held_out for of_arm in fits.values() for f in of_arm),
            "both fit the small text better than text they have not seen",
            "两者在小文本上的损失都低于没见过的文本",
        ),
    ]


def _verdict(
    scaled: dict[Kind, Scaled],
    largest: dict[str, list[float]],
    fits: dict[str, list[Fit]],
    rate: float,
    limit: float,
) -> Words:
    (kept, bare), (a, b) = largest.values(), fits.values()
    learned, end, best = (
        [statistics.mean(getattr(f, field) for f in of_arm) for of_arm in (a, b)] for field in Fit._fields
    )
    return both(
        f"It takes the meaning from the size of the weights before it: with {FACTOR:g} W the outputs stay and the "
        f"gradient is divided by {scaled['layer'].gradient:.2f}. Models with norms stay stable up to rates of "
        f"{min(kept):.2g} to {max(kept):.2g} ({len(kept)} seeds; {limit:.2g} was the largest tried), models without up "
        f"to {min(bare):.2g} to {max(bare):.2g}; stable means a loss below 3/4 ln 256 after training, not a good one. "
        f"At a rate both can bear, {rate:.2g}, the losses on a small text are "
        f"{learned[0]:.2f} with norms and {learned[1]:.2f} without, on unseen text {end[0]:.2f} and {end[1]:.2f}: gaps "
        f"of {gap(a):.2f} and {gap(b):.2f}. The lowest loss on unseen text on the way is {best[0]:.2f} with norms and "
        f"{best[1]:.2f} without.",
        f"它使前面权重的大小失去意义：换成 {FACTOR:g} W 后输出不变，梯度除以 {scaled['layer'].gradient:.2f}。有归一化的"
        f"模型稳定到学习率 {min(kept):.2g} 至 {max(kept):.2g}（{len(kept)} 个种子；最大只试到 {limit:.2g}），没有的到 "
        f"{min(bare):.2g} 至 {max(bare):.2g}；稳定只指训练后损失低于 3/4 ln 256。"
        f"在两者都受得了的 {rate:.2g} 下，小文本上的损失有归一化为 "
        f"{learned[0]:.2f}，没有为 {learned[1]:.2f}；没见过的文本上为 {end[0]:.2f} 和 {end[1]:.2f}，差距为 "
        f"{gap(a):.2f} 和 {gap(b):.2f}。途中没见过的文本上的最低损失，有归一化为 {best[0]:.2f}，没有为 {best[1]:.2f}。",
    )
