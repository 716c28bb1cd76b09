"""What ends a reply: a token that the model was trained to put there, a text that the caller names, or a count.

The chat template writes the same marker after each turn, so the model learns to say it where an answer is over. It is
a token like any other, with a probability at every place; whoever takes it away gets text without end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

import torch

from cutaway.engine.params import SamplingParams
from cutaway.engine.search import Tree
from cutaway.labs.decode.speaker import Speaker, speaker
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL

QUESTIONS = (
    "What is the capital of France?", "How many legs does a spider have?", "Name three colors.", "What is 2 + 2?",
    "Who wrote Romeo and Juliet?", "What do bees make?", "Say hello in Spanish.", "What is the opposite of hot?",
    "Which planet is closest to the sun?", "What is ice made of?", "What color is the sky?", "Name a fruit.",
    "What is the largest ocean?", "How many days are in a week?", "What do cows drink?", "Name a musical instrument.",
    "What is the boiling point of water?", "Who painted the Mona Lisa?", "What language is spoken in Brazil?",
    "What is the first letter of the alphabet?",
)  # fmt: skip


class Answer(NamedTuple):
    """text: of the greedy answer. ends_T: probability of the end marker at each place, the last where it came.

    finish: why it ended. masked: why it ended, and after how many tokens, with the marker forbidden.
    stop: a text across two tokens; stopped: what was said with that as a stop string, and why it ended.
    """

    question: str
    text: str
    ends_T: list[float]
    finish: str | None
    masked: tuple[str | None, int]
    stop: str
    stopped: tuple[str, str | None]


@lab(
    "stopping",
    title=both("What ends a reply", "回答因何而止"),
    question=both(
        "What ends a generation: the model, the template or the server?",
        "是什么结束了生成：模型、模板，还是服务器？",
    ),
    seconds={"quick": 4, "full": 40},
)
def stopping(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    questions: Annotated[int, Knob("questions", "问题数", quick=4, min=1, max=len(QUESTIONS))] = 20,
    longest: Annotated[int, Knob("limit of a reply, tokens", "回答的词元上限", quick=80, min=8, max=400)] = 250,
) -> Finding:
    voice, params = speaker(model), SamplingParams(temperature=0, max_tokens=longest)
    answers = [answer(voice, question, params) for question in run.each(QUESTIONS[:questions], "question")]
    return Finding(
        table=table(COLUMNS, map(_row, answers)),
        plot=_plot(answers),
        verdict=_verdict(answers, longest),
        checks=_checks(answers, longest),
    )


def answer(voice: Speaker, question: str, params: SamplingParams) -> Answer:
    """Ask three times: as it is, with the end forbidden, and with a stop string cut out of the answer."""
    prompt = voice.tokenizer.chat([{"role": "user", "content": question}])
    plain, ends_T = followed(voice, prompt, params)
    endless = replace(params, logit_bias=dict.fromkeys(voice.tokenizer.stop_ids, -100.0))
    stop = across(voice, plain)
    (said,), (masked,), (stopped,) = (
        voice.say([(prompt, asked)]) for asked in (params, endless, replace(params, stop=(stop,)))
    )
    return Answer(
        question, said.text, ends_T, said.finish, (masked.finish, len(masked.reply)), stop,
        (stopped.text, stopped.finish),
    )  # fmt: skip


def followed(voice: Speaker, prompt: list[int], params: SamplingParams) -> tuple[list[int], list[float]]:
    """The greedy reply, and the probability of an end at each of its places."""
    ids, ends_T = sorted(voice.tokenizer.stop_ids), list[float]()
    with Tree(voice.engine, prompt, params, 1) as tree:
        while True:
            (leaf,), (logits_V,) = tree.leaves, tree.logits()
            ends_T.append(float(logits_V.softmax(-1)[ids].sum()))
            tree.grow([(leaf, int(torch.argmax(logits_V)))])
            if leaf.reply[-1] in leaf.ends or len(leaf.tokens) >= leaf.limit:
                return [*leaf.reply], ends_T


def across(voice: Speaker, reply: list[int]) -> str:
    """The end of one token of the reply and the beginning of the next; the middle of the text."""
    middle = max(1, (len(reply) - 1) // 2)
    left, right = (voice.tokenizer.decode([token]) for token in reply[middle - 1 : middle + 1])
    return left[-2:] + right[:2]


COLUMNS = {
    "question": "", "tokens": "", "ended by": "", "p of the end, where it came": "", "elsewhere at most": "",
    "end forbidden": "", "stop string": "", "ended by it": "",
}  # fmt: skip


def _row(a: Answer) -> list[str | int | float | None]:
    elsewhere = max(a.ends_T[:-1], default=0.0)
    return [
        a.question, len(a.ends_T), a.finish, a.ends_T[-1], elsewhere, a.masked[0], repr(a.stop), a.stopped[1],
    ]  # fmt: skip


def _plot(answers: list[Answer]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="tokens before the end"),
        y=Axis(label="probability of the end marker"),
        series=[
            Series(name=a.question, x=[float(i - len(a.ends_T) + 1) for i in range(len(a.ends_T))], y=a.ends_T)
            for a in answers[:6]
        ],
    )


def _checks(answers: list[Answer], longest: int) -> list[Check]:
    ended = [a for a in answers if a.finish == "stop"]
    quoted = [a for a in answers if a.stop in a.text]  # not those whose tokens part a character
    peaks = sum(a.ends_T[-1] == max(a.ends_T) for a in ended)
    return [
        check(
            bool(ended) and 2 * peaks > len(ended),
            f"the end marker is likeliest where the answer ends in {peaks} of {len(ended)} answers that ended",
            f"{len(ended)} 个自行结束的回答中，{peaks} 个的结束标记在结尾处概率最高",
        ),
        check(
            all((a.finish == "stop") == (len(a.ends_T) < longest or a.ends_T[-1] > 0.5) for a in answers)
            and all(a.masked == ("length", longest) for a in answers),
            f"with the marker forbidden every answer runs to {longest} tokens and says 'length'; otherwise 'stop'",
            f"禁止结束标记后，每个回答都跑到 {longest} 个词元并报告 length；否则报告 stop",
        ),
        check(
            bool(quoted) and all(a.stopped == (a.text[: a.text.index(a.stop)], "stop") for a in quoted),
            f"a stop string cut over two tokens is caught in all {len(quoted)} answers, and nothing of it is said",
            f"跨两个词元的停止串 {len(quoted)} 次全被捕获，且丝毫没有输出",
        ),
    ]


def _verdict(answers: list[Answer], longest: int) -> Words:
    ended = [a for a in answers if a.finish == "stop"]
    last = sum(a.ends_T[-1] for a in ended) / max(1, len(ended))
    before = [p for a in ended for p in a.ends_T[:-1]]
    mean = sum(before) / max(1, len(before))
    return both(
        f"All three. The template's marker is a token that the model says: on average its probability is {last:.2f} "
        f"where an answer ends and {mean:.4f} before. The server counts and compares: without the marker every "
        f"answer ran to the limit of {longest} tokens, and a stop string ends a reply though no token is that.",
        f"三者都是。模板的标记是模型说出的一个词元：在回答结尾处其概率平均为 {last:.2f}，"
        f"之前为 {mean:.4f}。"
        f"服务器计数并比对：没有标记时每个回答都跑到 {longest} 个词元的上限；"
        "停止串即使不是任何一个词元，也能结束回答。",
    )
