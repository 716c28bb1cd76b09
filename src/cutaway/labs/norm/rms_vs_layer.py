"""RMSNorm against LayerNorm: what is left out, whether real hidden states miss it, and what it saves.

    LayerNorm(x) = (x - mean) / std * w + b        two reductions over a row, the second after the first
    RMSNorm(x)   =  x / rms * w                    one

Four views: algebra in float64; operations counted and timed; a trained RMSNorm model whose norms are made to
subtract the mean; small models trained from scratch with either, on English prose, byte by byte.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, loss_of, reading, subject
from cutaway.labs.timing import interleaved
from cutaway.labs.training import fit, fresh, held_out, next_bytes, prose, small_spec
from cutaway.labs.training import loss_of as batch_loss
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.norms import LayerNorm, NormSpec, RMSNorm, make_norm

Kind = Literal["rms", "layer"]
KINDS: tuple[Kind, Kind] = ("rms", "layer")
EPS = 1e-5
LENGTH, ROWS = 96, 8  # bytes per training sequence, sequences per step


class Pair(NamedTuple):
    """A property of RMSNorm and of LayerNorm."""

    name: str
    unit: str
    rms: float
    layer: float


@lab(
    "rms-vs-layer",
    title=both("RMSNorm against LayerNorm", "RMSNorm 对 LayerNorm"),
    question=both(
        "What does RMSNorm leave out of LayerNorm, and why do Llama-type models prefer it?",
        "RMSNorm 比 LayerNorm 省了什么？Llama 一类的模型为什么选它？",
    ),
    seconds={"quick": 3, "full": 120},
)
def rms_vs_layer(
    run: Run,
    *,
    model: Annotated[str, Knob("the trained model", "训练好的模型")] = MODEL,
    length: Annotated[int, Knob("tokens of text it reads", "读入文本的词元数", quick=64, min=2, max=8192)] = 512,
    rows: Annotated[
        int, Knob("rows normalized in one timed call", "每次计时归一化的行数", quick=64, min=1, max=10**6)
    ] = 512,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=5, min=5, max=1001)] = 51,
    width: Annotated[
        int, Knob("width of the trained-from-scratch model", "从零训练的模型宽度", quick=32, min=16, max=512)
    ] = 128,
    layers: Annotated[int, Knob("its blocks", "它的层数", quick=2, min=1, max=16)] = 4,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=30, min=1, max=10**5)] = 250,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=2, min=2, max=16)] = 3,
) -> Finding:
    found = real(model, length, run)
    pairs = [*counted(found.width), *timed(rows, found.width, repeats)]
    trained: dict[Kind, list[Trained]] = {kind: [] for kind in KINDS}
    small = {kind: small_spec(norm=NormSpec(kind, EPS), width=width, layers=layers) for kind in KINDS}
    for seed in range(run.seed, run.seed + seeds):
        for kind in KINDS:
            trained[kind].append(train(kind, small[kind], steps, seed, run))
    pairs += compared(small, trained)
    pairs += [
        Pair(f"loss of the trained model: {k}", "nats/token", found.loss, loss) for k, loss in found.centered.items()
    ]
    return Finding(
        table=_table(pairs),
        plot=_plot(found.off_center),
        verdict=_verdict(pairs, found, trained),
        checks=[*algebra(run.generator(), found.width), *_checks(pairs, trained)],
    )


# ---- algebra


def algebra(generator: torch.Generator, width: int) -> list[Check]:
    """What holds exactly, in float64, for rows of random numbers and random weights."""
    x_TD = torch.randn(64, width, generator=generator, dtype=torch.float64) + 0.5
    weight_D = torch.rand(width, generator=generator, dtype=torch.float64) + 0.5
    rms, layer = (_norm(kind, weight_D, 0.0) for kind in KINDS)
    centered_TD = x_TD - x_TD.mean(-1, keepdim=True)
    same = _gap(rms(centered_TD), layer(centered_TD))
    scaled = max(_gap(norm(7 * x_TD), norm(x_TD)) for norm in (rms, layer))
    shifted = [_gap(norm(x_TD + 3), norm(x_TD)) for norm in (rms, layer)]
    eps = _gap(_norm("rms", weight_D, 1e-5)(x_TD), _norm("rms", weight_D, 1e-6)(x_TD))
    return [
        check(
            same < 1e-12,
            f"equal on rows of zero mean (to {same:.0e})",
            f"在零均值的行上两者相等（相差 {same:.0e}）",
        ),
        check(
            scaled < 1e-12 and shifted[1] < 1e-12 and shifted[0] > 0.1,
            f"neither notices the scale of x (to {scaled:.0e}); LayerNorm alone does not notice a shift",
            f"两者都不受 x 缩放影响（相差 {scaled:.0e}）；只有 LayerNorm 不受平移影响",
        ),
        check(
            eps > 1e-9,
            f"eps 1e-5 and 1e-6 differ by {eps:.0e}: a comparison in float64 must agree to less",
            f"eps 取 1e-5 与 1e-6 相差 {eps:.0e}：float64 下的比对必须比这更严",
        ),
    ]


def _norm(kind: Kind, weight_D: Tensor, eps: float) -> nn.Module:
    norm = make_norm(NormSpec(kind, eps), len(weight_D)).double().requires_grad_(False)
    norm.get_parameter("weight").copy_(weight_D)
    return norm


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---- counted and timed


class Tally(TorchDispatchMode):
    """Counts what PyTorch is asked to do: operations, reductions among them, numbers read."""

    REDUCTIONS = ("mean", "sum", "var")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts["operations"] += 1
        self.counts["reductions"] += name in self.REDUCTIONS
        self.counts["read"] += sum(a.numel() for a in args if isinstance(a, Tensor))
        return func(*args, **(kwargs or {}))


def rms_written_out(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
    """One reduction; the bias is not used."""
    return x_TD * torch.rsqrt((x_TD * x_TD).mean(-1, keepdim=True) + EPS) * weight_D


def layer_written_out(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
    """Two reductions, the second of what the first left."""
    centered_TD = x_TD - x_TD.mean(-1, keepdim=True)
    variance_T1 = (centered_TD * centered_TD).mean(-1, keepdim=True)
    return centered_TD * torch.rsqrt(variance_T1 + EPS) * weight_D + bias_D


WRITTEN_OUT: tuple[Callable[..., Tensor], ...] = (rms_written_out, layer_written_out)


def counted(width: int) -> list[Pair]:
    """Parameters, and operations of the formulas written out."""
    inputs = torch.randn(256, width), torch.ones(width), torch.zeros(width)
    tallies = []
    for way in WRITTEN_OUT:
        with Tally() as tally:
            way(*inputs)
        tallies.append(tally.counts)
    rms, layer = tallies
    numbers = inputs[0].numel()
    return [
        Pair("parameters of one norm", "", width, 2 * width),
        Pair("reductions over a row", "", rms["reductions"], layer["reductions"]),
        Pair("operations, written out", "", rms["operations"], layer["operations"]),
        Pair("numbers read, written out", "per number", rms["read"] / numbers, layer["read"] / numbers),
    ]


def timed(rows: int, width: int, repeats: int) -> list[Pair]:
    """Microseconds per call: the formulas written out, and PyTorch's own kernels."""
    x_TD, weight_D, bias_D = torch.randn(rows, width), torch.ones(width), torch.zeros(width)
    ways: list[Callable[[], object]] = [
        lambda: rms_written_out(x_TD, weight_D, bias_D),
        lambda: layer_written_out(x_TD, weight_D, bias_D),
        lambda: F.rms_norm(x_TD, (width,), weight_D, EPS),
        lambda: F.layer_norm(x_TD, (width,), weight_D, bias_D, EPS),
    ]
    with torch.inference_mode():
        rms, layer, rms_kernel, layer_kernel = (1e6 * seconds for seconds in interleaved(ways, repeats))
    return [
        Pair("time, written out", f"µs for {rows} rows", rms, layer),
        Pair("time, PyTorch's kernel", f"µs for {rows} rows", rms_kernel, layer_kernel),
    ]


# ---- a trained model


class Real(NamedTuple):
    """width: D. off_center: |mean| / rms by norm. loss: as trained. centered: loss by which norms were."""

    width: int
    off_center: dict[str, float]
    loss: float
    centered: dict[str, float]


@torch.inference_mode()
def real(source: str, length: int, run: Run) -> Real:
    """How far from zero mean the inputs of a trained model's norms are, and what subtracting the mean costs."""
    loaded = subject(source)
    model, tokens_T = decoder(loaded), reading(loaded, length)
    off_center: dict[str, float] = {}
    watched = hooked(model, "all norms", lambda name, x_TD: off_center.update({name: off_center_of(x_TD)}))
    loss = loss_of(logits_of(watched, tokens_T), tokens_T)
    kinds = dict.fromkeys(["all norms", *(name.rpartition(".")[2] for name in off_center)])
    centered = {
        kind: loss_of(logits_of(hooked(model, kind, subtract_mean), tokens_T), tokens_T)
        for kind in run.each(kinds, "subtracting the mean before norms")
    }
    return Real(model.spec.width, off_center, loss, centered)


def hooked(model: Decoder, kind: str, hook: Callable[[str, Tensor], Tensor | None]) -> Decoder:
    """The same weights in modules of their own, where `hook` sees and may replace what enters norms over D.

    kind: the last part of the norms' names ("ffn_norm"), or "all norms". A norm over one head's K is left alone.
    """
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})
    for name, module in twin.named_modules():
        wide = isinstance(module, LayerNorm | RMSNorm) and len(module.weight) == model.spec.width
        if wide and kind in ("all norms", name.rpartition(".")[2]):
            module.register_forward_pre_hook(lambda _, inputs, name=name: hook(name, *inputs))
    return twin


def subtract_mean(name: str, x_TD: Tensor) -> Tensor:
    """RMSNorm of this is LayerNorm without bias of x_TD."""
    return x_TD - x_TD.mean(-1, keepdim=True)


def off_center_of(x_TD: Tensor) -> float:
    """Median over tokens of |mean| / rms: the part of a row that LayerNorm would take away."""
    return float((x_TD.mean(-1).abs() / x_TD.square().mean(-1).sqrt()).median())


# ---- models trained from scratch


class Trained(NamedTuple):
    """held_out: loss after training, nats per byte. seconds: of a step, median."""

    held_out: float
    seconds: float


def train(kind: Kind, spec: Spec, steps: int, seed: int, run: Run) -> Trained:
    """Train on nine tenths of the text, test on the rest."""
    text, model = prose(), fresh(spec, seed)
    cut = len(text) * 9 // 10
    learned, test = (next_bytes(part, LENGTH, ROWS) for part in (text[:cut], text[cut:]))
    note = f"training with {kind} norm"
    fitted = fit(model.parameters(), lambda draws: batch_loss(model, learned(draws)), steps, run, note, seed=seed)
    return Trained(held_out(model, test, max(4, steps // 10)), fitted.seconds)


def compared(small: dict[Kind, Spec], trained: dict[Kind, list[Trained]]) -> list[Pair]:
    """Size, loss and speed of the models trained from scratch."""
    losses = [losses_of(trained[kind]) for kind in KINDS]
    seconds = [statistics.median(t.seconds for t in trained[kind]) for kind in KINDS]
    seeds = f"nats/byte, {len(losses[0])} seeds"
    return [
        Pair("trained from scratch: parameters", "", *(Cost(small[kind]).parameters for kind in KINDS)),
        Pair("held-out loss, mean", seeds, *map(statistics.mean, losses)),
        Pair("held-out loss, spread", "max - min", *(max(seen) - min(seen) for seen in losses)),
        Pair("time of a training step", "ms", *(1e3 * s for s in seconds)),
    ]


def losses_of(runs: list[Trained]) -> list[float]:
    """One held-out loss per seed."""
    return [t.held_out for t in runs]


# ---- what it comes to


def _table(pairs: list[Pair]) -> Table:
    names = ("property", "unit", "RMSNorm", "LayerNorm", "LayerNorm / RMSNorm")
    return table(dict.fromkeys(names, ""), ([*pair, pair.layer / pair.rms] for pair in pairs))


def _plot(off_center: dict[str, float]) -> Plot:
    values = list(off_center.values())
    return Plot(
        kind="line",
        x=Axis(label="norm, from the first block to the last"),
        y=Axis(label="|mean| / rms of its input"),
        series=[Series(name="median over tokens", x=[float(i) for i in range(len(values))], y=values)],
    )


def _checks(pairs: list[Pair], trained: dict[Kind, list[Trained]]) -> list[Check]:
    by_name = {pair.name: pair for pair in pairs}
    reductions, parameters = by_name["reductions over a row"], by_name["parameters of one norm"]
    rms, layer = (statistics.mean(losses_of(trained[kind])) for kind in KINDS)
    apart = abs(rms / layer - 1)
    return [
        check(
            (reductions.rms, reductions.layer) == (1, 2) and parameters.layer == 2 * parameters.rms,
            "counted: "
            f"{reductions.rms} reduction instead of {reductions.layer}, {parameters.layer - parameters.rms} "
            "parameters fewer",
            f"按计数：{reductions.rms} 次规约而非 {reductions.layer} 次，少 {parameters.layer - parameters.rms} 个参数",
        ),
        check(
            max(rms, layer) < 0.9 * math.log(256) and apart < 0.05,
            f"trained from scratch, both learn, and equally well: losses {apart:.1%} apart",
            f"从零训练，两者都能学会且不相上下：损失相差 {apart:.1%}",
        ),
    ]


def _verdict(pairs: list[Pair], found: Real, trained: dict[Kind, list[Trained]]) -> Words:
    by_name = {pair.name: pair for pair in pairs}
    out, kernel = by_name["time, written out"], by_name["time, PyTorch's kernel"]
    typical, largest = statistics.median(found.off_center.values()), max(found.off_center.values())
    rms, layer = (losses_of(trained[kind]) for kind in KINDS)
    return both(
        f"RMSNorm leaves out the mean and the bias. In the trained model the mean is {typical:.1%} of the "
        f"rms of a norm's input (median over norms; {largest:.1%} at most), and subtracting it everywhere "
        f"moves the loss from {found.loss:.3f} to {found.centered['all norms']:.3f}. Written out, LayerNorm "
        f"takes {out.layer / out.rms:.2f} times as long as RMSNorm; as PyTorch's kernels on this machine "
        f"{kernel.layer / kernel.rms:.2f} times. Trained from scratch, held-out losses are {min(rms):.3f} "
        f"to {max(rms):.3f} with RMSNorm and {min(layer):.3f} to {max(layer):.3f} with LayerNorm "
        f"({len(rms)} seeds).",
        f"RMSNorm 省去了均值和偏置。在训练好的模型里，均值是归一化输入 rms 的 {typical:.1%}（各归一化层的中"
        f"位数；最多 {largest:.1%}），处处减去均值使损失从 {found.loss:.3f} 变为 "
        f"{found.centered['all norms']:.3f}。按公式逐步计算，LayerNorm 用时是 RMSNorm 的 "
        f"{out.layer / out.rms:.2f} 倍；用 PyTorch 内核在本机为 {kernel.layer / kernel.rms:.2f} 倍。从零训"
        f"练，留出集损失 RMSNorm 为 {min(rms):.3f} 到 {max(rms):.3f}，LayerNorm 为 {min(layer):.3f} 到 "
        f"{max(layer):.3f}（{len(rms)} 个种子）。",
    )
