"""Greedy and beam: when keeping several beginnings finds something better, and whether better is better text.

    start ── a (.6) ── anything (1/3 each) ── anything          greedy takes a: .6 x 1/3 x 1/3
          └─ b (.4) ── c (.9)              ── a (.9)            a beam of two still has b: .4 x .9 x .9

The toy is a table of probabilities that the engine runs as if it were a model; all its replies can be counted. On a
real model nobody knows the best reply; a wider beam finds likelier ones (Graves 2012, arXiv:1211.3711), and likelier
text is not livelier text (Holtzman et al. 2020, arXiv:1904.09751).
"""

from __future__ import annotations

import itertools
import statistics
from typing import Annotated, Any, NamedTuple, cast

import torch
from torch import Tensor

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.search import Beams, beam_search
from cutaway.labs.arch.context_window import byte_tokenizer
from cutaway.labs.decode.speaker import Speaker, repeated, speaker
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.labs.training import small_spec
from cutaway.models.decoder import Decoder

WIDTHS = (1, 2, 4, 8)
STEPS, START = 3, 3  # of the toy: replies of three tokens out of 0, 1, 2, after the token 3
TRAP = torch.tensor(
    [
        [[0.6, 0.4, 1e-9], [1 / 3] * 3, [1 / 3] * 3, [0.6, 0.4, 1e-9]],
        [[1 / 3] * 3, [0.05, 0.05, 0.9], [1 / 3] * 3, [1 / 3] * 3],
        [[1 / 3] * 3, [1 / 3] * 3, [0.9, 0.05, 0.05], [1 / 3] * 3],
    ]
)


class Table:
    """A model whose next token depends on the place and on the token there: chances_PTV."""

    def __init__(self, chances_PTV: Tensor) -> None:
        self.spec, self.dtype, self.device = (
            small_spec(vocab=4, context=32, width=8),
            torch.float32,
            torch.device("cpu"),
        )
        never_PT1 = torch.full((*chances_PTV.shape[:2], 1), 1e-30)
        self.logits_PTV = torch.cat([chances_PTV, never_PT1], -1).log()

    def __call__(self, tokens_T: Tensor, positions_T: Tensor, context: Any) -> Tensor:
        return torch.stack([positions_T, tokens_T], -1)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return self.logits_PTV[hidden_RD[:, 0].clamp(max=STEPS - 1), hidden_RD[:, 1]]


class Width(NamedTuple):
    """logprob: of a reply, nats, mean. repeats: share of 4-grams that stood there before. shared: leading tokens as
    greedy has them.
    """

    width: int
    logprob: float
    repeats: float
    shared: float


@lab(
    "greedy-and-beam",
    title=both("Greedy and beam search", "贪婪解码与集束搜索"),
    question=both(
        "How do greedy and beam decoding work, when does a beam find something better, and "
        "does wider mean better text?",
        "贪婪与集束解码如何工作？集束何时能找到更好的？越宽文本就越好吗？",
    ),
    seconds={"quick": 5, "full": 60},
)
def greedy_and_beam(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that speaks", "说话的模型")] = MODEL,
    prompts: Annotated[int, Knob("prompts", "提示数", quick=4, min=1, max=30)] = 30,
    length: Annotated[int, Knob("tokens of a reply", "回答的词元数", quick=24, min=2, max=200)] = 60,
    trees: Annotated[
        int, Knob("random toys compared with brute force", "与穷举比较的随机玩具数", quick=10, min=1)
    ] = 100,
) -> Finding:
    trap = [searched(TRAP, width) for width in (1, 2)]
    generator = run.generator()
    drawn = [torch.rand(STEPS, 4, 3, generator=generator).softmax(-1) for _ in range(trees)]
    missed = sum(searched(toy, 3**STEPS) != brute_force(toy)[0] for toy in run.each(drawn, "toys"))
    greedy = sum(searched(toy, 1) != brute_force(toy)[0] for toy in drawn)
    voice = speaker(model)
    replies = [
        [beam(voice, prompt, width, length) for width in WIDTHS] for prompt in run.each(voice.prompts(prompts), "beams")
    ]
    params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
    plain = [s.reply for s in voice.say((prompt, params) for prompt in voice.prompts(prompts))]
    rows = [describe(i, replies) for i in range(len(WIDTHS))]
    return Finding(
        table=table(COLUMNS, rows),
        plot=_plot(rows),
        verdict=_verdict(trap, greedy, trees, rows),
        checks=_checks(trap, missed, trees, [r[0][0] for r in replies] == plain, rows),
    )


def searched(chances_PTV: Tensor, width: int) -> tuple[int, ...]:
    """The best reply that a beam finds in a toy."""
    engine = Engine(cast(Decoder, Table(chances_PTV)), byte_tokenizer(), running=width)
    return tuple(beam_search(engine, [START], SamplingParams(max_tokens=STEPS), Beams(width))[0].reply)


def brute_force(chances_PTV: Tensor) -> tuple[tuple[int, ...], float]:
    """The likeliest of all replies of a toy, and its probability."""
    chances = {reply: chance(chances_PTV, reply) for reply in itertools.product(range(3), repeat=STEPS)}
    best = max(chances, key=lambda reply: chances[reply])
    return best, chances[best]


def chance(chances_PTV: Tensor, reply: tuple[int, ...]) -> float:
    """Of a reply."""
    before = (START, *reply)
    return float(torch.stack([chances_PTV[i, before[i], token] for i, token in enumerate(reply)]).prod())


def beam(voice: Speaker, prompt: list[int], width: int, length: int) -> tuple[list[int], float]:
    """The best reply and its log-probability."""
    params = SamplingParams(max_tokens=length, ignore_eos=True)
    best = beam_search(voice.engine, prompt, params, Beams(width))[0]
    return best.reply, best.logprob


def describe(i: int, replies: list[list[tuple[list[int], float]]]) -> Width:
    """One width over all prompts."""
    shared = [
        next((n for n, (a, b) in enumerate(zip(of[0][0], of[i][0], strict=True)) if a != b), len(of[0][0]))
        for of in replies
    ]
    return Width(
        width=WIDTHS[i],
        logprob=statistics.mean(of[i][1] for of in replies),
        repeats=statistics.mean(repeated(of[i][0]) for of in replies),
        shared=statistics.mean(shared),
    )


COLUMNS = {"beams": "", "log-probability": "nats", "repeated 4-grams": "share", "as greedy begins": "tokens"}


def _plot(rows: list[Width]) -> Plot:
    x = [str(row.width) for row in rows]
    return Plot(
        kind="bar",
        x=Axis(label="beams"),
        y=Axis(label="repeated 4-grams"),
        series=[Series(name="share", x=x, y=[row.repeats for row in rows])],
    )


def _checks(trap: list[tuple[int, ...]], missed: int, trees: int, same: bool, rows: list[Width]) -> list[Check]:
    found = [chance(TRAP, reply) for reply in trap]
    return [
        check(
            trap[0][0] == 0 and trap[1] == (1, 2, 0) == brute_force(TRAP)[0],
            f"in the trap greedy finds a reply of probability {found[0]:.3f}, two beams the best, {found[1]:.3f}",
            f"在陷阱中贪婪找到概率 {found[0]:.3f} 的回答，两束找到最好的，{found[1]:.3f}",
        ),
        check(
            missed == 0,
            f"a beam as wide as the tree finds what brute force finds, in {trees} random toys",
            f"与树同宽的集束在 {trees} 个随机玩具中都找到穷举的答案",
        ),
        check(
            same,
            "one beam is greedy decoding, token for token",
            "一束就是贪婪解码，逐词元相同",
        ),
        check(
            rows[-1].logprob > rows[0].logprob,
            f"eight beams find likelier replies than one: {rows[-1].logprob:.1f} against {rows[0].logprob:.1f} nats",
            f"八束找到的回答比一束更可能：{rows[-1].logprob:.1f} 对 {rows[0].logprob:.1f} 纳特",
        ),
    ]


def _verdict(trap: list[tuple[int, ...]], greedy: int, trees: int, rows: list[Width]) -> Words:
    shares = " / ".join(f"{row.repeats:.0%}" for row in rows)
    logprobs = " / ".join(f"{row.logprob:.1f}" for row in rows)
    return both(
        f"Greedy takes the best token, a beam keeps the best beginnings; it wins where a good reply begins badly: in "
        f"{greedy} of {trees} random toys greedy misses the best reply, and in the trap it gets "
        f"{chance(TRAP, trap[0]):.3f} instead of {chance(TRAP, trap[1]):.3f}. With 1, 2, 4, 8 beams the model's "
        f"replies have log-probability {logprobs}, and {shares} of their 4-grams stood there before: likelier is "
        "not less repetitive by itself.",
        f"贪婪取最好的词元，集束保留最好的开头；好回答开头差时集束取胜：{trees} 个随机玩具中有 {greedy} 个"
        "贪婪错过最好的回答，"
        f"陷阱中它得 {chance(TRAP, trap[0]):.3f} 而非 {chance(TRAP, trap[1]):.3f}。"
        "1、2、4、8 束时，模型回答的对数概率为 "
        f"{logprobs}，其中 {shares} 的 4 元组此前出现过：更可能并不自动意味着更少重复。",
    )
