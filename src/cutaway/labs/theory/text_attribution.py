"""Whose text is this? What token probabilities tell of the model and the prompt that wrote it.

A model gives every text a probability under a prompt, log p(text | prompt). Two ways to read it:

    plain       mean log p of a token                             likely texts are taken for the model's own
    calibrated  (sum log p - what the model itself expects) / std  a text that the model drew is near 0 on average

The calibrated score is that of Fast-DetectGPT (Bao et al. 2023, arXiv:2310.05130) with the model as its own reference.
Texts: the model's own draws and another model's after the beginnings of real passages, and other real passages.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, subject
from cutaway.labs.training import prose
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights import sources
from cutaway.weights.checkpoint import Loaded

OWN, OTHER, HUMAN = "the model's own draws", "another model's draws", "passages by people"
SCORES = ("plain", "calibrated")
PROMPTS = "the right prompt or another's"
CHINESE = {
    **{f"own or {HUMAN}, {how}": f"自己或人写的，{zh}" for how, zh in zip(SCORES, ("原始", "校准"), strict=True)},
    **{f"own or {OTHER}, {how}": f"自己或另一模型，{zh}" for how, zh in zip(SCORES, ("原始", "校准"), strict=True)},
    PROMPTS: "正确的或别人的提示",
}
FALSE_ALARMS = 0.01
RESAMPLES = 500


class Sizes(NamedTuple):
    """drawn: texts per model. passages: by people. prompt, longest: tokens of each prompt, of each text."""

    drawn: int
    passages: int
    prompt: int
    longest: int


class Written(NamedTuple):
    """A text by its tokens, and those of the prompt that it follows."""

    prompt: list[int]
    text: list[int]


class Scored(NamedTuple):
    """Of every token of a text: its log-probability, the mean and the variance of those of the model's draws there."""

    log_p_T: Tensor
    mean_T: Tensor
    variance_T: Tensor

    def plain(self, length: int) -> float:
        """Mean log-probability of the first tokens."""
        return float(self.log_p_T[:length].mean())

    def calibrated(self, length: int) -> float:
        """Their surplus over the model's expectation, in standard deviations."""
        surplus = (self.log_p_T - self.mean_T)[:length].sum()
        return float(surplus / self.variance_T[:length].sum().sqrt())


class Verdict(NamedTuple):
    """How well a score tells positives from negatives. low, high: of the AUC, 95 %. caught: at the false-alarm rate."""

    question: str
    length: int
    positives: int
    negatives: int
    auc: float
    low: float
    high: float
    caught: float


@lab(
    "text-attribution",
    title=both("What probabilities tell of who wrote a text", "概率能透露文本出自谁手"),
    question=both(
        "How much evidence do token probabilities give that a certain model and prompt wrote a text?",
        "词元概率能在多大程度上证明某段文本出自某个模型和某个提示？",
    ),
    seconds={"quick": 8, "full": 400},
)
def text_attribution(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that is suspected", "被怀疑的模型")] = MODEL,
    other: Annotated[str, Knob("another model; none to skip", "另一个模型；留空则跳过", quick="")] = "gemma-3-270m",
    human: Annotated[
        str, Knob("a plain-text file by people; none: Python's reference", "人写的纯文本文件；不给则用 Python 参考手册")
    ] = "",
    drawn: Annotated[int, Knob("texts per model", "每个模型的文本数", quick=5, min=2, max=1000)] = 8,
    passages: Annotated[int, Knob("passages by people", "人写段落数", quick=6, min=2, max=1000)] = 100,
    prompt: Annotated[int, Knob("tokens of each prompt", "每个提示的词元数", quick=16, min=4, max=512)] = 32,
    longest: Annotated[int, Knob("tokens of each text", "每段文本的词元数", quick=24, min=8, max=4096)] = 500,
) -> Finding:
    if other:
        sources.resolve(other)  # found missing in the middle of a long run, it would cost what was done
    loaded = subject(model)
    tokenizer, lengths = loaded.tokenizer, lengths_to(longest)
    starts, people = passages_of(tokenizer, human, Sizes(drawn, passages, prompt, longest))
    texts = {OWN: draws(loaded, tokenizer, starts, longest, run), HUMAN: people}
    if other:
        texts[OTHER] = draws(subject(other), tokenizer, starts, longest, run)
        loaded = subject(model)
    by = {who: [score(loaded, w) for w in run.each(written, f"scoring {who}")] for who, written in texts.items()}
    swapped = [Written(b.prompt, a.text) for a, b in pairwise([*texts[OWN], texts[OWN][0]])]
    wrong = [score(loaded, w) for w in run.each(swapped, "scoring under another prompt")]
    found = verdicts(by, wrong, lengths, run.generator())
    return Finding(
        table=table(COLUMNS, map(_cells, found)),
        plot=_plot(found),
        verdict=_verdict(by, wrong, found, longest),
        checks=_checks(by, wrong, longest),
    )


def lengths_to(longest: int) -> list[int]:
    """About doubling, up to the longest: 50, 100, 200, 500 of 500."""
    return sorted({max(1, longest // part) for part in (10, 5, 2, 1)}) if longest >= 100 else [longest // 2, longest]


# ---- texts


def passages_of(tokenizer: Tokenizer, path: str, sizes: Sizes) -> tuple[list[list[int]], list[Written]]:
    """Beginnings for the models to go on from, and whole passages, from all over a text. Errors: too short a text."""
    try:
        raw = Path(path).read_text("utf-8") if path else bytes(prose().tolist()).decode("utf-8", "ignore")
    except (OSError, UnicodeDecodeError) as error:
        raise CutawayError(f"cannot be read: {error}", path, "give a text file in UTF-8") from None
    ids, prompt = tokenizer.encode(raw, add_special=False), sizes.prompt
    size, count = prompt + sizes.longest, sizes.drawn + sizes.passages
    if len(ids) < count * size:
        what = f"has {len(ids):,} tokens, {count} passages of {size} need {count * size:,}"
        raise CutawayError(what, path or "the reference of Python", "ask for fewer, or give another text")
    pieces = [ids[i * (len(ids) // count) :][:size] for i in range(count)]
    for_models = set(range(0, count, count // sizes.drawn)[: sizes.drawn])
    starts = [piece[:prompt] for i, piece in enumerate(pieces) if i in for_models]
    return starts, [Written(p[:prompt], p[prompt:]) for i, p in enumerate(pieces) if i not in for_models]


def draws(writer: Loaded, tokenizer: Tokenizer, starts: list[list[int]], longest: int, run: Run) -> list[Written]:
    """What a model writes after each beginning at temperature 1, in the suspected model's tokens; all go on at once.

    Control tokens stay in the suspected model's own texts, as it would not expect what follows if they were gone.
    """
    engine = Engine(decoder(writer), writer.tokenizer, running=len(starts))
    limit = longest + longest // 4  # to be split anew, perhaps into fewer tokens
    replies = []
    for i, start in enumerate(starts):
        params = SamplingParams(max_tokens=limit, ignore_eos=True, seed=run.seed * len(starts) + i)
        replies.append(engine.add(writer.tokenizer.encode(tokenizer.decode(start)), params))
    while engine.busy:
        engine.step()
        run.report(len(replies[0].reply), limit, f"{writer.name} writes")
    foreign = writer.tokenizer is not tokenizer
    texts = [writer.tokenizer.decode(reply.reply, skip_special=foreign) for reply in replies]
    ids = [tokenizer.encode(text, add_special=False)[:longest] for text in texts]
    written = [Written(start, text) for start, text in zip(starts, ids, strict=True) if len(text) == longest]
    if len(written) < 2:
        what = f"wrote fewer than two texts that {longest} of the suspected model's tokens can spell"
        raise CutawayError(what, writer.name, "ask for more texts or shorter ones")
    return written


# ---- scores


@torch.inference_mode()
def score(loaded: Loaded, written: Written) -> Scored:
    """Every token of the text given prompt and text before it."""
    ids_T = torch.tensor(written.prompt + written.text)
    log_p_TV = logits_of(decoder(loaded), ids_T)[len(written.prompt) - 1 : -1].log_softmax(-1)
    p_TV = log_p_TV.exp()
    mean_T = (p_TV * log_p_TV).sum(-1)
    variance_T = (p_TV * log_p_TV.square()).sum(-1) - mean_T.square()
    said_T = log_p_TV.gather(-1, torch.tensor(written.text)[:, None])[:, 0]
    return Scored(said_T.double(), mean_T.double(), variance_T.double())


def auc(positives: Tensor, negatives: Tensor) -> Tensor:
    """Chance that a positive scores above a negative, ties half: over the last axis of each, [...]."""
    above = positives[..., :, None] - negatives[..., None, :]
    return (above.sign() / 2 + 0.5).mean((-2, -1))


def told_apart(
    question: str, length: int, positives: Sequence[float], negatives: Sequence[float], generator: torch.Generator
) -> Verdict:
    """AUC, its interval by drawing texts anew, and the share of positives above all but the allowed false alarms."""
    p_N, n_M = (torch.tensor(values, dtype=torch.float64) for values in (positives, negatives))
    again = [x[torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)] for x in (p_N, n_M)]
    low, high = torch.quantile(auc(*again), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    limit = n_M.sort(descending=True).values[int(FALSE_ALARMS * len(n_M))]
    caught = float((p_N > limit).double().mean())
    return Verdict(question, length, len(p_N), len(n_M), float(auc(p_N, n_M)), low, high, caught)


def verdicts(
    by: dict[str, list[Scored]], wrong: list[Scored], lengths: list[int], generator: torch.Generator
) -> list[Verdict]:
    """Every question at every length."""
    found = []
    for who in (name for name in (HUMAN, OTHER) if name in by):
        for how in SCORES:
            for n in lengths:
                mine, theirs = ([getattr(s, how)(n) for s in texts] for texts in (by[OWN], by[who]))
                found.append(told_apart(f"own or {who}, {how}", n, mine, theirs, generator))
    for n in lengths:
        right, swapped = ([s.plain(n) for s in texts] for texts in (by[OWN], wrong))
        found.append(told_apart(PROMPTS, n, right, swapped, generator))
    return found


# ---- what it comes to


COLUMNS = {
    "question": "",
    "tokens": "",
    "positives": "",
    "negatives": "",
    "AUC": "",
    "from": "95 %",
    "to": "95 %",
    "caught": "%, at most 1 % false alarms",
}


def _cells(verdict: Verdict) -> list[Cell]:
    return [*verdict[:-1], 100 * verdict.caught]


def _plot(found: list[Verdict]) -> Plot:
    names = dict.fromkeys(v.question for v in found)
    return Plot(
        kind="line",
        x=Axis(label="tokens of the text", log=True),
        y=Axis(label="AUC"),
        series=[
            Series(
                name=name,
                x=[float(v.length) for v in found if v.question == name],
                y=[v.auc for v in found if v.question == name],
            )
            for name in names
        ],
    )


def prompts_won(by: dict[str, list[Scored]], wrong: list[Scored], length: int) -> float:
    """Share of the model's texts that are likelier under their own prompt than under another's."""
    wins = [right.plain(length) > other.plain(length) for right, other in zip(by[OWN], wrong, strict=True)]
    return statistics.mean(wins)


def likeliest(by: dict[str, list[Scored]]) -> float:
    """Logarithm to base 10 of the largest probability that any whole text has."""
    return max(float(s.log_p_T.sum()) for texts in by.values() for s in texts) / math.log(10)


def _checks(by: dict[str, list[Scored]], wrong: list[Scored], longest: int) -> list[Check]:
    own = [s.calibrated(longest) for s in by[OWN]]
    middle, bound = statistics.mean(own), 4 / len(own) ** 0.5
    won, best = prompts_won(by, wrong, longest), likeliest(by)
    return [
        check(
            abs(middle) < bound,
            f"calibrated, the model's own draws are near 0 as they should: {middle:+.2f} on average (4 standard "
            f"errors: {bound:.2f})",
            f"校准后，模型自己的文本如所应当地接近 0：平均 {middle:+.2f}（4 个标准误：{bound:.2f}）",
        ),
        check(
            won >= 0.8,
            f"{won:.0%} of the model's texts are likelier under the prompt that they were written for than under "
            "another's",
            f"模型所写文本中，{won:.0%} 在原提示下比在别人的提示下更可能",
        ),
        check(
            best < -longest / 20,
            f"whoever wrote it, a whole text has next to no probability: 10^{best:.0f} for the likeliest",
            f"无论谁写的，整段文本的概率都近乎为零：最可能的一段也只有 10^{best:.0f}",
        ),
    ]


def _verdict(by: dict[str, list[Scored]], wrong: list[Scored], found: list[Verdict], longest: int) -> Words:
    last = {v.question: v for v in found if v.length == longest}
    said, chinese = (
        "; ".join(f"{name(q)}: {v.auc:.2f} ({v.low:.2f} – {v.high:.2f}), {v.caught:.0%}" for q, v in last.items())
        for name in (str, CHINESE.__getitem__)
    )
    own, people = (statistics.mean(s.plain(longest) for s in by[who]) for who in (OWN, HUMAN))
    return both(
        f"At {longest} tokens, AUC (95 % interval) and share caught at 1 % false alarms: {said}. The mean "
        f"log-probability of a token is {own:.2f} nats in the model's own draws and {people:.2f} in passages by "
        f"people. The probability of a whole text, 10^{likeliest(by):.0f} at most, is tiny whoever wrote it, since "
        "it is one of so many possible ones: only ratios carry evidence, such as that of two prompts, won by the "
        f"right one in {prompts_won(by, wrong, longest):.0%} of the texts.",
        f"{longest} 个词元时的 AUC（95 % 区间）与 1 % 误报率下的检出率：{chinese}。每词元的平均对数概率，模型自己的文"
        f"本为 {own:.2f} 奈特，人写的段落为 {people:.2f}。整段文本的概率至多 10^{likeliest(by):.0f}，无论谁写的都极"
        f"小，因为可能的文本太多：只有比值才有证据力，例如两个提示之比，{prompts_won(by, wrong, longest):.0%} 的文本"
        "由正确的提示胜出。",
    )
