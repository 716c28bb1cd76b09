"""Guessing ahead without changing what is said: two ways, both exact.

Rejection (Leviathan et al. 2022, arXiv:2211.17192): a guess t, drawn from the small model's q, stays with probability
min(1, p_t / q_t); else the token is drawn from the residual, max(0, p - q) made to sum to 1. What comes out is
distributed as p. The engine here does without: its noise belongs to seed, position and token, so that the token which
the big model draws is decided before anyone guesses, and a guess is right if it is that token.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.drafter import PromptLookup
from cutaway.engine.params import SamplingParams
from cutaway.labs.decode.speaker import Speaker, speaker
from cutaway.labs.decode.speculative_speed import Always, EarlyExit, Request, guessed
from cutaway.labs.evidence import Check, Finding, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.statistics import chi_square
from cutaway.labs.subject import MODEL

P, Q = (0.5, 0.3, 0.2), (0.3, 0.3, 0.4)
LEAST_P, SURELY_WRONG = 1e-4, 1e-9
GUESSES = 4


class Texts(Always, PromptLookup):
    """What the text so far suggests."""


class Replies(NamedTuple):
    """With a drafter: how many replies, how many differ from those without; steps without and with; tokens guessed."""

    temperature: float
    replies: int
    differ: int
    steps: tuple[int, int]
    drafted: int
    accepted: int


@lab(
    "speculative-exactness",
    title=both("Speculation says the same", "推测解码说的是同样的话"),
    question=both(
        "Is text produced with a draft model really distributed as the big model's own?",
        "借助草稿模型产生的文本，分布真的和大模型自己的一样吗？",
    ),
    seconds={"quick": 6, "full": 40},
)
def speculative_exactness(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that speaks", "说话的模型")] = MODEL,
    draws: Annotated[int, Knob("draws of the toy", "玩具模型抽样次数", quick=30_000, min=1000, max=10**7)] = 100_000,
    prompts: Annotated[int, Knob("prompts", "提示数", quick=3, min=1, max=30)] = 20,
    length: Annotated[int, Knob("tokens of a reply", "回答的词元数", quick=32, min=2, max=400)] = 100,
    layers: Annotated[int, Knob("layers of the draft model", "草稿模型的层数", quick=15, min=1, max=200)] = 24,
) -> Finding:
    p_V, q_V = torch.tensor(P, dtype=torch.float64), torch.tensor(Q, dtype=torch.float64)
    drawn = {
        "drawn from p": torch.multinomial(p_V, draws, replacement=True, generator=run.generator()),
        "guessed from q, residual": speculate(p_V, q_V, draws, run.generator(), residual(p_V, q_V)),
        "guessed from q, p for the residual": speculate(p_V, q_V, draws, run.generator(), p_V),
    }
    found = {name: tokens_N.bincount(minlength=len(P)).double() for name, tokens_N in drawn.items()}
    voice, drafters = speaker(model), (Texts(shortest=1), EarlyExit(model, layers, GUESSES))
    for drafter in drafters:
        drafter.join(voice.engine.runner, voice.engine.context, voice.engine.limit)
    ways = [(drafter, requests(voice, t, prompts, length, run.seed)) for drafter in drafters for t in (0.0, 1.0)]
    spoken = [replies(voice, drafter, asked) for drafter, asked in run.each(ways, "guesses")]
    kept = float(torch.minimum(p_V, q_V).sum())
    return Finding(
        table=table(
            {"how": "", "token 0": "share", "token 1": "share", "token 2": "share", "chi-square p": ""},
            [[name, *(n_V / draws).tolist(), chi_square(n_V, p_V)] for name, n_V in found.items()],
        ),
        plot=None,
        verdict=_verdict(kept, spoken),
        checks=_checks(kept, residual(p_V, q_V), [chi_square(n_V, p_V) for n_V in found.values()], spoken),
    )


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """What to draw from after a rejection: what q gives too little of."""
    lacking_V = (p_V - q_V).clamp(min=0)
    return lacking_V / lacking_V.sum()


def speculate(p_V: Tensor, q_V: Tensor, count: int, generator: torch.Generator, instead_V: Tensor) -> Tensor:
    """tokens_N: guesses from q that were accepted, and draws from `instead_V` where they were not."""
    guess_N, other_N = (
        torch.multinomial(w_V, count, replacement=True, generator=generator) for w_V in (q_V, instead_V)
    )
    accepted_N = torch.rand(count, generator=generator, dtype=torch.float64) < p_V[guess_N] / q_V[guess_N]
    return torch.where(accepted_N, guess_N, other_N)


def replies(voice: Speaker, drafter: Always, asked: list[Request]) -> Replies:
    """The same replies without guesses and with them."""
    stats, said, steps = voice.engine.stats, list[list[list[int]]](), [voice.engine.stats.steps]
    before = drafter.drafted.total(), drafter.accepted.total()
    for some in (None, drafter):
        with guessed(voice.engine, some):
            said.append([s.reply for s in voice.say(asked)])
        steps.append(stats.steps)
    differ = sum(a != b for a, b in zip(*said, strict=True))
    right = drafter.drafted.total() - before[0], drafter.accepted.total() - before[1]
    return Replies(asked[0][1].temperature, len(asked), differ, (steps[1] - steps[0], steps[2] - steps[1]), *right)


def requests(voice: Speaker, temperature: float, count: int, length: int, seed: int) -> list[Request]:
    """Prompts, each with a seed of its own."""
    how = partial(SamplingParams, temperature=temperature, max_tokens=length, ignore_eos=True)
    return [(prompt, how(seed=seed + i)) for i, prompt in enumerate(voice.prompts(count))]


def _checks(kept: float, instead_V: Tensor, chances: list[float], spoken: list[Replies]) -> list[Check]:
    greedy, free, *drafted = spoken
    return [
        check(
            abs(kept - 0.8) < 1e-12 and instead_V.tolist() == [1, 0, 0],
            "p = (.5, .3, .2), q = (.3, .3, .4): 0.8 of the guesses stay, the residual is (1, 0, 0)",
            "p = (.5, .3, .2)、q = (.3, .3, .4)：猜测的 0.8 被接受，残差分布为 (1, 0, 0)",
        ),
        check(
            min(chances[:2]) > LEAST_P,
            f"with rejection and residual the tokens are distributed as p: chi-square p {chances[1]:.3f}",
            f"有拒绝与残差，词元分布就是 p：卡方检验 p 值 {chances[1]:.3f}",
        ),
        check(
            chances[2] < SURELY_WRONG,
            "drawing from p itself after a rejection is wrong, and the test sees it",
            "拒绝后若直接从 p 抽样就错了，检验能看出来",
        ),
        check(
            greedy.differ == free.differ == 0 and greedy.accepted > 0 and greedy.steps[1] < greedy.steps[0],
            f"the engine's replies are the same token for token with guesses, at temperature 0 and 1 "
            f"({greedy.replies} prompts each), in fewer steps at 0",
            f"引擎的回答带猜测时逐词元相同，温度 0 与 1 皆然（各 {greedy.replies} 个提示），温度 0 时步数更少",
        ),
        check(
            all(r.differ == 0 and r.accepted > 0 for r in drafted),
            "so they are with a second model's guesses, of which some are right at both temperatures",
            "由第二个模型猜测时也是如此，两种温度下都有猜对的",
        ),
    ]


def _verdict(kept: float, spoken: list[Replies]) -> Words:
    said, said_zh = ["from the text"] * 2 + ["by the model's first layers"] * 2, ["来自文本"] * 2 + ["来自前几层"] * 2
    en = "; ".join(
        f"{how}, at temperature {r.temperature:g} {r.accepted} of {r.drafted} guesses were right, "
        f"{r.steps[0]} steps became {r.steps[1]}, {r.differ} of {r.replies} replies changed"
        for how, r in zip(said, spoken, strict=True)
    )
    zh = "；".join(
        f"{how}，温度 {r.temperature:g} 时 {r.drafted} 个猜测中 {r.accepted} 个正确，"
        f"{r.steps[0]} 步变为 {r.steps[1]} 步，{r.replies} 个回答中 {r.differ} 个有变"
        for how, r in zip(said_zh, spoken, strict=True)
    )
    return both(
        f"Yes. In the toy {kept:.0%} of the guesses stay and what comes out is distributed as p; a wrong residual is "
        f"found out. The engine's guesses: {en}.",
        f"是的。玩具模型中 {kept:.0%} 的猜测被接受，输出分布就是 p；残差若错会被发现。引擎的猜测：{zh}。",
    )
