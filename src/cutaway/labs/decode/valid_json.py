"""JSON that cannot be invalid: a mask over the vocabulary at every step, instead of asking the model to behave.

The mask lets through the tokens after which the reply can still become a text of the schema (Willard and Louf 2023,
arXiv:2307.09702). So even random weights, or a model at a temperature at which it babbles, say what parses. How a mask
is made is compared here with trying every token of the vocabulary, one by one.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, cast

import torch
from torch import Tensor

from cutaway.engine.constraints.constraint import Constraint, allowed
from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.labs.decode.speaker import Speaker, speaker
from cutaway.labs.evidence import Check, Finding, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.labs.training import fresh, small_spec
from cutaway.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "rare"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
ASKED = 'Describe a person as JSON: {"name": "Ada", "age": 36, "tags": ["old"]}\nAnother:'
LENGTH = 200  # white space is free, and random weights make use of it
DEAREST = 0.2  # what masks may take of the rest of a step
ENOUGH = 50  # tokens for a reply that is valid without a mask


class Spoken(NamedTuple):
    """valid: replies that the schema allows, of so many. tokens, steps: of all. seconds: per step, median.

    share: processor time of the constraints, as a share of all else that the same steps took.
    """

    who: str
    masked: bool
    valid: int
    replies: int
    tokens: int
    steps: int
    seconds: float
    share: float


class Clocked:
    """A constraint that notes how long it was at work. spent: seconds of the processor, of all that share the list."""

    def __init__(self, constraint: Constraint, spent: list[float]) -> None:
        self._constraint, self._spent = constraint, spent

    def __getattr__(self, name: str) -> Any:
        found = self._timed(getattr)(self._constraint, name)
        return self._timed(found) if callable(found) else found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args)
            finally:
                self._spent.append(time.thread_time() - began)

        return timed


@lab(
    "valid-json",
    title=both("JSON that cannot be invalid", "不可能无效的 JSON"),
    question=both(
        "Can I make invalid JSON impossible rather than merely unlikely?",
        "能否让无效的 JSON 成为不可能，而不只是少见？",
    ),
    seconds={"quick": 5, "full": 120},
)
def valid_json(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that speaks", "说话的模型")] = MODEL,
    replies: Annotated[int, Knob("replies of each model", "每个模型的回答数", quick=8, min=1, max=5000)] = 500,
    temperature: Annotated[float, Knob("temperature", "温度", min=0.1, max=10)] = 2.0,
    places: Annotated[
        int,
        Knob(
            "steps of random replies at which every token is tried",
            "逐一试验所有词元的步数（随机回答）",
            quick=2,
            min=1,
            max=500,
        ),
    ] = 200,
) -> Finding:
    voice = speaker(model)
    random = Engine(
        fresh(small_spec(vocab=voice.engine.runner.spec.vocab, width=32), run.seed, std=0.5), voice.tokenizer
    )
    speakers = {"random weights": Speaker(random, voice.tokenizer), "the model": voice}
    params = SamplingParams(temperature, seed=run.seed, max_tokens=ENOUGH)
    fenced = replace(params, max_tokens=LENGTH, constraint=ConstraintSpec.schema(SCHEMA))
    found = [
        speak(who, one, replies, settings)
        for who, one in speakers.items()
        for settings in run.each((params, fenced), who)
    ]
    differ, tried = compared(voice.tokenizer, places, run)
    return Finding(
        table=table(COLUMNS, [[*row[:-2], 1e3 * row.seconds, row.share if row.masked else None] for row in found]),
        plot=None,
        verdict=_verdict(found, temperature),
        checks=_checks(found, differ, tried),
    )


def speak(who: str, voice: Speaker, replies: int, params: SamplingParams) -> Spoken:
    """Replies to the same prompt, side by side."""
    engine, prompt = voice.engine, voice.tokenizer.encode(ASKED)
    sequences = [engine.add(prompt, replace(params, seed=params.seed + i)) for i in range(replies)]
    spent, seconds, whole = list[float](), list[float](), time.thread_time()
    for sequence in sequences:
        if sequence.constraint:
            sequence.constraint = cast(Constraint, Clocked(sequence.constraint, spent))
    while engine.busy:
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    whole = time.thread_time() - whole
    valid = sum(obeys(s.text) for s in sequences)
    masked = params.constraint is not None
    tokens, share = sum(len(s.reply) for s in sequences), sum(spent) / (whole - sum(spent))
    return Spoken(who, masked, valid, replies, tokens, len(seconds), statistics.median(seconds), share)


def obeys(text: str) -> bool:
    """Whether a text is JSON of the schema, checked by hand."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and value.keys() == {"name", "age", "tags"} and all(_fits(value))


def _fits(value: Mapping[str, Any]) -> list[bool]:
    name, age, tags = value["name"], value["age"], value["tags"]
    return [
        isinstance(name, str) and len(name) <= 6,
        isinstance(age, int) and not isinstance(age, bool) and 0 <= age <= 130,
        isinstance(tags, list) and len(tags) <= 3 and all(tag in ("new", "old", "rare") for tag in tags),
    ]


def compared(tokenizer: Tokenizer, places: int, run: Run) -> tuple[int, int]:
    """At places of random walks through the schema: tokens about which mask and trial disagree, and tokens tried."""
    generator, differ, tried = run.generator(), 0, 0
    constraint = ConstraintSpec.schema(SCHEMA).compile(tokenizer)
    for _ in run.each(range(places), "every token tried"):
        allowed_V = allowed(constraint.mask())[: tokenizer.vocab_size]
        trial_V = torch.tensor([accepts(constraint, token) for token in range(tokenizer.vocab_size)])
        differ, tried = differ + int((allowed_V != trial_V).sum()), tried + len(trial_V)
        constraint = walked(constraint, allowed_V, tokenizer, generator)
    return differ, tried


def accepts(constraint: Any, token: int) -> bool:
    """Whether a token may come; the constraint stays where it is."""
    try:
        constraint.advance(token)
    except CutawayError:
        return False
    constraint.rollback(1)
    return True


def walked(constraint: Any, allowed_V: Tensor, tokenizer: Tokenizer, generator: torch.Generator) -> Any:
    """A random allowed token further; from the beginning where the text ends."""
    ids = allowed_V.nonzero()[:, 0]
    token = int(ids[torch.randint(len(ids), (1,), generator=generator)])
    if constraint.done or token in tokenizer.stop_ids:
        return ConstraintSpec.schema(SCHEMA).compile(tokenizer)
    constraint.advance(token)
    return constraint


COLUMNS = {
    "who": "", "masked": "", "valid": "replies", "of": "replies", "said": "tokens", "in": "steps", "step": "ms",
    "constraints": "of the rest",
}  # fmt: skip


def _checks(found: list[Spoken], differ: int, tried: int) -> list[Check]:
    masked, free = ([row for row in found if row.masked is kind] for kind in (True, False))
    valid = ", ".join(f"{row.valid} of {row.replies} ({row.who})" for row in masked)
    return [
        check(
            all(row.valid == row.replies for row in masked),
            f"under the mask every reply parses and fits the schema: {valid}",
            f"有掩码时每个回答都能解析且符合模式：{valid}",
        ),
        check(
            all(row.valid < row.replies for row in free),
            f"without it they do not: {', '.join(str(row.valid) for row in free)}",
            f"没有掩码则不然：{'、'.join(str(row.valid) for row in free)}",
        ),
        check(
            differ == 0,
            f"mask and trial agree on all of {tried:,} tokens that were tried one by one",
            f"逐一试验的 {tried:,} 个词元上，掩码与试验完全一致",
        ),
        check(
            all(row.steps < row.tokens for row in masked),
            "what the schema leaves no choice about takes no step of its own",
            "模式已无选择余地的部分不需要单独的一步",
        ),
        check(
            masked[1].share < DEAREST,
            f"constraints take {masked[1].share:.1%} of what the model's steps take without them, on one processor",
            f"约束所占处理器时间为模型各步其余部分的 {masked[1].share:.1%}",
        ),
    ]


def _verdict(found: list[Spoken], temperature: float) -> Words:
    en = "; ".join(
        f"{row.who}, {'with' if row.masked else 'without'} mask: {row.valid} of {row.replies} valid, "
        f"{1e3 * row.seconds:.1f} ms a step"
        for row in found
    )
    names = {"random weights": "随机权重", "the model": "模型"}
    zh = "；".join(
        f"{names[row.who]}{'有' if row.masked else '无'}掩码：{row.replies} 个中 {row.valid} 个有效，"
        f"每步 {1e3 * row.seconds:.1f} 毫秒"
        for row in found
    )
    return both(
        f"Yes: forbid every token after which the reply could no longer become valid. At temperature {temperature:g}: "
        f"{en}. The mask guarantees the form; what the values mean is still the model's word.",
        f"可以：禁止一切使回答再也无法有效的词元。温度 {temperature:g} 时：{zh}。掩码保证形式；值的含义仍由模型负责。",
    )
