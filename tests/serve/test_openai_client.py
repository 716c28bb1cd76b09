"""The official client, unchanged, against a real server."""

from __future__ import annotations

import asyncio
import base64
import math

import numpy as np
import openai
import pytest
import torch

from cutaway.embed.sentences import encode
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from engine.test_engine import whole
from engine.tiny import decoder, tokenizer
from serve.servers import encoder

HI = [{"role": "user", "content": "hi"}]


def expected(prompt: list[int], trace: int = 0, **settings):
    """What the engine says to it without any server."""
    return list(Engine(decoder(), tokenizer()).generate(prompt, SamplingParams(**settings), trace))


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny", "base", "vectors"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_a_chat_is_what_the_engine_says(client):
    events = expected(tokenizer().chat(HI), seed=5, max_tokens=20, temperature=0.8)
    answer = client.chat.completions.create(model="tiny", messages=HI, seed=5, max_tokens=20, temperature=0.8)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "".join(e.text for e in events)
    assert choice.finish_reason == events[-1].finish
    assert choice.logprobs is None
    prompt_tokens = len(tokenizer().chat(HI))
    counts = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert counts == (prompt_tokens, len(events), prompt_tokens + len(events))
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"


def test_the_template_can_be_told_not_to_think(client):
    prompt = tokenizer().chat(HI) + tokenizer().encode("<think>\n\n</think>\n\n")
    events = expected(prompt, max_tokens=9, temperature=0)
    asked = {"model": "tiny", "messages": HI, "max_tokens": 9, "temperature": 0}
    answers = [
        client.chat.completions.create(**asked, extra_body={"chat_template_kwargs": {"enable_thinking": thinking}})
        for thinking in (False, True)
    ]
    assert answers[0].choices[0].message.content == "".join(e.text for e in events)
    assert [a.usage.prompt_tokens for a in answers] == [len(prompt), len(tokenizer().chat(HI))]


def test_a_predicted_reply_is_the_same_reply(client):
    """And the usage says how much of the prediction was right."""
    asked = {"model": "tiny", "messages": HI, "seed": 5, "max_tokens": 30, "temperature": 0.8}
    plain = client.chat.completions.create(**asked)
    text = plain.choices[0].message.content
    for content in (text, [{"type": "text", "text": text}], "something else"):
        answer = client.chat.completions.create(**asked, prediction={"type": "content", "content": content})
        assert answer.choices[0].message.content == text
        details = answer.usage.completion_tokens_details
        assert (details.accepted_prediction_tokens > 0) == (content != "something else")
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_says_the_same_as_the_whole(client, n, logprobs):
    asked = {"model": "tiny", "messages": HI, "seed": 7, "max_completion_tokens": 15, "n": n}
    asked |= {"logprobs": True, "top_logprobs": 3} if logprobs else {}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    for index in range(n):
        parts = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
        assert [p.delta.role for p in parts] == ["assistant"] + [None] * (len(parts) - 1)
        assert "".join(p.delta.content or "" for p in parts) == whole.choices[index].message.content
        assert [p.finish_reason for p in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].finish_reason == whole.choices[index].finish_reason
        if logprobs:
            entries = [e for p in parts if p.logprobs for e in p.logprobs.content]
            assert entries == whole.choices[index].logprobs.content
    assert len({c.message.content for c in whole.choices}) == n


def test_chat_logprobs(client):
    events = expected(tokenizer().chat(HI), seed=1, max_tokens=8, trace=4)
    asked = {"model": "tiny", "messages": HI, "seed": 1, "max_tokens": 8}
    content = client.chat.completions.create(**asked, logprobs=True, top_logprobs=4).choices[0].logprobs.content
    assert [e.logprob for e in content] == pytest.approx([e.choice.logprob for e in events], abs=1e-4)
    assert [bytes(e.bytes) for e in content] == [tokenizer().token_bytes(e.choice.token) for e in events]
    for entry, event in zip(content, events, strict=True):
        best = [(bytes(t.bytes), t.logprob) for t in entry.top_logprobs]
        wanted = [(tokenizer().token_bytes(a.id), a.logprob) for a in event.choice.alternatives[:4]]
        assert [b for b, _ in best] == [w for w, _ in wanted]
        assert sum(math.exp(p) for _, p in best) < 1.0001
    plain = client.chat.completions.create(**asked, logprobs=True).choices[0].logprobs.content
    assert [e.logprob for e in plain] == [e.logprob for e in content]
    assert all(e.top_logprobs == [] for e in plain)


def test_temperature_zero_is_greedy_and_twice_the_same(client):
    events = expected(tokenizer().chat(HI), temperature=0, max_tokens=20)
    asked = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 20}
    answers = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(2)}
    assert answers == {"".join(e.text for e in events)}


def test_without_seed_replies_differ(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 20}
    assert len({client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}) == 3


def test_a_reply_may_fill_the_context(client):
    extra = {"ignore_eos": True}
    answer = client.chat.completions.create(model="tiny", messages=HI, temperature=0, extra_body=extra)
    assert answer.usage.total_tokens == 256
    assert answer.choices[0].finish_reason == "length"


def test_settings_arrive_at_the_sampler(client):
    base = {"model": "tiny", "messages": HI, "seed": 3, "max_tokens": 12}
    settings = {
        "temperature": 1.9,
        "top_p": 0.5,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "top_k": 5,
        "min_p": 0.3,
        "repetition_penalty": 3.0,
    }
    for name, value in settings.items():
        got = client.chat.completions.create(**base, extra_body={name: value}).choices[0].message.content
        events = expected(tokenizer().chat(HI), seed=3, max_tokens=12, **{name: value})
        assert got == "".join(e.text for e in events), name
    off = client.chat.completions.create(**base, extra_body={"top_k": -1}).choices[0].message.content
    assert off == client.chat.completions.create(**base).choices[0].message.content


def test_stop_strings(client):
    asked = {"model": "tiny", "messages": HI, "seed": 7, "max_tokens": 60, "extra_body": {"ignore_eos": True}}
    text = client.chat.completions.create(**asked).choices[0].message.content
    mark = text[20:22]
    assert len(mark) == 2
    for stop in (mark, ["never ever", mark]):
        choice = client.chat.completions.create(**asked, stop=stop).choices[0]
        assert choice.message.content == text[: text.index(mark)]
        assert choice.finish_reason == "stop"
        streamed = client.chat.completions.create(**asked, stop=stop, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed) == choice.message.content


def test_messages_of_every_accepted_form(client):
    forms = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": ""},
    ]
    prompt = tokenizer().chat(
        [
            {"role": "system", "content": "s"},
            {"role": "system", "content": "d"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": ""},
        ]
    )
    answer = client.chat.completions.create(model="tiny", messages=forms, max_tokens=1, seed=0)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.choices[0].message.content == expected(prompt, seed=0, max_tokens=1)[0].text


def test_a_message_can_be_sent_back_as_it_came(client):
    message = client.chat.completions.create(model="tiny", messages=HI, max_tokens=2).choices[0].message
    again = client.chat.completions.create(model="tiny", messages=[*HI, message.model_dump(), *HI], max_tokens=2)
    assert again.choices[0].finish_reason


PROMPTS = [
    ("ab", ["ab"]),
    (["ab", "c"], ["ab", "c"]),
    (tokenizer().encode("ab"), ["ab"]),
    ([tokenizer().encode("ab"), tokenizer().encode("c")], ["ab", "c"]),
]


@pytest.mark.parametrize(("prompt", "texts"), PROMPTS, ids=["text", "texts", "ids", "lists of ids"])
@pytest.mark.parametrize("n", [1, 2])
def test_completions(client, prompt, texts, n):
    asked = {"model": "tiny", "prompt": prompt, "seed": 4, "max_tokens": 9, "n": n}
    whole = client.completions.create(**asked)
    wanted = [expected(tokenizer().encode(t), seed=4 + i, max_tokens=9) for t in texts for i in range(n)]
    assert [c.index for c in whole.choices] == list(range(len(wanted)))
    assert [c.text for c in whole.choices] == ["".join(e.text for e in events) for events in wanted]
    assert whole.usage.prompt_tokens == len("".join(texts))
    assert whole.usage.completion_tokens == sum(map(len, wanted))
    streamed = [""] * len(wanted)
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [c.text for c in whole.choices]


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"n": 2, "best_of": 3}])
def test_what_was_thought_of_a_prompt(client, more):
    """Of every token but the first, whether the prompt was read before or not; the reply's follow."""
    texts, asked = ["Où est-il? " * 3, "né"], {"model": "tiny", "seed": 4, "max_tokens": 4, "logprobs": 2}
    for _ in range(2):
        answer = client.completions.create(**asked, **more, prompt=texts, echo=True)
        plain = client.completions.create(**asked, **more, prompt=texts)
        for i, (choice, other) in enumerate(zip(answer.choices, plain.choices, strict=True)):
            text, told = texts[i // more.get("n", 1)], choice.logprobs
            ids = tokenizer().encode(text)
            expected_TV = whole(decoder(), ids).log_softmax(-1)
            count = len(ids)
            assert choice.text == text + other.text
            assert told.tokens[count:] == other.logprobs.tokens
            assert told.token_logprobs[count:] == pytest.approx(other.logprobs.token_logprobs, abs=1e-4)
            assert told.text_offset[count:] == [len(text) + at for at in other.logprobs.text_offset]
            assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
            assert told.token_logprobs[1:count] == pytest.approx(
                [float(row_V[token]) for row_V, token in zip(expected_TV, ids[1:], strict=False)], abs=1e-4
            )
            for row_V, token, top in zip(expected_TV, told.tokens[1:count], told.top_logprobs[1:count], strict=False):
                assert sorted(top.values())[-2:] == pytest.approx(sorted(row_V.topk(2).values.tolist()), abs=1e-4)
                assert token in top
            within = [len(tokenizer().decode(ids[:k]).rstrip("\ufffd")) for k in range(count)]
            assert told.text_offset[:count] == within


def test_a_prompt_alone_can_be_asked_about(client):
    """As those do who compare texts by their likelihood: nothing is generated, or one token that is left out."""
    ids = tokenizer().encode("Where is it?")
    asked = {"model": "tiny", "prompt": [ids], "temperature": 0, "logprobs": 1, "echo": True}
    (alone,) = client.completions.create(**asked, max_tokens=0).choices
    (longer,) = client.completions.create(**asked, max_tokens=1).choices
    assert (alone.text, alone.finish_reason) == ("Where is it?", "length")
    assert alone.logprobs.token_logprobs == longer.logprobs.token_logprobs[:-1]
    assert len(alone.logprobs.tokens) == len(alone.logprobs.top_logprobs) == len(alone.logprobs.text_offset) == len(ids)
    assert client.completions.create(**asked, max_tokens=0).usage.completion_tokens == 0
    parts = [c.choices[0] for c in client.completions.create(**asked, max_tokens=3, stream=True)]
    (three,) = client.completions.create(**asked, max_tokens=3).choices
    assert "".join(p.text for p in parts) == three.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for p in parts for x in getattr(p.logprobs, name)] == getattr(three.logprobs, name)
    (silent,) = [c.choices[0] for c in client.completions.create(**asked, max_tokens=0, stream=True)]
    assert (silent.text, silent.logprobs) == (alone.text, alone.logprobs)
    assert client.completions.create(**asked | {"logprobs": None}, max_tokens=0).choices[0].logprobs is None


def test_completion_logprobs(client):
    asked = {"model": "tiny", "prompt": "ab", "seed": 4, "max_tokens": 9, "logprobs": 3}
    told = client.completions.create(**asked).choices[0]
    events = expected(tokenizer().encode("ab"), seed=4, max_tokens=9, trace=3)
    logprobs = told.logprobs
    assert logprobs.token_logprobs == pytest.approx([e.choice.logprob for e in events], abs=1e-4)
    assert logprobs.text_offset == [e.offset for e in events]
    for i, token in enumerate(logprobs.tokens):
        assert logprobs.top_logprobs[i][token] == logprobs.token_logprobs[i]
        assert 3 <= len(logprobs.top_logprobs[i]) <= 4
        if not token.startswith("bytes:"):
            assert told.text[logprobs.text_offset[i] :].startswith(("\ufffd", token))
    parts = [c.choices[0].logprobs for c in client.completions.create(**asked, stream=True)]
    assert [t for p in parts for t in p.tokens] == logprobs.tokens
    assert [o for p in parts for o in p.text_offset] == logprobs.text_offset
    assert client.completions.create(**asked | {"logprobs": 0}).choices[0].logprobs.top_logprobs is None


def test_a_completion_has_sixteen_tokens_unless_told(client):
    answer = client.completions.create(model="tiny", prompt="ab", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_embeddings(client):
    texts = ["one", "two and more", "three", "four"] * 20
    wanted = encode(encoder(), tokenizer(), texts)
    plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    torch.testing.assert_close(torch.tensor([d.embedding for d in plain.data]), wanted, atol=1e-5, rtol=0)
    assert [d.index for d in plain.data] == list(range(80))
    assert plain.usage.prompt_tokens == sum(map(len, texts))
    packed = client.embeddings.create(model="vectors", input=texts)  # the client asks for base64 by itself
    torch.testing.assert_close(torch.tensor([d.embedding for d in packed.data]), wanted, atol=1e-5, rtol=0)
    rows = [tokenizer().encode(t) for t in texts]
    for same in (rows[0], rows[:1], texts[0], texts[:1]):
        (one,) = client.embeddings.create(model="vectors", input=same, dimensions=16).data
        np.testing.assert_allclose(one.embedding, wanted[0], atol=1e-5)


def test_base64_is_little_endian_float32(http):
    body = {"model": "vectors", "input": "one", "encoding_format": "base64"}
    packed = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    plain = http.post("/v1/embeddings", json=body | {"encoding_format": "float"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), plain, rtol=1e-6)


def test_many_clients_at_once_are_answered_as_if_alone(url):
    prompts = [[{"role": "user", "content": "x" * n}] for n in range(20)]

    async def ask(client: openai.AsyncOpenAI, n: int) -> str:
        asked = {"model": "tiny", "messages": prompts[n], "seed": n, "max_tokens": 10}
        if n % 2:
            return (await client.chat.completions.create(**asked)).choices[0].message.content
        parts = await client.chat.completions.create(**asked, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in parts])

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, n) for n in range(20)))

    wanted = [expected(tokenizer().chat(p), seed=n, max_tokens=10) for n, p in enumerate(prompts)]
    assert asyncio.run(all_at_once()) == ["".join(e.text for e in events) for events in wanted]
