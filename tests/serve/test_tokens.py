"""Texts as token ids, over HTTP, and back."""

from __future__ import annotations

import pytest

from engine.tiny import tokenizer

HI = [{"role": "user", "content": "hi <|end|> 猫"}]


def ask(http, path: str, **body):
    return http.post(path, json={"model": "tiny"} | body)


def test_there_and_back(http):
    text = "abc 猫 <s>"
    found = ask(http, "/tokenize", prompt=text, return_token_strs=True).json()
    assert found["tokens"] == tokenizer().encode(text)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 256
    assert ask(http, "/detokenize", tokens=found["tokens"]).json() == {"prompt": text}
    plain = ask(http, "/tokenize", prompt=text).json()
    assert plain == found | {"token_strs": None}


def test_special_tokens_are_told(http):
    ids = tokenizer().chat(HI)
    assert set(ids) & tokenizer().special_ids
    told = ask(http, "/detokenize", tokens=ids).json()["prompt"]
    assert told == tokenizer().decode(ids, skip_special=False) != tokenizer().decode(ids)


@pytest.mark.parametrize("more", [True, False])
def test_messages_are_what_a_chat_reads(http, more):
    found = ask(http, "/tokenize", messages=HI, add_generation_prompt=more).json()
    assert found["tokens"] == tokenizer().chat(HI, add_generation_prompt=more)


WRONG = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
    ("/tokenize", {"prompt": "a", "model": None}, "model"),
    ("/tokenize", {"prompt": 3}, "prompt"),
    ("/tokenize", {"prompt": "a", "made_up": 1}, "made_up"),
    ("/tokenize", {"messages": HI, "chat_template_kwargs": {"made_up": 1}}, "chat_template_kwargs"),
    ("/detokenize", {"tokens": [10**9]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG)
def test_the_field_at_fault_is_named(http, path, body, param):
    answer = ask(http, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
