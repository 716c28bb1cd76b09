"""Why a model repeats itself, and what penalties change.

What was said once becomes likelier, so the likeliest continuation of a loop is the loop (Holtzman et al. 2020,
arXiv:1904.09751; Xu et al. 2022, arXiv:2206.02369). A penalty (Keskar et al. 2019, arXiv:1909.05858) divides a positive
score and multiplies a negative one; who always divides rewards what had a negative score.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import penalize, repeating
from cutaway.engine.search import Beams, beam_search
from cutaway.labs.decode.speaker import Speaker, repeated, speaker
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL

GREEDY, BEAM, BLOCKED = "greedy", "4 beams", "greedy, no 4-gram twice"
SAMPLED, NUCLEUS, PENALTY = "temperature 1", "top-p 0.9", "greedy, penalty 1.2"
SETTINGS: dict[str, dict[str, Any]] = {
    GREEDY: {"temperature": 0},
    SAMPLED: {"temperature": 1},
    NUCLEUS: {"temperature": 1, "top_p": 0.9},
    PENALTY: {"temperature": 0, "repetition_penalty": 1.2},
    BLOCKED: {"temperature": 0, "no_repeat_ngram": 4},
}
LITTLE = 0.05


class Way(NamedTuple):
    """repeats: share of 4-grams that stood there before, over all replies. worst: of the most repetitive reply.

    first, last: probability of what came, mean of the first and of the last quarter of the replies.
    """

    name: str
    repeats: float
    worst: float
    first: float | None
    last: float | None


@lab(
    "repetition",
    title=both("Why models repeat themselves", "模型为何复读"),
    question=both(
        "Why do models loop, and what do penalties change, including when logits are negative?",
        "模型为什么会陷入循环？惩罚改变了什么，logits 为负时又如何？",
    ),
    seconds={"quick": 5, "full": 60},
)
def repetition(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that speaks", "说话的模型")] = MODEL,
    prompts: Annotated[int, Knob("prompts", "提示数", quick=4, min=1, max=30)] = 30,
    length: Annotated[int, Knob("tokens of a reply", "回答的词元数", quick=80, min=16, max=400)] = 200,
    factor: Annotated[
        float, Knob("the penalty whose signs are looked at", "考察符号的惩罚系数", min=1.01, max=10)
    ] = 1.2,
) -> Finding:
    voice = speaker(model)
    ways = [spoken(voice, name, prompts, length, run.seed) for name in run.each([*SETTINGS], "way")]
    ways.insert(1, searched(voice, prompts, length // 2, run))
    signs = {rule: shifts(rule, factor) for rule in (True, False)}
    return Finding(
        table=table(COLUMNS, ways), plot=_plot(ways), verdict=_verdict(ways, signs), checks=_checks(ways, signs)
    )


def spoken(voice: Speaker, name: str, prompts: int, length: int, seed: int) -> Way:
    """One way of choosing tokens, over all prompts."""
    params = [
        SamplingParams(**SETTINGS[name], seed=seed + i, max_tokens=length, ignore_eos=True, top_logprobs=1)
        for i in range(prompts)
    ]
    sequences = [voice.engine.add(p, s) for p, s in zip(voice.prompts(prompts), params, strict=True)]
    chances: dict[object, list[float]] = {sequence: [] for sequence in sequences}
    while voice.engine.busy:
        for sequence, event in voice.engine.step():
            if not isinstance(event, Exception):
                chances[sequence].append(event.choice.logprob)
    return described(name, [s.reply for s in sequences], [*chances.values()])


def searched(voice: Speaker, prompts: int, length: int, run: Run) -> Way:
    """Beams; each token's probability is not kept."""
    params = SamplingParams(max_tokens=length, ignore_eos=True)
    best = [
        beam_search(voice.engine, prompt, params, Beams(4))[0] for prompt in run.each(voice.prompts(prompts), "beams")
    ]
    return described(BEAM, [b.reply for b in best], None)


def described(name: str, replies: list[list[int]], logprobs: list[list[float]] | None) -> Way:
    """See `Way`."""
    shares, quarter = [repeated(reply) for reply in replies], len(replies[0]) // 4
    if logprobs is None:
        return Way(name, statistics.mean(shares), max(shares), None, None)
    p_RT = torch.tensor(logprobs).exp()
    return Way(
        name, statistics.mean(shares), max(shares), float(p_RT[:, :quarter].mean()), float(p_RT[:, -quarter:].mean())
    )


def shifts(right: bool, factor: float) -> Tensor:
    """How the probabilities of tokens with scores 2, 0.5, -0.5, -2 change, each penalized alone, right or wrong."""
    scores_V, changes = torch.tensor([2.0, 0.5, -0.5, -2.0]), []
    for token in range(4):
        if right:
            after_V = penalize(scores_V, SamplingParams(repetition_penalty=factor), [], [token])
        else:
            after_V = scores_V.clone()
            after_V[token] /= factor
        changes.append(after_V.softmax(-1)[token] - scores_V.softmax(-1)[token])
    return torch.stack(changes)


COLUMNS = {
    "way": "",
    "repeated 4-grams": "share",
    "in the worst reply": "share",
    "p of what came, first quarter": "",
    "p of what came, last quarter": "",
}


def _plot(ways: list[Way]) -> Plot:
    series = [Series(name="share", x=[way.name for way in ways], y=[way.repeats for way in ways])]
    return Plot(kind="bar", x=Axis(label="way"), y=Axis(label="repeated 4-grams"), series=series)


def _checks(ways: list[Way], signs: dict[bool, Tensor]) -> list[Check]:
    of = {way.name: way for way in ways}
    return [
        check(
            of[GREEDY].repeats > LITTLE > max(of[SAMPLED].repeats, 0),
            f"greedy repeats {of[GREEDY].repeats:.0%} of its 4-grams, sampling at temperature 1 "
            f"{of[SAMPLED].repeats:.1%}",
            f"贪婪解码重复了 {of[GREEDY].repeats:.0%} 的 4 元组，温度 1 抽样为 {of[SAMPLED].repeats:.1%}",
        ),
        check(
            of[PENALTY].repeats < of[GREEDY].repeats / 2,
            f"a penalty of 1.2 leaves {of[PENALTY].repeats:.1%}",
            f"1.2 的惩罚后剩 {of[PENALTY].repeats:.1%}",
        ),
        check(
            of[BLOCKED].worst == 0 and repeating([1, 2, 1], 2) == {2},
            "where no 4-gram may come twice none does",
            "禁止 4 元组重复时确实没有重复",
        ),
        check(
            bool((signs[True] < 0).all()) and (signs[False] > 0).tolist() == [False, False, True, True],
            "the penalty lowers every score; dividing always would raise the probability of negative ones",
            "惩罚降低每个分数；若一律相除，负分数的概率反而升高",
        ),
    ]


def _verdict(ways: list[Way], signs: dict[bool, Tensor]) -> Words:
    shares = ", ".join(f"{way.name} {way.repeats:.1%}" for way in ways)
    greedy = next(way for way in ways if way.name == GREEDY)
    wrong = float(signs[False][2])
    return both(
        f"A loop feeds itself: in greedy replies the mean probability of what came rises from {greedy.first:.2f} in "
        f"the first quarter to {greedy.last:.2f} in the last. Repeated 4-grams: {shares}. A penalty must multiply "
        f"negative scores: dividing -0.5 adds {wrong:.3f} to its token's probability instead of taking from it.",
        f"循环自我强化：贪婪回答中，所选词元的平均概率从前四分之一的 {greedy.first:.2f} "
        f"升到后四分之一的 {greedy.last:.2f}。"
        f"重复的 4 元组：{shares}。惩罚必须把负分数相乘：对 -0.5 相除会使其概率增加 {wrong:.3f}，而不是减少。",
    )
