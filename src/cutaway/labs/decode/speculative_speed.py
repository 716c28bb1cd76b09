"""When guessing pays: tokens of a pass against what the pass costs.

With g guesses, each right with probability a, a pass of the big model gives 1 + a + ... + a^g = (1 - a^(g+1)) / (1 - a)
tokens; if a guess costs c passes to make, that is a speed-up of so much over 1 + c g (Leviathan et al. 2022,
arXiv:2211.17192). Measured with a drafter that knows the reply and spoils each guess with probability 1 - a, and with
one that is real: the first layers of the model itself and its head (LayerSkip, Elhoushi et al. 2024, arXiv:2404.16710,
without the training that makes the early layers good at it).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NamedTuple, cast

import torch

from cutaway.engine.draft_model import DraftModel
from cutaway.engine.drafter import Asked, Drafter
from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfCheckpoint
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Modules, Native, Runner
from cutaway.engine.sequence import Sequence as Text
from cutaway.engine.span import Span
from cutaway.labs.decode.speaker import Speaker, speaker
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.labs.timing import interleaved
from cutaway.models.decoder import Decoder
from cutaway.weights.checkpoint import STORED, load

ACCEPTANCES = (0.0, 0.6, 0.8, 0.95)
PUBLISHED = {(0.8, 4, 0.05): (3.36, 2.80), (0.6, 4, 0.05): (2.31, 1.92)}  # tokens of a pass, speed-up
NEAR = 0.2
COLUMNS = {
    "draft": "",
    "right": "share",
    "tokens of a pass": "",
    "by the formula": "",
    "cost of a guess": "pass",
    "speed-up": "",
    "by formula and cost of checking": "",
}
Request = tuple[list[int], SamplingParams]


class Guessing(NamedTuple):
    """chance: share of right guesses among those checked. tokens: of a pass; by `formula`. computed: tokens in all."""

    chance: float
    tokens: float
    formula: float
    same: bool
    computed: int


class Times(NamedTuple):
    """ratio: of a pass that checks guesses to one of a single token. speed_ups: of a reply, by draft."""

    ratio: float
    speed_ups: list[float]

    @property
    def checking(self) -> float:
        """The ratio again, from whole replies, drawing included: the first draft is never right and costs nothing."""
        return 1 / self.speed_ups[0]


@lab(
    "speculative-speed",
    title=both("When guessing pays", "推测何时划算"),
    question=both("When does drafting pay off, and when does it cost time?", "什么时候草稿划算，什么时候反而费时？"),
    seconds={"quick": 6, "full": 90},
)
def speculative_speed(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that speaks", "说话的模型")] = MODEL,
    guesses: Annotated[int, Knob("guesses of a pass", "每步猜测数", min=1, max=25)] = 4,
    prompts: Annotated[int, Knob("prompts", "提示数", quick=4, min=1, max=30)] = 20,
    length: Annotated[int, Knob("tokens of a reply", "回答的词元数", quick=32, min=8, max=300)] = 120,
    layers: Annotated[int, Knob("layers of the real draft", "真实草稿的层数", quick=15, min=1, max=200)] = 24,
    repeats: Annotated[int, Knob("timings of each", "每种计时次数", quick=1, min=1, max=50)] = 7,
) -> Finding:
    voice = speaker(model)
    asked = [(p, SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)) for p in voice.prompts(prompts)]
    plain = [s.tokens for s in voice.say(asked)]
    early = EarlyExit(model, layers, guesses)
    drafters: list[Always] = [*(Planted(plain, a, guesses, run.seed) for a in ACCEPTANCES), early]
    *found, real = [measured(voice, asked, plain, drafter) for drafter in run.each(drafters, "drafts")]
    alone, together = pass_seconds(voice, (1, guesses + 1), repeats)
    without, *seconds = seconds_of(voice, asked[0], [None, *drafters], repeats)
    times = Times(together / alone, [without / s for s in seconds])
    names = ["planted"] * len(found) + [f"first {layers} layers"]
    rows = zip(names, [*found, real], drafters, times.speed_ups, strict=True)
    return Finding(
        table=table(COLUMNS, [_row(name, g, drafter, times.checking, speed) for name, g, drafter, speed in rows]),
        plot=_plot(found, guesses),
        verdict=_verdict(found, real, early, times),
        checks=_checks(found, real),
    )


def tokens_of_a_pass(right: float, guesses: int) -> float:
    """1 + a + ... + a^g."""
    return sum(right**i for i in range(guesses + 1))


def speed_up(right: float, guesses: int, cost: float) -> float:
    """Against one token a pass, if a guess costs so many passes to make and a pass is a pass."""
    return tokens_of_a_pass(right, guesses) / (1 + cost * guesses)


class Always(Drafter):
    """Guesses `most` tokens whatever became of the last ones; whole: tokens that came of drafts not cut short."""

    def __init__(self, *how: Any, **settings: Any) -> None:
        super().__init__(*how, **settings)
        self.whole: list[int] = []

    def worth(self, sequence: Text, company: int) -> int:
        """See `Drafter`."""
        return self.most

    def learn(self, sequence: Text, drafted: int, accepted: int) -> None:
        """See `Drafter`."""
        super().learn(sequence, drafted, accepted)
        self.whole += [accepted + 1] if drafted == self.most else []

    def share(self) -> float:
        """Of right guesses among those that were checked: all before the first wrong one of a draft, and that."""
        right = sum(n - 1 for n in self.whole)
        return right / (right + sum(n <= self.most for n in self.whole))


class Planted(Always):
    """Knows what is said; each place's guess is spoiled with probability 1 - `right`, by the seed."""

    def __init__(self, texts: list[list[int]], right: float, most: int, seed: int) -> None:
        super().__init__(most)
        self.texts, self.chance, self.seed = texts, right, seed

    def propose(self, asked: Asked) -> list[list[int]]:
        """See `Drafter`."""
        return [self._guesses(sequence, most) for sequence, most in asked]

    def _guesses(self, sequence: Text, most: int) -> list[int]:
        which = next(i for i, text in enumerate(self.texts) if text[: len(sequence.tokens)] == sequence.tokens)
        at = len(sequence.tokens)
        coming = enumerate(self.texts[which][at : at + most], at)
        return [token if self._lucky(which, place) else token ^ 1 for place, token in coming]

    def _lucky(self, which: int, place: int) -> bool:
        return random.Random(f"{self.seed} {which} {place}").random() < self.chance


class EarlyExit(Always, DraftModel):
    """The first layers of a model, read from its own checkpoint, with its head."""

    def __init__(self, source: str, layers: int, most: int) -> None:
        super().__init__(first_layers(source, layers), most=most)


def first_layers(source: str, layers: int) -> Runner:
    """On native kernels if the whole model runs there."""
    loaded = load(source, STORED)
    spec = replace(loaded.spec, layers=loaded.spec.layers[:layers])
    if isinstance(speaker(source).engine.runner, Native):
        return Native(spec, OfCheckpoint(loaded.checkpoint))
    made, whole = Decoder(spec), cast(Decoder, loaded.model).state_dict()
    made.load_state_dict({name: whole[name] for name in made.state_dict()})
    return Modules(made.eval())


@contextmanager
def guessed(engine: Engine, drafter: Drafter | None) -> Iterator[None]:
    """The engine with another drafter for a while."""
    engine.drafter, before = drafter, engine.drafter
    try:
        yield
    finally:
        engine.drafter = before


def measured(voice: Speaker, asked: list[Request], plain: list[list[int]], drafter: Always) -> Guessing:
    """All replies side by side with this drafter, against those without."""
    engine = voice.engine
    drafter.join(engine.runner, engine.context, engine.limit)
    computed = engine.stats.tokens
    with guessed(engine, drafter):
        same = [s.tokens for s in voice.say(asked)] == plain
    chance, mean = drafter.share(), sum(drafter.whole) / len(drafter.whole)
    formula = tokens_of_a_pass(chance, drafter.most)
    return Guessing(chance, mean, formula, same, engine.stats.tokens - computed)


def seconds_of(voice: Speaker, asked: Request, drafters: Sequence[Drafter | None], repeats: int) -> list[float]:
    """Of one reply with each drafter, alone."""

    def speak(drafter: Drafter | None) -> None:
        with guessed(voice.engine, drafter):
            voice.say([asked])

    return interleaved([partial(speak, drafter) for drafter in drafters], repeats)


def pass_seconds(voice: Speaker, counts: Sequence[int], repeats: int) -> list[float]:
    """Of a pass over so many tokens of one text, after 128 others; median."""
    engine, table = voice.engine, list[int]()
    text = Text([7] * (128 + max(counts)), SamplingParams(), voice.tokenizer, limit=engine.context, table=table)
    assert engine.scheduler.pages.grow(table, len(text.tokens)), "pages for one short text"
    with torch.inference_mode():
        engine.runner.run([Span(text, 0, 128)], [127])
        found = interleaved(
            [partial(engine.runner.run, [Span(text, 128, n)], [*range(n)]) for n in counts], 5 * repeats
        )
    engine.runner.forget(text)
    engine.scheduler.pages.release(table)
    return found


def _row(name: str, g: Guessing, drafter: Always, checking: float, speed: float) -> list[Cell]:
    cost = drafter.cost
    return [name, g.chance, g.tokens, g.formula, cost, speed, g.formula / (checking + cost * drafter.most)]


def _plot(found: list[Guessing], guesses: int) -> Plot:
    x = [i / 50 for i in range(51)]
    return Plot(
        kind="scatter",
        x=Axis(label="share of right guesses"),
        y=Axis(label=f"tokens of a pass with {guesses} guesses"),
        series=[
            Series(name="formula", x=x, y=[tokens_of_a_pass(a, guesses) for a in x]),
            Series(name="counted", x=[g.chance for g in found], y=[g.tokens for g in found]),
        ],
    )


def _checks(found: list[Guessing], real: Guessing) -> list[Check]:
    exact = all(
        abs(tokens_of_a_pass(a, g) - tokens) < 0.005 and abs(speed_up(a, g, c) - speed) < 0.005
        for (a, g, c), (tokens, speed) in PUBLISHED.items()
    )
    off = max(abs(g.tokens / g.formula - 1) for g in found)
    bad, best = found[0], found[-1]
    more = bad.computed / best.computed
    return [
        check(
            exact,
            "the formula: 4 guesses, a = 0.8, give 3.36 tokens a pass and 2.80x if a guess costs 0.05; a = 0.6, 2.31 "
            "and 1.92x",
            "公式：4 个猜测、a = 0.8 时每步 3.36 个词元，猜测成本 0.05 时加速 2.80 倍；a = 0.6 时 2.31 个与 1.92 倍",
        ),
        check(
            off < NEAR,
            f"tokens of a pass, counted, are within {off:.1%} of the formula at the share of right guesses",
            f"每步词元数（计数）与按猜对份额算出的公式值相差不超过 {off:.1%}",
        ),
        check(
            bad.tokens == 1 and more > 2 and speed_up(0.0, 4, 0.05) < 1,
            f"a draft that is never right brings one token a pass and has {more:.1f} times as many "
            f"computed as the best: slower than none, whatever it costs",
            f"从不猜对的草稿每步只得一个词元，计算量是最好草稿的 {more:.1f} 倍：无论成本多少都更慢",
        ),
        check(
            all(g.same for g in (*found, real)),
            "every reply is the same as without guesses",
            "所有回答都与不推测时相同",
        ),
    ]


def _verdict(found: list[Guessing], real: Guessing, early: EarlyExit, times: Times) -> Words:
    *speeds, last = times.speed_ups
    planted = ", ".join(f"{g.chance:.2f}: {g.tokens:.2f} ({s:.2f}x)" for g, s in zip(found, speeds, strict=True))
    places = [f"{early.accepted[i] / early.drafted[i]:.2f}" for i in range(early.most)]
    return both(
        f"It pays if more guesses are right than they cost. With {early.most} guesses a pass takes {times.ratio:.2f} "
        f"times as long as one of a single token here. Tokens of a pass (and measured speed-up) by share of right "
        f"guesses: {planted}. The model's own first layers, without training for it, are right by place in "
        f"{', '.join(places)}: {real.tokens:.2f} tokens a pass, each guess costing {early.cost:.2f} of one "
        f"({last:.2f}x).",
        f"猜对的份额高于猜测的成本时才划算。这里带 {early.most} 个猜测的一步，用时是单词元一步的 {times.ratio:.2f} 倍。"
        f"按猜对份额，每步词元数（及实测加速）：{planted}。模型自身的前几层未经专门训练，各位置猜对的份额为 "
        f"{'、'.join(places)}：每步 {real.tokens:.2f} 个词元，每个猜测成本为一步的 {early.cost:.2f}（{last:.2f} 倍）。",
    )
