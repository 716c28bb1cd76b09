"""The shift test: say of every token that it stands further on, and see which schemes notice.

A relative scheme gives scores that depend on distances, so the same words at positions 0 ... n and k ... n + k are the
same text: what was learned at one place holds at every other. An absolute one has to learn it place by place, and a
table ends with its last row. Small decoders are trained alike, then read texts half as long as those they were trained
on, at the beginning and further on: at no offset up to one half has a table a row that it was not trained on.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.schemes import SCHEMES, logits_at, told_by
from cutaway.labs.training import fit, fresh, loss_of, next_bytes, prose, small_spec
from cutaway.models.decoder import Decoder

TRAINED_BYTES, READ = 768, 16  # of each step; texts read
EXACT = 1e-9
NAMES = [name for name, scheme in SCHEMES.items() if scheme.kind != "none"]


class Shifted(NamedTuple):
    """Against the same texts at offset 0. moved: largest change of a logit. changed: share of likeliest bytes that are
    others. loss: nats per byte. None where a table has no row."""

    offset: int
    moved: float | None
    changed: float | None
    loss: float | None


class Outcome(NamedTuple):
    """added: parameters that the scheme has. read: by offset, the first is 0."""

    name: str
    added: int
    read: list[Shifted]

    @property
    def kind(self) -> str:
        return SCHEMES[self.name].kind


@lab(
    "shift-test",
    title=both("The shift test", "平移测试"),
    question=both(
        "Learned tables, relative biases, rotations: what are the alternatives and why prefer relative ones?",
        "可学习的表、相对偏置、旋转：有哪些方案，为什么偏爱相对的？",
    ),
    seconds={"quick": 6, "full": 45},
)
def shift_test(
    run: Run,
    *,
    trained: Annotated[int, Knob("trained length, bytes", "训练长度（字节）", quick=64, min=16, max=512)] = 128,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=50, min=10, max=20_000)] = 500,
    far: Annotated[int, Knob("an offset beyond all training", "远超训练长度的偏移", min=512, max=10**6)] = 1000,
) -> Finding:
    offsets = [0, 1, trained // 8, trained // 4, trained // 2, far]
    found = [outcome(name, trained, steps, offsets, run) for name in NAMES]
    return Finding(
        table=_table(found), plot=_plot(found), verdict=_verdict(found, trained), checks=_checks(found, trained)
    )


def outcome(name: str, trained: int, steps: int, offsets: list[int], run: Run) -> Outcome:
    """Train a model on the beginning of the text and shift what it reads of the end, in float64."""
    text = prose()
    cut = len(text) * 9 // 10
    model = train(name, text[:cut], trained, steps, run)
    bare = sum(p.numel() for p in fresh(told_by("no positions", model.spec), 0).parameters())
    added = sum(p.numel() for p in model.parameters()) - bare
    generator = torch.Generator().manual_seed(10_000)
    inputs_T, targets_T, lengths = next_bytes(text[cut:], trained // 2, READ)(generator)
    texts_NT, targets_NT = (x.unflatten(0, (len(lengths), -1)) for x in (inputs_T, targets_T))
    plain_NTV = logits_at(model.double(), texts_NT)
    return Outcome(name, added, [shifted(model, texts_NT, targets_NT, plain_NTV, offset) for offset in offsets])


def train(name: str, text: Tensor, length: int, steps: int, run: Run) -> Decoder:
    """A small decoder with the positions of `SCHEMES[name]`, on stretches of `length` bytes."""
    model = fresh(told_by(name, small_spec(context=length)), run.seed, std=0.05)
    task = next_bytes(text, length, TRAINED_BYTES // length)
    fit(model.parameters(), lambda g: loss_of(model, task(g)), steps, run, name, seed=run.seed, lr=5e-3, warmup=10)
    return model


def shifted(model: Decoder, texts_NT: Tensor, targets_NT: Tensor, plain_NTV: Tensor, offset: int) -> Shifted:
    """See `Shifted`."""
    if not readable(model, offset + texts_NT.shape[1] - 1):
        return Shifted(offset, None, None, None)
    logits_NTV = logits_at(model, texts_NT, offset)
    changed_NT = logits_NTV.argmax(-1) != plain_NTV.argmax(-1)
    loss = F.cross_entropy(logits_NTV.flatten(0, 1), targets_NT.flatten())
    return Shifted(offset, float((logits_NTV - plain_NTV).abs().max()), float(changed_NT.double().mean()), float(loss))


def readable(model: Decoder, position: int) -> bool:
    """Whether a token can stand there at all: tried."""
    try:
        logits_at(model, torch.zeros(1, 1, dtype=torch.long), position)
    except IndexError:
        return False
    return True


# ---- what it comes to


def _table(found: list[Outcome]) -> Table:
    columns = {
        "scheme": "",
        "kind": "",
        "parameters": "",
        "offset": "tokens",
        "largest change of a logit": "",
        "predictions changed": "%",
        "loss": "nats/byte",
    }
    rows: list[list[Cell]] = [
        [o.name, o.kind, o.added, s.offset, s.moved, None if s.changed is None else 100 * s.changed, s.loss]
        for o in found
        for s in o.read
    ]
    return table(columns, rows)


def _plot(found: list[Outcome]) -> Plot:
    def series(outcome: Outcome) -> Series:
        points = [(float(s.offset), 100 * s.changed) for s in outcome.read[:-1] if s.changed is not None]
        return Series(name=outcome.name, x=[x for x, _ in points], y=[y for _, y in points])

    return Plot(
        kind="line",
        x=Axis(label="offset added to every position"),
        y=Axis(label="predictions that change, %"),
        series=[series(o) for o in found],
    )


def _largest(outcome: Outcome) -> float:
    """The largest change of a logit at any offset."""
    return max(s.moved for s in outcome.read if s.moved is not None)


def _checks(found: list[Outcome], trained: int) -> list[Check]:
    relative = {o.name: _largest(o) for o in found if o.kind == "relative"}
    absolute = {o.name: o.read[-2].moved or 0.0 for o in found if o.kind == "absolute"}
    table_ = found[0]
    told = ", ".join(f"{name} {moved:.0e}" for name, moved in relative.items())
    moves = ", ".join(f"{name} {moved:.1f}" for name, moved in absolute.items())
    return [
        check(
            max(relative.values()) < EXACT,
            f"an offset leaves the logits of relative schemes unchanged ({told})",
            f"平移后，相对方案的 logits 不变（{told}）",
        ),
        check(
            min(absolute.values()) > 0.1,
            f"and moves those of absolute ones, at offsets that training covered ({moves})",
            f"绝对方案的 logits 则会变，即便偏移仍在训练范围内（{moves}）",
        ),
        check(
            table_.read[-2].moved is not None and table_.read[-1].moved is None,
            f"a learned table of {trained} rows reads position {trained - 1} and has no row past it",
            f"{trained} 行的可学习表能读到位置 {trained - 1}，之后没有行",
        ),
        check(
            [o.added for o in found if o.name in ("rotary", "ALiBi", "sinusoids")] == [0, 0, 0],
            "rotation, ALiBi and sinusoids have no parameters",
            "旋转、ALiBi 与正余弦都没有参数",
        ),
    ]


def _verdict(found: list[Outcome], trained: int) -> Words:
    at = {o.name: o for o in found}
    table_, waves, t5 = at["learned table"], at["sinusoids"], at["T5 buckets"]
    half, far = (table_.read[-2], waves.read[-2]), waves.read[-1]
    other = [100 * (s.changed or 0) for s in half]
    begin = ", ".join(f"{name} {o.read[0].loss:.2f}" for name, o in at.items())
    begin_zh = "、".join(f"{SCHEMES[name].zh} {o.read[0].loss:.2f}" for name, o in at.items())
    exact = max(_largest(o) for o in found if o.kind == "relative")
    return both(
        f"A text moved by {half[0].offset} places, all of them places that training covered, is read otherwise by an "
        f"absolute scheme: {other[0]:.0f}% of the learned table's predictions change and {other[1]:.0f}% of the "
        f"sinusoids' (loss {table_.read[0].loss:.2f} to {half[0].loss:.2f}, and {waves.read[0].loss:.2f} to "
        f"{half[1].loss:.2f}). For T5's buckets, rotation and ALiBi no logit moves by more than {exact:.0e}, at any "
        f"offset up to {far.offset:,}. The biases are never told a position, only distances; rotation is told, and it "
        f"cancels. A table of {trained} rows cannot be asked for row {trained}; sinusoids can be computed at "
        f"{far.offset:,}, where nothing was learned (loss {far.loss:.2f}). The table costs {table_.added:,} "
        f"parameters, the buckets {t5.added}, the others none. Losses at the beginning: {begin}; one seed, so small "
        "differences say nothing.",
        f"把一段文本平移 {half[0].offset} 位（都在训练范围内），绝对方案的读法就不同了：可学习表的预测有 "
        f"{other[0]:.0f}% 改变，正余弦有 {other[1]:.0f}%（损失 {table_.read[0].loss:.2f} 变为 {half[0].loss:.2f}，"
        f"{waves.read[0].loss:.2f} 变为 {half[1].loss:.2f}）。T5 分桶、旋转、ALiBi 在直到 {far.offset:,} 的任何偏移下，"
        f"logits 变动不超过 {exact:.0e}。两种偏置从来不知道位置，只知道距离；旋转知道位置，但会抵消。{trained} 行的表"
        f"问不到第 {trained} 行；正余弦在 {far.offset:,} 处仍能算出，但那里什么也没学过（损失 {far.loss:.2f}）。表要 "
        f"{table_.added:,} 个参数，分桶要 {t5.added} 个，其余不要。起始处的损失：{begin_zh}；只有一个种子，小差别说明"
        "不了什么。",
    )
