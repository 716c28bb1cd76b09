"""Adversarial training for text: why it never became the way to generate (Goodfellow et al. 2014, arXiv:1406.2661).

A generator of images hears from its critic through the pixels it made. A token is drawn, and a draw has no slope. Two
ways around it: the score function (Williams 1992; Yu et al. 2016, "SeqGAN", arXiv:1609.05473) weighs log-probabilities
by the critic's verdict; Gumbel-softmax (Jang et al. 2016, arXiv:1611.01144; Kusner & Hernández-Lobato 2016,
arXiv:1611.04051) shows the critic a blend of tokens instead of one.

The source is a Markov chain, the generator can be exactly that chain, and the critic can be exactly the log-ratio of
two chains: whatever goes wrong is the way of training. All distances are summed over the chains, not estimated.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab

SYMBOLS, SUCCESSORS, LENGTH = 24, 4, 12
RATE = 0.05  # of generator and critic
TEMPERATURE = 0.7
COVERED = 0.1  # a transition counts as covered from this share of its true probability on


class Chain(NamedTuple):
    """Logits of the first symbol and of each next one: a Markov chain over V symbols, or a critic of the same form."""

    first_V: Tensor
    next_VV: Tensor


@lab(
    "adversarial-text",
    title=both("Adversarial training of a text generator", "用对抗训练来生成文本"),
    question=both(
        "Why did adversarial training never become the way to generate text?",
        "为什么对抗训练没有成为生成文本的办法？",
    ),
    seconds={"quick": 4, "full": 80},
)
def adversarial_text(
    run: Run,
    *,
    steps: Annotated[int, Knob("steps of each generator", "每个生成器的训练步数", quick=150, min=10, max=10**5)] = 1500,
    batch: Annotated[int, Knob("sequences per step", "每步的序列数", quick=32, min=2, max=4096)] = 64,
    critic_steps: Annotated[int, Knob("critic's steps per step", "每步中评判者的训练步数", min=1, max=100)] = 2,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
    repeats: Annotated[
        int, Knob("gradients whose spread is taken", "估计梯度方差所用的次数", quick=100, min=10, max=10**4)
    ] = 400,
) -> Finding:
    arms: dict[str, list[Trained]] = {name: [] for name in ESTIMATORS}
    for seed in range(run.seed, run.seed + seeds):
        for name in run.each(ESTIMATORS, f"training, seed {seed}"):
            arms[name].append(train(name, steps, batch, critic_steps, seed))
    noise = {name: noise_of(name, batch, repeats, run.seed) for name in ESTIMATORS}
    slope = slope_of_a_draw(run.generator())
    truth = entropy_of(source(run.seed))
    made: list[list[Cell]] = [[name, noise[name], *mean(runs)] for name, runs in arms.items()]
    return Finding(
        table=table(
            {"training": "", "gradient's noise / signal": "", "KL(source || it)": "nats/sequence"}
            | {"entropy": "nats/sequence", "transitions covered": "%", "forbidden ones made": "%"},
            [["the source", None, 0.0, truth, 100.0, 0.0], *made],
        ),
        plot=_plot(arms),
        verdict=_verdict(arms, noise, slope, truth),
        checks=_checks(arms, noise, slope),
    )


# ---- chains


def source(seed: int) -> Chain:
    """Every symbol has a few successors, of unequal probability; the others are forbidden."""
    generator = torch.Generator().manual_seed(seed)
    weights_VV = torch.zeros(SYMBOLS, SYMBOLS, dtype=torch.float64)
    for row_V in weights_VV:
        after = torch.randperm(SYMBOLS, generator=generator)[:SUCCESSORS]
        row_V[after] = torch.rand(SUCCESSORS, generator=generator, dtype=torch.float64) + 0.3
    return Chain(torch.zeros(SYMBOLS, dtype=torch.float64), weights_VV.log())


def blank() -> Chain:
    """A generator before any learning, or a critic without opinion."""
    shapes = (SYMBOLS,), (SYMBOLS, SYMBOLS)
    return Chain(*(torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes))


def drawn(chain: Chain, rows: int, generator: torch.Generator) -> Tensor:
    """One-hot sequences x_BLV; nothing of the chain can be reached through them."""
    with torch.no_grad():
        tokens = [chain.first_V.softmax(-1).expand(rows, -1).multinomial(1, generator=generator)[:, 0]]
        for _ in range(LENGTH - 1):
            tokens.append(chain.next_VV.softmax(-1)[tokens[-1]].multinomial(1, generator=generator)[:, 0])
        return F.one_hot(torch.stack(tokens, 1), SYMBOLS).double()


def score(chain: Chain, x_BLV: Tensor) -> Tensor:
    """Sum of first_V and next_VV along (possibly blended) sequences, [B]: of log-probabilities, a log-likelihood."""
    moves_B = torch.einsum("blv,vw,blw->b", x_BLV[:, :-1], chain.next_VV, x_BLV[:, 1:])
    return x_BLV[:, 0] @ chain.first_V + moves_B


def normalized(chain: Chain) -> Chain:
    """Logits as log-probabilities."""
    return Chain(chain.first_V.log_softmax(-1), chain.next_VV.log_softmax(-1))


def visits(chain: Chain) -> Tensor:
    """How often a sequence of the chain leaves each symbol on average, [V]."""
    at_V = chain.first_V.softmax(-1)
    total_V = torch.zeros_like(at_V)
    for _ in range(LENGTH - 1):
        total_V, at_V = total_V + at_V, at_V @ chain.next_VV.softmax(-1)
    return total_V


@torch.no_grad()
def entropy_of(chain: Chain) -> float:
    """Nats per sequence."""
    first, rows_V = (torch.special.entr(t.softmax(-1)).sum(-1) for t in chain)
    return float(first + visits(chain) @ rows_V)


@torch.no_grad()
def divergence(p: Chain, q: Chain) -> float:
    """KL(p || q), nats per sequence."""
    weights, (p_first, p_next), (q_first, q_next) = visits(p), normalized(p), normalized(q)
    first = (p_first.exp() * (p_first - q_first)).sum()
    rows_V = (p_next.exp() * (p_next - q_next).masked_fill(p_next == -torch.inf, 0)).sum(-1)
    return float(first + weights @ rows_V)


# ---- three ways to a gradient: a loss whose slope at the generator is the estimate


def likelihood(generator: Chain, critic: Chain, real_BLV: Tensor, random: torch.Generator) -> Tensor:
    """Maximum likelihood: the critic is not asked."""
    return -score(normalized(generator), real_BLV).mean()


def score_function(generator: Chain, critic: Chain, real_BLV: Tensor, random: torch.Generator) -> Tensor:
    """Log-probabilities of draws, weighted by how much better than average the critic found them."""
    x_BLV = drawn(generator, len(real_BLV), random)
    reward_B = F.logsigmoid(score(critic, x_BLV)).detach()
    return -((reward_B - reward_B.mean()) * score(normalized(generator), x_BLV)).mean()


def gumbel_softmax(generator: Chain, critic: Chain, real_BLV: Tensor, random: torch.Generator) -> Tensor:
    """The critic's opinion of blends, through which it can be differentiated."""
    first_V, next_VV = normalized(generator)
    logits_BV = first_V.expand(len(real_BLV), -1)
    blends = []
    for _ in range(LENGTH):
        uniform_BV = torch.rand(logits_BV.shape, generator=random, dtype=torch.float64).clamp(min=1e-12)
        blends.append(((logits_BV - torch.log(-torch.log(uniform_BV))) / TEMPERATURE).softmax(-1))
        logits_BV = blends[-1] @ next_VV
    return -F.logsigmoid(score(critic, torch.stack(blends, 1))).mean()


ESTIMATORS: dict[str, Callable[[Chain, Chain, Tensor, torch.Generator], Tensor]] = {
    "maximum likelihood": likelihood,
    "score function": score_function,
    "Gumbel-softmax": gumbel_softmax,
}
LIKELIHOOD, SCORE, GUMBEL = ESTIMATORS


# ---- training


class Trained(NamedTuple):
    """Of a generator, against the source. curve: the divergence as training went on."""

    divergence: float
    entropy: float
    covered: float
    forbidden: float
    curve: list[float]


def train(name: str, steps: int, batch: int, critic_steps: int, seed: int) -> Trained:
    """Generator and critic in turns, from nothing."""
    truth, generator, critic = source(seed), blank(), blank()
    random = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.optim.Adam(chain, lr=RATE) for chain in (generator, critic))
    curve = [divergence(truth, generator)]
    for step in range(steps):
        for _ in range(critic_steps if name != LIKELIHOOD else 0):
            improve(critic, theirs, drawn(truth, batch, random), drawn(generator, batch, random))
        ours.zero_grad()
        ESTIMATORS[name](generator, critic, drawn(truth, batch, random), random).backward()
        ours.step()
        if (step + 1) % max(1, steps // 50) == 0:
            curve.append(divergence(truth, generator))
    return judged(truth, generator, curve)


def improve(critic: Chain, optimizer: torch.optim.Optimizer, real_BLV: Tensor, made_BLV: Tensor) -> None:
    """One step of logistic regression: real against made."""
    optimizer.zero_grad()
    loss = -F.logsigmoid(score(critic, real_BLV)).mean() - F.logsigmoid(-score(critic, made_BLV)).mean()
    (loss + 1e-3 * sum(t.square().sum() for t in critic)).backward()
    optimizer.step()


@torch.no_grad()
def judged(truth: Chain, generator: Chain, curve: list[float]) -> Trained:
    """Coverage counts the source's transitions, forbidden ones are weighted by how often they are made."""
    p_VV, q_VV = truth.next_VV.softmax(-1), generator.next_VV.softmax(-1)
    covered = float((q_VV >= COVERED * p_VV)[p_VV > 0].double().mean())
    left_V = visits(generator) / (LENGTH - 1)
    forbidden = float(left_V @ (q_VV * (p_VV == 0)).sum(-1))
    return Trained(divergence(truth, generator), entropy_of(generator), covered, forbidden, curve)


def mean(runs: list[Trained]) -> list[float]:
    """Of the columns, over seeds; shares in percent."""
    columns = list(zip(*((r.divergence, r.entropy, 100 * r.covered, 100 * r.forbidden) for r in runs), strict=True))
    return [statistics.mean(column) for column in columns]


# ---- gradients


def noise_of(name: str, batch: int, repeats: int, seed: int) -> float:
    """Variance of the gradient over batches, in units of its squared mean, for a new generator and a fair critic."""
    truth, generator, critic = source(seed), blank(), blank()
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(critic, lr=RATE)
    for _ in range(100):
        improve(critic, optimizer, drawn(truth, batch, random), drawn(generator, batch, random))
    samples = []
    for _ in range(repeats):
        loss = ESTIMATORS[name](generator, critic, drawn(truth, batch, random), random)
        samples.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, generator)]))
    variance, mean_ = torch.stack(samples).var(0), torch.stack(samples).mean(0)
    signal = mean_.square().sum() - variance.sum() / repeats  # the mean's own noise taken off
    return float(variance.sum() / signal)


def slope_of_a_draw(generator: torch.Generator) -> float:
    """How much the critic's opinion of a draw changes when all logits are nudged and the noise is the same."""
    opinion_V = torch.randn(SYMBOLS, generator=generator, dtype=torch.float64)
    logits_V, nudge_V = torch.randn(2, SYMBOLS, generator=generator, dtype=torch.float64)
    noise_RV = -torch.log(-torch.log(torch.rand(2000, SYMBOLS, generator=generator, dtype=torch.float64)))
    before_R, after_R = (opinion_V[(x_V + noise_RV).argmax(-1)] for x_V in (logits_V, logits_V + 1e-9 * nudge_V))
    return float((before_R - after_R).abs().max())


# ---- what it comes to


def _plot(arms: dict[str, list[Trained]]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="share of the training, %"),
        y=Axis(label="KL(source || generator), nats per sequence", log=True),
        series=[
            Series(
                name=name,
                x=[100 * i / (len(runs[0].curve) - 1) for i in range(len(runs[0].curve))],
                y=[statistics.mean(values) for values in zip(*(r.curve for r in runs), strict=True)],
            )
            for name, runs in arms.items()
        ],
    )


def _checks(arms: dict[str, list[Trained]], noise: dict[str, float], slope: float) -> list[Check]:
    kl = {name: statistics.mean(r.divergence for r in runs) for name, runs in arms.items()}
    rivals = {name: kl[name] for name in (SCORE, GUMBEL)}
    return [
        check(
            slope == 0,
            "a draw has no slope: with the same noise, nudged logits give the same token in 2,000 of 2,000 draws",
            "抽样没有斜率：噪声相同时，轻推 logits 后 2,000 次抽样的词元全都不变",
        ),
        check(
            noise[SCORE] > 2 * noise[LIKELIHOOD],
            f"the score function's gradient is noisier than maximum likelihood's: {noise[SCORE]:.2f} against "
            f"{noise[LIKELIHOOD]:.2f} (Gumbel-softmax {noise[GUMBEL]:.2f})",
            f"得分函数梯度的噪声大于最大似然：{noise[SCORE]:.2f} 对 {noise[LIKELIHOOD]:.2f}"
            f"（Gumbel-softmax 为 {noise[GUMBEL]:.2f}）",
        ),
        check(
            all(kl[LIKELIHOOD] < value for value in rivals.values()),
            f"after equal steps maximum likelihood is nearest to the source: {kl[LIKELIHOOD]:.3f} nats, "
            + ", ".join(f"{name} {value:.2f}" for name, value in rivals.items()),
            f"同样步数后最大似然离来源最近：{kl[LIKELIHOOD]:.3f} 奈特，"
            + "，".join(f"{name} {value:.2f}" for name, value in rivals.items()),
        ),
    ]


def _verdict(arms: dict[str, list[Trained]], noise: dict[str, float], slope: float, truth: float) -> Words:
    kl, entropy, covered, forbidden = ({name: mean(runs)[i] for name, runs in arms.items()} for i in range(4))
    return both(
        f"The critic's opinion of a drawn token has slope {slope:g} in the generator's logits. Around it, the score "
        f"function's gradient has a variance of {noise[SCORE]:.2f} times its squared mean, Gumbel-softmax "
        f"{noise[GUMBEL]:.2f}, maximum likelihood {noise[LIKELIHOOD]:.2f}. With a generator and a critic that could "
        f"both be exact, after equal steps they are {kl[SCORE]:.2f}, {kl[GUMBEL]:.2f} and {kl[LIKELIHOOD]:.3f} nats "
        f"from the source, at entropies of {entropy[SCORE]:.1f}, {entropy[GUMBEL]:.1f} and {entropy[LIKELIHOOD]:.1f} "
        f"nats (the source: {truth:.1f}); they cover {covered[SCORE]:.0f} %, {covered[GUMBEL]:.0f} % and "
        f"{covered[LIKELIHOOD]:.0f} % of its transitions and make forbidden ones in {forbidden[SCORE]:.1f} %, "
        f"{forbidden[GUMBEL]:.1f} % and {forbidden[LIKELIHOOD]:.1f} % of moves.",
        f"评判者对抽出词元的看法，在生成器 logits 上的斜率为 {slope:g}。绕过它的办法里，得分函数梯度的方差是其均值平"
        f"方的 {noise[SCORE]:.2f} 倍，Gumbel-softmax 为 {noise[GUMBEL]:.2f}，最大似然为 {noise[LIKELIHOOD]:.2f}。生成"
        f"器与评判者都有能力做到精确，同样步数后它们离来源 {kl[SCORE]:.2f}、{kl[GUMBEL]:.2f}、{kl[LIKELIHOOD]:.3f} 奈"
        f"特，熵为 {entropy[SCORE]:.1f}、{entropy[GUMBEL]:.1f}、{entropy[LIKELIHOOD]:.1f} 奈特（来源 {truth:.1f}）；"
        f"覆盖来源转移的 {covered[SCORE]:.0f} %、{covered[GUMBEL]:.0f} %、{covered[LIKELIHOOD]:.0f} %，走出不该有的转"
        f"移占 {forbidden[SCORE]:.1f} %、{forbidden[GUMBEL]:.1f} %、{forbidden[LIKELIHOOD]:.1f} %。",
    )
