"""The statistical model behind the logits: a categorical distribution whose log-odds are linear in D numbers.

    p(next | context) = softmax(table_VD . hidden_D)

Drawing from it and fitting it are those of any categorical distribution. What it cannot express follows from its width:
whatever the contexts, the matrix of their logits has rank D at most, one more once rows are normalized (Yang et al.
2018, "Breaking the Softmax Bottleneck", arXiv:1711.03953).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.labs.engine.sampling import Row as Drawn
from cutaway.labs.engine.sampling import by, measure, next_logits
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.labs.training import prose
from cutaway.models.block import positions_of
from cutaway.models.spec import Spec
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.divergence import kl_divergence
from cutaway.nn.losses import cross_entropy

LEAST_P = 1e-4
PROMPTS = ("The capital of France is", "My favorite thing is")
SYMBOLS = 5  # of the countable toy
WORDS = 12  # of the toy in which every context wants a distribution of its own
WIDTHS = (1, 2, 4, 6, 8, 11)
PIECE = 256  # tokens per sequence


@lab(
    "output-distribution",
    title=both("The statistical model behind the logits", "logits 背后的统计模型"),
    question=both(
        "What statistical model sits behind the logits, and what can it not express?",
        "logits 背后是什么统计模型？它表达不了什么？",
    ),
    seconds={"quick": 6, "full": 25},
)
def output_distribution(
    run: Run,
    *,
    model: Annotated[str, Knob("whose logits", "取谁的 logits")] = MODEL,
    contexts: Annotated[
        int, Knob("contexts; more than the width", "上下文个数；要多于宽度", quick=600, min=32, max=20_000)
    ] = 1400,
    every: Annotated[
        int, Knob("of the vocabulary, look at every n-th word", "每隔几个词看一个", quick=16, min=1, max=1000)
    ] = 1,
    draws: Annotated[int, Knob("draws per distribution", "每个分布的抽样次数", quick=300, min=100, max=10**6)] = 5000,
    symbols: Annotated[
        int, Knob("symbols in the countable toy", "可数小例子的符号数", quick=2000, min=100, max=10**6)
    ] = 20_000,
) -> Finding:
    check_contexts(subject(model).model.spec, contexts, every)
    drawn = draw_all(model, draws, run)
    counted = count_against_loss(symbols, run.generator())
    spectrum = spectra(model, contexts, every, run)
    left = [remaining(width, run.generator()) for width in run.each(WIDTHS, "one distribution per context, width")]
    return Finding(
        table=_table(drawn, counted, spectrum, left),
        plot=_plot(spectrum),
        verdict=_verdict(drawn, spectrum, left, contexts),
        checks=_checks(drawn, counted, spectrum, left),
    )


# ---- drawing and fitting


def draw_all(model: str, draws: int, run: Run) -> list[Drawn]:
    """The engine's sampler, unshaped, on real distributions."""
    with torch.inference_mode():
        return [
            measure(prompt, "none", by()(next_logits(model, prompt)), draws, run.seed)
            for prompt in run.each(PROMPTS, f"{draws:,} draws")
        ]


class Counted(NamedTuple):
    """The loss at its minimum beside what counting gives. apart: of any probability, the largest."""

    loss: float
    entropy: float
    apart: float


def count_against_loss(symbols: int, generator: torch.Generator) -> Counted:
    """A table of logits per symbol, fitted to a Markov chain by its loss: are they the relative frequencies?"""
    chain_SS = torch.rand(SYMBOLS, SYMBOLS, generator=generator, dtype=torch.float64) + 0.2
    text = [0]
    for _ in range(symbols):
        text.append(int(torch.multinomial(chain_SS[text[-1]], 1, generator=generator)))
    before_T, after_T = torch.tensor(text[:-1]), torch.tensor(text[1:])
    counts_SS = torch.zeros_like(chain_SS).index_put((before_T, after_T), torch.ones(1).double(), accumulate=True)
    frequency_SS = counts_SS / counts_SS.sum(-1, keepdim=True)
    table_SS = torch.zeros_like(chain_SS, requires_grad=True)
    loss = minimized(lambda: cross_entropy(table_SS[before_T], after_T).mean(), [table_SS])
    entropy = -(counts_SS * frequency_SS.log()).sum() / symbols
    return Counted(loss, float(entropy), float((table_SS.detach().softmax(-1) - frequency_SS).abs().max()))


def minimized(loss: Callable[[], Tensor], parameters: list[Tensor], steps: int = 300) -> float:
    """Run L-BFGS until it stops; the loss there."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return float(loss().detach())


# ---- rank


class Spectrum(NamedTuple):
    """Singular values of R contexts' logits and log-probabilities, falling, and where they drop most."""

    width: int
    logits: list[float]
    log_probs: list[float]

    @property
    def ranks(self) -> tuple[int, int]:
        """Of logits, of log-probabilities."""
        return steepest(self.logits), steepest(self.log_probs)


def check_contexts(spec: Spec, contexts: int, every: int) -> None:
    """Errors: a matrix of logits too small for its rank to be the width."""
    if contexts <= spec.width:
        raise CutawayError(f"must exceed the model's width of {spec.width}, got {contexts}", "knob contexts")
    if spec.vocab // every <= contexts:
        raise CutawayError(f"leaves fewer words than the {contexts} contexts", "knob every", "look at more of them")


def steepest(values: list[float]) -> int:
    """How many singular values come before the largest drop from one to the next: the rank, as rounding leaves it."""
    drops = [a / b for a, b in pairwise(values)]
    return drops.index(max(drops)) + 1


@torch.inference_mode()
def spectra(model: str, contexts: int, every: int, run: Run) -> Spectrum:
    """Of the model's logits over different contexts: the beginnings of a text's pieces."""
    loaded = subject(model)
    decoder_, width = decoder(loaded), loaded.model.spec.width
    text = bytes(prose()[: 12 * contexts].tolist()).decode("utf-8", "ignore")
    tokens_T = torch.tensor(loaded.tokenizer.encode(text)[:contexts])
    pieces = tokens_T.split(PIECE)
    hidden = [decoder_(p, positions_of([len(p)]), BlockDiagonal([len(p)])) for p in run.each(pieces, "contexts, piece")]
    gram_RR, normal_RR = (torch.zeros(contexts, contexts, dtype=torch.float64) for _ in range(2))
    logits_RV = torch.cat([decoder_.logits(part) for part in hidden])
    lse_R1 = logits_RV.logsumexp(-1, keepdim=True).double()
    for part in run.each(logits_RV[:, ::every].split(4096, 1), "products of their logits, part"):
        wide_RV = part.double()
        gram_RR += wide_RV @ wide_RV.T
        wide_RV -= lse_R1
        normal_RR += wide_RV @ wide_RV.T
    return Spectrum(width, *(singular(g_RR).tolist() for g_RR in (gram_RR, normal_RR)))


def singular(gram_RR: Tensor) -> Tensor:
    """Singular values of a matrix from its products with itself, falling; what float64 cannot tell from 0 is level."""
    squares_R = torch.linalg.eigvalsh(gram_RR).flip(0)
    return squares_R.clamp(min=float(squares_R[0]) * len(squares_R) * torch.finfo(torch.float64).eps).sqrt()


# ---- what a narrow softmax leaves


def remaining(width: int, generator: torch.Generator) -> float:
    """Nats per context by which the best table and hidden states of this width miss as many random distributions."""
    wanted_CV = 2 * torch.randn(WORDS, WORDS, generator=generator, dtype=torch.float64)
    hidden_CD, table_VD = (
        torch.randn(WORDS, width, generator=generator, dtype=torch.float64).requires_grad_(True) for _ in range(2)
    )
    return minimized(lambda: kl_divergence(wanted_CV, hidden_CD @ table_VD.T).mean(), [hidden_CD, table_VD])


# ---- what it comes to


def _table(drawn: list[Drawn], counted: Counted, spectrum: Spectrum, left: list[float]) -> Table:
    rows: list[list[Cell]] = [[f"draws after “{d.where}”: chi-square p", d.draws, d.p, ""] for d in drawn]
    rows += [
        ["loss at its minimum", None, counted.loss, "nats"],
        ["entropy of the counts", None, counted.entropy, "nats"],
    ]
    rows += [["rank of the logits", spectrum.width, spectrum.ranks[0], ""]]
    rows += [["rank of the log-probabilities", spectrum.width, spectrum.ranks[1], ""]]
    rows += [[f"KL left, {WORDS} contexts", w, value, "nats"] for w, value in zip(WIDTHS, left, strict=True)]
    return table(dict.fromkeys(("what", "draws, or width", "value", "unit"), ""), rows)


def _plot(spectrum: Spectrum) -> Plot:
    def series(name: str, values: list[float]) -> Series:
        return Series(name=name, x=[float(i + 1) for i in range(len(values))], y=values)

    return Plot(
        kind="line",
        x=Axis(label="singular value, from the largest"),
        y=Axis(label="its size", log=True),
        series=[series("logits", spectrum.logits), series("log-probabilities", spectrum.log_probs)],
    )


def _checks(drawn: list[Drawn], counted: Counted, spectrum: Spectrum, left: list[float]) -> list[Check]:
    worst, (rank, normal) = min(d.p for d in drawn), spectrum.ranks
    gap = spectrum.logits[rank - 1] / spectrum.logits[rank]
    return [
        check(
            worst > LEAST_P,
            f"draws follow softmax of the logits: smallest chi-square p is {worst:.3f}",
            f"抽样服从 logits 的 softmax：卡方检验最小 p 值 {worst:.3f}",
        ),
        check(
            counted.apart < 1e-6 and abs(counted.loss - counted.entropy) < 1e-9,
            "the least loss is maximum likelihood: the fitted table equals the relative frequencies to "
            f"{counted.apart:.0e}",
            f"最小损失就是最大似然：拟合出的表与相对频率一致（相差 {counted.apart:.0e}）",
        ),
        check(
            rank == spectrum.width and normal == rank + 1,
            f"the logits of {len(spectrum.logits):,} contexts have rank {rank}, the width (the next singular value is "
            f"{gap:.0e} times smaller); log-probabilities {normal}",
            f"{len(spectrum.logits):,} 个上下文的 logits 秩为 {rank}，即宽度（下一个奇异值小 {gap:.0e} 倍）；对数概率"
            f"的秩为 {normal}",
        ),
        check(
            all(a > b for a, b in pairwise(left)) and left[-1] < left[0] / 1000,
            f"{WORDS} contexts with distributions of their own: width {WIDTHS[0]} leaves {left[0]:.2f} nats, width "
            f"{WIDTHS[-1]} = V - 1 none ({left[-1]:.0e})",
            f"{WORDS} 个各有分布的上下文：宽度 {WIDTHS[0]} 还差 {left[0]:.2f} 奈特，宽度 {WIDTHS[-1]} = V - 1 "
            f"时不差（{left[-1]:.0e}）",
        ),
    ]


def _verdict(drawn: list[Drawn], spectrum: Spectrum, left: list[float], contexts: int) -> Words:
    rank, normal = spectrum.ranks
    short = left[WIDTHS.index(4)]
    return both(
        f"Behind the logits is one categorical distribution per context, fitted by counting done with gradients. Its "
        f"log-odds are linear in {spectrum.width} numbers: over {contexts:,} contexts the logits have rank {rank}, the "
        f"log-probabilities {normal}. Tokens are drawn one at a time given the text so far; a set of contexts whose "
        f"log-probabilities need a higher rank cannot be matched: of {WORDS} random distributions over {WORDS} words, "
        f"width 4 leaves {short:.2f} nats per context whatever the training.",
        f"logits 背后是每个上下文一个类别分布，训练就是用梯度来计数。它的对数几率在 {spectrum.width} 个数上是线性的："
        f"在 {contexts:,} 个上下文上，logits 的秩为 {rank}，对数概率的秩为 {normal}。词元是在已有文本给定时一个个抽"
        f"的；如果一组上下文的对数概率需要更高的秩，就无法拟合：{WORDS} 个词上的 {WORDS} 个随机分布，宽度 4 无论怎么"
        f"训练，每个上下文都还差 {short:.2f} 奈特。",
    )
