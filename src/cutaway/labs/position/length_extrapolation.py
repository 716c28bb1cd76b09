"""Trained short, tested long (Press et al. 2021, arXiv:2108.12409): six ways to tell order, and what slopes do.

ALiBi subtracts slope * distance from each score, so a far key loses weight by a factor that grows with distance
whatever the text's length: nothing about a longer text is new. With slopes 1/4, 1/16, ... each head sees about four
times as far as the one before it. The price is that far tokens weigh next to nothing, which a recall task shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.labs.attention.mla import VALUES, VOCAB, items
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.lengths import BINS, TIMES, beyond, by_place, held_out_texts, losses, quarters, taught
from cutaway.labs.position.schemes import SCHEMES, told_by
from cutaway.labs.training import Batch, accuracy_of, fit, fresh, loss_of, small_spec
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.attention import BlockDiagonal, Question, attention_weights
from cutaway.nn.position_bias import alibi_slopes

HEADS = 4
ARMS = {name: scheme.zh for name, scheme in SCHEMES.items()} | {"equal slopes": "相等斜率", "random slopes": "随机斜率"}
SLOPED = ("ALiBi", "equal slopes", "random slopes", "no positions")
RECALLING = (*SLOPED, "rotary")


class Slopes(nn.Module):
    """ALiBi's penalty with slopes of one's own."""

    def __init__(self, slopes_H: Tensor) -> None:
        super().__init__()
        self.slopes_H = slopes_H

    def forward(self, q_HQK: Tensor, k_GSK: Tensor, distance_QS: Tensor) -> Tensor:
        """bias_HQS in the dtype of q."""
        return (-self.slopes_H[:, None, None] * distance_QS.abs()).to(q_HQK.dtype)


class Tested(NamedTuple):
    """losses: of bins of positions, nats. far_H: share of weight beyond the trained length, by head, at the end."""

    losses: list[float]
    far_H: list[float]


class Far(BlockDiagonal):
    """Notes the weight beyond the trained length in the first sequence: far_H of each layer."""

    def __init__(self, lengths: list[int], trained: int) -> None:
        super().__init__(lengths)
        self.trained = trained
        self.far: list[Tensor] = []

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        q_HTK, k_HTK = (x[: self.lengths[0]].transpose(0, 1) for x in (q_THK, k_TGK))
        self.far.append(beyond(attention_weights(q_HTK, k_HTK, question), self.trained))
        return super().attend(layer, q_THK, k_TGK, v_TGK, question)


@lab(
    "length-extrapolation",
    title=both("Trained short, tested long: six encodings and four kinds of slopes", "短训长测：六种编码与四种斜率"),
    question=both(
        "Why does a fixed distance penalty extrapolate, and why are the slopes geometric?",
        "固定的距离惩罚为什么能外推，斜率为什么取几何级数？",
    ),
    seconds={"quick": 8, "full": 150},
)
def length_extrapolation(
    run: Run,
    *,
    trained: Annotated[int, Knob("trained length, bytes", "训练长度（字节）", quick=32, min=32, max=256)] = 128,
    steps: Annotated[int, Knob("training steps for each", "每种的训练步数", quick=110, min=20, max=20_000)] = 500,
    step_bytes: Annotated[int, Knob("bytes of each step", "每步的字节数", quick=256, min=256)] = 1024,
    recall_steps: Annotated[int, Knob("steps on the recall task", "回忆任务的步数", quick=10, min=10)] = 300,
    texts: Annotated[int, Knob("held-out texts read", "读入的留出文本数", quick=32, min=8, max=1024)] = 64,
) -> Finding:
    batches = held_out_texts(TIMES * trained, texts, run.generator())
    found: dict[str, Tested] = {}
    for arm in ARMS:
        model = built(small_spec(heads=HEADS, context=TIMES * trained), arm, run)
        found[arm] = tested(taught(model, trained, steps, run, arm, step_bytes=step_bytes), batches, trained)
    gaps = [trained // 2, trained, 2 * trained, TIMES * trained]
    recalled = {arm: recall(arm, gaps, trained, recall_steps, run) for arm in RECALLING}
    return Finding(
        table=_table(found, recalled, gaps, run),
        plot=_plot(found, trained),
        verdict=_verdict(found, recalled, gaps, trained),
        checks=_checks(found),
    )


def slopes_of(arm: str, run: Run) -> Tensor:
    """slope_H of each head: geometric, all their geometric mean, uniform between 0 and 1, or none at all."""
    geometric_H = alibi_slopes(HEADS)
    return {
        "ALiBi": geometric_H,
        "equal slopes": geometric_H.log().mean().exp().expand(HEADS),
        "random slopes": torch.rand(HEADS, generator=run.generator(), dtype=torch.float64),
        "no positions": torch.zeros(HEADS, dtype=torch.float64),
    }[arm]


def built(spec: Spec, arm: str, run: Run, std: float = 0.02) -> Decoder:
    """An untrained model; ALiBi's slopes are replaced where the arm has others."""
    model = fresh(told_by(arm if arm in SCHEMES else "ALiBi", spec), run.seed, std)
    if arm not in SCHEMES:
        model.position_bias = Slopes(slopes_of(arm, run))
    return model


@torch.inference_mode()
def tested(model: Decoder, batches: list[Batch], trained: int) -> Tested:
    """Losses on all texts, weights on the first of each batch."""
    contexts = [Far(batch.lengths, trained) for batch in batches[:2]]
    for batch, context in zip(batches, contexts, strict=False):
        losses(model, batch, context)
    far_H = torch.stack([far_H for context in contexts for far_H in context.far]).mean(0)
    return Tested(by_place(model, batches, trained // BINS), far_H.tolist())


def recall(arm: str, gaps: list[int], trained: int, steps: int, run: Run) -> list[float]:
    """One layer learns to recall an item over up to `trained` fillers; share recalled over each gap."""
    spec = small_spec(vocab=VOCAB, width=48, layers=1, heads=HEADS, context=TIMES * trained + 16)
    model = built(spec, arm, run, std=0.1)

    def loss(generator: torch.Generator) -> Tensor:
        return loss_of(model, items(generator, 32, 1, trained))

    fit(model.parameters(), loss, steps, run, f"recall, {arm}", seed=run.seed, lr=1e-2)
    return [accuracy_of(model, items(torch.Generator().manual_seed(999), 128, gap, gap)) for gap in gaps]


def rise(tested: Tested) -> float:
    """Loss in the last stretch less that within the trained length, nats."""
    stretches = quarters(tested.losses)
    return stretches[-1] - stretches[0]


def _table(found: Mapping[str, Tested], recalled: Mapping[str, list[float]], gaps: list[int], run: Run) -> Table:
    columns = {"positions": ""} | {f"loss, stretch {i + 1} of {TIMES}": "nats" for i in range(TIMES)}
    columns |= {"weight beyond the trained length": "%"} | {f"recalled over {gap}": "%" for gap in gaps}
    rows: list[list[Cell]] = []
    for arm, t in found.items():
        shares: list[Cell] = [100 * share for share in recalled[arm]] if arm in recalled else [None] * len(gaps)
        rows.append([arm, *quarters(t.losses), 100 * sum(t.far_H) / HEADS, *shares])
    for arm in ("ALiBi", "random slopes"):
        for slope, far in zip(slopes_of(arm, run).tolist(), found[arm].far_H, strict=True):
            half = math.log(2) / slope
            rows.append(
                [
                    f"{arm}, slope {slope:.4f}: weight halves every {half:.1f}",
                    *[None] * TIMES,
                    100 * far,
                    *[None] * len(gaps),
                ]
            )
    return table(columns, rows)


def _plot(found: Mapping[str, Tested], trained: int) -> Plot:
    at = [(i + 0.5) * trained / BINS for i in range(TIMES * BINS)]
    return Plot(
        kind="line",
        x=Axis(label=f"position, bytes (trained on {trained})"),
        y=Axis(label="held-out loss, nats per byte"),
        series=[Series(name=arm, x=at, y=t.losses) for arm, t in found.items()],
    )


def _checks(found: Mapping[str, Tested]) -> list[Check]:
    alibi, rotary = rise(found["ALiBi"]), rise(found["rotary"])
    far_H = found["ALiBi"].far_H
    return [
        check(
            alibi < rotary,
            f"from the first to the last stretch of the same texts the loss changes by {alibi:+.2f} with ALiBi and by "
            f"{rotary:+.2f} with rotation",
            f"同样的文本从第一段到最后一段，损失变化：ALiBi {alibi:+.2f}，旋转 {rotary:+.2f}",
        ),
        check(
            far_H == sorted(far_H) and far_H[0] < 0.01,
            f"geometric slopes divide the work: the weight beyond the trained length is {_percents(far_H)} from the "
            f"steepest head to the flattest",
            f"几何级数的斜率形成分工：从最陡到最平的头，超出训练长度的权重为 {_percents(far_H)}",
        ),
    ]


def _percents(shares: list[float]) -> str:
    return " / ".join(f"{share:.0%}" for share in shares)


def _verdict(found: Mapping[str, Tested], recalled: Mapping[str, list[float]], gaps: list[int], trained: int) -> Words:
    def told(sep: str, names: Mapping[str, str]) -> tuple[str, str, str]:
        ends = ((names[arm], quarters(t.losses)) for arm, t in found.items())
        return (
            sep.join(f"{name} {first:.2f} → {last:.2f}" for name, (first, *_, last) in ends),
            sep.join(f"{names[arm]} {sum(found[arm].far_H) / HEADS:.0%}" for arm in SLOPED),
            sep.join(f"{names[arm]} {_percents(shares)}" for arm, shares in recalled.items()),
        )

    (ends, far, shares), (ends_zh, far_zh, shares_zh) = told("; ", {arm: arm for arm in ARMS}), told("；", ARMS)
    over = " / ".join(f"{gap}" for gap in gaps)
    return both(
        f"A penalty that grows with distance makes far keys count for less in a text of any length, so there is "
        f"nothing new to meet. Trained on {trained} bytes and read to {TIMES * trained}, the loss of the first and "
        f"the last stretch is: {ends}. Weight beyond {trained} at the end: {far}. Geometric "
        f"slopes give each head its own reach, from the nearest bytes to hundreds; equal ones have one reach for all. "
        f"What a short reach costs shows in recall (chance {1 / VALUES:.0%}): trained over up to {trained} fillers, an "
        f"item is recalled over {over} of them: {shares}.",
        f"随距离增长的惩罚使远处的键在任何长度的文本里都更轻，因此不会遇到新情况。在 {trained} 字节上训练、读到 "
        f"{TIMES * trained}，第一段与最后一段的损失：{ends_zh}。末尾处 {trained} 字节之外的权重：{far_zh}。"
        f"几何级数的斜率让每个头各有自己的视野，从最近的字节到几百字节；相等的斜率只有一种视野。视野短"
        f"的代价要看回忆任务（乱猜 {1 / VALUES:.0%}）：在至多 {trained} 个填充词元上训练后，隔 {over} 个时的回忆率："
        f"{shares_zh}。",
    )
