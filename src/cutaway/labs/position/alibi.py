"""ALiBi (Press et al. 2021, arXiv:2108.12409): order as a penalty on distance, and what that costs beside rotation.

    score(i, j) = <q_i, k_j> / sqrt(K) - slope_h * (i - j)         slopes of 8 heads: 1/2, 1/4, ... 1/256

Nothing is added to the embedding and nothing is learned. Rotation does its arithmetic on q and k, 2 n H K numbers for n
tokens; the penalty is added to the scores, n^2 H numbers: more from n = 2K on. A fused kernel never keeps the scores,
and a rotated q goes into it like any other; the penalty, unless the kernel itself knows ALiBi, is handed over as a mask
of n^2 H numbers. Here it is made once for all layers, the causal mask in it, which is the best that can be done for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.timing import interleaved
from cutaway.nn.attention import Question, attend, attention_weights, distances
from cutaway.nn.position_bias import Alibi, AlibiSpec, alibi_slopes, make_bias
from cutaway.nn.positions import RopeSpec, Rotation, rotate, rotation

HEADS, WIDTH, SHORT = 8, 64, 512
NAMES = ("none", "rotation", "ALiBi", "none, the causal mask handed over", "ALiBi as layers here run it")
SHOWN = 64  # distances in the plot
EQUAL = 1e-5
PLAIN, PENALIZED = Question(WIDTH**-0.5), Question(WIDTH**-0.5, bias=Alibi(HEADS))
KERNEL = "aten::_scaled_dot_product_flash_attention_for_cpu"
Way = Callable[[], object]


class Work(NamedTuple):
    """One layer's q, k and v of n tokens, [1, H, n, K], and what either scheme prepares once for all layers."""

    q: Tensor
    k: Tensor
    v: Tensor
    turn: Rotation
    bias_1HQS: Tensor
    mask_11QS: Tensor

    def asking(self, added: Tensor) -> Question:
        """What a layer asks that adds this to scores, the causal mask in it."""
        return Question(WIDTH**-0.5, causal=False, bias=lambda *_: added)


class Timed(NamedTuple):
    """Microseconds for a layer of n tokens. Alone: turning q and k; making the bias; adding it to scores. unfused and
    fused: the whole of attention, as `NAMES` has it.

    numbers: how many a layer turns, and how many it adds. kept: MiB of what is prepared for all layers, likewise.
    apart: largest difference of what the two ways of the same attention give. ran: whether the kernel did run.
    """

    tokens: int
    turning: float
    making: float
    adding: float
    unfused: list[float]
    fused: list[float]
    numbers: tuple[int, int]
    kept: tuple[float, float]
    apart: float
    ran: list[bool]


@lab(
    "alibi",
    title=both("ALiBi: a penalty on distance", "ALiBi：对距离的惩罚"),
    question=both(
        "How does ALiBi give order without any embedding, and what does it cost next to rotation?",
        "ALiBi 不用任何位置嵌入怎样表示次序？与旋转相比代价如何？",
    ),
    seconds={"quick": 6, "full": 120},
)
def alibi(
    run: Run,
    *,
    longest: Annotated[int, Knob("tokens, beside 512", "词元数（另测 512）", quick=1024, min=1024, max=8192)] = 2048,
    repeats: Annotated[int, Knob("times each is timed", "每种方法计时次数", quick=2, min=1, max=200)] = 15,
) -> Finding:
    off = from_formula(257)
    timed = [measured(n, repeats, run) for n in run.each((SHORT, longest), "timing")]
    return Finding(table=_table(timed), plot=_plot(), verdict=_verdict(timed), checks=_checks(timed, off))


def from_formula(n: int) -> float:
    """Largest difference of the bias from -slope * (i - j), number by number, where i may look at j."""
    bias_HQS = penalty(n)
    slopes = [2.0 ** -(h + 1) for h in range(HEADS)]
    by_hand_HQS = torch.tensor([[[-s * (i - j) for j in range(n)] for i in range(n)] for s in slopes])
    return float((bias_HQS - by_hand_HQS).tril().abs().max())


def penalty(n: int) -> Tensor:
    """The bias of n tokens, bias_HQS."""
    nothing = torch.zeros(1, 1, 1)
    return Alibi(HEADS)(nothing, nothing, distances(n, n, nothing.device))


# ---- time


def work(n: int, generator: torch.Generator) -> Work:
    """Random q, k and v."""
    q, k, v = torch.randn(3, 1, HEADS, n, WIDTH, generator=generator)
    mask_11QS = torch.full((1, 1, n, n), -torch.inf).triu(1)  # PyTorch's kernel takes two axes or four, not three
    return Work(q, k, v, rotation(RopeSpec(), WIDTH, torch.arange(n), q.dtype), penalty(n) + mask_11QS, mask_11QS)


def turned(w: Work) -> tuple[Tensor, Tensor]:
    """Q and k, rotated."""
    q, k = (rotate(x[0].transpose(0, 1), w.turn).transpose(0, 1)[None] for x in (w.q, w.k))
    return q, k


def unfused(q: Tensor, k: Tensor, v: Tensor, question: Question) -> Tensor:
    """Scores, softmax and sum, each written out."""
    return attention_weights(q, k, question) @ v


class Called(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def fuses(way: Way) -> bool:
    """Whether attention runs in PyTorch's fused kernel for the CPU; where it cannot, PyTorch silently writes it out."""
    with Called() as called:
        way()
    return KERNEL in called.names


@torch.no_grad()
def measured(n: int, repeats: int, run: Run) -> Timed:
    """Five attentions, in two ways, and what makes them differ, side by side."""
    w = work(n, run.generator())
    scores_1HQS, penalized, masked = torch.zeros(1, HEADS, n, n), w.asking(w.bias_1HQS), w.asking(w.mask_11QS)
    alone: list[Way] = [lambda: turned(w), lambda: penalty(n), lambda: scores_1HQS + w.bias_1HQS]

    def ways(attention: Callable[[Tensor, Tensor, Tensor, Question], Tensor]) -> list[Callable[[], Tensor]]:
        return [
            lambda: attention(w.q, w.k, w.v, PLAIN),
            lambda: attention(*turned(w), w.v, PLAIN),
            lambda: attention(w.q, w.k, w.v, penalized),
            lambda: attention(w.q, w.k, w.v, masked),
            lambda: attention(w.q, w.k, w.v, PENALIZED),
        ]

    written, fused = ways(unfused), ways(attend)
    us = [1e6 * s for s in interleaved([*alone, *written, *fused], repeats)]
    apart = max(float((a() - b()).abs().max()) for a, b in zip(written, fused, strict=True))
    numbers = w.q.numel() + w.k.numel(), w.bias_1HQS.numel()
    kept = sum(t.nbytes for t in w.turn) / 2**20, w.bias_1HQS.nbytes / 2**20
    return Timed(n, us[0], us[1], us[2], us[3:8], us[8:], numbers, kept, apart, [fuses(way) for way in fused])


# ---- what it comes to


def _table(timed: list[Timed]) -> Table:
    columns = {
        "tokens": "",
        "position": "",
        "alone": "µs",
        "attention written out": "µs",
        "of it for the position": "µs",
        "attention in PyTorch's kernel": "µs",
        "of it for the position, kernel": "µs",
        "the kernel ran": "",
        "numbers turned or added": "",
        "prepared for all layers": "MiB",
    }
    rows: list[list[Cell]] = []
    for t in timed:
        alone, numbers, kept = ((None, *x, None, None) for x in ((t.turning, t.adding), t.numbers, t.kept))
        for i, (written, kernel) in enumerate(_more(t)):
            whole = [t.unfused[i], written, t.fused[i], kernel, t.ran[i]]
            rows.append([t.tokens, NAMES[i], alone[i], *whole, numbers[i], kept[i]])
        rows.append([t.tokens, "ALiBi, making the bias", t.making, *[None] * 7])
    return table(columns, rows)


def _more(t: Timed) -> list[tuple[float, float]]:
    """What each attention takes beyond the first: written out, and in the kernel."""
    return [(a - t.unfused[0], b - t.fused[0]) for a, b in zip(t.unfused, t.fused, strict=True)]


def _plot() -> Plot:
    distance_S = torch.arange(SHOWN + 1)
    return Plot(
        kind="line",
        x=Axis(label="distance i − j, tokens"),
        y=Axis(label="factor on the weight of a key, exp(−slope · distance)"),
        series=[
            Series(
                name=f"slope 1/{1 / slope:.0f}", x=distance_S.double().tolist(), y=(-slope * distance_S).exp().tolist()
            )
            for slope in alibi_slopes(HEADS).tolist()
        ],
    )


def _checks(timed: list[Timed], off: float) -> list[Check]:
    parameters = sum(p.numel() for p in make_bias(AlibiSpec(), HEADS).parameters())
    ratios = {t.tokens: t.numbers[1] / t.numbers[0] for t in timed}
    apart = max(t.apart for t in timed)
    told = ", ".join(f"{ratio:.0f} times at {n:,}" for n, ratio in ratios.items())
    told_zh = "、".join(f"{n:,} 时 {ratio:.0f} 倍" for n, ratio in ratios.items())
    return [
        check(
            alibi_slopes(HEADS).tolist() == [2.0 ** -(h + 1) for h in range(HEADS)],
            "the slopes of 8 heads are 1/2, 1/4, ... 1/256",
            "8 个头的斜率为 1/2、1/4……1/256",
        ),
        check(
            off == 0 == parameters,
            f"the bias is −slope · (i − j), to the last bit, and has {parameters} parameters",
            f"偏置就是 −斜率 · (i − j)，逐位相等，参数 {parameters} 个",
        ),
        check(
            all(ratio == n / (2 * WIDTH) for n, ratio in ratios.items()),
            f"ALiBi works on n / 2K times as many numbers as rotation ({told} tokens)",
            f"ALiBi 要处理的数是旋转的 n / 2K 倍（词元数 {told_zh}）",
        ),
        check(
            apart < EQUAL and all(all(t.ran[:4]) for t in timed),
            f"what is timed with the kernel did run in it, and gives what attention written out gives, to {apart:.0e}",
            f"按内核计时的确实在内核中运行，结果与逐步写出的相同，相差 {apart:.0e}",
        ),
    ]


def _told(t: Timed, words: tuple[str, str, str, str, str], comma: str) -> str:
    """One length's figures, in microseconds."""
    _, rotated, penalized, masked, _ = _more(t)
    parts = [f"{t.turning:,.0f}", f"{t.adding:,.0f}"]
    parts += [f"{r:+,.0f} / {a:+,.0f}" for r, a in zip(rotated, penalized, strict=True)]
    return comma.join(f"{word} {part}" for word, part in zip(words, [*parts, f"{masked[1]:+,.0f}"], strict=True))


def _verdict(timed: list[Timed]) -> Words:
    english = ("turning q and k", "adding the bias", "attention written out", "in the kernel", "there for a mask alone")
    chinese = ("旋转 q 和 k", "加偏置", "逐步写出的注意力", "内核中", "内核中只交掩码")
    en = "; ".join(f"{t.tokens:,} tokens: " + _told(t, english, ", ") for t in timed)
    zh = "；".join(f"{t.tokens:,} 个词元：" + _told(t, chinese, "、") for t in timed)
    last, (turn, bias) = timed[-1], timed[-1].kept
    how, how_zh = ("in", "在") if last.ran[4] else ("outside", "不在")
    return both(
        f"Each head subtracts its slope per token of distance before the softmax, so a key's weight shrinks by a fixed "
        f"factor per step: order without embedding and without parameters. Microseconds of a layer of {HEADS} heads on "
        f"this machine (a / b: what attention takes beyond having no positions, with rotation and with ALiBi). {en}. "
        f"Making the bias takes {last.making:,.0f}, once if it is kept: {bias:,.0f} MiB at {last.tokens:,} tokens, "
        f"where rotation keeps {turn:.1f}. Written out, the penalty rides on the mask that is added anyway; the kernel "
        f"makes a causal mask itself, and has to be handed one as soon as there is a penalty. A layer of the models "
        f"here makes the bias anew and attends {how} the kernel: {last.fused[4]:,.0f} instead of {last.fused[2]:,.0f}.",
        f"每个头在 softmax 之前按距离减去“斜率 × 词元数”，键的权重每远一步就乘上固定因子：不用嵌入、不用参数就有次序。"
        f"本机上一层 {HEADS} 个头的微秒数（a / b：带旋转、带 ALiBi 的注意力比没有位置时多用的时间）。{zh}。生成偏置需 "
        f"{last.making:,.0f}，若保留则只需一次：{last.tokens:,} 个词元时占 {bias:,.0f} MiB，旋转只占 {turn:.1f}。逐步"
        f"写出时，惩罚可与本来就要加的掩码合在一起；内核自己就会做因果掩码，一有惩罚就得把掩码交给它。这里模型的层每次重新"
        f"生成偏置，且{how_zh}内核中计算注意力：{last.fused[4]:,.0f}，而不是 {last.fused[2]:,.0f}。",
    )
