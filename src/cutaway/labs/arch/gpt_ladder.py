"""From the decoder of 2017 (Vaswani et al., arXiv:1706.03762) to GPT-2 (Radford et al. 2019), one change at a time.

Each rung is a `Spec` that differs from the one before in one respect; the last is GPT-2's own, field for field. What a
rung costs is counted at GPT-2's published sizes, what it does to training is tried on small models of English bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, NamedTuple

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit, fresh, held_out, loss_of, next_bytes, prose
from cutaway.models.cost import Cost
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.models.spec import HeadSpec, LayerSpec, PoolingSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import FeedForwardSpec

LENGTH, ROWS = 96, 8  # bytes of a training sequence, sequences of a step
Change = Callable[[Spec], Spec]


class Rung(NamedTuple):
    """change: from the spec of the rung above."""

    name: str
    zh: str
    change: Change


class Tried(NamedTuple):
    """parameters: at GPT-2's size, of the decoder. losses: of small models, nats per byte; none if it has a source."""

    rung: Rung
    parameters: int
    losses: list[float]


def gpt2(width: int = 768, layers: int = 12, heads: int = 12, context: int = 1024, vocab: int = 50257) -> Spec:
    """GPT-2 as its config.json describes it."""
    config = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context, "vocab_size": vocab}
    return spec_of(FAMILIES["gpt2"], config)


def original(target: Spec) -> Spec:
    """The decoder of 2017 at the sizes of `target`, reading a source of the same depth; its head is tied as there."""
    block = target.layers[0]
    assert isinstance(block.attention, AttentionSpec)
    assert isinstance(block.ffn, FeedForwardSpec)
    layer = replace(block, placement="post", ffn=replace(block.ffn, activation="relu"))
    both_ways = replace(block.attention, causal=False)
    embedding = EmbeddingSpec(scale=target.width**0.5, sinusoidal=True)
    plain = replace(target, embedding=embedding, final_norm=None)
    reader = replace(
        plain, head=None, pooling=PoolingSpec(), layers=(replace(layer, attention=both_ways),) * len(target.layers)
    )
    decoding = replace(layer, cross=both_ways)
    return replace(plain, layers=(decoding,) * len(target.layers), encoder=reader)


def every_layer(change: Callable[[LayerSpec], LayerSpec]) -> Change:
    """The same change in all layers."""
    return lambda spec: replace(spec, layers=tuple(map(change, spec.layers)))


norms_first = every_layer(lambda layer: replace(layer, placement="pre"))


def ladder(target: Spec) -> tuple[Rung, ...]:
    """The changes that lead from `original` to `target`."""
    return (
        Rung("the decoder of 2017", "2017 年的解码器", lambda spec: spec),
        Rung(
            "no source, no cross-attention",
            "去掉源序列与交叉注意力",
            lambda spec: replace(spec, encoder=None, layers=tuple(replace(x, cross=None) for x in spec.layers)),
        ),
        Rung("learned positions", "可学习的位置", lambda spec: replace(spec, embedding=target.embedding)),
        Rung("GELU", "GELU", every_layer(lambda x: replace(x, ffn=target.layers[0].ffn))),
        Rung(
            "norms before, and a final one",
            "归一化前置，末尾再加一个",
            lambda spec: every_layer(lambda x: replace(x, placement="pre"))(
                replace(spec, final_norm=target.final_norm)
            ),
        ),
    )


def rungs(target: Spec) -> list[tuple[Rung, Spec]]:
    """Every rung and the spec that it leads to."""
    found, spec = [], original(target)
    for rung in ladder(target):
        spec = rung.change(spec)
        found.append((rung, spec))
    return found


@lab(
    "gpt-ladder",
    title=both("From the decoder of 2017 to GPT-2, rung by rung", "从 2017 年的解码器到 GPT-2，一级一级"),
    question=both("Which changes turn the 2017 decoder into a GPT?", "哪些改动把 2017 年的解码器变成了 GPT？"),
    seconds={"quick": 5, "full": 150},
)
def gpt_ladder(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the trained models", "训练模型的宽度", quick=32, min=16, max=512)] = 64,
    layers: Annotated[int, Knob("their blocks", "层数", quick=2, min=1, max=16)] = 4,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=30, min=1, max=10**5)] = 300,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
) -> Finding:
    published, small = gpt2(), gpt2(width, layers, 4, LENGTH, 256)
    specs = [spec for _, spec in rungs(small)]
    tried = [
        Tried(rung, decoding(spec), [] if tiny.encoder else [trained(rung, tiny, steps, s, run) for s in range(seeds)])
        for (rung, spec), tiny in zip(rungs(published), specs, strict=True)
    ]
    names = [t.rung.name for t in tried]
    untied = Cost(replace(published, head=HeadSpec(tied=False))).parameters
    return Finding(
        table=table(
            {"rung": "", "parameters": "", "more than above": "", "loss, mean": "nats/byte", "spread": "max - min"},
            _rows(tried, untied),
        ),
        plot=Plot(
            kind="bar",
            x=Axis(label="rung"),
            y=Axis(label="parameters of the decoder"),
            series=[Series(name="at GPT-2's size", x=names, y=[float(t.parameters) for t in tried])],
        ),
        verdict=_verdict(tried, untied),
        checks=_checks(tried, rungs(published)[-1][1] == published),
    )


def decoding(spec: Spec) -> int:
    """Parameters without the encoder's."""
    return sum(part.parameters for part in Cost(spec).parts if not part.module.startswith("encoder."))


def trained(rung: Rung, spec: Spec, steps: int, seed: int, run: Run) -> float:
    """Held-out loss after training on nine tenths of the text."""
    model, text = fresh(spec, run.seed + seed), prose()
    cut = len(text) * 9 // 10
    learned, test = (next_bytes(part, LENGTH, ROWS) for part in (text[:cut], text[cut:]))
    fit(model.parameters(), lambda draws: loss_of(model, learned(draws)), steps, run, rung.name, seed=run.seed + seed)
    return held_out(model, test, 8)


def _rows(tried: list[Tried], untied: int) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for above, t in zip([None, *tried], tried, strict=False):
        more = t.parameters - above.parameters if above else None
        losses = [statistics.mean(t.losses), max(t.losses) - min(t.losses)] if t.losses else [None, None]
        rows.append([t.rung.name, t.parameters, more, *losses])
    return [*rows, ["a head of its own, which neither has", untied, untied - tried[-1].parameters, None, None]]


def _checks(tried: list[Tried], arrived: bool) -> list[Check]:
    final, cross = tried[-1].parameters, tried[0].parameters - tried[1].parameters
    return [
        check(arrived, "the last rung is GPT-2's spec, field for field", "最后一级与 GPT-2 的规格逐项相同"),
        check(
            final == 124_439_808 and cross == 12 * (4 * 768 * 768 + 4 * 768 + 2 * 768),
            f"counted: {final:,} parameters at the last rung; cross-attention had {cross:,}",
            f"按计数：最后一级 {final:,} 个参数；交叉注意力有 {cross:,} 个",
        ),
    ]


def _verdict(tried: list[Tried], untied: int) -> Words:
    means = {t.rung.name: statistics.mean(t.losses) for t in tried if t.losses}
    said = ", ".join(f"{name} {loss:.3f}" for name, loss in means.items())
    zh = "，".join(f"{t.rung.zh} {statistics.mean(t.losses):.3f}" for t in tried if t.losses)
    first, last = tried[0].parameters, tried[-1].parameters
    return both(
        "Four changes: the source goes and its attention with it, positions are learned, ReLU becomes GELU, norms move "
        f"before the sublayers, with one more at the end. At GPT-2's size {first:,} parameters become {last:,}. The "
        f"head was tied from the start; untied it would add {untied - last:,}. Held-out losses of small models on the "
        f"way: {said}.",
        "四处改动：去掉源序列及其注意力，位置改为学习，ReLU 换成 GELU，归一化移到子层之前并在末尾加一个。"
        f"按 GPT-2 的尺寸，{first:,} 个参数变为 {last:,} 个。输出头从一开始就与嵌入共享；若不共享要多 "
        f"{untied - last:,} 个。沿途小模型的留出损失：{zh}。",
    )
