"""Known values of the labs `denoising` and `context-window`."""

from __future__ import annotations

import random

import pytest
import torch

from cutaway.engine.engine import Engine, TooLong
from cutaway.engine.params import SamplingParams
from cutaway.labs import grammar
from cutaway.labs.arch import context_window, denoising
from cutaway.labs.training import fresh, small_spec

LIMIT = 32


def engine() -> Engine:
    return Engine(
        fresh(small_spec(width=16, layers=1, context=2 * LIMIT), 0), context_window.byte_tokenizer(), context=LIMIT
    )


def test_every_token_is_a_byte() -> None:
    tokenizer, text = context_window.byte_tokenizer(), "naïve – 上下文\n\t<|im_end|>"
    assert tokenizer.encode(text) == [*text.encode()]
    assert tokenizer.decode([*text.encode()]) == text
    assert tokenizer.stop_ids == frozenset()


@pytest.mark.parametrize("prompt", [1, 7, LIMIT - 1])
def test_a_prompt_leaves_exactly_what_the_context_has_beyond_it(prompt: int) -> None:
    tokens, running = [*range(prompt)], engine()
    events = [*running.generate(tokens, SamplingParams(temperature=0, max_tokens=10 * LIMIT))]
    assert len(events) == LIMIT - prompt
    assert [e.finish for e in events] == [None] * (len(events) - 1) + ["length"]
    with pytest.raises(TooLong, match=rf"has {LIMIT} tokens, the context holds {LIMIT} with the reply"):
        next(running.generate(tokens + [e.choice.token for e in events], SamplingParams()))


def test_a_conversation_adds_up_until_it_is_refused() -> None:
    turns = context_window.conversation(engine(), 0)
    assert [(t.prompt, t.earlier, t.reply, t.finish) for t in turns] == [
        (2, 0, 8, "length"),
        (12, 8, 8, "length"),
        (22, 16, 8, "length"),
        (32, 24, 0, None),
    ]


def words(text: str) -> list[int]:
    return [grammar.ID[word] for word in text.split()]


def test_tasks_say_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    said = grammar.Sentence(words("the old dogs near my cat sleep ."), 6, 4, 0.0)
    monkeypatch.setattr(denoising, "short", lambda chance: said)
    chance = random.Random(0)
    foreign = [denoising.FOREIGN + word for word in words("sleep the old dogs near my cat .")]
    assert denoising.translate(chance) == (said.tokens, foreign)
    assert denoising.count(chance) == (said.tokens, [denoising.NUMBERS[1]])
    source, target = denoising.summarize(chance)
    times = len(source) // len(said.tokens)
    assert (source, target) == (said.tokens * times, words("dogs sleep .") * times)


def test_noise_is_undone_and_counted() -> None:
    t5, bart = map(denoising.rebuilt, denoising.NOISES)
    assert (t5.share, bart.share, bart.said) == (1, 1, 1)
    assert 0.7 < bart.read < 0.9  # 70 % kept, and the masks
    assert t5.read + t5.said == pytest.approx(1 + 2 * (t5.read - 0.85), abs=0.02)


def test_a_prefix_is_the_only_difference_between_tasks() -> None:
    example = denoising.Example(words("the dog sleeps ."), [])
    asked = [denoising.asked(task, example).source_S for task in denoising.TASKS]
    assert len({int(source_S[0]) for source_S in asked}) == 3
    assert all(torch.equal(source_S[1:], asked[0][1:]) for source_S in asked)
