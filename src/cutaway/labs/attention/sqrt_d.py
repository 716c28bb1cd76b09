"""Why attention divides its scores by the square root of d (Vaswani et al. 2017, arXiv:1706.03762, 3.2.1).

The dot product of two random vectors of d unit-variance numbers is a sum of d terms of variance one: its
variance is d. Softmax looks at differences between scores, so without the division it hardens as heads get
wider: one key takes everything, and the others hear nothing of the gradient. First random vectors, then a
trained model that loses its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, loss_of, reading, subject
from cutaway.nn.attention import BlockDiagonal, Question, visible

MINIMUM_KEYS = 16  # rows of a causal model that see fewer keys say little about how sharp attention is


class Sharpness(NamedTuple):
    """How hard a softmax is. std: of a row's scores. entropy: of its weights, nats. largest: of its weights.

    gradient: norm, at a row's scores, of a random normal gradient at its weights. typical: d weight / d score
    of a single key. The entropy is a mean over rows, the rest are medians.
    """

    std: float
    entropy: float
    largest: float
    gradient: float
    typical: float


NAMES = {
    "std of scores": "",
    "entropy": "nats",
    "largest weight": "",
    "gradient norm": "",
    "typical key's gradient": "",
}


@lab(
    "sqrt-d",
    title=both("Why scores are divided by √d", "注意力分数为什么要除以 √d"),
    question=both("What does the scale factor in attention protect against?", "注意力里的缩放因子到底防住了什么？"),
    seconds={"quick": 2, "full": 12},
)
def sqrt_d(
    run: Run,
    *,
    keys: Annotated[int, Knob("random keys that each query sees", "每个查询看到的随机键数", min=16, max=4096)] = 256,
    queries: Annotated[int, Knob("random queries", "随机查询数", quick=512, min=64, max=100_000)] = 4000,
    widest: Annotated[
        int, Knob("largest d; from 16 in steps of 4", "最大的 d；从 16 起每步乘 4", min=64, max=4096)
    ] = 1024,
    model: Annotated[str, Knob("the model that loses its scale", "被拿掉缩放的模型")] = MODEL,
    length: Annotated[int, Knob("tokens of text it reads", "读入文本的词元数", quick=128, min=32, max=8192)] = 512,
) -> Finding:
    dims = [d for d in (16 * 4**i for i in range(10)) if d <= widest]
    random = [random_pair(d, queries, keys, run.generator()) for d in run.each(dims, "random vectors, d")]
    layers, losses = real_pair(run, model, length)
    head_dim = decoder(subject(model)).spec.layers[0].attention.head_dim
    named = [("random", d, *pair) for d, pair in zip(dims, random, strict=True)]
    named += [(f"layer {i}", head_dim, *pair) for i, pair in enumerate(layers)]
    return Finding(
        table=_table(named),
        plot=_plot(dims, random),
        verdict=_verdict(dims, random, layers, losses),
        checks=_checks(dims, random, losses),
    )


def sharpness(scores_RS: Tensor, seen_RS: Tensor, upstream_S: Tensor) -> Sharpness:
    """Of R rows of scores over S keys, of which `seen_RS` count."""
    scores_RS = scores_RS.masked_fill(~seen_RS, -torch.inf)
    weights_RS = scores_RS.softmax(-1)
    pulled_RS = weights_RS * (upstream_S - weights_RS @ upstream_S[:, None])  # the softmax's Jacobian, applied
    count_R = seen_RS.sum(-1)
    mean_R = scores_RS.masked_fill(~seen_RS, 0).sum(-1) / count_R
    spread_R = ((scores_RS - mean_R[:, None]).masked_fill(~seen_RS, 0).square().sum(-1) / count_R).sqrt()
    return Sharpness(
        std=float(spread_R.median()),
        entropy=float(torch.special.entr(weights_RS).sum(-1).mean()),
        largest=float(weights_RS.amax(-1).median()),
        gradient=float(pulled_RS.norm(dim=-1).median()),
        typical=float((weights_RS * (1 - weights_RS))[seen_RS].median()),
    )


def random_pair(d: int, queries: int, keys: int, generator: torch.Generator) -> tuple[Sharpness, Sharpness]:
    """Unit-variance vectors: with the division, without it. Queries x keys dot products in all."""
    q_RK, k_SK = (torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (queries, keys))
    scores_RS, seen_RS = q_RK @ k_SK.T, torch.ones(queries, keys, dtype=torch.bool)
    upstream_S = torch.randn(keys, generator=generator, dtype=torch.float64)
    scaled, plain = (sharpness(scores_RS * factor, seen_RS, upstream_S) for factor in (d**-0.5, 1.0))
    return scaled, plain


class Watched(BlockDiagonal):
    """Causal attention of one sequence, with or without its scale, that notes how sharp each layer is."""

    def __init__(self, length: int, scaled: bool, upstream_S: Tensor) -> None:
        super().__init__([length])
        self.scaled, self.upstream_S = scaled, upstream_S
        self.layers: list[Sharpness] = []

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        question = question if self.scaled else replace(question, scale=1.0)
        heads = q_THK.shape[1]
        k_THK = k_TGK.repeat_interleave(heads // k_TGK.shape[1], dim=1)
        scores_HTS = torch.einsum("thk,shk->hts", q_THK, k_THK) * question.scale
        mask_TS = visible(len(q_THK), len(k_TGK), question, q_THK.device)
        seen_TS = torch.ones_like(scores_HTS[0], dtype=torch.bool) if mask_TS is None else mask_TS
        rows = slice(MINIMUM_KEYS, None)
        seen_RS = seen_TS[rows].expand(heads, -1, -1).flatten(0, 1)
        self.layers.append(sharpness(scores_HTS[:, rows].flatten(0, 1).detach(), seen_RS, self.upstream_S))
        return super().attend(layer, q_THK, k_TGK, v_TGK, question)


@torch.inference_mode()
def real_pair(run: Run, model: str, length: int) -> tuple[list[tuple[Sharpness, Sharpness]], tuple[float, float]]:
    """Per layer and for the loss: the model as trained, and the same one without its scale."""
    loaded = subject(model)
    tokens_T, upstream_S = reading(loaded, length), torch.randn(length, generator=run.generator())
    watched = [Watched(length, scaled, upstream_S) for scaled in (True, False)]
    losses = [
        loss_of(logits_of(decoder(loaded), tokens_T, context), tokens_T)
        for context in run.each(watched, f"{loaded.name} reads")
    ]
    return list(zip(watched[0].layers, watched[1].layers, strict=True)), (losses[0], losses[1])


def _table(named: Sequence[tuple[str, int, Sharpness, Sharpness]]) -> Table:
    columns = {"where": "", "d": ""} | {
        f"{name}, {how}": unit for name, unit in NAMES.items() for how in ("÷ √d", "plain")
    }
    return table(columns, (_row(*item) for item in named))


def _row(where: str, d: int, scaled: Sharpness, plain: Sharpness) -> list[Cell]:
    return [where, d, *(value for pair in zip(scaled, plain, strict=True) for value in pair)]


def _plot(dims: list[int], random: list[tuple[Sharpness, Sharpness]]) -> Plot:
    def series(name: str, side: int) -> Series:
        return Series(name=name, x=[float(d) for d in dims], y=[pair[side].largest for pair in random])

    return Plot(
        kind="line",
        x=Axis(label="d", log=True),
        y=Axis(label="largest weight (median)"),
        series=[series("divided by √d", 0), series("plain", 1)],
    )


def _checks(dims: list[int], random: list[tuple[Sharpness, Sharpness]], losses: tuple[float, float]) -> list[Check]:
    off = max(abs(plain.std / d**0.5 - 1) for d, (_, plain) in zip(dims, random, strict=True))
    kept, lost = [pair[0] for pair in random], [pair[1] for pair in random]
    drift = max(s.entropy for s in kept) / min(s.entropy for s in kept) - 1
    return [
        check(
            off < 0.05,
            f"the scores' standard deviation is √d, to within {off:.1%}",
            f"分数的标准差就是 √d，误差不超过 {off:.1%}",
        ),
        check(
            drift < 0.05 and all(a.entropy > b.entropy for a, b in pairwise(lost)),
            f"divided by √d, the entropy does not depend on d ({drift:.1%} at most); plain, it falls with every step",
            f"除以 √d 后熵与 d 无关（相差至多 {drift:.1%}）；不除则随 d 逐级下降",
        ),
        check(
            all(a.typical > b.typical for a, b in pairwise(lost)) and lost[0].typical < kept[0].typical,
            "plain, a typical key's gradient shrinks with every step of d",
            "不除时，普通键分到的梯度随 d 逐级缩小",
        ),
        check(
            losses[1] - losses[0] > 2,
            f"without the scale the model's loss rises by more than 2 nats ({losses[0]:.2f} to {losses[1]:.2f})",
            f"拿掉缩放后模型损失上升超过 2 奈特（{losses[0]:.2f} 到 {losses[1]:.2f}）",
        ),
    ]


def _verdict(
    dims: list[int],
    random: list[tuple[Sharpness, Sharpness]],
    layers: list[tuple[Sharpness, Sharpness]],
    losses: tuple[float, float],
) -> Words:
    scaled, plain = random[dims.index(64)]
    wide, last = random[-1][1], dims[-1]
    before, after = (sum(pair[side].entropy for pair in layers) / len(layers) for side in (0, 1))
    return both(
        f"At d = 64 plain scores have a standard deviation of {plain.std:.1f}; the largest weight is then "
        f"{plain.largest:.2f} instead of {scaled.largest:.2f}, and a typical key's gradient "
        f"{plain.typical:.0e} instead of {scaled.typical:.0e}. A row's gradient as a whole does not vanish "
        f"at once, it moves to the few winners: its norm is {scaled.gradient:.3f} scaled, "
        f"{plain.gradient:.3f} plain at d = 64, {wide.gradient:.1e} plain at d = {last}. Without its scale "
        f"the trained model's attention entropy goes from {before:.2f} to {after:.2f} nats (mean over "
        f"layers) and its loss from {losses[0]:.2f} to {losses[1]:.2f}.",
        f"d = 64 时，不缩放的分数标准差为 {plain.std:.1f}；最大权重为 {plain.largest:.2f}，缩放后只有 "
        f"{scaled.largest:.2f}；普通键分到的梯度为 {plain.typical:.0e}，缩放后为 {scaled.typical:.0e}。整行"
        f"的梯度并不会立刻消失，而是集中到少数胜者身上：范数在缩放时为 {scaled.gradient:.3f}，不缩放时 d = "
        f"64 为 {plain.gradient:.3f}，d = {last} 为 {wide.gradient:.1e}。训练好的模型拿掉缩放后，注意力熵（"
        f"各层平均）从 {before:.2f} 变为 {after:.2f} 奈特，损失从 {losses[0]:.2f} 变为 {losses[1]:.2f}。",
    )
