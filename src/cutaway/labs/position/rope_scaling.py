"""Slowing rotary positions so that a longer text fits: what each way does to which frequency, and untuned to a model.

Interpolation (Chen et al. 2023, arXiv:2306.15595) slows all pairs alike and so blurs neighbors, too; NTK-aware
scaling, YaRN (Peng et al. 2023, arXiv:2309.00071) and Llama 3.1's rule leave the fast pairs alone, in that each pair
is slowed by a factor between one and the whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, loss_of, reading, subject
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.positions import RopeScaling, RopeSpec, rope_frequencies

KINDS: dict[str, dict[str, float]] = {
    "linear": {},
    "ntk": {},
    "dynamic": {},
    "yarn": {"low": 1.0, "high": 32.0},
    "llama3": {"low": 1.0, "high": 4.0},
}


@dataclass(frozen=True)
class Slowed:
    """One kind of scaling: by how much it slows each pair, and the model's loss under it, without tuning."""

    kind: str
    slowdown_k: list[float]
    loss: float


@lab(
    "rope-scaling",
    title=both("Interpolation, NTK and YaRN, pair by pair", "逐对看线性插值、NTK 与 YaRN"),
    question=both(
        "What do linear interpolation and NTK-aware scaling each do to the frequencies?",
        "线性插值和 NTK 缩放分别对频率做了什么？",
    ),
    seconds={"quick": 4, "full": 15},
)
def rope_scaling(
    run: Run,
    *,
    factor: Annotated[float, Knob("how many times longer a text may be", "文本可变长多少倍", min=1.1, max=128)] = 4.0,
    squeeze: Annotated[
        float, Knob("by how much the model is slowed, untuned", "不经微调把模型放慢多少倍", min=1.1, max=64)
    ] = 2.0,
    model: Annotated[str, Knob("the model that is slowed", "被放慢的模型")] = MODEL,
    length: Annotated[int, Knob("tokens of text it reads", "读入文本的词元数", quick=96, min=32, max=8192)] = 512,
) -> Finding:
    loaded = subject(model)
    spec, tokens_T = decoder(loaded).spec, reading(loaded, length)
    a = spec.layers[0].attention
    if not isinstance(a, AttentionSpec) or a.rope is None:
        raise CutawayError("does not rotate queries and keys", loaded.name, f"try {MODEL}")
    plain_k = rope_frequencies(RopeSpec(a.rope.base), a.head_dim)
    unscaled = untuned(decoder(loaded), tokens_T, None)
    found = [
        Slowed(
            kind,
            (plain_k / frequencies(a.rope.base, a.head_dim, scaling(kind, factor, spec.context), factor)).tolist(),
            untuned(decoder(loaded), tokens_T, scaling(kind, squeeze, spec.context)),
        )
        for kind in run.each(list(KINDS), "scaling")
    ]
    turns_k = (spec.context * plain_k / (2 * math.pi)).tolist()
    return Finding(
        table=_table(turns_k, found, unscaled),
        plot=_plot(turns_k, found),
        verdict=_verdict(found, factor, squeeze, unscaled),
        checks=_checks(found, factor, squeeze, unscaled),
    )


def scaling(kind: str, factor: float, context: int) -> RopeScaling:
    """A scaling of a model trained on `context` tokens, with its kind's usual constants."""
    return RopeScaling(kind, factor, original_context=context, **KINDS[kind])  # type: ignore[arg-type]


def frequencies(base: float, head_dim: int, scaling: RopeScaling, factor: float) -> Tensor:
    """Of each pair, at the end of a text `factor` times as long as the model was trained on."""
    return rope_frequencies(RopeSpec(base, scaling), head_dim, reach=round(factor * scaling.original_context))


@torch.inference_mode()
def untuned(model: Decoder, tokens_T: Tensor, scaling: RopeScaling | None) -> float:
    """The loss of the same weights with rotations slowed."""
    twin, layers = copy.copy(model), []
    for layer in model.spec.layers:
        assert isinstance(layer.attention, AttentionSpec)
        rope = replace(layer.attention.rope or RopeSpec(), scaling=scaling)
        layers.append(replace(layer, attention=replace(layer.attention, rope=rope)))
    twin.spec = replace(model.spec, layers=tuple(layers))
    return loss_of(logits_of(twin, tokens_T), tokens_T)


def _table(turns_k: list[float], found: Sequence[Slowed], unscaled: float) -> Table:
    columns = {"pair": "", "full turns within the trained context": ""}
    columns |= {f"{f.kind}: slower by": "times" for f in found}
    rows: list[list[Cell]] = [
        [str(j), turns, *(f.slowdown_k[j] for f in found)] for j, turns in enumerate(turns_k) if j % 4 in (0, 3)
    ]
    return table(columns, [*rows, [f"loss, untuned (unscaled {unscaled:.3f})", None, *(f.loss for f in found)]])


def _plot(turns_k: list[float], found: Sequence[Slowed]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="full turns of the pair within the trained context", log=True),
        y=Axis(label="slower by", log=True),
        series=[Series(name=f.kind, x=turns_k, y=f.slowdown_k) for f in found],
    )


def _near(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=1e-9)


def _checks(found: Sequence[Slowed], factor: float, squeeze: float, unscaled: float) -> list[Check]:
    by_kind = {f.kind: f for f in found}
    linear, ntk = by_kind["linear"], by_kind["ntk"]
    within = all(1 - 1e-9 <= s <= factor + 1e-9 for f in found if f.kind != "dynamic" for s in f.slowdown_k)
    return [
        check(
            all(_near(s, factor) for s in linear.slowdown_k),
            f"interpolation slows every pair by {factor:g}",
            f"线性插值把每一对都放慢 {factor:g} 倍",
        ),
        check(
            _near(ntk.slowdown_k[0], 1) and _near(ntk.slowdown_k[-1], factor),
            f"NTK leaves the fastest pair alone and slows the slowest by {factor:g}",
            f"NTK 不动最快的一对，把最慢的一对放慢 {factor:g} 倍",
        ),
        check(
            within and all(_near(f.slowdown_k[0], 1) for f in found if f is not linear),
            "all kinds but interpolation leave the fastest pair alone; none but dynamic exceeds the factor",
            "除线性插值外都不动最快的一对；除动态缩放外都不超过该倍数",
        ),
        check(
            linear.loss > unscaled + 0.05,
            f"squeezing positions by {1 / squeeze:g} without tuning raises the model's loss "
            f"({unscaled:.3f} to {linear.loss:.3f})",
            f"不经微调把位置压缩到 {1 / squeeze:g} 会使模型损失上升（{unscaled:.3f} 到 {linear.loss:.3f}）",
        ),
    ]


def _verdict(found: Sequence[Slowed], factor: float, squeeze: float, unscaled: float) -> Words:
    dynamic = next(f for f in found if f.kind == "dynamic")
    ranked = sorted(found, key=lambda f: f.loss)
    losses, zh = (sep.join(f"{f.kind} {f.loss:.3f}" for f in ranked) for sep in (", ", "、"))
    return both(
        f"Interpolation slows all pairs by {factor:g}, the fast ones that tell neighbors apart included. NTK enlarges "
        f"the base instead: nothing for the fastest pair, {factor:g} for the slowest, in between a geometric passage; "
        f"YaRN and Llama 3.1 keep all pairs that turn often and slow all that turn rarely. At {factor:g} times the "
        f"trained length dynamic NTK slows the slowest pair by {dynamic.slowdown_k[-1]:.1f}, more than the factor. "
        f"Slowed by {squeeze:g} without any tuning, on a text that would have fitted, the model's loss goes from "
        f"{unscaled:.3f} to: {losses} (dynamic does nothing before a text is too long).",
        f"线性插值把所有频率对都放慢 {factor:g} 倍，连负责区分相邻词元的快频率也不例外。NTK 则增大底数：最快的一对不"
        f"变，最慢的一对放慢 {factor:g} 倍，中间按几何级数过渡；YaRN 与 Llama 3.1 保留转得多的频率对，只放慢转得少的。"
        f"在训练长度的 {factor:g} 倍处，动态 NTK 把最慢的一对放慢 {dynamic.slowdown_k[-1]:.1f} 倍，超过该倍数。不经微"
        f"调放慢 {squeeze:g} 倍、文本本来就放得下时，模型损失从 {unscaled:.3f} 变为：{zh}（文本未超长时动态缩放不起作"
        f"用）。",
    )
