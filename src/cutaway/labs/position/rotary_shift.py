"""What rotary positions (Su et al. 2021, arXiv:2104.09864) give over a table that is added to the input.

A real model is told that its text begins at position 1,000: only distances count, so nothing may change, and a passage
that was cached at one place can be moved to another by turning its keys once; its values hold no position at all. A
small model with a learned table, trained beside a rotary one of the same shape, is put to the same questions at
positions that its training covered. Everything is counted in the float32 that models are run in.
"""

from __future__ import annotations

from statistics import mean
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.cache import KVCache, Spans
from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.schemes import logits_at
from cutaway.labs.position.shifting import train
from cutaway.labs.subject import MODEL, decoder, loss_of, reading, subject
from cutaway.labs.training import prose
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.positions import rotate, rotation

LOGITS, LOSS, MOVED = 2e-3, 1e-4, 1e-4
SAME, OTHERWISE = 1e-3, 1e-2  # shares of predictions; a tie may fall either way
SMALL, TEXTS = 128, 32  # the small models' trained length; they read texts half as long, from 0 and from half way


class Shift(NamedTuple):
    """Texts read at an offset, against the same at 0. moved: largest change of a logit. loss: its change, nats.
    changed: share of likeliest tokens that are others."""

    offset: int
    moved: float
    loss: float
    changed: float


class Kept(NamedTuple):
    """A passage cached at 0 and at an offset. keys: largest difference, in units of the largest key. turned: the same
    after one rotation. values: as keys. next_logit: largest difference of the logits of the token that follows, between
    a cache made at 0, its keys turned, and one made at the offset."""

    keys: float
    turned: float
    values: float
    next_logit: float


class Subject(NamedTuple):
    """One model. parameters: its own, and those that know positions. step: largest difference of the last token's
    logits between a step with cache and the whole text at once, both at the offset."""

    name: str
    parameters: int
    positional: int
    shifts: list[Shift]
    step: float
    kept: Kept


@lab(
    "rotary-shift",
    title=both("Rotary positions, moved", "把旋转位置整体平移"),
    question=both(
        "What does rotary encoding give in practice over tables added to the input?",
        "与加到输入上的位置表相比，旋转编码在实践中带来什么？",
    ),
    seconds={"quick": 6, "full": 40},
)
def rotary_shift(
    run: Run,
    *,
    model: Annotated[str, Knob("a rotary model", "使用旋转位置的模型")] = MODEL,
    offset: Annotated[int, Knob("added to all positions", "所有位置都加上它", min=1, max=100_000)] = 1000,
    length: Annotated[int, Knob("tokens of text it reads", "读入文本的词元数", quick=64, min=16, max=4096)] = 512,
    steps: Annotated[
        int, Knob("training steps of the small models", "小模型的训练步数", quick=50, min=10, max=20_000)
    ] = 500,
) -> Finding:
    loaded = subject(model)
    if not all(isinstance(a := layer.attention, AttentionSpec) and a.rope for layer in decoder(loaded).spec.layers):
        raise CutawayError("does not rotate the keys of every layer", model, f"try {MODEL}")
    text_T, tail = reading(loaded, length), prose()[-TEXTS * SMALL // 2 :]
    offsets = sorted({o for o in (1, 10, 100, offset) if o <= offset})
    found = [measured(loaded.name, decoder(loaded), text_T[None], offsets)]
    for name in ("rotary", "learned table"):
        small = train(name, prose()[: -len(tail)], SMALL, steps, run)
        found.append(measured(f"small, {name}", small, tail.unflatten(0, (TEXTS, -1)), [SMALL // 2]))
    return Finding(table=_table(found), plot=_plot(found), verdict=_verdict(found), checks=_checks(found))


@torch.inference_mode()
def measured(name: str, model: Decoder, texts_NT: Tensor, offsets: list[int]) -> Subject:
    """Everything that is asked of one model; the cache of the first text, at the last offset."""
    if offsets[-1] + texts_NT.shape[1] > model.spec.context:
        room = f"{offsets[-1]} + {texts_NT.shape[1]} positions do not fit the context of {model.spec.context}"
        raise CutawayError(room, name, "choose a smaller offset or length")
    table_ = model.embedding.positions
    plain_NTV = logits_at(model, texts_NT)
    return Subject(
        name,
        sum(p.numel() for p in model.parameters()),
        0 if table_ is None else table_.weight.numel(),
        [shift(model, texts_NT, plain_NTV, o) for o in offsets],
        step(model, texts_NT[0], offsets[-1]),
        kept(model, texts_NT[0], offsets[-1]),
    )


def shift(model: Decoder, texts_NT: Tensor, plain_NTV: Tensor, offset: int) -> Shift:
    """See `Shift`."""
    logits_NTV = logits_at(model, texts_NT, offset)
    after, before = (mean(map(loss_of, each, texts_NT)) for each in (logits_NTV, plain_NTV))
    changed_NT = logits_NTV.argmax(-1) != plain_NTV.argmax(-1)
    moved = float((logits_NTV - plain_NTV).abs().max())
    return Shift(offset, moved, after - before, float(changed_NT.float().mean()))


# ---- caches


def cached(model: Decoder, text_T: Tensor, offset: int) -> KVCache:
    """What the model remembers of a text whose first token stands at `offset`."""
    cache = KVCache(model.spec, model.dtype, model.device, len(text_T) + 1)
    model(text_T, torch.arange(len(text_T)) + offset, Spans([(cache, 0, len(text_T))]))
    return cache


def following(model: Decoder, cache: KVCache, token_T: Tensor, count: int, position: int) -> Tensor:
    """Logits_V of one more token after the `count` in the cache, standing at `position`."""
    hidden_TD = model(token_T, torch.tensor([position]), Spans([(cache, count, 1)]))
    return model.logits(hidden_TD)[0]


def step(model: Decoder, text_T: Tensor, offset: int) -> float:
    """See `Subject`: keys that were turned when they came are never turned again."""
    count = len(text_T) - 1
    stepped_V = following(model, cached(model, text_T[:-1], offset), text_T[-1:], count, offset + count)
    return float((stepped_V - logits_at(model, text_T[None], offset)[0, -1]).abs().max())


def kept(model: Decoder, text_T: Tensor, offset: int) -> Kept:
    """See `Kept`."""
    count = len(text_T) - 1
    here, there = (cached(model, text_T[:-1], o) for o in (0, offset))
    plain = differences(here, there, count)
    turn_keys(model, here, count, offset)
    turned = differences(here, there, count)
    after = [following(model, cache, text_T[-1:], count, offset + count) for cache in (here, there)]
    return Kept(plain[0], turned[0], turned[1], float((after[0] - after[1]).abs().max()))


def differences(here: KVCache, there: KVCache, count: int) -> tuple[float, float]:
    """Largest difference of keys and of values, each by the largest number of its layer."""
    pairs = zip(here.buffers, there.buffers, strict=True)
    off = [[_relative(a[:, :count], b[:, :count]) for a, b in zip(*layer, strict=True)] for layer in pairs]
    keys, values = (max(column) for column in zip(*off, strict=True))
    return keys, values


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def turn_keys(model: Decoder, cache: KVCache, count: int, offset: int) -> None:
    """Move a cached text on by `offset`, in place: R(m + offset) k = R(offset) R(m) k. Without rotation, nothing."""
    for layer, (keys_GSK, _) in zip(model.spec.layers, cache.buffers, strict=True):
        attention = layer.attention
        if isinstance(attention, AttentionSpec) and attention.rope is not None:
            turn = rotation(attention.rope, attention.head_dim, torch.tensor([offset]), keys_GSK.dtype)
            keys_GSK[:, :count] = rotate(keys_GSK[:, :count], turn)


# ---- what it comes to


def _table(found: list[Subject]) -> Table:
    columns = {
        "model": "",
        "offset": "tokens",
        "largest change of a logit": "",
        "change of the loss": "nats",
        "predictions changed": "%",
        "parameters for positions": "",
        "a cached step against the whole": "",
        "cached keys, moved": "",
        "cached keys, moved and turned": "",
        "cached values, moved": "",
        "next logits, cache turned": "",
    }
    rows: list[list[Cell]] = []
    for s in found:
        rows += [[s.name, x.offset, x.moved, x.loss, 100 * x.changed, *[None] * 6] for x in s.shifts[:-1]]
        x, k = s.shifts[-1], s.kept
        rows += [[s.name, x.offset, x.moved, x.loss, 100 * x.changed, s.positional, s.step, *k]]
    return table(columns, rows)


def _plot(found: list[Subject]) -> Plot:
    return Plot(
        kind="bar",
        x=Axis(label="all positions moved on, cached passages too"),
        y=Axis(label="change"),
        series=[
            Series(
                name=s.name,
                x=["predictions, share", "cached keys, turned", "cached values"],
                y=[s.shifts[-1].changed, s.kept.turned, s.kept.values],
            )
            for s in found
        ],
    )


def _checks(found: list[Subject]) -> list[Check]:
    real, rotary, learned = found
    last = real.shifts[-1]
    return [
        check(
            last.moved < LOGITS and abs(last.loss) < LOSS,
            f"moving all positions by {last.offset:,} moves the logits of {real.name} by at most {last.moved:.0e} and "
            f"its loss by {abs(last.loss):.0e} nats",
            f"所有位置平移 {last.offset:,}，{real.name} 的 logits 最多变 {last.moved:.0e}，损失变 {abs(last.loss):.0e} "
            f"奈特",
        ),
        check(
            learned.shifts[-1].changed > OTHERWISE and rotary.shifts[-1].changed < SAME,
            f"of two small models trained alike, the one with a table changes {learned.shifts[-1].changed:.1%} of its "
            f"predictions when moved, the rotary one {rotary.shifts[-1].changed:.1%}",
            f"两个同样训练的小模型平移后，用表的改变 {learned.shifts[-1].changed:.1%} 的预测，旋转的 "
            f"{rotary.shifts[-1].changed:.1%}",
        ),
        check(
            real.positional == rotary.positional == 0
            and learned.parameters - rotary.parameters == learned.positional > 0,
            f"rotation has no parameters; all that the small models differ by are the table's {learned.positional:,}",
            f"旋转没有参数；两个小模型只差表的 {learned.positional:,} 个参数",
        ),
        check(
            real.step < LOGITS,
            f"keys cached as they came serve every later query: a step differs from the whole by {real.step:.0e}",
            f"缓存的键一直有效：单步与整段相差 {real.step:.0e}",
        ),
        check(
            max(real.kept.turned, real.kept.values) < MOVED < 0.1 < real.kept.keys and real.kept.next_logit < LOGITS,
            f"a cached passage moves by one turn of its keys (off by {real.kept.turned:.0e} of the largest), its "
            f"values stay (off by {real.kept.values:.0e})",
            f"缓存的段落只需把键再转一次即可挪位（误差为最大值的 {real.kept.turned:.0e}），值不变"
            f"（{real.kept.values:.0e}）",
        ),
    ]


def _verdict(found: list[Subject]) -> Words:
    real, rotary, learned = found
    last, moved, small = real.shifts[-1], learned.shifts[-1], rotary.shifts[-1]
    return both(
        f"Told that its text begins at {last.offset:,}, {real.name} gives the same logits to {last.moved:.0e} and the "
        f"same loss to {abs(last.loss):.0e} nats. Of two small models of one shape, trained alike on {SMALL} bytes and "
        f"read at offset {moved.offset}, where the table's rows are trained too, the rotary one changes "
        f"{small.changed:.0%} of its predictions, the one with a table {moved.changed:.0%} (logits by up to "
        f"{moved.moved:.1f}, loss by {moved.loss:+.3f}). Rotation has no parameters, the table {learned.positional:,}. "
        f"Cached keys stay valid as they came (a step differs from the whole by {real.step:.0e}), and a whole cached "
        f"passage can be moved: its keys, off by {real.kept.keys:.1f} of the largest, are right to "
        f"{real.kept.turned:.0e} after one turn, its values to {real.kept.values:.0e} as they are; the token that "
        f"follows gets the same logits to {real.kept.next_logit:.0e}. In the model with a table position is mixed "
        f"into everything: values are off by {learned.kept.values:.2f} of the largest, and nothing can be turned.",
        f"告诉 {real.name} 文本从 {last.offset:,} 开始，它的 logits 相差 {last.moved:.0e}，损失相差 "
        f"{abs(last.loss):.0e} 奈特。两个形状相同、同样在 {SMALL} 字节上训练的小模型，在偏移 {moved.offset} 处阅读（表"
        f"的这些行也训练过）：旋转的一个改变 {small.changed:.0%} 的预测，用表的改变 {moved.changed:.0%}（logits 最多变 "
        f"{moved.moved:.1f}，损失变 {moved.loss:+.3f}）。旋转不加参数，表要 {learned.positional:,} 个。缓存的键一直有效"
        f"（单步与整段相差 {real.step:.0e}），整段缓存还能挪位：键原本偏差为最大值的 {real.kept.keys:.1f}，再转一次后只"
        f"差 {real.kept.turned:.0e}，值原样就只差 {real.kept.values:.0e}；下一个词元的 logits 相差 "
        f"{real.kept.next_logit:.0e}。用表的模型把位置混进了一切：值偏差为最大值的 {learned.kept.values:.2f}，无从"
        f"转起。",
    )
