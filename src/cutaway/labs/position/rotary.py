"""Rotary positions (Su et al. 2021, arXiv:2104.09864): turned by where they stand, compared by how far apart they are.

    <R(m) q, R(n) k> = q^T R(m)^T R(n) k = q^T R(n - m) k         turning back by m and on by n is turning by n - m

The identity is tried on random vectors in several precisions, and the two layouts of pairs on each other: permuted,
they agree; mixed, they do not, which is what a wrongly converted checkpoint does to a model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, loss_of, reading, subject
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import Attention
from cutaway.nn.positions import (
    RopeSpec,
    interleave,
    rope_frequencies,
    rotate,
    rotate_interleaved,
    rotation,
)

PRECISIONS = (torch.float64, torch.float32, torch.bfloat16)
FURTHEST = 256  # positions in the layouts' comparison, and distances that the plot shows
EXACT = 1e-12


class Identity(NamedTuple):
    """The largest |<R(m)q, R(n)k> - <q, R(n-m)k>|, relative to |q| |k|, over random triples q, k, (m, n)."""

    width: int
    precision: str
    error: float


@lab(
    "rotary",
    title=both("Rotate by position, compare by distance", "按位置旋转，按距离比较"),
    question=both(
        "How does rotating vectors by absolute position leave scores that depend only on distance?",
        "按绝对位置旋转向量，为什么分数却只取决于距离？",
    ),
    seconds={"quick": 2, "full": 8},
)
def rotary(
    run: Run,
    *,
    triples: Annotated[int, Knob("random q, k and positions", "随机的 q、k 与位置的组数", min=100, max=100_000)] = 1000,
    furthest: Annotated[int, Knob("positions are below this", "位置的上限", min=16, max=1_000_000)] = 10_000,
    model: Annotated[str, Knob("the model read in the wrong layout", "以错误布局读取的模型")] = MODEL,
    length: Annotated[int, Knob("tokens of text it reads", "读入文本的词元数", quick=64, min=32, max=8192)] = 512,
) -> Finding:
    identities = [
        Identity(width, str(dtype).removeprefix("torch."), identity_error(width, dtype, triples, furthest, run))
        for width in (2, 64)
        for dtype in run.each(PRECISIONS, f"width {width}")
    ]
    permuted, mixed = layouts(64, run.generator())
    losses = misread(model, length)
    return Finding(
        table=_table(identities, permuted, mixed, losses),
        plot=_plot(),
        verdict=_verdict(identities, permuted, mixed, losses),
        checks=_checks(identities, permuted, mixed, losses),
    )


def identity_error(width: int, dtype: torch.dtype, triples: int, furthest: int, run: Run) -> float:
    """See `Identity`; both sides are computed in `dtype`, their angles in float64 as everywhere."""
    generator = run.generator()
    q_T1K, k_T1K = torch.randn(2, triples, 1, width, generator=generator, dtype=torch.float64).to(dtype)
    m_T, n_T = torch.randint(furthest, (2, triples), generator=generator)

    def turned(x_T1K: Tensor, positions_T: Tensor) -> Tensor:
        return rotate(x_T1K, rotation(RopeSpec(), width, positions_T, dtype))

    both_T1 = (turned(q_T1K, m_T) * turned(k_T1K, n_T)).sum(-1)
    one_T1 = (q_T1K * turned(k_T1K, n_T - m_T)).sum(-1)
    return float(((both_T1 - one_T1) / (q_T1K.norm(dim=-1) * k_T1K.norm(dim=-1))).abs().max())


def layouts(width: int, generator: torch.Generator) -> tuple[float, float]:
    """Largest relative difference between the scores of the two layouts: coordinates permuted, and left alone."""
    q_T1K, k_T1K = torch.randn(2, FURTHEST, 1, width, generator=generator, dtype=torch.float64)
    turn = rotation(RopeSpec(), width, torch.arange(FURTHEST), torch.float64)

    def scores(turned: Callable[[Tensor], Tensor]) -> Tensor:
        return turned(q_T1K)[:, 0] @ turned(k_T1K)[:, 0].T

    halves_TS = scores(lambda x: rotate(x, turn))
    permuted_TS = scores(lambda x: rotate_interleaved(interleave(x), turn))
    mixed_TS = scores(lambda x: rotate_interleaved(x, turn))
    size = halves_TS.abs().max()
    return tuple(float((other - halves_TS).abs().max() / size) for other in (permuted_TS, mixed_TS))  # type: ignore[return-value]


@torch.inference_mode()
def misread(source: str, length: int) -> tuple[float, float]:
    """A model's loss as it is, and with the rows of W_q and W_k in the order of the other layout."""
    loaded = subject(source)
    tokens_T = reading(loaded, length)
    right, wrong = (loss_of(logits_of(m, tokens_T), tokens_T) for m in (decoder(loaded), reordered(decoder(loaded))))
    return right, wrong


def reordered(model: Decoder) -> Decoder:
    """The same model, its query and key coordinates in the other layout; all other tensors are shared."""
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})
    for module in twin.modules():
        if isinstance(module, Attention):
            for linear in (module.q, module.k):
                rows_DHK = linear.weight.T.unflatten(-1, (-1, module.spec.head_dim))
                linear.weight = torch.nn.Parameter(interleave(rows_DHK).flatten(-2).T, requires_grad=False)
    return twin


def _table(identities: list[Identity], permuted: float, mixed: float, losses: tuple[float, float]) -> Table:
    rows: list[list[Cell]] = [
        [f"identity, {i.width} dimensions, {i.precision}", i.error, "of |q| |k|"] for i in identities
    ]
    rows += [["layouts, permuted", permuted, "of the largest score"], ["layouts, mixed", mixed, "of the largest score"]]
    rows += [["model, its own layout", losses[0], "nats"], ["model, the other layout", losses[1], "nats"]]
    return table({"comparison": "", "error or loss": "", "measured in": ""}, rows)


def _plot() -> Plot:
    """A vector of ones against itself at each distance: what the slow pairs keep when the fast ones cancel."""
    distance_T = torch.arange(FURTHEST)
    score_T = (distance_T[:, None] * rope_frequencies(RopeSpec(), 64)).cos().mean(-1)
    return Plot(
        kind="line",
        x=Axis(label="distance, tokens"),
        y=Axis(label="score of a vector of ones with itself, 1 at distance 0"),
        series=[Series(name="64 dimensions, base 10,000", x=distance_T.double().tolist(), y=score_T.tolist())],
    )


def _checks(identities: list[Identity], permuted: float, mixed: float, losses: tuple[float, float]) -> list[Check]:
    exact = max(i.error for i in identities if i.precision == "float64")
    return [
        check(
            exact < EXACT,
            f"<R(m)q, R(n)k> = <q, R(n−m)k> in float64, to {exact:.0e}",
            f"在 float64 下 <R(m)q, R(n)k> = <q, R(n−m)k>，误差 {exact:.0e}",
        ),
        check(
            permuted < EXACT and mixed > 0.1,
            f"the two layouts give the same scores after one permutation ({permuted:.0e}) and others when mixed "
            f"({mixed:.0%})",
            f"两种布局经过一次固定置换后分数相同（{permuted:.0e}），混用则不同（{mixed:.0%}）",
        ),
        check(
            losses[1] - losses[0] > 0.5,
            f"read in the wrong layout the model loses more than half a nat ({losses[0]:.2f} to {losses[1]:.2f})",
            f"用错布局时模型损失上升超过 0.5 奈特（{losses[0]:.2f} 到 {losses[1]:.2f}）",
        ),
    ]


def _verdict(identities: list[Identity], permuted: float, mixed: float, losses: tuple[float, float]) -> Words:
    at = {(i.width, i.precision): i.error for i in identities}
    return both(
        f"Turning the query back by m and the key on by n is one turn by n − m: on random vectors the two sides "
        f"differ by {at[2, 'float64']:.0e} in 2 and {at[64, 'float64']:.0e} in 64 dimensions (float64; "
        f"{at[64, 'float32']:.0e} in float32, {at[64, 'bfloat16']:.0e} in bfloat16). Which coordinates form a pair is "
        f"a convention: permuted, the two layouts agree to {permuted:.0e}; mixed, scores are off by up to "
        f"{mixed:.0%}, and the trained model's loss goes from {losses[0]:.2f} to {losses[1]:.2f}.",
        f"查询往回转 m、键往前转 n，合起来就是转 n − m：随机向量上两边在 2 维相差 {at[2, 'float64']:.0e}，在 64 维相"
        f"差 {at[64, 'float64']:.0e}（float64；float32 为 {at[64, 'float32']:.0e}，bfloat16 为 "
        f"{at[64, 'bfloat16']:.0e}）。哪两个坐标组成一对只是约定：经置换两种布局一致到 {permuted:.0e}；混用时分数最多"
        f"偏差 {mixed:.0%}，训练好的模型损失从 {losses[0]:.2f} 变为 {losses[1]:.2f}。",
    )
