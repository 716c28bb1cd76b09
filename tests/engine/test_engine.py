"""Whatever the batch, the chunks and the cache: the same as computing each sequence whole and alone."""

from __future__ import annotations

import pytest
import torch

from cutaway.engine.cache import KVCache, Spans
from cutaway.engine.engine import Engine, TimedOut, TooLong
from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.models.block import positions_of
from cutaway.models.decoder import EncoderDecoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.nn.attention import BlockDiagonal, CrossAttention
from engine.tiny import VOCAB, decoder, tokenizer, told

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def whole(model, tokens: list[int]) -> torch.Tensor:
    """Logits of every position without cache or chunks, [T, V]."""
    with torch.inference_mode():
        hidden_TD = model(torch.tensor(tokens), positions_of([len(tokens)]), BlockDiagonal([len(tokens)]))
        return model.logits(hidden_TD)


def run(engine: Engine, requests) -> list[list[int]]:
    sequences = [engine.add(prompt, params) for prompt, params in requests]
    while engine.busy:
        engine.step()
    return [s.reply for s in sequences]


@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [17, 1, 22], [39, 1], [7, 7, 26]])
def test_cached_chunks_equal_the_whole(window, chunks):
    model = decoder(window=window).double()
    tokens, other = ids(40), ids(90, 1)
    cache, busy, start, got = [KVCache(model.spec, model.dtype, model.device, 4) for _ in "ab"], 0, 0, []
    with torch.inference_mode():
        for n in chunks:  # beside a second sequence, so that spans are ragged
            spans = [(cache[0], busy, 2), (cache[1], start, n)]
            batch = torch.tensor(other[busy : busy + 2] + tokens[start : start + n])
            positions = torch.cat([torch.arange(busy, busy + 2), torch.arange(start, start + n)])
            got.append(model.logits(model(batch, positions, Spans(spans)))[2:])
            busy, start = busy + 2, start + n
    torch.testing.assert_close(torch.cat(got), whole(model, tokens), atol=1e-9, rtol=1e-9)


def test_the_cache_grows_and_keeps_what_it_has():
    spec = decoder().spec
    cache = KVCache(spec, torch.float32, torch.device("cpu"), capacity=2)
    k_TGK, v_TGK = torch.randn(2, 21, 2, 10)
    for start in range(0, 21, 3):
        cache.put(1, start, k_TGK[start : start + 3], v_TGK[start : start + 3])
    keys, values = cache.get(1, 5, 21)
    assert torch.equal(keys, k_TGK[5:].transpose(0, 1))
    assert torch.equal(values, v_TGK[5:].transpose(0, 1))
    assert cache.buffers[1][0].shape[1] == 32, "it doubles, so that growing costs little per token"


@pytest.mark.parametrize("budget", [1, 3, 512])
@pytest.mark.parametrize("window", [None, 7])
def test_greedy_replies_are_those_of_computing_everything_again(budget, window):
    model = decoder(window=window)
    prompt = ids(30)
    tokens = list(prompt)
    for _ in range(12):
        tokens.append(int(whole(model, tokens)[-1].argmax()))
    assert run(Engine(model, tokenizer(), budget=budget), [(prompt, GREEDY)]) == [tokens[30:]]


@pytest.mark.parametrize(("budget", "running"), [(512, 16), (5, 16), (64, 2), (1, 1)])
def test_a_reply_does_not_depend_on_the_company(budget, running):
    model = decoder(window=7)
    settings = [
        GREEDY,
        SamplingParams(seed=1, max_tokens=20, ignore_eos=True),
        SamplingParams(seed=2, max_tokens=5, temperature=2, top_k=50),
        SamplingParams(seed=3, max_tokens=15, top_p=0.9, repetition_penalty=1.2),
        SamplingParams(seed=1, max_tokens=20, frequency_penalty=1, ignore_eos=True),
    ]
    requests = [(ids(n, n), params) for n, params in zip((30, 1, 80, 7, 7), settings, strict=True)]
    alone = [run(Engine(model, tokenizer()), [request])[0] for request in requests]
    assert run(Engine(model, tokenizer(), budget=budget, running=running), requests) == alone


def test_log_probabilities_are_the_models_own():
    model, prompt = decoder(window=7), ids(20)
    events = list(Engine(model, tokenizer()).generate(prompt, SamplingParams(seed=9, temperature=1.5), trace=4))
    reply = [e.choice.token for e in events]
    logprobs = whole(model, prompt + reply).log_softmax(-1)
    for i, event in enumerate(events):
        row = logprobs[len(prompt) + i - 1]
        assert event.choice.logprob == pytest.approx(float(row[reply[i]]), abs=1e-4)
        assert [a.id for a in event.choice.alternatives[:4]] == row.topk(4).indices.tolist()


def test_seeds_decide():
    model, prompt = decoder(), ids(9)
    a, b, c = (SamplingParams(seed=s, max_tokens=20, ignore_eos=True) for s in (1, 1, 2))
    first, again, other = run(Engine(model, tokenizer()), [(prompt, p) for p in (a, b, c)])
    assert first == again != other


def test_replies_go_on_beside_a_long_prompt():
    engine = Engine(decoder(), tokenizer(), budget=8)
    talking = engine.add(ids(3), GREEDY)
    engine.step()
    reading = engine.add(ids(100, 1), GREEDY)
    for n in range(2, 9):
        engine.step()
        assert len(talking.reply) == n
        assert reading.computed == 7 * (n - 1)


def test_prompts_are_read_in_order_of_arrival():
    engine = Engine(decoder(), tokenizer(), budget=8)
    first, second = engine.add(ids(60), GREEDY), engine.add(ids(60, 1), GREEDY)
    while not first.reply:
        engine.step()
        assert second.computed < first.computed


def test_no_more_run_than_allowed():
    engine = Engine(decoder(), tokenizer(), running=2)
    for n in range(5):
        engine.add(ids(4, n), GREEDY)
    while engine.busy:
        engine.step()
        assert len(engine.scheduler.running) <= 2
    assert engine.step() == []


def test_an_aborted_sequence_leaves_nothing_behind():
    engine = Engine(decoder(), tokenizer(), running=2)
    a, b, c = (engine.add(ids(4, n), GREEDY) for n in range(3))
    engine.step()
    engine.abort(a)
    engine.abort(c)
    engine.abort(a)
    assert (a.finish, a.table, c.finish) == ("abort", [], "abort")
    assert [*engine.scheduler.running] == [b]
    engine.scheduler.pages.check([b.table])
    while engine.busy:
        engine.step()
    assert b.reply == run(Engine(decoder(), tokenizer()), [(ids(4, 1), GREEDY)])[0]


def test_a_deadline_that_passes_is_told_and_leaves_nothing_behind():
    engine = Engine(decoder(), tokenizer())
    late = engine.add(ids(4), SamplingParams(temperature=0, max_tokens=50, ignore_eos=True, timeout=60))
    engine.step()
    late.deadline = 0
    ((who, error),) = engine.step()
    assert (who, late.finish, isinstance(error, TimedOut)) == (late, "timeout", True)
    assert not engine.runner.memories
    engine.scheduler.pages.check([])


def test_closing_a_generator_aborts():
    engine = told("a long story")
    events = engine.generate(tokenizer().encode("?"), GREEDY)
    assert next(events).text == "a"
    assert engine.busy
    events.close()
    assert not engine.busy


def test_the_context_ends_a_reply():
    engine = told("x" * 100, context=10)
    events = list(engine.generate(tokenizer().encode("?"), SamplingParams(temperature=0)))
    assert len(events) == 9
    assert events[-1].finish == "length"
    engine = Engine(decoder(context=64), tokenizer(), context=20)
    events = list(engine.generate(ids(19), GREEDY))
    assert [e.finish for e in events] == ["length"]
    assert Engine(decoder(context=64), tokenizer(), context=999).context == 64


@pytest.mark.parametrize("prompt", [[], [VOCAB], [-1], ids(256)])
def test_an_impossible_prompt_is_refused_at_once(prompt):
    engine = Engine(decoder(), tokenizer())
    with pytest.raises(CutawayError) as caught:
        engine.add(prompt, GREEDY)
    assert caught.value.where == "prompt"
    assert isinstance(caught.value, TooLong) == (len(prompt) == 256)
    assert not engine.busy


@pytest.mark.parametrize(
    "settings", [{"logit_bias": {VOCAB: 1.0}}, {"stop_token_ids": (3, VOCAB)}, {"stop_token_ids": (-1,)}]
)
def test_ids_beyond_the_vocabulary_are_refused_at_once(settings):
    engine = Engine(decoder(), tokenizer())
    with pytest.raises(CutawayError, match=f"id {[*next(iter(settings.values()))][-1]}, .* {VOCAB} ids") as caught:
        engine.add(ids(3), SamplingParams(**settings))
    assert caught.value.where == next(iter(settings))
    assert not engine.busy


def encoder_decoder() -> EncoderDecoder:
    """A tiny T5, every tensor drawn anew."""
    config = {"vocab_size": VOCAB, "d_model": 24, "d_kv": 6, "d_ff": 31, "num_layers": 2, "num_heads": 3}
    model = EncoderDecoder(spec_of(FAMILIES["t5"], {**config, "num_decoder_layers": 3, "decoder_start_token_id": 7}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5
    return model.eval()


def test_an_encoder_decoder_reads_its_source_once(monkeypatch):
    """Two sequences at a time reply as each alone, and per sequence the source is encoded and projected once."""
    model, projected, encoded = encoder_decoder(), [], []
    project, encode = CrossAttention.project, EncoderDecoder.encode
    monkeypatch.setattr(CrossAttention, "project", lambda s, m: projected.append(len(m)) or project(s, m))
    monkeypatch.setattr(EncoderDecoder, "encode", lambda s, t, n: encoded.append(n) or encode(s, t, n))
    prompts = [[5, 9, 31, 7], [100, 3]]
    engine = Engine(model, tokenizer())
    together = run(engine, [(prompt, GREEDY) for prompt in prompts])
    assert encoded == [[4], [2]]
    assert sorted(projected) == [2] * 3 + [4] * 3
    assert together == [run(Engine(model, tokenizer()), [(prompt, GREEDY)])[0] for prompt in prompts]
    assert [len(reply) for reply in together] == [12, 12]


def test_the_source_decides_the_reply():
    engine = Engine(encoder_decoder(), tokenizer())
    replies = {tuple(reply) for reply in run(engine, [([5, 9, n], GREEDY) for n in range(20, 40)])}
    assert len(replies) > 1


def test_a_source_that_does_not_fit_is_refused():
    engine = Engine(encoder_decoder(), tokenizer(), context=16)
    with pytest.raises(TooLong, match="16"):
        engine.add([1] * 16, SamplingParams())
