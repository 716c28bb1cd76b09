"""Stop strings and characters across token boundaries."""

from __future__ import annotations

import random

import pytest

from cutaway.engine.params import SamplingParams
from cutaway.engine.sequence import held
from engine.tiny import tokenizer, told


def reply(text: str, **settings):
    engine = told(text)
    events = list(engine.generate(tokenizer().encode("?"), SamplingParams(temperature=0, **settings)))
    assert not engine.busy
    return events


def joined(events) -> str:
    return "".join(e.text for e in events)


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("owt",), "one two three"),
        ("aaaab", ("aab",), "aa"),
        ("abcabd", ("abd",), "abc"),
        ("two", ("two",), ""),
        ("one two", ("two three",), "one two"),
        ("你好世界", ("世",), "你好"),
        ("a😀b", ("😀",), "a"),
        ("line\n\nmore", ("\n\n",), "line"),
        ("xab", ("abc", "b"), "xa"),
    ],
)
def test_a_stop_string_ends_the_reply_before_it(text, stop, wanted):
    events = reply(text, stop=stop)
    assert joined(events) == wanted
    assert [e.finish for e in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish == "stop"


def test_no_released_text_is_ever_taken_back():
    random.seed(0)
    for _ in range(60):
        text = "".join(random.choices("abé", k=30))
        stops = tuple({"".join(random.choices("abé", k=random.randint(1, 5))) for _ in range(3)})
        whole = next((text[:n] for n in range(len(text) + 1) if any(s in text[:n] for s in stops)), text)
        cut = min((whole.find(s) for s in stops if s in whole), default=len(whole))
        events = reply(text, stop=stops)
        assert joined(events) == text[:cut]
        assert events[-1].finish == "stop"


def test_characters_are_released_whole():
    events = reply("aé你😀")
    assert [e.text for e in events] == ["a", "", "é", "", "", "你", "", "", "", "😀", ""]
    assert [e.offset for e in events] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4]


def test_half_a_character_at_the_end_becomes_a_replacement():
    events = reply("a你", max_tokens=3)
    assert joined(events) == "a\ufffd"
    assert events[-1].finish == "length"


def test_text_held_for_a_stop_string_is_released_at_the_end():
    events = reply("one tw", stop=("two",))
    assert joined(events) == "one tw"
    assert joined(events[:-1]) == "one "
    assert joined(reply("one two", stop=("two",), max_tokens=6)) == "one tw"


def test_the_end_token_ends_unless_it_is_ignored():
    assert [e.finish for e in reply("hi")] == [None, None, "stop"]
    ignored = reply("hi", ignore_eos=True, max_tokens=5)
    assert [e.finish for e in ignored] == [None] * 4 + ["length"]
    assert joined(ignored) == "hi"


def test_a_stop_token_ends_and_is_not_shown():
    (newline,) = tokenizer().encode("\n")
    events = reply("one\ntwo", stop_token_ids=(newline,))
    assert (joined(events), events[-1].finish, events[-1].choice.token) == ("one", "stop", newline)
    assert joined(reply("one\ntwo", stop_token_ids=(newline,), ignore_eos=True)) == "one"


def test_no_end_comes_before_min_tokens():
    """The model wants to end after "hi"; what comes instead is its second choice, then it may."""
    end = max(tokenizer().stop_ids)
    assert [e.choice.token == end for e in reply("hi", min_tokens=2)] == [False, False, True]
    forced = reply("hi", min_tokens=6)
    assert [e.choice.token in tokenizer().stop_ids for e in forced] == [False] * 6 + [True]
    assert forced[-1].finish == "stop"


def test_a_stop_string_on_the_last_token_counts_as_stop():
    assert reply("ab", stop=("b",), max_tokens=2)[-1].finish == "stop"
    assert reply("ab", max_tokens=2)[-1].finish == "length"


def test_what_is_held():
    assert held("abc", ()) == 0
    assert held("abc", ("cd",)) == 1
    assert held("abc", ("bcd", "cx")) == 2
    assert held("abc", ("abc",)) == 0, "a whole stop string is found, not held"


def test_text_that_is_kept_is_neither_said_again_nor_stopped_at():
    t = tokenizer()
    for kept, text, wanted in [("tw", "o", "o"), ("tw", "é two", "é "), ("two", "x", "x"), ("é"[:1], "é", "é")]:
        engine = told(text, prompt="?" + kept)
        sequence = engine.prepare(t.encode("?"), SamplingParams(temperature=0, stop=("two",)), kept=t.encode(kept))
        engine.scheduler.add(sequence)
        said = ""
        while engine.busy:
            said += "".join(event.text for _, event in engine.step())
        assert said == wanted
