"""Is training on packed documents the same as training on each by itself?

Documents are laid end to end into one sequence, as packed training does. Three things keep them apart: a mask by
blocks, positions that begin anew, and no question about a document's last token. Each is left out in turn, in float64,
on a model with rotary positions and on one with a learned table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import IGNORED, fresh, small_spec, with_layers
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal
from cutaway.nn.embedding import EmbeddingSpec


class Rules(NamedTuple):
    """What keeps documents apart."""

    blocks: bool = True
    reset: bool = True
    boundary: bool = True


ARMS = {
    "packed": Rules(),
    "without the block mask": Rules(blocks=False),
    "without the position reset": Rules(reset=False),
    "without the boundary-label mask": Rules(boundary=False),
}


class Outcome(NamedTuple):
    """Largest differences from documents by themselves, relative to the largest number: of logits and gradients."""

    positions: str
    arm: str
    logits: float
    gradient: float


@lab(
    "packing",
    title=both("Packed documents, and what keeps them apart", "打包的文档靠什么互不干扰"),
    question=both(
        "Is training on packed rows really the same as training on separate documents?",
        "把文档打包在一行里训练，真的等同于分开训练吗？",
    ),
    seconds={"quick": 1, "full": 2},
)
def packing(
    run: Run,
    *,
    documents: Annotated[int, Knob("documents", "文档数", quick=6, min=2, max=200)] = 12,
    longest: Annotated[int, Knob("tokens of the longest", "最长文档的词元数", quick=60, min=8, max=1000)] = 120,
) -> Finding:
    generator = run.generator()
    lengths = torch.randint(3, longest + 1, (documents,), generator=generator).tolist()
    texts = [torch.randint(256, (n,), generator=generator) for n in lengths]
    found = [
        outcome(positions, arm, model(positions, sum(lengths), run), texts)
        for positions in run.each(("rotary", "learned"), "positions")
        for arm in ARMS
    ]
    wasted = waste(lengths, longest)
    return Finding(
        table=_table(found, wasted), plot=_plot(found), verdict=_verdict(found, wasted), checks=_checks(found)
    )


def model(positions: str, context: int, run: Run) -> Decoder:
    """A fresh one in float64, its matrices large enough for attention to matter."""
    spec = small_spec(width=32, heads=4, kv_heads=2, context=context)
    if positions == "learned":
        spec = replace(with_layers(spec, unrotated), embedding=EmbeddingSpec(positions=context))
    return fresh(spec, run.seed, std=0.2).double()


def unrotated(layer: LayerSpec) -> LayerSpec:
    """The same without rotation."""
    assert isinstance(layer.attention, AttentionSpec)
    return replace(layer, attention=replace(layer.attention, rope=None))


def next_tokens(texts: list[Tensor], boundary: bool) -> Tensor:
    """targets_T of documents end to end. boundary: nothing is asked where a document ends; else its neighbor's first
    token is."""
    targets_T = torch.cat(texts).roll(-1)
    targets_T[-1] = IGNORED
    if boundary:
        ends = torch.tensor([len(text) for text in texts]).cumsum(0) - 1
        targets_T[ends] = IGNORED
    return targets_T


def answered(model: Decoder, texts: list[Tensor], rules: Rules) -> tuple[Tensor, list[Tensor]]:
    """logits_TV and all gradients of the summed loss, documents end to end."""
    lengths = [len(text) for text in texts]
    context = BlockDiagonal(lengths if rules.blocks else [sum(lengths)])
    positions_T = positions_of(lengths if rules.reset else [sum(lengths)])
    logits_TV = model.logits(model(torch.cat(texts), positions_T, context))
    targets_T = next_tokens(texts, rules.boundary)
    loss = F.cross_entropy(logits_TV, targets_T, ignore_index=IGNORED, reduction="sum")
    return logits_TV.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def separately(model: Decoder, texts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The same, each document by itself and without help from `answered`."""
    logits, totals = [], [torch.zeros_like(p) for p in model.parameters()]
    for text in texts:
        logits_TV = model.logits(model(text, torch.arange(len(text)), BlockDiagonal([len(text)])))
        logits.append(logits_TV.detach())
        loss = -logits_TV[:-1].log_softmax(-1)[torch.arange(len(text) - 1), text[1:]].sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        totals = [total + gradient for total, gradient in zip(totals, gradients, strict=True)]
    return torch.cat(logits), totals


def outcome(positions: str, arm: str, model: Decoder, texts: list[Tensor]) -> Outcome:
    """One arm against documents by themselves."""
    (logits, gradients), (wanted, wanted_gradients) = answered(model, texts, ARMS[arm]), separately(model, texts)
    off = max(apart(a, b) for a, b in zip(gradients, wanted_gradients, strict=True))
    return Outcome(positions, arm, apart(logits, wanted), off)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def waste(lengths: list[int], row: int) -> dict[str, float]:
    """Share of slots that hold no token: a row per document, rows filled first-fit, and end to end."""
    rows: list[int] = []
    for n in sorted(lengths, reverse=True):
        at = next((i for i, used in enumerate(rows) if used + n <= row), None)
        rows = [*rows, n] if at is None else [used + n * (i == at) for i, used in enumerate(rows)]
    total = sum(lengths)
    return {
        "a padded row each": 1 - total / (len(lengths) * row),
        "packed into rows": 1 - total / (len(rows) * row),
        "end to end": 0.0,
    }


def _table(found: list[Outcome], wasted: dict[str, float]) -> Table:
    columns = {"what": "", "positions": "", "logits apart": "", "gradients apart": "", "wasted slots": "%"}
    arms: list[list[Cell]] = [[o.arm, o.positions, o.logits, o.gradient, None] for o in found]
    return table(columns, arms + [[name, None, None, None, 100 * share] for name, share in wasted.items()])


def _plot(found: list[Outcome]) -> Plot:
    return Plot(
        kind="bar",
        x=Axis(label="what is left out"),
        y=Axis(label="gradients apart, relative"),
        series=[
            Series(name=f"{kind} positions", x=list(ARMS), y=[o.gradient for o in found if o.positions == kind])
            for kind in ("rotary", "learned")
        ],
    )


def _checks(found: list[Outcome]) -> list[Check]:
    by = {(o.positions, o.arm): o for o in found}
    packed = [o for o in found if o.arm == "packed"]
    logits, gradient = max(o.logits for o in packed), max(o.gradient for o in packed)
    masks = [by[kind, arm] for kind in ("rotary", "learned") for arm in list(ARMS)[1::2]]
    table_, turned = (by[kind, "without the position reset"] for kind in ("learned", "rotary"))
    return [
        check(
            logits < 1e-5 and gradient < 1e-6,
            f"packed, logits equal those of separate documents to {logits:.0e} and gradients to {gradient:.0e}",
            f"打包后 logits 与分开的文档相差 {logits:.0e}，梯度相差 {gradient:.0e}",
        ),
        check(
            min(o.gradient for o in masks) > 1e-3,
            f"without the block mask or the boundary-label mask gradients are off by "
            f"{min(o.gradient for o in masks):.0%} or more",
            f"去掉块掩码或边界标签掩码，梯度至少偏差 {min(o.gradient for o in masks):.0%}",
        ),
        check(
            table_.gradient > 1e-3 and turned.gradient < 1e-6,
            f"without the position reset a learned table's gradients are off by {table_.gradient:.0%}; rotary "
            f"positions do not notice ({turned.gradient:.0e}), for only distances within a document count",
            f"不重置位置时，可学习位置表的梯度偏差 {table_.gradient:.0%}；旋转位置不受影响（{turned.gradient:.0e}），"
            "因为只有文档内的距离起作用",
        ),
    ]


def _verdict(found: list[Outcome], wasted: dict[str, float]) -> Words:
    by = {(o.positions, o.arm): o for o in found}
    packed = max(o.gradient for o in found if o.arm == "packed")
    off = [by["learned", arm].gradient for arm in list(ARMS)[1:]]
    return both(
        f"Yes, if three things hold: documents do not see each other, their positions begin anew, and nobody is asked "
        f"for the token after a document's last. Then gradients agree to {packed:.0e}. With learned positions, "
        f"leaving one out changes gradients by {off[0]:.0%}, {off[1]:.0%} and {off[2]:.0%}; with rotary positions the "
        f"reset changes nothing. Padded to the longest, {wasted['a padded row each']:.0%} of the slots would be empty, "
        f"packed into rows of that length {wasted['packed into rows']:.0%}, end to end none.",
        f"是的，只要三点成立：文档互不可见、位置各自从头开始、不要求预测文档末尾之后的词元。此时梯度相差 {packed:.0e}。"
        f"用可学习位置时，少其中一点梯度分别改变 {off[0]:.0%}、{off[1]:.0%}、{off[2]:.0%}；用旋转位置时，重置与否没有"
        f"区别。按最长文档填充会空出 {wasted['a padded row each']:.0%} 的位置，打包成同样长的行空出 "
        f"{wasted['packed into rows']:.0%}，首尾相接则没有。",
    )
