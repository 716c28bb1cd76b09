"""Longer texts without another encoding: what training can do, and what a narrower view can do.

Random positions (Ruoss et al. 2023, arXiv:2305.16843): each text gets an ordered random choice of the positions of a
four times longer one. Length curriculum (Li et al. 2021, arXiv:2108.06084): short texts first. Longer at the end: the
last tenth of the steps on long texts, as models with long contexts are made (Llama 3.1, arXiv:2407.21783). No
positions (Haviv et al. 2022, arXiv:2203.16634). A window of the trained length, with the first tokens kept or not
(Xiao et al. 2023, arXiv:2309.17453), needs no training of its own: it reads with the baseline's weights.

Each step has half its bytes of English and half of a copying task: different symbols, a zero, the same symbols again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.lengths import BINS, TIMES, halves, held_out_texts, losses
from cutaway.labs.position.rope_extrapolation import with_window
from cutaway.labs.position.schemes import SCHEMES, told_by
from cutaway.labs.training import IGNORED, Batch, fit, fresh, next_bytes, small_spec
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal

SYMBOLS = 128  # bytes above those of English text; a text to copy has each at most once
ANCHORS = 4
TRAINED = {
    "baseline": "基线",
    "random positions": "随机位置",
    "length curriculum": "长度课程",
    "longer at the end": "最后加长",
    "no positions": "无位置",
}
READ = {"window": "窗口", "window and anchors": "窗口加最前几个词元"}
LENGTHS = (1, 2, 4)  # times the trained length
TEXTS = 64


class Read(NamedTuple):
    """At one length: loss on English, over the last bytes and by place, nats; share of symbols copied right."""

    last: float
    by_place: list[float]
    copied: float


@lab(
    "longer-by-training",
    title=both(
        "Longer by training: positions drawn, texts ordered, views narrowed", "靠训练变长：随机位置、课程与窗口"
    ),
    question=both(
        "Besides changing the encoding, which structures or training tricks help a model run longer than trained?",
        "除了更换位置编码，哪些结构或训练方法能让模型处理比训练时更长的文本？",
    ),
    seconds={"quick": 6, "full": 120},
)
def longer_by_training(
    run: Run,
    *,
    trained: Annotated[int, Knob("trained length, bytes", "训练长度（字节）", quick=16, min=16, max=64)] = 64,
    steps: Annotated[int, Knob("training steps for each", "每种的训练步数", quick=100, min=20, max=20_000)] = 400,
    step_bytes: Annotated[int, Knob("bytes of each step", "每步的字节数", quick=512, min=512)] = 1024,
    seeds: Annotated[int, Knob("seeds", "随机种子数", quick=1, min=1, max=10)] = 3,
) -> Finding:
    found: dict[str, list[dict[int, Read]]] = {arm: [] for arm in (*TRAINED, *READ)}
    for seed in range(run.seed, run.seed + seeds):
        for arm in TRAINED:
            model = learned(arm, trained, steps, step_bytes, replace(run, seed=seed))
            found[arm].append(read(model, arm, trained))
            for narrow in READ if arm == "baseline" else ():
                anchors = ANCHORS if narrow.endswith("anchors") else 0
                found[narrow].append(read(with_window(model, trained, anchors), narrow, trained))
    return Finding(table=_table(found), plot=_plot(found, trained), verdict=_verdict(found), checks=_checks(found))


def copying(length: int, rows: int, generator: torch.Generator) -> Batch:
    """Different symbols, a zero, and the symbols again: asked for are the second ones."""
    count = length // 2
    symbols_NC = SYMBOLS + torch.rand(rows, SYMBOLS, generator=generator).argsort(-1)[:, :count]
    inputs_NT = torch.cat([symbols_NC, torch.zeros(rows, 1, dtype=torch.long), symbols_NC[:, :-1]], 1)
    targets_NT = torch.cat([torch.full_like(symbols_NC, IGNORED), symbols_NC], 1)
    return Batch(inputs_NT.flatten(), targets_NT.flatten(), [2 * count] * rows)


def mixed(length: int, step_bytes: int, generator: torch.Generator) -> Batch:
    """A step's texts: half of its bytes English, half copying."""
    rows = max(1, step_bytes // 2 // length)
    english, copies = next_bytes(halves()[0], length, rows)(generator), copying(length, rows, generator)
    inputs_T, targets_T = (torch.cat(pair) for pair in zip(english[:2], copies[:2], strict=True))
    return Batch(inputs_T, targets_T, english.lengths + copies.lengths)


def lengths_of(arm: str, trained: int, steps: int) -> list[int]:
    """How long the texts of each step are."""
    if arm == "length curriculum":
        return [trained // 4 * 2 ** (3 * step // steps) for step in range(steps)]
    long = steps // 10 if arm == "longer at the end" else 0
    return [trained] * (steps - long) + [TIMES * trained] * long


def places(arm: str, trained: int, batch: Batch, generator: torch.Generator) -> Tensor:
    """positions_T: counted from 0, or an ordered random choice of as many as the longest texts have."""
    if arm != "random positions":
        return positions_of(batch.lengths)
    order_NT = torch.rand(len(batch.lengths), TIMES * trained, generator=generator).argsort(-1)
    return order_NT[:, : batch.lengths[0]].sort(-1).values.flatten()


def learned(arm: str, trained: int, steps: int, step_bytes: int, run: Run) -> Decoder:
    """A rotary model, trained in this way."""
    spec = told_by(arm if arm in SCHEMES else "rotary", small_spec(context=TIMES * trained))
    model, lengths = fresh(spec, run.seed), iter(lengths_of(arm, trained, steps))

    def loss(generator: torch.Generator) -> Tensor:
        batch = mixed(next(lengths), step_bytes, generator)
        losses_NT = losses(model, batch, positions_T=places(arm, trained, batch, generator))
        return losses_NT.sum() / (batch.targets_T != IGNORED).sum()

    fit(model.parameters(), loss, steps, run, arm, seed=run.seed, warmup=20)
    return model


def ending(batch: Batch, length: int) -> Batch:
    """The last `length` tokens of each text."""
    rows = len(batch.lengths)
    inputs_T, targets_T = (x.view(rows, -1)[:, -length:].flatten() for x in batch[:2])
    return Batch(inputs_T, targets_T, [length] * rows)


@torch.inference_mode()
def read(model: Decoder, arm: str, trained: int) -> dict[int, Read]:
    """At each length, texts that end with the same bytes, the same for all models."""
    generator, found = torch.Generator().manual_seed(999), {}
    texts = held_out_texts(TIMES * trained, TEXTS, generator)
    for times in LENGTHS:
        endings = [ending(text, times * trained) for text in texts]
        read = [losses(model, batch, positions_T=places(arm, trained, batch, generator)) for batch in endings]
        by_place = [float(part.mean()) for part in torch.cat(read).split(trained // BINS, 1)]
        copies = copying(times * trained, TEXTS // 2, generator)
        chosen_T = predicted(model, copies, places(arm, trained, copies, generator))
        right_T = (chosen_T == copies.targets_T)[copies.targets_T != IGNORED]
        found[times] = Read(mean(by_place[-BINS // 2 :]), by_place, float(right_T.float().mean()))
    return found


def predicted(model: Decoder, batch: Batch, positions_T: Tensor) -> Tensor:
    """The likeliest token at each place."""
    return model.logits(model(batch.inputs_T, positions_T, BlockDiagonal(batch.lengths))).argmax(-1)


def averages(reads: list[dict[int, Read]]) -> dict[int, tuple[float, float]]:
    """At each length, over seeds: loss over the last bytes, share copied."""
    return {times: (mean(r[times].last for r in reads), mean(r[times].copied for r in reads)) for times in LENGTHS}


def _spread(values: list[float]) -> float:
    return max(values) - min(values)


def _table(found: Mapping[str, list[dict[int, Read]]]) -> Table:
    columns = {"arm": ""}
    for times in LENGTHS:
        columns |= {f"loss at {times}×": "nats", f"its range over seeds, {times}×": "nats", f"copied at {times}×": "%"}
    rows: list[list[Cell]] = []
    for arm, reads in found.items():
        parts = ((*averages(reads)[times], _spread([r[times].last for r in reads])) for times in LENGTHS)
        rows.append([arm, *(cell for loss, copied, spread in parts for cell in (loss, spread, 100 * copied))])
    return table(columns, rows)


def _plot(found: Mapping[str, list[dict[int, Read]]], trained: int) -> Plot:
    at = [(i + 0.5) * trained / BINS for i in range(TIMES * BINS)]
    curves = {arm: zip(*(r[TIMES].by_place for r in reads), strict=True) for arm, reads in found.items()}
    return Plot(
        kind="line",
        x=Axis(label=f"position, bytes (trained on {trained})"),
        y=Axis(label="held-out loss, nats per byte"),
        series=[Series(name=arm, x=at, y=[mean(places) for places in curve]) for arm, curve in curves.items()],
    )


def _checks(found: Mapping[str, list[dict[int, Read]]]) -> list[Check]:
    now = {arm: averages(reads) for arm, reads in found.items()}
    baseline, window = now["baseline"], now["window"]
    apart = max(abs(window[1][i] - baseline[1][i]) for i in (0, 1))
    return [
        check(
            baseline[TIMES][0] > baseline[1][0] + 0.05,
            f"the baseline is hurt by more text: {baseline[1][0]:.2f} on the last bytes at the trained length, "
            f"{baseline[TIMES][0]:.2f} with {TIMES} times the context",
            f"更长的文本损害基线：训练长度下末尾字节损失 {baseline[1][0]:.2f}，上下文变为 {TIMES} 倍时为 "
            f"{baseline[TIMES][0]:.2f}",
        ),
        check(
            apart < 1e-4 and window[TIMES][0] < baseline[TIMES][0],
            f"a window of the trained length changes nothing within it and helps beyond: {window[TIMES][0]:.2f} at "
            f"{TIMES}×",
            f"等于训练长度的窗口在该长度内不改变任何结果，超出后有帮助：{TIMES} 倍处为 {window[TIMES][0]:.2f}",
        ),
        check(
            now["random positions"][TIMES][0] < baseline[TIMES][0],
            f"so do positions drawn from a longer range: {now['random positions'][TIMES][0]:.2f}",
            f"从更长范围随机抽取位置也有帮助：{now['random positions'][TIMES][0]:.2f}",
        ),
    ]


def _verdict(found: Mapping[str, list[dict[int, Read]]]) -> Words:
    now, seeds = {arm: averages(reads) for arm, reads in found.items()}, len(found["baseline"])
    zh = TRAINED | READ

    def told(sep: str, names: Mapping[str, str]) -> tuple[str, str]:
        rows = [(names[arm], *zip(*(at[times] for times in LENGTHS), strict=True)) for arm, at in now.items()]
        losses = sep.join(f"{name} " + " / ".join(f"{loss:.2f}" for loss in losses) for name, losses, _ in rows)
        return losses, sep.join(f"{name} " + " / ".join(f"{share:.0%}" for share in shares) for name, _, shares in rows)

    (losses, copied), (losses_zh, copied_zh) = told("; ", {arm: arm for arm in zh}), told("；", zh)
    best = min(now, key=lambda arm: now[arm][TIMES][0])
    copier = max(now, key=lambda arm: now[arm][TIMES][1])
    most = now[copier][TIMES][1]
    return both(
        f"Equal tokens, {seeds} seed(s); at 1, 2 and {TIMES} times the trained length. Loss on the same last bytes: "
        f"{losses}. Copied: {copied}. At {TIMES}× the lowest loss is that of “{best}”, and most is copied by "
        f"“{copier}” ({most:.0%}). “Longer at the end” has seen texts of {TIMES}×; all others have not.",
        f"词元数相同，{seeds} 个种子；分别在训练长度的 1、2、{TIMES} 倍处测量。同样的末尾字节上的损失：{losses_zh}。"
        f"复制正确率：{copied_zh}。{TIMES} 倍处损失最低的是“{zh[best]}”，复制最多的是“{zh[copier]}”（{most:.0%}）。"
        f"只有“最后加长”见过 {TIMES} 倍长的文本。",
    )
