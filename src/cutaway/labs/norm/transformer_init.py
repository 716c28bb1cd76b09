"""How a Transformer's matrices start, and why those that write to the residual stream start smaller.

Every sublayer adds something of about the same size to the stream. After N = 2L independent additions it has grown as
sqrt(N); GPT-2 divides what writes to it by sqrt(N) (Radford et al. 2019, section 2.3), so that the sum of all is as
large as one was.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.statistics import growth
from cutaway.labs.training import Batch, loss_of, next_bytes, prose, small_spec, with_layers
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.init import initialize
from cutaway.nn.norms import NormSpec
from cutaway.nn.probes import rms

DEPTHS = (6, 12, 24)
STD, WIDTH = 0.02, 768  # GPT-2's; narrower models get what makes a layer's output as large
SCHEMES = {
    "normal": "s everywhere",
    "depth": "s, residual projections s / sqrt(2L)",
    "zero": "s, residual projections 0",
}
LENGTH, ROWS = 64, 4  # bytes per sequence, sequences


class Start(NamedTuple):
    """A fresh model. written: std of its residual projections. stream: rms after the embedding and each block."""

    written: float
    stream: list[float]
    loss: float


@lab(
    "transformer-init",
    title=both("How a Transformer's weights start", "Transformer 的初始化"),
    question=both(
        "How are attention and feed-forward weights of a Transformer usually initialized, and why scale by depth?",
        "Transformer 的注意力和前馈权重通常如何初始化？为什么要按深度缩放？",
    ),
    seconds={"quick": 2, "full": 20},
)
def transformer_init(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the models", "模型宽度", quick=128, min=32, max=4096)] = WIDTH,
) -> Finding:
    batch = next_bytes(prose(), LENGTH, ROWS)(run.generator())
    starts = {
        scheme: [start(scheme, layers, width, batch, run) for layers in run.each(DEPTHS, f"{scheme}, layers")]
        for scheme in SCHEMES
    }
    return Finding(
        table=_table(starts),
        plot=_plot(starts),
        verdict=_verdict(starts, width),
        checks=_checks(starts, width),
    )


def std_of(width: int) -> float:
    """0.02 at GPT-2's width; else what keeps std * sqrt(width)."""
    return STD * math.sqrt(WIDTH / width)


@torch.inference_mode()
def start(scheme: str, layers: int, width: int, batch: Batch, run: Run) -> Start:
    """A decoder with GPT-2's norms and feed-forward layers before its first step."""
    small = small_spec(layers=layers, width=width, heads=max(1, width // 64), norm=NormSpec("layer", 1e-5))
    model = build(with_layers(small, lambda layer: _gpt2(layer, width)))
    assert isinstance(model, Decoder)
    initialize(model, scheme, run.generator(), std_of(width))
    stream: list[float] = []
    for module in (model.embedding, *model.layers):
        module.register_forward_hook(lambda module, args, out: stream.append(rms(out)))
    loss = float(loss_of(model, batch))
    return Start(rms(model.get_parameter("layers.0.attention.out.weight")), stream, loss)


def _gpt2(layer: LayerSpec, width: int) -> LayerSpec:
    return replace(layer, ffn=FeedForwardSpec(4 * width, "gelu_tanh", gated=False))


# ---- what it comes to


def exponent(starts: list[Start]) -> float:
    """How the stream's size at the top goes with the number of layers."""
    return growth(DEPTHS, [s.stream[-1] for s in starts])


def ignorance(width: int) -> float:
    """Expected loss of normal logits that know nothing: ln V + s^2 / 2."""
    return math.log(256) + std_of(width) ** 2 * width / 2


def _table(starts: dict[str, list[Start]]) -> Table:
    columns = {
        "weights": "",
        "layers": "",
        "std of residual projections": "",
        "stream after the embedding": "rms",
        "after the first block": "rms",
        "at the top": "rms",
        "first loss": "nats",
    }
    rows: list[list[Cell]] = [
        [SCHEMES[scheme], layers, s.written, s.stream[0], s.stream[1], s.stream[-1], s.loss]
        for scheme, of_scheme in starts.items()
        for layers, s in zip(DEPTHS, of_scheme, strict=True)
    ]
    return table(columns, rows)


def _plot(starts: dict[str, list[Start]]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="layers", log=True),
        y=Axis(label="residual stream at the top, rms", log=True),
        series=[
            Series(name=SCHEMES[scheme], x=[float(n) for n in DEPTHS], y=[s.stream[-1] for s in of_scheme])
            for scheme, of_scheme in starts.items()
        ],
    )


def _checks(starts: dict[str, list[Start]], width: int) -> list[Check]:
    plain, scaled = exponent(starts["normal"]), exponent(starts["depth"])
    published = STD / math.sqrt(24)
    found = starts["depth"][1].written * STD / std_of(width)
    off = max(abs(s.loss - ignorance(width)) for of_scheme in starts.values() for s in of_scheme)
    return [
        check(
            0.35 < plain < 0.65 and abs(scaled) < 0.1,
            f"at the top the stream goes as L^{plain:.2f}, with projections divided by sqrt(2L) as L^{scaled:.2f}",
            f"顶层残差流随 L^{plain:.2f} 增长，投影除以 sqrt(2L) 后为 L^{scaled:.2f}",
        ),
        check(
            abs(found / published - 1) < 0.05,
            f"with 12 layers residual projections start at {found:.5f}, 0.02 / sqrt(24) = {published:.5f}",
            f"12 层时残差投影的初始标准差为 {found:.5f}，0.02 / sqrt(24) = {published:.5f}",
        ),
        check(
            off < 0.6,
            f"all start as ignorant as they should, within {off:.2f} of ln V + s²/2 = {ignorance(width):.2f} nats",
            f"初始损失都与一无所知相符：距 ln V + s²/2 = {ignorance(width):.2f} 不超过 {off:.2f} 奈特",
        ),
    ]


def _verdict(starts: dict[str, list[Start]], width: int) -> Words:
    plain, scaled = starts["normal"], starts["depth"]
    tops = [", ".join(f"{s.stream[-1]:.2f}" for s in of_scheme) for of_scheme in (plain, scaled)]
    losses = [s.loss for of_scheme in starts.values() for s in of_scheme]
    return both(
        f"Normal weights of std {std_of(width):.3f} at width {width}, norms at one, biases at zero. With {DEPTHS[0]}, "
        f"{DEPTHS[1]} and {DEPTHS[2]} layers the residual stream is {tops[0]} at the top, growing as "
        f"L^{exponent(plain):.2f}; if what writes to it starts at 1 / sqrt(2L) of that it is {tops[1]}, the same at "
        f"any depth (L^{exponent(scaled):.2f}). The first loss shows nothing of it, being {min(losses):.2f} to "
        f"{max(losses):.2f} in all cases: the final norm hides the size of the stream.",
        f"宽度 {width} 时权重取标准差 {std_of(width):.3f} 的正态分布，归一化为一，偏置为零。{DEPTHS[0]}、{DEPTHS[1]}、"
        f"{DEPTHS[2]} 层时，顶层残差流为 {tops[0]}，随 L^{exponent(plain):.2f} 增长；若写入残差流的矩阵再乘 "
        f"1 / sqrt(2L)，则为 {tops[1]}，与深度无关（L^{exponent(scaled):.2f}）。首步损失看不出差别，都在 "
        f"{min(losses):.2f} 到 {max(losses):.2f} 之间：最后的归一化掩盖了残差流的大小。",
    )
