"""Quantization worked through: four numbers, a reference for every way to share a scale, and what a bit is worth.

A quantizer stores small integers and one scale for many of them. Its error is that of rounding: uniform within half a
step, a power of step^2 / 12. Evenly spread numbers have a power of range^2 / 12 themselves, so 2^b - 1 steps across the
range give a signal to noise of 20 log10 (2^b - 1), and a bit more, twice the steps, adds 20 log10 2 = 6.02 dB (Bennett
1948). A step of decoding fetches every weight once, so that bytes saved are bytes not waited for; `low-bit-speed` times
that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.compress.uniform import Quantized, Sharing, decibels, quantize, shared, stored_bits
from cutaway.labs.compress.rounding import loss, of_weights, uniform
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, reading, subject

WORKED = (0.8, -1.2, 0.05, 2.54)
GROUP = 64
SHARING: dict[str, Sharing] = {"tensor": "tensor", "row": "row", f"group of {GROUP}": GROUP}
BITS = range(2, 13)


class Shared(NamedTuple):
    """A matrix in 8 bits: bits stored, signal to noise in dB, codes and zeros unlike PyTorch's, scales' largest error.

    loss: nats per token that the model loses if all its matrices are so, None if that was not asked.
    """

    way: str
    sharing: str
    bits: float
    db: float
    differ: int
    scale: float
    loss: float | None


@lab(
    "quantization-basics",
    title=both("Quantization on four numbers", "四个数上的量化"),
    question=both(
        "What is quantization, worked through on four numbers, and why does it shrink and speed up a model?",
        "用四个数算一遍：什么是量化？它为什么能让模型变小变快？",
    ),
    seconds={"quick": 4, "full": 25},
)
def quantization_basics(
    run: Run,
    *,
    model: Annotated[str, Knob("the model whose matrices are taken", "取其矩阵的模型")] = MODEL,
    layer: Annotated[int, Knob("the layer of the matrix compared", "拿来比较的矩阵所在层", min=0)] = 10,
    samples: Annotated[int, Knob("uniform numbers", "均匀分布的数", quick=100_000, min=1000)] = 1_000_000,
    losses: Annotated[bool, Knob("measure the model's loss too", "也测模型的损失", quick=False)] = True,
    length: Annotated[int, Knob("tokens of text read", "读入文本的词元数", min=8, max=2048)] = 400,
) -> Finding:
    four = quantize(torch.tensor(WORKED, dtype=torch.float64), 8)
    noise = {b: bit_noise(b, samples, run) for b in run.each(BITS, "bits")}
    loaded = subject(model)
    weights, lost = decoder(loaded).block(layer).get_parameter("ffn.down.weight").detach(), None
    base = loss(decoder(loaded), reading(loaded, length)) if losses else 0.0
    found = []
    for way, symmetric in (("symmetric", True), ("zero-point", False)):
        for name, per in run.each(list(SHARING.items()), way):
            if losses:
                rounding = uniform(8, per, symmetric=symmetric)
                lost = of_weights(decoder(loaded), reading(loaded, length), rounding) - base
            found.append(compared(weights, way, name, per)._replace(loss=lost))
    return Finding(
        table=_table(four, found, noise),
        plot=_plot(noise),
        verdict=_verdict(four, found, noise, loaded.model.cost.parameters),
        checks=_checks(four, found, noise),
    )


def bit_noise(bits: int, samples: int, run: Run) -> float:
    """Signal to noise, dB, of evenly spread numbers in a zero-point quantizer of so many bits."""
    x = 2 * torch.rand(samples, generator=run.generator(), dtype=torch.float64) - 1
    return decibels(x, quantize(x, bits, symmetric=False).numbers)


def predicted(bits: int) -> float:
    """The same, by the formula above."""
    return 20 * math.log10(2**bits - 1)


def compared(w_NK: Tensor, way: str, name: str, per: Sharing) -> Shared:
    """Our 8-bit codes of a matrix against PyTorch's."""
    ours = quantize(w_NK, 8, per, symmetric=way == "symmetric")
    codes, scale, zero = reference(shared(w_NK, per), symmetric=way == "symmetric")
    differ = int((ours.codes_SE != codes).sum() + (ours.zero_S1[:, 0] != zero).sum())
    error = float((ours.scale_S1[:, 0] / scale - 1).abs().max())
    numbers = ours.scale_S1.numel() * (16 + (0 if way == "symmetric" else 8))
    bits = stored_bits(8, w_NK.numel(), numbers)
    return Shared(way, name, bits, decibels(w_NK, ours.numbers), differ, error, None)


def reference(x_SE: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of PyTorch's observer and kernel, a channel for each scale."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that they will move to another package
        from torch.ao.quantization.observer import PerChannelMinMaxObserver

        low, high, dtype = (-127, 127, torch.qint8) if symmetric else (0, 255, torch.quint8)
        scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        observer = PerChannelMinMaxObserver(0, dtype, scheme, quant_min=low, quant_max=high, eps=1e-30)
        observer(x_SE)
        scale_S, zero_S = observer.calculate_qparams()
        codes_SE = torch.quantize_per_channel(x_SE, scale_S, zero_S, 0, dtype).int_repr()
    return codes_SE, scale_S, zero_S


# ---- what it comes to


COLUMNS = {
    "what": "", "stored": "bits", "code": "", "back": "", "signal to noise": "dB", "formula": "dB",
    "unlike PyTorch's": "codes", "loses": "nats",
}  # fmt: skip


def _table(four: Quantized, found: Sequence[Shared], noise: dict[int, float]) -> Table:
    codes, back = four.codes_SE.flatten().int().tolist(), four.numbers.tolist()
    rows: list[list[Cell]] = [
        [f"{x:g} / {float(four.scale_S1):.2g}", 8.0, c, b, *[None] * 4]
        for x, c, b in zip(WORKED, codes, back, strict=True)
    ]
    rows += [[f"{s.way}, a scale per {s.sharing}", s.bits, None, None, s.db, None, s.differ, s.loss] for s in found]
    rows += [
        [f"uniform numbers, {b} bits", float(b), None, None, db, predicted(b), None, None] for b, db in noise.items()
    ]
    return table(COLUMNS, rows)


def _plot(noise: dict[int, float]) -> Plot:
    x = [float(b) for b in noise]
    return Plot(
        kind="line",
        x=Axis(label="bits"),
        y=Axis(label="signal to noise, dB"),
        series=[
            Series(name="measured", x=x, y=[*noise.values()]),
            Series(name="20 log10 (2^b - 1)", x=x, y=[predicted(b) for b in noise]),
        ],
    )


def _gain(noise: dict[int, float]) -> float:
    """dB per bit over the last four bits, where 2^b - 1 is as good as 2^b."""
    return (noise[BITS[-1]] - noise[BITS[-5]]) / 4


def _checks(four: Quantized, found: Sequence[Shared], noise: dict[int, float]) -> list[Check]:
    codes, scale = four.codes_SE.flatten().int().tolist(), float(four.scale_S1)
    changed = [x for x, b in zip(WORKED, four.numbers.tolist(), strict=True) if abs(x - b) > 1e-12]
    worst = max(abs(db - predicted(b)) for b, db in noise.items())
    return [
        check(
            abs(scale - 2.54 / 127) < 1e-15 and codes == [40, -60, 2, 127] and changed == [0.05],
            f"{WORKED}: scale {scale:.2f}, codes {codes}; 2.5 goes to the even 2, and only {changed} comes back "
            "otherwise",
            f"{WORKED}：缩放 {scale:.2f}，编码 {codes}；2.5 取偶数 2，只有 {changed} 还原后变了",
        ),
        check(
            all(s.differ == 0 and s.scale < 1e-6 for s in found),
            "codes, zeros and scales of a real matrix are PyTorch's: symmetric and zero-point, per tensor, row, group",
            "真实矩阵的编码、零点与缩放都与 PyTorch 一致：对称与零点，按张量、行、组",
        ),
        check(
            worst < 0.15 and abs(_gain(noise) - 6.02) < 0.03,
            f"a bit adds {_gain(noise):.2f} dB on uniform numbers, and 20 log10 (2^b - 1) is met within {worst:.2f} dB",
            f"均匀分布的数每多一位增加 {_gain(noise):.2f} 分贝，与 20 log10 (2^b - 1) 相差不到 {worst:.2f} 分贝",
        ),
        check(
            all(a.db < b.db for a, b in pairwise(found) if a.way == b.way),
            "the fewer numbers share a scale, the less noise",
            "共用一个缩放的数越少，噪声越小",
        ),
    ]


def _verdict(four: Quantized, found: Sequence[Shared], noise: dict[int, float], parameters: int) -> Words:
    said = "; ".join(
        f"{s.way} per {s.sharing} {s.db:.1f} dB" + ("" if s.loss is None else f" and {s.loss:+.3f} nats") for s in found
    )
    row = found[1]
    size = parameters * 4 / 1e6, parameters * row.bits / 8e6
    return both(
        f"Divide by a scale, round, keep the integer: {WORKED} become {four.codes_SE.flatten().int().tolist()} times "
        f"{float(four.scale_S1):.2f}. The error is at most half a step, and a bit more halves the step "
        f"({_gain(noise):.2f} dB). A matrix of the model in 8 bits, and what the loss gains with all of them so: "
        f"{said}. With a scale per row {parameters / 1e6:.1f} million weights take {size[1]:,.0f} MB instead of "
        f"{size[0]:,.0f} in float32; each token that is decoded fetches all of them, so it fetches "
        f"{size[0] / size[1]:.2f} times fewer bytes.",
        f"除以缩放、取整、只存整数：{WORKED} 变成 {four.codes_SE.flatten().int().tolist()} 乘 "
        f"{float(four.scale_S1):.2f}。误差至多半步，多一位步长减半（{_gain(noise):.2f} 分贝）。8 位下模型的一个矩阵，"
        f"以及所有矩阵都这样时损失的增加：{said}。"
        f"按行缩放时，{parameters / 1e6:.1f} 百万权重占 {size[1]:,.0f} MB，而 float32 是 "
        f"{size[0]:,.0f} MB；每解码一个词元都要读取全部权重，读取的字节数因此只有 1/{size[0] / size[1]:.2f}。",
    )
