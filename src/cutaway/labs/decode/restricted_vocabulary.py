"""A fence of words: nothing outside a list can be said, and no reply gets stuck inside.

Tokens are not words: "light" + "house" spells a word that no token is, and a listed word may begin many ways. So the
fence is an automaton over bytes (Willard and Louf 2023, arXiv:2307.09702): a token may come if its bytes lead to a
place from which a listed word can still be finished. By construction there is always one; a dead end would be an error.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Annotated, NamedTuple

from cutaway.engine.constraints.spec import BETWEEN_WORDS, ConstraintSpec
from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.labs.decode.speaker import Speaker, speaker
from cutaway.labs.evidence import Check, Finding, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.labs.training import prose


class Told(NamedTuple):
    """words: said in all. foreign: of these, not in the list. dead: replies that could not go on. perplexity: of the
    model's own distribution over what it said.
    """

    fence: bool
    replies: int
    words: int
    foreign: int
    dead: int
    perplexity: float
    example: str


@lab(
    "restricted-vocabulary",
    title=both("Fenced to a word list", "词表围栏"),
    question=both(
        "Can decoding be fenced to a word list without getting stuck?",
        "能否把解码围在一个词表之内而不卡死？",
    ),
    seconds={"quick": 4, "full": 60},
)
def restricted_vocabulary(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that speaks", "说话的模型")] = MODEL,
    listed: Annotated[int, Knob("words in the list", "词表中的词数", quick=300, min=10, max=20_000)] = 1000,
    replies: Annotated[int, Knob("replies", "回答数", quick=12, min=1, max=2000)] = 200,
    length: Annotated[int, Knob("tokens of a reply", "回答的词元数", quick=32, min=4, max=300)] = 60,
) -> Finding:
    words, voice = common_words(listed), speaker(model)
    found = [
        speak(voice, words, replies, SamplingParams(seed=run.seed, max_tokens=length, constraint=fence))
        for fence in run.each((None, ConstraintSpec.words(words)), "fence")
    ]
    return Finding(
        table=table(COLUMNS, found), plot=None, verdict=_verdict(found, listed), checks=_checks(found, listed)
    )


def common_words(count: int) -> list[str]:
    """The commonest words of the text that small models here learn from, in small letters."""
    text = bytes(prose().tolist()).decode()
    return [word for word, _ in Counter(re.findall(r"\b[a-z]+\b", text)).most_common(count)]


def speak(voice: Speaker, words: list[str], replies: int, params: SamplingParams) -> Told:
    """Replies side by side, each with its own luck."""
    prompts = voice.prompts(replies)
    settings = [SamplingParams(**{**vars(params), "seed": params.seed + i}) for i in range(replies)]
    sequences = [voice.engine.add(*asked) for asked in zip(prompts, settings, strict=True)]
    dead, logprobs = 0, list[float]()
    while voice.engine.busy:
        for _, event in voice.engine.step():
            if isinstance(event, CutawayError):
                dead += 1
            else:
                logprobs.append(event.choice.logprob)
    said = [spoken(s.text, s.finish == "length") for s in sequences]
    foreign = sum(word not in words for some in said for word in some)
    perplexity = math.exp(-sum(logprobs) / len(logprobs))
    return Told(
        params.constraint is not None, replies, sum(map(len, said)), foreign, dead, perplexity, sequences[0].text[:60]
    )


def spoken(text: str, unfinished: bool) -> list[str]:
    """The words of a text, whatever stands between them, the first letter small; without the last if it was cut off."""
    words = [word for word in re.split(f"[{re.escape(BETWEEN_WORDS)}]+", text) if word]
    last = -1 if unfinished and words and text.endswith(words[-1]) else None
    return [word[:1].lower() + word[1:] for word in words[:last]]


COLUMNS = {
    "fence": "", "replies": "", "words": "", "not in the list": "words", "stuck": "replies", "perplexity": "",
    "an example": "",
}  # fmt: skip


def _checks(found: list[Told], listed: int) -> list[Check]:
    free, fenced = found
    return [
        check(
            fenced.foreign == 0 < fenced.words,
            f"inside the fence all {fenced.words:,} words are among the {listed:,} listed",
            f"围栏之内，全部 {fenced.words:,} 个词都在 {listed:,} 个词的表中",
        ),
        check(
            free.foreign > free.words / 20,
            f"without it {free.foreign:,} of {free.words:,} are not",
            f"没有围栏时，{free.words:,} 个词中有 {free.foreign:,} 个不在表中",
        ),
        check(
            fenced.dead == 0,
            f"none of {fenced.replies:,} replies gets stuck",
            f"{fenced.replies:,} 个回答无一卡死",
        ),
        check(
            fenced.perplexity > free.perplexity,
            f"the price: perplexity {fenced.perplexity:.0f} instead of {free.perplexity:.1f}",
            f"代价：困惑度 {fenced.perplexity:.0f}，而非 {free.perplexity:.1f}",
        ),
    ]


def _verdict(found: list[Told], listed: int) -> Words:
    free, fenced = found
    return both(
        f"Yes, by an automaton over bytes, for words end in the middle of tokens. Fenced to {listed:,} words, "
        f"{fenced.foreign} of {fenced.words:,} words said are foreign and {fenced.dead} replies got stuck; free, "
        f"{free.foreign / max(1, free.words):.0%} are foreign. The model finds what it must say less likely: "
        f"perplexity {fenced.perplexity:.0f} against {free.perplexity:.1f}. Example: “{fenced.example}”.",
        f"可以，用字节自动机，因为词会在词元中间结束。围在 {listed:,} 个词内时，说出的 {fenced.words:,} 个词中 "
        f"{fenced.foreign} 个越界，{fenced.dead} 个回答卡死；"
        f"不设围栏则 {free.foreign / max(1, free.words):.0%} 越界。"
        f"模型觉得不得不说的话更不自然：困惑度 {fenced.perplexity:.0f} "
        f"对 {free.perplexity:.1f}。例：“{fenced.example}”。",
    )
