"""The place of the norm: before a sublayer, or after its sum with the residual stream.

    pre    x + f(norm(x))        the stream is never normalized: gradients pass, and it grows
    post   norm(x + f(x))        the original Transformer (Vaswani et al. 2017), BERT

Xiong et al. 2020 (arXiv:2002.04745) derive for a fresh model that the gradient of the top feed-forward layer does not
depend on the depth L after post-norm and shrinks as 1 / sqrt(L) after pre-norm, and that it grows with the layer
after post-norm: hence the warm-up. Their setting is used here: feed-forward layers with ReLU, Xavier.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.statistics import growth
from cutaway.labs.subject import MODEL, decoder, logits_of, reading, subject
from cutaway.labs.training import fit, loss_of, next_bytes, prose, small_spec, with_layers
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.init import initialize
from cutaway.nn.norms import NormSpec
from cutaway.nn.probes import rms, scales

Placement = Literal["pre", "post", "sandwich", "after"]
PLACEMENTS: tuple[Placement, ...] = ("pre", "post", "sandwich", "after")
LENGTH, ROWS = 64, 8  # bytes per sequence, sequences per step


class Arm(NamedTuple):
    """A training run. learned: it got clearly below the loss of byte frequencies."""

    placement: Placement
    lr: float
    warmup: int
    loss: float
    learned: bool


@lab(
    "pre-vs-post",
    title=both("Before or after the sum: pre-norm and post-norm", "Pre-LN 与 Post-LN"),
    question=both(
        "Before or after the residual sum: how does the place of the norm change training?",
        "归一化放在残差相加之前还是之后，训练有何不同？",
    ),
    seconds={"quick": 5, "full": 200},
)
def pre_vs_post(
    run: Run,
    *,
    layers: Annotated[int, Knob("blocks of the trained models", "训练模型的块数", quick=12, min=4, max=96)] = 24,
    width: Annotated[int, Knob("their width", "它们的宽度", quick=32, min=16, max=512)] = 32,
    steps: Annotated[int, Knob("training steps of each", "各自的训练步数", quick=10, min=10, max=10**5)] = 200,
    rates: Annotated[
        int,
        Knob(
            "learning rates: 1e-2 and so many steps of a factor of sqrt(10) down",
            "学习率个数：自 1e-2 起每步除以 √10",
            quick=1,
            min=1,
            max=6,
        ),
    ] = 3,
    draws: Annotated[int, Knob("models per gradient", "每个梯度平均的模型数", quick=3, min=1, max=64)] = 4,
    model: Annotated[str, Knob("the trained pre-norm model", "训练好的 pre-norm 模型")] = MODEL,
    length: Annotated[int, Knob("tokens of text it reads", "读入文本的词元数", quick=64, min=8, max=8192)] = 256,
) -> Finding:
    slopes = {place: gradients(place, layers, width, draws, run) for place in PLACEMENTS}
    depths = [max(2, layers // 4), max(3, layers // 2), layers]
    top = {place: [gradients(place, n, width, draws, run)[-1] for n in depths] for place in PLACEMENTS[:2]}
    arms = list(trained(layers, width, steps, rates, run))
    stream = residual_sizes(model, length)
    return Finding(
        table=_table(slopes, dict(zip(depths, zip(*top.values(), strict=True), strict=True)), arms, stream),
        plot=_plot(slopes),
        verdict=_verdict(slopes, depths, top, arms, stream),
        checks=_checks(slopes, depths, top, arms, stream),
    )


# ---- fresh models


def fresh_at(place: Placement, layers: int, width: int, seed: int) -> Decoder:
    """A decoder in the setting of the paper. Post-norm ends in a norm anyway and has no final one."""
    small = small_spec(layers=layers, width=width, norm=NormSpec("layer", 1e-5))
    ffn = FeedForwardSpec(4 * width, "relu", gated=False)
    spec = with_layers(small, lambda layer: replace(layer, placement=place, ffn=ffn))
    model = build(replace(spec, final_norm=None) if place == "post" else spec)
    assert isinstance(model, Decoder)
    initialize(model, "xavier", torch.Generator().manual_seed(seed))
    return model


def gradients(place: Placement, layers: int, width: int, draws: int, run: Run) -> list[float]:
    """Norm of the gradient of each layer's second feed-forward matrix at step 0: geometric mean over models."""
    task, found = next_bytes(prose(), LENGTH, ROWS), []
    for seed in range(run.seed, run.seed + draws):
        model = fresh_at(place, layers, width, seed)
        batch = task(torch.Generator().manual_seed(seed))
        downs = [model.block(i).ffn.get_submodule("down") for i in range(layers)]
        found.append([scale.parameters for scale in scales(downs, lambda m=model, b=batch: loss_of(m, b))])  # type: ignore[misc]
    return [statistics.geometric_mean(sizes) for sizes in zip(*found, strict=True)]


def tilt(sizes: list[float]) -> float:
    """The top sixth of the layers over the bottom sixth."""
    part = max(1, len(sizes) // 6)
    return statistics.geometric_mean(sizes[-part:]) / statistics.geometric_mean(sizes[:part])


# ---- trained ones


def trained(layers: int, width: int, steps: int, rates: int, run: Run) -> Iterator[Arm]:
    """Both placements at every rate, without warm-up and with one over half of the steps."""
    task, guess = next_bytes(prose(), LENGTH, ROWS), frequencies(prose())
    for place in PLACEMENTS[:2]:
        for lr in [10 ** (-2 - i / 2) for i in range(rates)]:
            for warmup in (0, steps // 2):
                model = fresh_at(place, layers, width, run.seed)
                fitted = fit(
                    model.parameters(),
                    lambda generator, m=model: loss_of(m, task(generator)),  # type: ignore[misc]
                    steps,
                    run,
                    f"{place}-norm, rate {lr:.1e}, warm-up {warmup}",
                    seed=run.seed,
                    lr=lr,
                    warmup=warmup,
                )
                loss = statistics.mean(fitted.losses[-10:])
                yield Arm(place, lr, warmup, loss, loss < guess - 0.1)


def frequencies(data_T: Tensor) -> float:
    """The loss of knowing how frequent each byte is and nothing else, nats."""
    share_V = torch.bincount(data_T).double() / len(data_T)
    return float(torch.special.entr(share_V).sum())


# ---- the price of pre-norm


@torch.inference_mode()
def residual_sizes(source: str, length: int) -> list[float]:
    """Root mean square of a trained model's stream, after the embedding and each block; first token left out."""
    loaded = subject(source)
    model, sizes = decoder(loaded), []
    watched = [model.embedding, *model.layers]
    handles = [m.register_forward_hook(lambda module, args, out: sizes.append(rms(out[1:]))) for m in watched]
    try:
        logits_of(model, reading(loaded, length))
    finally:
        for handle in handles:
            handle.remove()
    return sizes


# ---- what it comes to


def _table(
    slopes: dict[Placement, list[float]],
    top: dict[int, tuple[float, ...]],
    arms: list[Arm],
    stream: list[float],
) -> Table:
    rows: list[list[Cell]] = [
        ["gradient at step 0, first to last layer", place, None, None, sizes[0], sizes[-1]]
        for place, sizes in slopes.items()
    ]
    rows += [
        [f"gradient of the top layer of {n}", place, None, None, None, size]
        for n, sizes in top.items()
        for place, size in zip(PLACEMENTS, sizes, strict=False)
    ]
    rows += [["loss after training, nats/byte", a.placement, a.lr, a.warmup, None, a.loss] for a in arms]
    rows.append(["residual stream of the trained model", "pre", None, None, stream[0], stream[-1]])
    return table(dict.fromkeys(("what", "norm", "learning rate", "warm-up", "from", "to"), ""), rows)


def _plot(slopes: dict[Placement, list[float]]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="layer"),
        y=Axis(label="gradient norm at step 0", log=True),
        series=[
            Series(name=f"{place}-norm", x=[float(i) for i in range(1, len(sizes) + 1)], y=sizes)
            for place, sizes in slopes.items()
        ],
    )


def _checks(
    slopes: dict[Placement, list[float]],
    depths: list[int],
    top: dict[Placement, list[float]],
    arms: list[Arm],
    stream: list[float],
) -> list[Check]:
    pre, post = (growth(depths, top[place]) for place in PLACEMENTS[:2])
    best = {place: min(a.loss for a in arms if a.placement == place) for place in PLACEMENTS[:2]}
    return [
        check(
            tilt(slopes["post"]) > tilt(slopes["pre"]),
            "at step 0 the gradient leans more towards the top with post-norm than with pre-norm",
            "第 0 步时 post-norm 的梯度比 pre-norm 更偏向顶层",
        ),
        check(
            pre < -0.25 and abs(post) < 0.25,
            f"the top layer's gradient goes as L^{pre:.2f} with pre-norm and as L^{post:.2f} with post-norm",
            f"顶层梯度随深度的变化：pre-norm 为 L^{pre:.2f}，post-norm 为 L^{post:.2f}",
        ),
        check(
            best["pre"] < best["post"] + 0.1 and all(math.isfinite(a.loss) for a in arms),
            f"at its best rate the pre-norm model is not behind ({best['pre']:.2f} against {best['post']:.2f})",
            f"在各自最佳学习率下 pre-norm 不落后（{best['pre']:.2f} 对 {best['post']:.2f}）",
        ),
        check(
            stream[-1] > 50 * stream[0],
            f"the trained model's stream grows {stream[-1] / stream[0]:.0f} times over its depth",
            f"训练好的模型的残差流沿深度增大到 {stream[-1] / stream[0]:.0f} 倍",
        ),
    ]


def _verdict(
    slopes: dict[Placement, list[float]],
    depths: list[int],
    top: dict[Placement, list[float]],
    arms: list[Arm],
    stream: list[float],
) -> Words:
    pre, post = (growth(depths, top[place]) for place in PLACEMENTS[:2])
    tilts = {place: tilt(sizes) for place, sizes in slopes.items()}
    stuck = {p: [a for a in arms if a.placement == p and not a.learned] for p in PLACEMENTS[:2]}
    of = len(arms) // 2
    best = {p: min(a.loss for a in arms if a.placement == p) for p in PLACEMENTS[:2]}
    guess, warm = frequencies(prose()), sum(a.warmup > 0 for a in stuck["post"])
    return both(
        f"At step 0 the gradient at the top over that at the bottom is {tilts['post']:.2f} with post-norm and "
        f"{tilts['pre']:.2f} with pre-norm, which is not flat either; the top layer's goes with the depth as "
        f"L^{post:.2f} and L^{pre:.2f}. Of {of} runs each, {len(stuck['post'])} with post-norm ({warm} of them warmed "
        f"up) and {len(stuck['pre'])} with pre-norm do not get clearly below {guess:.2f}, the loss of knowing byte "
        f"frequencies; the best losses are {best['post']:.2f} and {best['pre']:.2f}. None diverges: gradients are "
        f"clipped. The price of pre-norm: in the trained model the stream grows from {stream[0]:.2f} after the "
        f"embedding to {stream[1]:.2f} after the first block and {stream[-1]:.1f} at the top, "
        f"{stream[-1] / stream[0]:.0f} times.",
        f"第 0 步时，顶层与底层的梯度比 post-norm 为 {tilts['post']:.2f}，pre-norm 为 {tilts['pre']:.2f}（同样不平）；"
        f"顶层梯度随深度分别为 L^{post:.2f} 和 L^{pre:.2f}。每种 {of} 次训练中，post-norm 有 {len(stuck['post'])} 次（"
        f"其中 {warm} 次有预热）、pre-norm 有 {len(stuck['pre'])} 次没有明显低于只知道字节频率的 {guess:.2f}；最好的"
        f"损失分别为 {best['post']:.2f} 和 {best['pre']:.2f}。梯度有裁剪，没有一次发散。pre-norm 的代价：训练好的模型"
        f"中残差流从嵌入后的 {stream[0]:.2f} 增至第一块后的 {stream[1]:.2f} 和顶层的 {stream[-1]:.1f}，共 "
        f"{stream[-1] / stream[0]:.0f} 倍。",
    )
