"""Batch statistics against a token's own: what else a normalized token depends on.

Batch normalization takes mean and variance over all tokens of the batch, so in training a token's output depends on
its batch mates, on padding and, in a causal model, on the tokens that it is to predict. At inference running
statistics take their place, and the two modes are different functions. A layer norm knows neither mates nor modes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit, fresh, held_out, loss_of, next_bytes, prose, small_spec
from cutaway.models.block import positions_of
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.norms import NormSpec, make_norm

Kind = Literal["layer", "batch"]
KINDS: tuple[Kind, Kind] = ("layer", "batch")
EPS = 1e-5
LENGTH, ROWS = 96, 8  # bytes per training sequence, sequences per step


class Loss(NamedTuple):
    """Held-out losses of one model, nats per byte. usual: training mode, a batch as in training; the rest: batch 1."""

    usual: float
    training: float
    evaluation: float


@lab(
    "layer-vs-batch",
    title=both("Normalizing tokens or batches", "层归一化对批归一化"),
    question=both(
        "Batch statistics work for images; why do language models normalize each token instead?",
        "批统计量用于图像效果很好，语言模型为什么改为逐词元归一化？",
    ),
    seconds={"quick": 3, "full": 40},
)
def layer_vs_batch(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the trained model", "训练模型的宽度", quick=32, min=16, max=512)] = 128,
    layers: Annotated[int, Knob("its blocks", "它的层数", quick=2, min=1, max=16)] = 5,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=30, min=5, max=10**5)] = 150,
    batches: Annotated[int, Knob("held-out sequences", "留出的序列数", quick=16, min=2, max=10**4)] = 48,
) -> Finding:
    moved = {kind: influences(kind, run.generator()) for kind in KINDS}
    apart = running_gap(run.generator())
    models = {kind: small_spec(norm=NormSpec(kind, EPS), width=width, layers=layers) for kind in KINDS}
    losses = {kind: trained(fresh(spec, run.seed), kind, steps, batches, run) for kind, spec in models.items()}
    size = Cost(models["batch"]).parameters
    return Finding(
        table=_table(moved, losses),
        plot=_plot(losses),
        verdict=_verdict(moved, losses, size),
        checks=_checks(moved, losses, apart),
    )


# ---- who has a say in a token's output


def influences(kind: Kind, generator: torch.Generator) -> dict[str, float]:
    """The largest change of outputs that ought not to change, by what was changed instead."""
    return {
        "a batch mate, in training": mate(kind, True, generator),
        "a batch mate, at inference": mate(kind, False, generator),
        "padding: 4 rows of zeros or 40": padding(kind, generator),
        "the last token; outputs before it": future(kind, generator),
    }


def norm_of(kind: Kind) -> nn.Module:
    """A fresh norm over 24 numbers, in float64."""
    return make_norm(NormSpec(kind, EPS), 24).double()


@torch.no_grad()
def mate(kind: Kind, training: bool, generator: torch.Generator) -> float:
    """Another sequence of the batch becomes another one."""
    ours_TD, mates = drawn(10, generator), [drawn(10, generator) for _ in range(2)]
    outs = [norm_of(kind).train(training)(torch.cat([ours_TD, mate_TD]))[:10] for mate_TD in mates]
    return gap(*outs)


@torch.no_grad()
def padding(kind: Kind, generator: torch.Generator) -> float:
    """More rows of zeros behind a sequence, as batches of equal length have them."""
    ours_TD = drawn(10, generator)
    outs = [norm_of(kind)(torch.cat([ours_TD, torch.zeros(rows, 24, dtype=torch.float64)]))[:10] for rows in (4, 40)]
    return gap(*outs)


@torch.no_grad()
def future(kind: Kind, generator: torch.Generator) -> float:
    """A causal decoder in training, and only the last token differs: what happens to the logits of the others?"""
    model = fresh(small_spec(norm=NormSpec(kind, EPS), width=32, layers=1), 0).double()
    tokens_T = torch.randint(256, (12,), generator=generator)
    other_T = torch.cat([tokens_T[:-1], (tokens_T[-1:] + 1) % 256])
    outs = [model.logits(model(t, positions_of([12]), BlockDiagonal([12])))[:-1] for t in (tokens_T, other_T)]
    return gap(*outs)


def running_gap(generator: torch.Generator, steps: int = 20) -> float:
    """How far running statistics are from those of PyTorch's BatchNorm1d after batches of 5 to 24 tokens."""
    ours, theirs = norm_of("batch"), nn.BatchNorm1d(24, eps=EPS).double()
    for i in range(steps):
        x_TD = drawn(5 + i, generator) * (1 + i) + i
        ours(x_TD), theirs(x_TD)
    return max(gap(ours.get_buffer(name), theirs.get_buffer(name)) for name in ("running_mean", "running_var"))


def drawn(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 24, generator=generator, dtype=torch.float64)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---- trained models in both modes


def trained(model: Decoder, kind: Kind, steps: int, batches: int, run: Run) -> Loss:
    """Train on nine tenths of the text, then take losses on the rest in both modes."""
    text = prose()
    cut = len(text) * 9 // 10
    learned, usual, single = (
        next_bytes(part, LENGTH, rows) for part, rows in ((text[:cut], ROWS), (text[cut:], ROWS), (text[cut:], 1))
    )
    fit(
        model.parameters(),
        lambda generator: loss_of(model, learned(generator)),
        steps,
        run,
        f"training with {kind} norm",
        seed=run.seed,
    )
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    in_training = held_out(model, usual, max(2, batches // ROWS)), held_out(model, single, batches)
    model.load_state_dict(kept, strict=False)  # losses in training mode have moved the running statistics
    return Loss(*in_training, held_out(model.eval(), single, batches))


# ---- what it comes to


def _table(moved: dict[Kind, dict[str, float]], losses: dict[Kind, Loss]) -> Table:
    rows: list[list[Cell]] = [
        [f"change of outputs: {what}", "", *(moved[kind][what] for kind in KINDS)] for what in moved["layer"]
    ]
    named = {
        "usual": f"training mode, batch of {ROWS}",
        "training": "training mode, batch of 1",
        "evaluation": "inference mode, batch of 1",
    }
    rows += [
        [f"held-out loss: {what}", "nats/byte", *(getattr(losses[kind], field) for kind in KINDS)]
        for field, what in named.items()
    ]
    return table(dict.fromkeys(("what", "unit", "LayerNorm", "BatchNorm"), ""), rows)


def _plot(losses: dict[Kind, Loss]) -> Plot:
    return Plot(
        kind="bar",
        x=Axis(label="mode, batch"),
        y=Axis(label="held-out loss, nats/byte"),
        series=[
            Series(name=f"{kind} norm", x=[f"training, {ROWS}", "training, 1", "inference, 1"], y=list(losses[kind]))
            for kind in KINDS
        ],
    )


def gaps(losses: dict[Kind, Loss]) -> tuple[float, float]:
    """Training mode minus inference mode at batch 1: with layer norms, with batch norms."""
    layer, batch = (losses[kind].training - losses[kind].evaluation for kind in KINDS)
    return layer, batch


def _checks(moved: dict[Kind, dict[str, float]], losses: dict[Kind, Loss], apart: float) -> list[Check]:
    layer, batch = moved["layer"], dict(moved["batch"])
    at_inference = batch.pop("a batch mate, at inference")
    between = gaps(losses)
    return [
        check(
            set(layer.values()) == {0.0} and min(batch.values()) > 1e-3,
            "a batch mate, padding and later tokens move a batch-normed output; a layer-normed one by exactly 0",
            "批中同伴、填充和后面的词元都会改变批归一化的输出；层归一化的变化恰为 0",
        ),
        check(
            at_inference == 0.0 and apart < 1e-9,
            f"at inference mates have no say; running statistics are PyTorch's after 20 steps (to {apart:.0e})",
            f"推理时同伴不再有影响；20 步后滑动统计量与 PyTorch 一致（相差 {apart:.0e}）",
        ),
        check(
            between[0] == 0.0 and between[1] != 0.0,
            "with layer norms both modes are one function, with batch norms they are two",
            "层归一化的两种模式是同一个函数，批归一化则是两个",
        ),
    ]


def _verdict(moved: dict[Kind, dict[str, float]], losses: dict[Kind, Loss], size: int) -> Words:
    batch, layer = losses["batch"], losses["layer"]
    mates, pads, last = (moved["batch"][what] for what in _moving(moved["batch"]))
    between = gaps(losses)
    return both(
        f"Because a batch-normed token depends on what it happens to be computed with: another batch mate moves it by "
        f"{mates:.2f}, more padding by {pads:.2f}, and the last token of a causal model moves the logits of those "
        f"before it by {last:.3f}, so that training can look at its own answers. With layer norms all of these are "
        f"0. A model of {size:,} parameters trained with batch norms has a held-out loss of {batch.usual:.3f} in "
        f"training mode with batches of {ROWS}, {batch.training:.3f} with single sequences and "
        f"{batch.evaluation:.3f} at inference: a gap of {between[1]:+.3f} between the modes at batch 1. With layer "
        f"norms it is {layer.evaluation:.3f} in either mode.",
        f"因为批归一化的词元取决于它碰巧和谁一起计算：换一个同伴，输出变化 {mates:.2f}；多些填充，变化 {pads:.2f}；"
        f"因果模型的最后一个词元会使之前的 logits 变化 {last:.3f}，训练时等于偷看答案。层归一化时这些都是 0。用批归"
        f"一化训练的 {size:,} 参数模型，训练模式批大小 {ROWS} 的留出损失为 {batch.usual:.3f}，单序列为 "
        f"{batch.training:.3f}，推理模式为 {batch.evaluation:.3f}：批大小为 1 时两种模式相差 {between[1]:+.3f}。层归"
        f"一化在两种模式下都是 {layer.evaluation:.3f}。",
    )


def _moving(batch: dict[str, float]) -> Iterable[str]:
    """What moves a batch-normed output, in the order of `influences`."""
    return [what for what in batch if "inference" not in what]
