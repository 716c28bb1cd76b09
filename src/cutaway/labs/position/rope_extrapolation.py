"""Beyond the trained length: which angles a rotary model has never seen, and what it does there.

First arithmetic: a pair whose wavelength exceeds the trained length has not finished a turn in training, so longer
texts show it new angles. Then a small model, trained on short stretches of English bytes and read at several times
that length, with everything in sight and with a window of the trained length, which admits no new distance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.lengths import BINS, TIMES, beyond, held_out_texts, losses, quarters, taught
from cutaway.labs.training import fresh, small_spec, with_layers
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal, Question, attention_weights
from cutaway.nn.positions import RopeSpec, rope_frequencies


class Unfinished(NamedTuple):
    """slowest: wavelength of the last of dim / 2 pairs, in tokens. pairs: how many never turn once within `context`."""

    base: float
    dim: int
    context: int
    slowest: float
    pairs: int


class Read(NamedTuple):
    """Per bin of positions: loss with all in sight, and with a window. Per bin of distances: see `Scores`."""

    whole: list[float]
    windowed: list[float]
    spread: list[float]
    largest: list[float]
    beyond: float


@lab(
    "rope-extrapolation",
    title=both("Past the trained length", "超出训练长度之后"),
    question=both(
        "Why does a rotary model fail beyond the length it was trained on?",
        "旋转位置编码的模型为什么在超出训练长度后失效？",
    ),
    seconds={"quick": 8, "full": 200},
)
def rope_extrapolation(
    run: Run,
    *,
    trained: Annotated[int, Knob("trained length, bytes", "训练长度（字节）", quick=32, min=16, max=512)] = 128,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=160, min=20, max=20_000)] = 2000,
    texts: Annotated[int, Knob("held-out texts read", "读入的留出文本数", quick=64, min=8, max=1024)] = 128,
) -> Finding:
    known = [unfinished(1e4, 128, 4096), unfinished(5e5, 128, 8192), unfinished(1e4, 16, trained)]
    model = taught(fresh(small_spec(context=TIMES * trained), run.seed), trained, steps, run)
    found = read(model, trained, texts, run)
    return Finding(
        table=_table(known, found, trained),
        plot=_plot(found, trained),
        verdict=_verdict(known, found, trained),
        checks=_checks(known, found, trained),
    )


def unfinished(base: float, dim: int, context: int) -> Unfinished:
    """Count the pairs whose wavelength is longer than the context."""
    wavelength_k = 2 * math.pi / rope_frequencies(RopeSpec(base), dim)
    return Unfinished(base, dim, context, float(wavelength_k[-1]), int((wavelength_k > context).sum()))


class Scores(BlockDiagonal):
    """Notes raw scores of the first sequence by distance, in bins: standard deviation and 99.9 % quantile of the size,
    over all heads; and, for queries of the last `trained` positions, the weight that falls beyond `trained`.
    """

    def __init__(self, lengths: list[int], trained: int) -> None:
        super().__init__(lengths)
        self.trained = trained
        self.spread: list[list[float]] = []
        self.largest: list[list[float]] = []
        self.beyond: list[float] = []

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        n, width = self.lengths[0], self.trained // BINS
        q_HTK, k_HTK = (x[:n].transpose(0, 1) for x in (q_THK, k_TGK))
        scores_HTS = q_HTK @ k_HTK.transpose(1, 2) * question.scale
        lines = [scores_HTS.diagonal(-d, 1, 2) for d in range(n)]
        bins = [torch.cat(lines[start : start + width], -1) for start in range(0, n, width)]
        self.spread.append([float(s.std(-1, correction=0).mean()) for s in bins])
        self.largest.append([float(s.abs().quantile(0.999)) for s in bins])
        weights_HTS = attention_weights(q_HTK, k_HTK, question)
        self.beyond.append(float(beyond(weights_HTS, self.trained).mean()))
        return super().attend(layer, q_THK, k_TGK, v_TGK, question)


@torch.inference_mode()
def read(model: Decoder, trained: int, texts: int, run: Run) -> Read:
    """Held-out texts of `TIMES` the trained length, each with all in sight and with a window."""
    narrow, batches = with_window(model, trained), held_out_texts(TIMES * trained, texts, run.generator())
    contexts = [Scores(batch.lengths, trained) for batch in batches]
    whole, windowed = list[Tensor](), list[Tensor]()
    for batch, context in run.each([*zip(batches, contexts, strict=True)], "reading"):
        whole.append(losses(model, batch, context))
        windowed.append(losses(narrow, batch))
    by_bin = [[float(b.mean()) for b in torch.cat(seen).split(trained // BINS, 1)] for seen in (whole, windowed)]
    return Read(
        whole=by_bin[0],
        windowed=by_bin[1],
        spread=_columns([layer for c in contexts for layer in c.spread]),
        largest=_columns([layer for c in contexts for layer in c.largest]),
        beyond=statistics.mean(share for c in contexts for share in c.beyond),
    )


def with_window(model: Decoder, window: int, anchors: int = 0) -> Decoder:
    """The same weights, every layer seeing its last `window` positions, and the first ones that are anchors."""

    def seeing_less(layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.attention, AttentionSpec)
        return replace(layer, attention=replace(layer.attention, window=window, anchors=anchors))

    narrow = fresh(with_layers(model.spec, seeing_less), 0)
    narrow.load_state_dict(model.state_dict())
    return narrow


def _columns(rows: list[list[float]]) -> list[float]:
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def _table(known: Sequence[Unfinished], found: Read, trained: int) -> Table:
    rows: list[list[Cell]] = [
        [f"base {u.base:,.0f}, {u.dim} coordinates, trained on {u.context:,}: pairs never turned", u.pairs, u.dim // 2]
        for u in known
    ]
    parts = zip(*(quarters(bins) for bins in found[:4]), strict=True)
    for i, (whole, windowed, spread, largest) in enumerate(parts):
        where = f"{i * trained} to {(i + 1) * trained}"
        rows += [
            [f"loss at positions {where}: all in sight, window of {trained}", whole, windowed],
            [f"scores at distances {where}: standard deviation, 99.9 % quantile of size", spread, largest],
        ]
    return table({"quantity": "", "value": "", "of, or compared with": ""}, rows)


def _plot(found: Read, trained: int) -> Plot:
    at = [(i + 0.5) * trained / BINS for i in range(len(found.whole))]
    series = [("all in sight", found.whole), (f"window of {trained}", found.windowed)]
    return Plot(
        kind="line",
        x=Axis(label=f"position, bytes (trained on {trained})"),
        y=Axis(label="held-out loss, nats per byte"),
        series=[Series(name=name, x=at, y=losses) for name, losses in series],
    )


def _checks(known: Sequence[Unfinished], found: Read, trained: int) -> list[Check]:
    published = known[0]
    whole, windowed = quarters(found.whole), quarters(found.windowed)
    return [
        check(
            published.pairs == 18 and round(published.slowest) == 54_410,
            f"base 10,000, d = 128: the slowest pair turns once in {published.slowest:,.0f} tokens, and "
            f"{published.pairs} of 64 pairs never turn within 4,096",
            f"底数 10,000、d = 128：最慢的一对转一圈需 {published.slowest:,.0f} 个词元，64 对中有 {published.pairs} 对"
            f"在 4,096 内转不完一圈",
        ),
        check(
            math.isclose(whole[0], windowed[0], rel_tol=1e-5),
            "within the trained length the window changes nothing",
            "在训练长度之内，窗口不改变任何结果",
        ),
        check(
            whole[-1] - windowed[-1] > 0.2,
            f"at {TIMES} times the trained length the model is worse for what lies beyond it: loss {whole[-1]:.2f} "
            f"with all in sight, {windowed[-1]:.2f} with the last {trained} bytes on the same text",
            f"到训练长度的 {TIMES} 倍处，看到更远反而更差：同样的文本，看全部时损失 {whole[-1]:.2f}，只看最近 "
            f"{trained} 字节时 {windowed[-1]:.2f}",
        ),
    ]


def _verdict(known: Sequence[Unfinished], found: Read, trained: int) -> Words:
    published, own = known[0], known[-1]
    whole, windowed, spread, largest = (quarters(bins) for bins in found[:4])
    wider = "widens" if min(spread[1:]) > spread[0] else "does not widen"
    wider_zh = "变宽了" if min(spread[1:]) > spread[0] else "并没有变宽"
    return both(
        f"With base 10,000 and d = 128, {published.pairs} of 64 pairs have not finished a turn after 4,096 tokens; "
        f"longer texts show them angles that training never did. A small model trained on {trained} bytes "
        f"({own.pairs} of {own.dim // 2} pairs unfinished) has a loss of {whole[0]:.2f} within that length and "
        f"{whole[1]:.2f}, {whole[2]:.2f}, {whole[3]:.2f} in the stretches after it. Shown the last {trained} bytes "
        f"only, so that no distance is new, it stays at {windowed[1]:.2f}, {windowed[2]:.2f}, {windowed[3]:.2f} on "
        f"the same text: the unseen distances are what hurts. At the end {found.beyond:.0%} of the attention goes to "
        f"them. The distribution of scores {wider} there: their standard deviation is {spread[0]:.2f} at trained "
        f"distances and {min(spread[1:]):.2f} to {max(spread[1:]):.2f} beyond (99.9 % quantile of the size "
        f"{largest[0]:.1f}, and {min(largest[1:]):.1f} to {max(largest[1:]):.1f}).",
        f"底数 10,000、d = 128 时，64 对中有 {published.pairs} 对在 4,096 个词元后仍未转完一圈，更长的文本会出现训练中"
        f"从未见过的角度。一个在 {trained} 字节上训练的小模型（{own.dim // 2} 对中 {own.pairs} 对未转完）在该长度内损"
        f"失为 {whole[0]:.2f}，之后各段为 {whole[1]:.2f}、{whole[2]:.2f}、{whole[3]:.2f}。若只让它看最近 {trained} 字"
        f"节、不出现新的距离，同样的文本上为 {windowed[1]:.2f}、{windowed[2]:.2f}、{windowed[3]:.2f}：有害的正是没见过"
        f"的距离。末段有 {found.beyond:.0%} 的注意力落在这些距离上。分数的分布在那里{wider_zh}：训练过的距离上标准差"
        f"为 {spread[0]:.2f}，之外为 {min(spread[1:]):.2f} 到 {max(spread[1:]):.2f}（绝对值的 99.9% 分位数为 "
        f"{largest[0]:.1f}，之外为 {min(largest[1:]):.1f} 到 {max(largest[1:]):.1f}）。",
    )
