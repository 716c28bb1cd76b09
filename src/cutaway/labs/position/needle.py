"""Does a model use what it read long ago? A sentence hidden in a long text, and what loss alone does not say.

Needle in a haystack (Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack): a fact at some depth of a text
that has nothing to do with it, then a question whose answer is that fact. Here the answer is one of ten colors, so
that chance is known; each question is asked of the same text without the fact, too, and of a model that sees through
a window. RULER (Hsieh et al. 2024, arXiv:2404.06654) hides several at once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby, takewhile
from statistics import mean
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.engine.cache import KVCache, Spans
from cutaway.errors import CutawayError
from cutaway.labs.attention.window_and_sinks import ANCHORS, chapters
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.nn.attention import Question
from cutaway.weights.checkpoint import Loaded

COLORS = (" red", " blue", " green", " black", " white", " gold", " silver", " pink", " brown", " orange")
NAMES = (" Ruth", " Peter", " Alice", " Henry", " Clara", " Oscar", " Laura", " Simon", " Emma", " Felix")
HIDING = "\n\nRemember this: the secret color of{} is{}.\n\n"
ASKING = "\n\nAs we have read above, the secret color of{} is"
SENTENCES = 32  # tokens of the two together, at most
AT_ONCE = 256  # rows of logits, which are as wide as the vocabulary
BINS = 8


class Narrow(Spans):
    """A step of one sequence, in which every layer sees a recent window and the first few tokens."""

    def __init__(self, cache: KVCache, start: int, count: int, window: int) -> None:
        super().__init__([(cache, start, count)])
        self.window = window

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        return super().attend(layer, q_THK, k_TGK, v_TGK, replace(question, window=self.window, anchors=ANCHORS))


class Reader:
    """Reads one text after another; of each only what comes after its common beginning with the one before."""

    def __init__(self, loaded: Loaded, window: int | None = None) -> None:
        self.model, self.encode, self.window = decoder(loaded), loaded.tokenizer.encode, window
        self.cache = KVCache(self.model.spec, self.model.dtype, self.model.device)
        self.done: list[int] = []

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> Tensor:
        """Hidden states of what was not read yet, the last token's at least: hidden_TD."""
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(self.done, tokens[:-1], strict=False))
        start = sum(1 for _ in alike)
        span, self.done = (self.cache, start, len(tokens) - start), tokens
        context = Narrow(*span, self.window) if self.window else Spans([span])
        return self.model(torch.tensor(tokens[start:]), torch.arange(start, len(tokens)), context)

    @torch.inference_mode()
    def losses(self, tokens: list[int]) -> list[float]:
        """Of each token but the first, nats."""
        self.done = []
        hidden, following = self.read(tokens)[:-1].split(AT_ONCE), torch.tensor(tokens[1:]).split(AT_ONCE)
        pairs = zip(hidden, following, strict=True)
        return torch.cat([F.cross_entropy(self.model.logits(h), t, reduction="none") for h, t in pairs]).tolist()

    @torch.inference_mode()
    def answer(self, text: list[int], name: str) -> str:
        """Which of the colors the model finds likeliest after the question."""
        hidden_TD = self.read(text + self.encode(ASKING.format(name)))
        ids = [self.encode(color)[0] for color in COLORS]
        return COLORS[int(self.model.logits(hidden_TD[-1:])[0, ids].argmax())]


class Fact(NamedTuple):
    """depth: 0 for the beginning of the text, 1 for its end."""

    depth: float
    name: str
    color: str


class Asked(NamedTuple):
    """A question and whether its answer was right. kind: one fact, several, none of them in the text, or a window."""

    kind: str
    length: int
    depth: float
    right: bool


@lab(
    "needle",
    title=both("A needle in a haystack, with controls", "大海捞针与它的对照"),
    question=both(
        "How should I test a claim that a model handles longer inputs?",
        "怎样检验“模型能处理更长输入”的说法？",
    ),
    seconds={"quick": 5, "full": 150},
)
def needle(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that reads", "被测的模型")] = MODEL,
    longest: Annotated[int, Knob("longest text, tokens", "最长文本的词元数", quick=192, min=128, max=8000)] = 4096,
    lengths: Annotated[
        int, Knob("lengths, each half of the one before", "长度个数，逐个减半", quick=1, min=1, max=6)
    ] = 4,
    depths: Annotated[int, Knob("depths", "深度个数", quick=3, min=2, max=10)] = 5,
    trials: Annotated[int, Knob("texts and facts for each", "每格的文本与事实数", min=1, max=10)] = 1,
    window: Annotated[int, Knob("tokens that the narrow reader sees", "窄窗读者所见词元数", quick=64, min=16)] = 256,
) -> Finding:
    loaded, whole, narrow = subject(model), Reader(subject(model)), Reader(subject(model), window)
    texts = [tokens_T.tolist() for _, tokens_T in chapters(loaded, longest, trials)]
    sizes = [longest // 2**i for i in reversed(range(lengths))]
    narrowed, asked = telling(sizes, window, depths), list[Asked]()
    for text, size in run.each([(text, size) for size in sizes for text in texts], "reading"):
        asked += questioned(whole, text[:size], facts(depths, run, len(asked)))
    for size in run.each(narrowed, "reading through a window"):
        asked += alone(narrow, texts[0][:size], facts(depths, run, size), f"window of {window}")
    losses = [reader.losses(texts[0][: narrowed[-1]]) for reader in (whole, narrow)]
    return Finding(
        table=_table(asked, losses),
        plot=_plot(losses, window),
        verdict=_verdict(asked, losses, window),
        checks=_checks(asked, losses, window),
    )


def facts(depths: int, run: Run, turn: int) -> list[Fact]:
    """One for each depth, deepest first; names and colors are different ones."""
    generator = torch.Generator().manual_seed(1000 * run.seed + turn)
    names, colors = (torch.randperm(len(COLORS), generator=generator).tolist()[:depths] for _ in range(2))
    return [
        Fact((i + 0.5) / depths, NAMES[n], COLORS[c])
        for i, n, c in zip(reversed(range(depths)), names, colors, strict=True)
    ]


def holds(window: int, length: int, depth: float) -> bool:
    """Whether a fact at this depth is still within the window when it is asked for."""
    return (1 - depth) * length + SENTENCES <= window


def telling(sizes: list[int], window: int, depths: int) -> list[int]:
    """Lengths at which a window holds the deepest fact and not the shallowest. Errors: none is such."""
    ends = (1 - 0.5 / depths, 0.5 / depths)
    found = [n for n in sizes if holds(window, n, ends[0]) and not holds(window, n, ends[1])]
    if not found:
        raise CutawayError(f"a window of {window} holds all facts or none", "knob window", f"lengths are {sizes}")
    return found


def with_facts(reader: Reader, text: list[int], hidden: list[Fact]) -> list[int]:
    """The text with sentences put between its tokens; the deepest first, so that the other places stay."""
    length = len(text)
    for fact in sorted(hidden, reverse=True):
        at = round(fact.depth * length)
        text = text[:at] + reader.encode(HIDING.format(fact.name, fact.color)) + text[at:]
    return text


def questioned(reader: Reader, text: list[int], hidden: list[Fact]) -> list[Asked]:
    """All questions about one text: nothing hidden in it (the control), each fact alone, all of them together."""
    several = with_facts(reader, text, hidden)
    return [
        *(_asked(reader, "no fact", text, text, fact) for fact in hidden),
        *alone(reader, text, hidden, "one fact"),
        *(_asked(reader, "several facts", text, several, fact) for fact in hidden),
    ]


def alone(reader: Reader, text: list[int], hidden: list[Fact], kind: str) -> list[Asked]:
    """Each fact alone in the text; deepest first, for then most of the next text is read already."""
    return [_asked(reader, kind, text, with_facts(reader, text, [fact]), fact) for fact in hidden]


def _asked(reader: Reader, kind: str, text: list[int], read: list[int], fact: Fact) -> Asked:
    return Asked(kind, len(text), fact.depth, reader.answer(read, fact.name) == fact.color)


def share(asked: list[Asked]) -> float:
    """Of answers that are right."""
    return mean(a.right for a in asked)


def chance(hits: int, questions: int) -> float:
    """Probability that guesses among the colors are right so often, or oftener."""
    p = 1 / len(COLORS)
    return sum(math.comb(questions, k) * p**k * (1 - p) ** (questions - k) for k in range(hits, questions + 1))


def _of(asked: list[Asked], kind: str) -> list[Asked]:
    return [a for a in asked if a.kind.startswith(kind)]


def _near_and_far(asked: list[Asked], window: int) -> tuple[list[Asked], list[Asked]]:
    """Questions to the narrow reader: about facts that its window still holds, and about the others."""
    asked = sorted(_of(asked, "window"), key=lambda a: holds(window, a.length, a.depth))
    groups = {near: [*group] for near, group in groupby(asked, key=lambda a: holds(window, a.length, a.depth))}
    return groups[True], groups[False]


def _table(asked: list[Asked], losses: list[list[float]]) -> Table:
    depths = sorted({a.depth for a in asked})
    columns = {"hidden": "", "text": "tokens"} | {f"right at depth {d:.0%}": "%" for d in depths}
    order = sorted(asked, key=lambda a: (a.kind, a.length))
    rows: list[list[Cell]] = []
    for (kind, length), cell in groupby(order, key=lambda a: (a.kind, a.length)):
        members = list(cell)
        by_depth = [100 * share([a for a in members if a.depth == d]) for d in depths]
        rows.append([kind, length, *by_depth, 100 * share(members), None])
    for name, seen in zip(
        ("the text itself, all in sight", "the text itself, through the window"), losses, strict=True
    ):
        rows.append([name, len(seen) + 1, *[None] * len(depths), None, mean(seen)])
    return table(columns | {"right at all depths": "%", "loss": "nats"}, rows)


def _bins(losses: list[float]) -> list[float]:
    size = len(losses) // BINS
    return [mean(losses[i * size : (i + 1) * size]) for i in range(BINS)]


def _plot(losses: list[list[float]], window: int) -> Plot:
    at = [(i + 0.5) * (len(losses[0]) // BINS) for i in range(BINS)]
    names = ("all in sight", f"window of {window} and the first {ANCHORS}")
    return Plot(
        kind="line",
        x=Axis(label="position, tokens"),
        y=Axis(label="loss, nats"),
        series=[Series(name=name, x=at, y=_bins(seen)) for name, seen in zip(names, losses, strict=True)],
    )


def _checks(asked: list[Asked], losses: list[list[float]], window: int) -> list[Check]:
    one, none = _of(asked, "one"), _of(asked, "no ")
    near, far = _near_and_far(asked, window)
    hits, missed = sum(a.right for a in one), sum(a.right for a in none)
    whole, narrow = map(mean, losses)
    return [
        check(
            chance(hits, len(one)) < 0.05,
            f"{hits} of {len(one)} hidden facts are found, where a guess is right once in {len(COLORS)}",
            f"{len(one)} 个隐藏事实找到 {hits} 个；乱猜每 {len(COLORS)} 次对 1 次",
        ),
        check(
            chance(missed, len(none)) > 1e-3,
            f"with the fact taken out {missed} of the same {len(none)} answers are right: no more than guesses",
            f"去掉事实后，同样的 {len(none)} 个问题答对 {missed} 个：不多于乱猜",
        ),
        check(
            chance(sum(a.right for a in far), len(far)) > 1e-3 and share(near) > share(far),
            f"the reader with a window of {window} finds {share(near):.0%} of facts within it and {share(far):.0%} of "
            f"those beyond it",
            f"窗口为 {window} 的读者找到窗口之内事实的 {share(near):.0%}，窗口之外的只有 {share(far):.0%}",
        ),
        check(
            narrow - whole < 0.5,
            f"its loss gives nothing away: {narrow:.2f} nats, {whole:.2f} with all in sight",
            f"它的损失却看不出来：{narrow:.2f} 奈特，全部可见时 {whole:.2f}",
        ),
    ]


def _told(asked: list[Asked], sep: str) -> str:
    """Share by length."""
    lengths = sorted({a.length for a in asked})
    return sep.join(f"{share([a for a in asked if a.length == n]):.0%} ({n:,})" for n in lengths)


def _verdict(asked: list[Asked], losses: list[list[float]], window: int) -> Words:
    one, several, none = (_of(asked, kind) for kind in ("one", "several", "no "))
    near, far = _near_and_far(asked, window)
    whole, narrow = map(mean, losses)
    return both(
        f"Ask for something far back, at several depths and lengths, and ask with the answer removed. One fact hidden: "
        f"found {_told(one, ', ')} by length in tokens; all depths together {share(one):.0%}. Several at once: "
        f"{_told(several, ', ')}. With nothing hidden the same questions are answered right {share(none):.0%} of the "
        f"time, chance being {1 / len(COLORS):.0%}. Loss alone would not do: through a window of {window} it is "
        f"{narrow:.2f} nats against {whole:.2f}, yet of facts beyond the window {share(far):.0%} are found, of "
        f"those within it {share(near):.0%}.",
        f"要在多个深度和长度上询问很早以前的内容，并在去掉答案后再问一遍。藏一个事实：按长度（词元）找到 "
        f"{_told(one, '、')}，全部深度合计 {share(one):.0%}。同时藏几个：{_told(several, '、')}。什么都不藏时，同样的"
        f"问题答对 {share(none):.0%}，乱猜为 {1 / len(COLORS):.0%}。只看损失是不够的：通过 {window} 的窗口，损失为 "
        f"{narrow:.2f} 奈特，全部可见时 {whole:.2f}，可窗口之外的事实只找到 {share(far):.0%}，窗口之内的找到 "
        f"{share(near):.0%}。",
    )
