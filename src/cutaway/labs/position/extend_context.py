"""Four times the context: what is computed beforehand, and what a small model makes of it, before and after tuning.

Interpolation (Chen et al. 2023, arXiv:2306.15595), NTK-aware scaling and YaRN (Peng et al. 2023, arXiv:2309.00071)
slow the rotations of a model that was trained on short texts; a few steps on long ones follow. The control takes the
same steps with rotations as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

from cutaway.budget import shape
from cutaway.budget.published import spec_named
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.lengths import TIMES, by_place, held_out_texts, taught
from cutaway.labs.position.rope_scaling import scaling
from cutaway.labs.training import Batch, fresh, small_spec, with_layers
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.positions import RopeScaling, RopeSpec, rope_frequencies
from cutaway.nn.rope_scaling import attention_factor

METHODS = ("unscaled", "linear", "ntk", "yarn")
BASES, DIM = (1e4, 5e5), 128
TUNING_RATE = 1e-3


class Computed(NamedTuple):
    """For four times the context. squeezed: positions times this. bases: of NTK for `BASES`. caches: bytes, 16 bit.

    agree: the formulas and the rotations that models are given say the same.
    """

    squeezed: float
    bases: list[float]
    lengthened: float
    caches: list[int]
    agree: bool


class Taken(NamedTuple):
    """A method: loss over each stretch of the trained length, before and after tuning on the whole length."""

    method: str
    before: list[float]
    after: list[float]


@lab(
    "extend-context",
    title=both("Four times the context", "四倍上下文"),
    question=both(
        "What does it take to give a trained model four times its context?",
        "把训练好的模型的上下文扩展到四倍，需要什么？",
    ),
    seconds={"quick": 5, "full": 35},
)
def extend_context(
    run: Run,
    *,
    trained: Annotated[int, Knob("trained length, bytes", "训练长度（字节）", quick=32, min=16, max=512)] = 128,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=120, min=20, max=20_000)] = 1000,
    tuning: Annotated[int, Knob("steps on long texts", "长文本上的微调步数", quick=20, min=1, max=5000)] = 50,
    texts: Annotated[int, Knob("held-out texts read", "读入的留出文本数", quick=32, min=8, max=1024)] = 64,
) -> Finding:
    known = computed()
    model = taught(fresh(small_spec(context=TIMES * trained), run.seed), trained, steps, run)
    batches = held_out_texts(TIMES * trained, texts, run.generator())
    found = [take(model, method, batches, tuning, run) for method in METHODS]
    return Finding(
        table=_table(known, found, trained),
        plot=_plot(found, trained),
        verdict=_verdict(known, found, trained, tuning),
        checks=_checks(known, found, tuning),
    )


def computed() -> Computed:
    """From the budget's formulas, compared with `nn.rope_scaling`; the cache is that of Llama 3 8B."""
    by_base = [[figure.value for figure in shape.context(TIMES, base, DIM)] for base in BASES]
    (squeezed, _, lengthened), bases = by_base[0], [values[1] for values in by_base]
    cost = Cost(spec_named("llama-3-8b"))
    caches = [cost.kv_bytes(n * cost.spec.context, 1, "bfloat16").value for n in (1, TIMES)]
    slowest = [float(slowed(base, "ntk")[-1]) for base in BASES]
    pairs = [
        *((w, b ** -((DIM - 2) / DIM)) for w, b in zip(slowest, bases, strict=True)),
        (float(slowed(BASES[0], "linear")[0]), squeezed),
        (attention_factor(scaling("yarn", TIMES, 8192)), lengthened),
    ]
    agree = all(math.isclose(a, b, rel_tol=1e-12) for a, b in pairs)
    return Computed(squeezed, bases, lengthened, caches, agree)


def slowed(base: float, method: str) -> list[float]:
    """Angle per position of each pair."""
    return rope_frequencies(RopeSpec(base, scaling(method, TIMES, 8192)), DIM).tolist()


def rescaled(model: Decoder, how: RopeScaling | None) -> Decoder:
    """The same weights under other rotations."""

    def turned(layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.attention, AttentionSpec)
        return replace(layer, attention=replace(layer.attention, rope=RopeSpec(scaling=how)))

    twin = fresh(with_layers(model.spec, turned), 0)
    twin.load_state_dict(model.state_dict())
    return twin


def take(model: Decoder, method: str, batches: list[Batch], tuning: int, run: Run) -> Taken:
    """One method, read before and after tuning on texts as long as those of the batches."""
    length = batches[0].lengths[0]
    trained = length // TIMES
    twin = rescaled(model, None if method == "unscaled" else scaling(method, TIMES, trained))
    before = by_place(twin, batches, trained)
    taught(twin, length, tuning, run, f"tuning, {method}", lr=TUNING_RATE)
    return Taken(method, before, by_place(twin, batches, trained))


def _table(known: Computed, found: Sequence[Taken], trained: int) -> Table:
    stretches = [f"loss, bytes {i * trained} to {(i + 1) * trained}" for i in range(TIMES)]
    columns = {"quantity": "", "tuned": ""} | dict.fromkeys(stretches, "nats")
    rows: list[list[Cell]] = [
        [t.method, tuned, *losses] for t in found for tuned, losses in ((False, t.before), (True, t.after))
    ]
    gib = [c / 2**30 for c in known.caches]
    numbers = {
        "interpolation: positions times": known.squeezed,
        **{f"NTK: base {b:,.0f} becomes, d = {DIM}": n for b, n in zip(BASES, known.bases, strict=True)},
        "YaRN: queries and keys times": known.lengthened,
        "cache of Llama 3 8B, one sequence of 8,192, GiB": gib[0],
        f"the same at {8192 * TIMES:,}, GiB": gib[1],
    }
    computed: list[list[Cell]] = [[name, None, None, None, None, None, n] for name, n in numbers.items()]
    return table(columns | {"number": ""}, [*([*row, None] for row in rows), *computed])


def _plot(found: Sequence[Taken], trained: int) -> Plot:
    at = [(i + 0.5) * trained for i in range(TIMES)]
    curves = [(f"{t.method}, {when}", y) for t in found for when, y in (("untuned", t.before), ("tuned", t.after))]
    return Plot(
        kind="line",
        x=Axis(label=f"position, bytes (trained on {trained})"),
        y=Axis(label="held-out loss, nats per byte"),
        series=[Series(name=name, x=at, y=losses) for name, losses in curves],
    )


def _rounded(known: Computed) -> tuple[float, ...]:
    gib = (c / 2**30 for c in known.caches)
    return known.squeezed, *(round(b) for b in known.bases), round(known.lengthened, 3), *gib


def _checks(known: Computed, found: Sequence[Taken], tuning: int) -> list[Check]:
    unscaled, linear = found[0], found[1]
    return [
        check(
            _rounded(known) == (0.25, 40_890, 2_044_497, 1.139, 1, 4),
            "factor 4: positions × 0.25; base 10,000 becomes 40,890 and 500,000 becomes 2,044,497; YaRN's factor is "
            "1.139; the cache of Llama 3 8B grows from 1 to 4 GiB",
            "四倍：位置乘 0.25；底数 10,000 变为 40,890，500,000 变为 2,044,497；YaRN 系数为 1.139；Llama 3 8B 的缓存"
            "从 1 增到 4 GiB",
        ),
        check(
            known.agree,
            "the formulas give what models are given, to 12 digits",
            "公式与模型实际使用的数值一致到 12 位",
        ),
        check(
            linear.before[0] > unscaled.before[0],
            f"untuned, interpolation costs texts that fitted: {unscaled.before[0]:.2f} to {linear.before[0]:.2f}",
            f"不微调时，插值使本来放得下的文本变差：{unscaled.before[0]:.2f} 到 {linear.before[0]:.2f}",
        ),
        check(
            linear.after[-1] < linear.before[-1],
            f"{tuning} steps of tuning pay: with interpolation the last quarter goes from {linear.before[-1]:.2f} to "
            f"{linear.after[-1]:.2f}",
            f"{tuning} 步微调有效：插值下最后四分之一从 {linear.before[-1]:.2f} 变为 {linear.after[-1]:.2f}",
        ),
    ]


def _verdict(known: Computed, found: Sequence[Taken], trained: int, tuning: int) -> Words:
    first, last = (
        "; ".join(f"{t.method} {t.before[i]:.2f}, tuned {t.after[i]:.2f}" for t in found) for i in (0, TIMES - 1)
    )
    zh_first, zh_last = (
        "；".join(f"{t.method} {t.before[i]:.2f}，微调后 {t.after[i]:.2f}" for t in found) for i in (0, TIMES - 1)
    )
    best = min(found, key=lambda t: t.after[-1])
    return both(
        f"Slower rotations, a little tuning, and memory. Positions times {known.squeezed}, or NTK's base of "
        f"{known.bases[0]:,.0f} for 10,000 ({known.bases[1]:,.0f} for 500,000) at d = {DIM}, or YaRN with queries and "
        f"keys × {known.lengthened:.3f}; Llama 3 8B then keeps {known.caches[1] / 2**30:g} GiB for a sequence instead "
        f"of {known.caches[0] / 2**30:g}. A small model trained on {trained} bytes, read to {TIMES * trained}: loss in "
        f"the last quarter {last}; within the trained length {first}. After {tuning} steps on long texts the best in "
        f"the last quarter is “{best.method}”.",
        f"需要放慢旋转、少量微调，以及内存。位置乘 {known.squeezed}；或在 d = {DIM} 时把 NTK 底数 10,000 改为 "
        f"{known.bases[0]:,.0f}（500,000 改为 {known.bases[1]:,.0f}）；或用 YaRN 并把查询与键乘 {known.lengthened:.3f}"
        f"。Llama 3 8B 每个序列的缓存从 {known.caches[0] / 2**30:g} 增到 {known.caches[1] / 2**30:g} GiB。在 {trained} "
        f"字节上训练的小模型读到 {TIMES * trained}：最后四分之一的损失 {zh_last}；训练长度之内 {zh_first}。在长文本上微"
        f"调 {tuning} 步之后，最后四分之一最好的是 “{best.method}”。",
    )
