"""Cross-entropy: its gradient, its value before any learning, and what it costs in memory.

    loss = logsumexp(logits) - logits[target]      gradient = p - y

Before learning, logits are random: with standard deviation s the loss is ln V + s^2 / 2, so the first number that a
training run prints tells how its tables were initialized. A squared error on the probabilities is held against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.memory import peak_bytes
from cutaway.labs.timing import interleaved
from cutaway.labs.training import Batch, fresh, loss_of, small_spec
from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.losses import cross_entropy, linear_cross_entropy

VOCABULARIES = {"SmolLM2": 49_152, "GPT-2": 50_257, "Llama 3": 128_256}
STDS = (0.0, 0.5, 1.0, 2.0)  # of random logits
TABLES = (0.02, 0.05, 0.1, 0.2)  # of the numbers in a new model's matrices
MARGINS = torch.linspace(-12, 12, 49, dtype=torch.float64)
CONFIDENT = -10.0  # nats by which the truth is behind a confident wrong answer


class Row(NamedTuple):
    """One figure beside what theory says of it."""

    what: str
    at: str
    expected: float
    found: float


@lab(
    "cross-entropy",
    title=both("Cross-entropy, from its gradient to its memory", "交叉熵：从梯度到显存"),
    question=both(
        "Why is cross-entropy the training loss, and what should it read before any learning?",
        "为什么用交叉熵做训练损失？什么都没学之前它应该是多少？",
    ),
    seconds={"quick": 1, "full": 45},
)
def cross_entropy_lab(
    run: Run,
    *,
    vocab: Annotated[int, Knob("vocabulary", "词表大小", quick=8192, min=256, max=300_000)] = 49_152,
    tokens: Annotated[int, Knob("tokens in a step", "一步的词元数", quick=256, min=8, max=8192)] = 1024,
    width: Annotated[int, Knob("width of the hidden states", "隐藏状态宽度", quick=64, min=8, max=8192)] = 576,
    chunk: Annotated[int, Knob("rows per chunk", "每块的行数", quick=32, min=1, max=8192)] = 64,
    repeats: Annotated[int, Knob("timings of each form, in turns", "交替计时的次数", quick=5, min=5, max=101)] = 5,
) -> Finding:
    generator = run.generator()
    slope = finite_difference_error(generator)
    uniform = [Row("loss of a uniform guess", name, math.log(v), guess(v)) for name, v in VOCABULARIES.items()]
    random = [random_logits(vocab, std, generator) for std in run.each(STDS, "random logits, std")]
    new = [new_model(vocab, std, run.seed) for std in run.each(TABLES, "a new model, std of its matrices")]
    cells: list[Sequence[Cell]] = [[r.what, r.at, "nats", r.expected, r.found] for r in (*uniform, *random, *new)]
    forms = both_forms(tokens, vocab, width, chunk=chunk, repeats=repeats, generator=generator)
    return Finding(
        table=table(
            dict.fromkeys(("what", "at", "unit", "by theory, or whole", "measured, or in chunks"), ""),
            [*cells, *forms.rows()],
        ),
        plot=_plot(),
        verdict=_verdict(uniform, new, forms),
        checks=_checks(slope, uniform, random, new, forms),
    )


# ---- the gradient


def finite_difference_error(generator: torch.Generator) -> float:
    """Largest difference between p - y and a central difference of the loss, float64."""
    logits_TV = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    targets_T = torch.randint(40, (6,), generator=generator)
    claimed_TV = logits_TV.softmax(-1) - F.one_hot(targets_T, 40)
    step = 1e-5
    numeric_TV = torch.empty_like(logits_TV)
    for v in range(40):
        nudge_V = step * F.one_hot(torch.tensor(v), 40).double()
        ahead, behind = logits_TV + nudge_V, logits_TV - nudge_V
        numeric_TV[:, v] = (cross_entropy(ahead, targets_T) - cross_entropy(behind, targets_T)) / (2 * step)
    return float((claimed_TV - numeric_TV).abs().max())


def squared_error(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Half the squared distance between the probabilities and the one-hot truth, [T]."""
    return (logits_TV.softmax(-1) - F.one_hot(targets_T, logits_TV.shape[-1])).square().sum(-1) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "squared error": squared_error,
}


def pulls(loss: Callable[[Tensor, Tensor], Tensor], margins: Tensor) -> list[float]:
    """|d loss / d logit of the truth| of two answers, the truth ahead by each margin."""
    logits_T2 = torch.stack([margins, torch.zeros_like(margins)], -1).requires_grad_(True)
    (slope_T2,) = torch.autograd.grad(loss(logits_T2, torch.zeros(len(margins), dtype=torch.long)).sum(), logits_T2)
    return slope_T2[:, 0].abs().tolist()


# ---- before learning


def guess(vocab: int) -> float:
    """The loss of equal logits."""
    return float(cross_entropy(torch.zeros(1, vocab), torch.tensor([0])))


def random_logits(vocab: int, std: float, generator: torch.Generator) -> Row:
    """The loss of normal logits of which no token is the favorite, averaged over all targets."""
    logits_TV = std * torch.randn(32, vocab, generator=generator)
    loss = float((logits_TV.logsumexp(-1) - logits_TV.mean(-1)).mean())
    return Row("loss of random logits", f"std {std:g}", math.log(vocab) + std**2 / 2, loss)


@torch.no_grad()
def new_model(vocab: int, std: float, seed: int) -> Row:
    """The first loss of a decoder with matrices of this standard deviation, on random text."""
    model, generator = fresh(small_spec(vocab=vocab, width=64), seed, std), torch.Generator().manual_seed(seed)
    inputs_T, targets_T = torch.randint(vocab, (2, 512), generator=generator)
    batch = Batch(inputs_T, targets_T, [128] * 4)
    logits_TV = model.logits(model(inputs_T, positions_of(batch.lengths), BlockDiagonal(batch.lengths)))
    expected = math.log(vocab) + float(logits_TV.var(-1).mean()) / 2
    return Row("first loss of a new model", f"matrices of std {std:g}", expected, float(loss_of(model, batch)))


# ---- memory


class Forms(NamedTuple):
    """What the loss of hidden states takes: the whole logits, and chunks of them. apart: of any gradient, relative."""

    at: Words
    bytes: tuple[float, float]
    flops: tuple[float, float]
    seconds: tuple[float, float]
    apart: float

    def rows(self) -> list[Sequence[Cell]]:
        """Of the table."""
        named = {("most memory held", "MB"): [b / 1e6 for b in self.bytes]}
        named |= {("work, forward and backward", "GFLOPs"): [f / 1e9 for f in self.flops]}
        named |= {("time, forward and backward", "ms"): [1e3 * s for s in self.seconds]}
        return [[what, self.at.en, unit, *pair] for (what, unit), pair in named.items()]


def both_forms(tokens: int, vocab: int, width: int, *, chunk: int, repeats: int, generator: torch.Generator) -> Forms:
    """Bytes and FLOPs counted, time in turns, gradients compared; bytes of gradients that both must give included."""
    hidden_TD = torch.randn(tokens, width, generator=generator).requires_grad_(True)
    table_VD = (torch.randn(vocab, width, generator=generator) / width**0.5).requires_grad_(True)
    targets_T = torch.randint(vocab, (tokens,), generator=generator)
    losses = (
        lambda: F.cross_entropy(hidden_TD @ table_VD.T, targets_T),
        lambda: linear_cross_entropy(hidden_TD, table_VD, targets_T, chunk=chunk).mean(),
    )
    first, second = (partial(gradients, loss, (hidden_TD, table_VD)) for loss in losses)
    slow, fast = interleaved([first, second], repeats)
    return Forms(
        at=both(
            f"{tokens:,} tokens, {vocab:,} words, width {width}, chunks of {chunk}",
            f"{tokens:,} 个词元、词表 {vocab:,}、宽度 {width}、每块 {chunk} 行",
        ),
        bytes=(peak_bytes(first), peak_bytes(second)),
        flops=(counted(first), counted(second)),
        seconds=(slow, fast),
        apart=max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(first(), second(), strict=True)),
    )


def gradients(loss: Callable[[], Tensor], of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward."""
    return torch.autograd.grad(loss(), of)


def counted(way: Callable[[], object]) -> float:
    """FLOPs of the matrix products."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _added_product}) as counter:
        way()
    return float(counter.get_total_flops())


def _added_product(total: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    """FLOPs of total += a @ b in place, which PyTorch's counter does not know."""
    return 2 * a[0] * a[1] * b[1]


# ---- what it comes to


def _plot() -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="nats by which the truth is ahead"),
        y=Axis(label="|d loss / d its logit|"),
        series=[Series(name=name, x=MARGINS.tolist(), y=pulls(loss, MARGINS)) for name, loss in LOSSES.items()],
    )


def _confident() -> list[float]:
    return [pulls(loss, torch.tensor([CONFIDENT], dtype=torch.float64))[0] for loss in LOSSES.values()]


def _off(rows: list[Row]) -> float:
    return max(abs(row.found - row.expected) for row in rows)


def _checks(slope: float, uniform: list[Row], random: list[Row], new: list[Row], forms: Forms) -> list[Check]:
    entropy, squared = _confident()
    return [
        check(
            slope < 1e-8,
            f"the gradient at the logits is p - y (finite differences: {slope:.0e} apart)",
            f"对 logits 的梯度就是 p - y（与有限差分相差 {slope:.0e}）",
        ),
        check(
            _off(uniform) < 1e-4,
            "a uniform guess costs ln V: " + ", ".join(f"{row.found:.3f} ({row.at})" for row in uniform),
            "均匀猜测的损失是 ln V：" + "、".join(f"{row.found:.3f}（{row.at}）" for row in uniform),
        ),
        check(
            _off(random) < 0.05 and _off(new) < 0.3,
            f"random logits of std s cost ln V + s²/2 (within {_off(random):.3f}), and so does a new model "
            f"(within {_off(new):.2f})",
            f"标准差为 s 的随机 logits 损失为 ln V + s²/2（误差 {_off(random):.3f}）；新建模型也是（{_off(new):.2f}）",
        ),
        check(
            entropy > 0.99 and squared < 1e-3,
            f"confident and wrong: cross-entropy pulls with {entropy:.4f}, the squared error with {squared:.0e}",
            f"自信地答错时：交叉熵的梯度为 {entropy:.4f}，平方误差为 {squared:.0e}",
        ),
        check(
            forms.bytes[1] < forms.bytes[0] and forms.apart < 1e-4,
            f"in chunks: {forms.bytes[1] / forms.bytes[0]:.0%} of the bytes, "
            f"{forms.flops[1] / forms.flops[0]:.2f} of the FLOPs, the same gradients (to {forms.apart:.0e})",
            f"分块计算：字节数为 {forms.bytes[1] / forms.bytes[0]:.0%}，浮点运算为 "
            f"{forms.flops[1] / forms.flops[0]:.2f} 倍，梯度相同（相差 {forms.apart:.0e}）",
        ),
    ]


def _verdict(uniform: list[Row], new: list[Row], forms: Forms) -> Words:
    entropy, squared = _confident()
    (whole, chunked), (slow, fast) = ([b / 1e6 for b in forms.bytes], [1e3 * s for s in forms.seconds])
    first, last = new[0], new[-1]
    return both(
        f"Cross-entropy's gradient is what was said minus what is true, so a confident wrong answer is pulled with "
        f"{entropy:.3f} where a squared error on the probabilities gives {squared:.0e} and learning would stall. "
        f"Before learning it should read ln V: {', '.join(f'{r.found:.3f} for {r.at}' for r in uniform)}; more means "
        f"that the logits already spread: a new model with matrices of std 0.02 starts at {first.found:.2f} "
        f"(ln V + s²/2 = {first.expected:.2f}), with 0.2 at {last.found:.2f} ({last.expected:.2f}). Nobody needs all "
        f"logits at once: with {forms.at.en}, {chunked:,.0f} MB are held instead of {whole:,.0f} MB, for "
        f"{forms.flops[1] / forms.flops[0]:.2f} times the FLOPs ({fast:,.0f} ms against {slow:,.0f} ms).",
        f"交叉熵的梯度是“说的减去真的”，所以自信地答错会得到 {entropy:.3f} 的拉力，而概率上的平方误差只有 "
        f"{squared:.0e}，学习会停滞。什么都没学时它应为 ln V：{'、'.join(f'{r.at} {r.found:.3f}' for r in uniform)}；"
        f"更高说明 logits 已经散开：矩阵标准差 0.02 的新模型从 {first.found:.2f} 开始（ln V + s²/2 = "
        f"{first.expected:.2f}），0.2 时为 {last.found:.2f}（{last.expected:.2f}）。不必同时持有全部 logits："
        f"{forms.at.zh}时只占 {chunked:,.0f} MB 而非 {whole:,.0f} MB，浮点运算为 "
        f"{forms.flops[1] / forms.flops[0]:.2f} 倍（{fast:,.0f} 毫秒对 {slow:,.0f} 毫秒）。",
    )
