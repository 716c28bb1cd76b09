"""Why activations are harder to quantize than weights: a few enormous numbers, at one place, in one channel.

Weights are known beforehand and lie close together. What flows between them depends on the text, and trained models put
numbers there that are thousands of times the typical one, always in the same few channels (Dettmers et al. 2022,
"LLM.int8()", arXiv:2208.07339) and mostly at the first token, where they serve attention as a place to rest (Sun et al.
2024, "Massive Activations", arXiv:2402.17762). A scale that all tokens share is set by that one number. So who shares a
scale is varied here, with 8 bits throughout, and then the first token is left alone.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.compress.simulated import Rounding, linears, with_inputs
from cutaway.inside.sites import states
from cutaway.labs.compress.rounding import loss, of_inputs, of_weights, uniform
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, reading, subject
from cutaway.models.decoder import Decoder
from cutaway.native.packing import GROUP

WEIGHTS = {"weights, a scale per matrix": uniform(8, "tensor"), "weights, a scale per row": uniform(8, "row")}
BY_TENSOR, BY_TOKEN, BY_GROUP = "activations, one scale", "activations, a scale per token", f"activations, per {GROUP}"
SPARED = "activations, one scale, first token spared"


def spared(x_TD: Tensor) -> Tensor:
    """All but the first token rounded, with one scale."""
    return torch.cat([x_TD[:1], uniform(8, "tensor")(x_TD[1:])])


ACTIVATIONS: dict[str, Rounding] = {
    BY_TENSOR: uniform(8, "tensor"),
    SPARED: spared,
    BY_TOKEN: uniform(8, "row"),
    BY_GROUP: uniform(8, GROUP),
}


class Place(NamedTuple):
    """The largest number at a place, by size: its token and channel; the typical one, and the largest elsewhere."""

    name: str
    largest: float
    token: int
    channel: int
    median: float
    later: float

    @staticmethod
    def of(name: str, x_TD: Tensor) -> Place:
        """later: of all tokens but the first."""
        size_TD = x_TD.abs()
        token, channel = divmod(int(size_TD.argmax()), x_TD.shape[1])
        median, later = float(size_TD.median()), float(size_TD[1:].max())
        return Place(name, float(size_TD.max()), token, channel, median, later)


@lab(
    "weights-versus-activations",
    title=both("Weights are easy, activations are not", "权重好量化，激活难"),
    question=both("Why are activations harder to quantize than weights?", "为什么激活比权重更难量化？"),
    seconds={"quick": 5, "full": 20},
)
def weights_versus_activations(
    run: Run,
    *,
    model: Annotated[str, Knob("the model", "模型")] = MODEL,
    length: Annotated[int, Knob("tokens of text read", "读入文本的词元数", quick=64, min=8, max=2048)] = 400,
) -> Finding:
    loaded = subject(model)
    decoding, tokens_T = decoder(loaded), reading(loaded, length)
    base = loss(decoding, tokens_T)
    lost = {name: of_weights(decoding, tokens_T, r) - base for name, r in run.each(list(WEIGHTS.items()), "weights")}
    lost |= {name: of_inputs(decoding, tokens_T, r) - base for name, r in run.each(list(ACTIVATIONS.items()), "inputs")}
    stream, inputs = streams(decoding, tokens_T), places(decoding, tokens_T)
    spread = max(float(m.weight.detach().abs().max() / m.weight.detach().abs().median()) for _, m in linears(decoding))
    return Finding(
        table=_table(lost, stream, inputs),
        plot=_plot(stream),
        verdict=_verdict(lost, stream, inputs, base, spread),
        checks=_checks(lost, stream, inputs, spread),
    )


@torch.inference_mode()
def streams(model: Decoder, tokens_T: Tensor) -> list[Place]:
    """The residual stream before each layer, and after the last."""
    return [Place.of(f"residual {n}", x_TD) for n, x_TD in enumerate(states(model, tokens_T))]


@torch.inference_mode()
def places(model: Decoder, tokens_T: Tensor) -> list[Place]:
    """What each linear map reads, the largest numbers first."""
    found: list[Place] = []
    twin = with_inputs(model, lambda x_TD: x_TD)
    for name, module in linears(twin):
        module.register_forward_pre_hook(lambda _, inputs, name=name: found.append(Place.of(name, inputs[0])))
    loss(twin, tokens_T)
    return sorted(found, key=lambda p: -p.largest)


# ---- what it comes to


COLUMNS = {
    "what": "", "loses": "nats", "largest": "", "at token": "", "in channel": "", "median": "",
    "largest after the first token": "",
}  # fmt: skip
SHOWN = 8


def _table(lost: dict[str, float], stream: list[Place], inputs: list[Place]) -> Table:
    rows: list[list[Cell]] = [[f"8-bit {name}", value, *[None] * 5] for name, value in lost.items()]
    rows += [[p.name, None, *p[1:]] for p in (*sorted(stream, key=lambda p: -p.largest)[:SHOWN], *inputs[:SHOWN])]
    return table(COLUMNS, rows)


def _plot(stream: list[Place]) -> Plot:
    x = [float(n) for n in range(len(stream))]
    return Plot(
        kind="line",
        x=Axis(label="layer"),
        y=Axis(label="size in the residual stream", log=True),
        series=[
            Series(name="largest", x=x, y=[p.largest for p in stream]),
            Series(name="largest after the first token", x=x, y=[p.later for p in stream]),
            Series(name="median", x=x, y=[p.median for p in stream]),
        ],
    )


def _top(found: list[Place]) -> Place:
    return max(found, key=lambda p: p.largest)


def _checks(lost: dict[str, float], stream: list[Place], inputs: list[Place], spread: float) -> list[Check]:
    top, read = _top(stream), _top(inputs)
    row, tensor, token = (lost[name] for name in ("weights, a scale per row", BY_TENSOR, BY_TOKEN))
    return [
        check(
            row < 0.02,
            f"8-bit weights with a scale per row cost {row:+.4f} nats, under 0.02",
            f"8 位权重按行缩放，损失 {row:+.4f} 奈特，低于 0.02",
        ),
        check(
            tensor > 0.3,
            f"8-bit activations with one scale cost {tensor:+.3f}, more than 0.3",
            f"8 位激活共用一个缩放，损失 {tensor:+.3f}，高于 0.3",
        ),
        check(
            token < 0.1 and lost[BY_GROUP] < 0.1,
            f"with a scale per token {token:+.4f}, for every {GROUP} numbers (as the native kernels do) "
            f"{lost[BY_GROUP]:+.4f}, both under 0.1",
            f"按词元缩放 {token:+.4f}，每 {GROUP} 个数一个缩放（本机内核的做法）{lost[BY_GROUP]:+.4f}，都低于 0.1",
        ),
        check(
            top.token == read.token == 0 and top.largest > 1000 * top.median and top.median < 10,
            f"the largest numbers are at the first token: {top.largest:,.0f} in channel {top.channel} of {top.name} "
            f"(median {top.median:.2f}, after the first token at most {top.later:,.0f}), and {read.largest:,.0f} at "
            f"{read.name} (median {read.median:.2f})",
            f"最大的数在第一个词元：{top.name} 的第 {top.channel} 通道为 {top.largest:,.0f}（中位数 {top.median:.2f}，"
            f"其后词元至多 {top.later:,.0f}），{read.name} 读入 {read.largest:,.0f}（中位数 {read.median:.2f}）",
        ),
        check(
            lost[SPARED] < tensor and read.largest / read.median > 10 * spread,
            f"sparing that token alone brings {tensor:+.3f} down to {lost[SPARED]:+.3f}; no matrix of weights "
            f"spreads as far: {spread:,.0f} times its median against {read.largest / read.median:,.0f}",
            f"只放过这个词元，{tensor:+.3f} 降为 {lost[SPARED]:+.3f}；权重矩阵没有这么悬殊：至多为中位数的 "
            f"{spread:,.0f} 倍，激活为 {read.largest / read.median:,.0f} 倍",
        ),
    ]


def _verdict(lost: dict[str, float], stream: list[Place], inputs: list[Place], base: float, spread: float) -> Words:
    said = "; ".join(f"{name} {value:+.4f}" for name, value in lost.items())
    top, read = _top(stream), _top(inputs)
    return both(
        f"Because one number sets the scale of all that share it. What 8 bits cost, in nats over {base:.3f}: {said}. "
        f"The first token carries {top.largest:,.0f} in channel {top.channel} of the residual stream (median "
        f"{top.median:.2f}) and {read.largest:,.0f} at {read.name}, {read.largest / read.median:,.0f} times the "
        f"median there; the widest matrix of weights has {spread:,.0f} times its median. A scale per token, or per "
        "group, keeps the damage where the outlier is.",
        f"因为一个数就决定了所有共用者的缩放。8 位的代价（相对 {base:.3f} 奈特）：{said}。第一个词元在残差流第 "
        f"{top.channel} 通道上是 {top.largest:,.0f}（中位数 {top.median:.2f}），在 {read.name} 读入 "
        f"{read.largest:,.0f}，为那里中位数的 {read.largest / read.median:,.0f} 倍；权重最悬殊的矩阵也只有 "
        f"{spread:,.0f} 倍。按词元或按组缩放，损害就留在离群值所在之处。",
    )
