"""What listeners of the engine's thread hear, against what the engine says to each request alone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial

import torch

from cutaway.engine.engine import LOOKED, Engine, Failed, Step
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Batch
from cutaway.engine.sampler import Choice, Logits
from cutaway.engine.sequence import Event, Sequence
from cutaway.engine.service import Request, Service
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.serve.completions import completion_format
from cutaway.serve.generation import best_of
from cutaway.serve.schemas import CompletionRequest
from engine.test_engine import whole
from engine.tiny import VOCAB, decoder, tokenizer
from kit import twins
from kit.precision import all_float64

REQUESTS: list[Request] = [
    (list(range(5 + n, 12 + 2 * n)), SamplingParams(seed=n, max_tokens=12, ignore_eos=True)) for n in range(4)
]


def alone(prompt: list[int], params: SamplingParams) -> list[int]:
    """The reply without company."""
    return [event.choice.token for event in Engine(decoder(), tokenizer()).generate(prompt, params)]


async def heard(service: Service, requests: list[Request]) -> tuple[list[list[int]], int]:
    """What is said to each, and how often the event loop was woken for it."""
    loop, replies, wakes = asyncio.get_running_loop(), [list[int]() for _ in requests], 0
    wake = loop.call_soon_threadsafe

    def counted(*args: object, **how: object) -> asyncio.Handle:
        nonlocal wakes
        wakes += 1
        return wake(*args, **how)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    async for index, event in service.stream_all(requests):
        replies[index].append(event.choice.token)
    return replies, wakes


def told() -> None:
    """Each hears its own, and a step wakes those who listen once."""
    service = Service(Engine(decoder(), tokenizer()))
    try:
        replies, wakes = asyncio.run(asyncio.wait_for(heard(service, REQUESTS), 20))
    finally:
        service.close()
    assert replies == [alone(*request) for request in REQUESTS]
    assert wakes <= service.engine.stats.steps


def failing() -> None:
    """One of four sequences cannot be computed, one has no finite scores; the others say what they say alone."""
    engine = Engine(decoder(), tokenizer())
    run, engine.tolerant = engine.runner.run, True
    sequences = [engine.add(*request) for request in REQUESTS]

    def broken(spans: Batch, wanted: list[int]) -> list[Logits]:
        if any(s.sequence is sequences[1] and len(s.sequence.reply) == 3 for s in spans):
            raise MemoryError
        bad = [s.sequence is sequences[2] and len(s.sequence.reply) == 5 for s in spans]
        return [r._replace(total=math.inf) if b else r for b, r in zip(bad, run(spans, wanted), strict=True)]

    engine.runner.run = broken  # type: ignore[method-assign]
    errors = [who for _ in range(20) for who, event in engine.step() if isinstance(event, Failed)]
    assert sorted(map(sequences.index, errors)) == [1, 2]
    assert [s.finish for s in sequences] == ["length", "error", "error", "length"]
    assert [s.reply for s in sequences[::3]] == [alone(*request) for request in REQUESTS[::3]]
    assert not engine.busy
    assert not engine.runner.memories
    engine.scheduler.pages.check([])


def refuses() -> None:
    """Ids beyond the vocabulary, before anything is computed."""
    engine = Engine(decoder(), tokenizer())
    for name, ids in (("logit_bias", {VOCAB: 1.0}), ("stop_token_ids", (VOCAB,)), ("stop_token_ids", (0, -1))):
        told = ""
        try:
            engine.prepare([1], SamplingParams(**{name: ids}))  # type: ignore[arg-type]
        except CutawayError as error:
            told = error.where
        assert told == name
    engine.prepare([1], SamplingParams(logit_bias={VOCAB - 1: 1.0}, stop_token_ids=(0, VOCAB - 1)))


def best() -> None:
    """Of each prompt's three replies the two most probable per token, best first; where all are wanted, in order."""
    logprobs = [[-1.0, -1.0], [-1.5], [-0.9, -0.9, -0.9], [-0.1], [-3.0, -0.2, -0.2], [-0.5, -0.5]]
    replies = [[Event(Choice(0, logprob), "", None) for logprob in some] for some in logprobs]
    assert [number for number, _ in best_of(replies, 3, 2)] == [2, 0, 3, 5]
    assert [number for number, _ in best_of(replies, 3, 3)] == [*range(6)]
    assert all(events is replies[number] for number, events in best_of(replies, 3, 1))


def waits() -> None:
    """As long as the tokens that are to come would take at the pace of the steps that are known."""
    service = Service(Engine(decoder(), tokenizer(), running=2))
    engine, found = service.engine, [service.wait()]
    engine.steps.extend(Step(9.0 * n, (0.2, 0.25), ((1, 0, 3, 0, 0), (2, 5, 2, 0, 0)), 0, (0, 0, 0)) for n in range(8))
    for number, new in ((2, 50), (2, 40), (30, 200)):  # in the first step two begin to run
        for _ in range(number):
            engine.add([5] * 10, SamplingParams(max_tokens=new))
        found.append(service.wait())
        engine.scheduler.plan()
    service.close()
    assert found == [1, 2 * 60 // 20, 2 * 50 // 20, 60]  # 20 tokens a second


def prompts(name: str) -> None:
    """What the model thinks of each token of a prompt, in pieces, beside others and after the same prompt was read."""
    twin = twins.twin(name)
    model = twins.ours(twin)
    assert isinstance(model, Decoder)
    engine = Engine(model, twins.Tokenizerless(), budget=9, running=3)  # type: ignore[arg-type]
    given = [tokens_T.tolist() for tokens_T in twins.prompts((45, 19, 4))]
    plain = SamplingParams(temperature=0, max_tokens=2)
    for params in (plain, SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=3), plain):
        sequences = [engine.add(prompt, params) for prompt in given]
        for _ in range(100):
            engine.step()
        assert [len(s.seen) for s in sequences] == [0 if params is plain else len(p) - 1 for p in given]
        for sequence in sequences if params.prompt_logprobs else ():
            with all_float64(), torch.no_grad():
                expected_TV = twin.reference(torch.tensor([sequence.prompt])).logits[0].log_softmax(-1)
            for row_V, token, seen in zip(expected_TV, sequence.prompt[1:], sequence.seen, strict=False):
                assert seen.token == token
                assert abs(seen.logprob - float(row_V[token])) < 1e-4
                assert [a.id for a in seen.alternatives] == row_V.topk(3).indices.tolist()
                assert max(abs(a.logprob - float(row_V[a.id])) for a in seen.alternatives) < 1e-4


def few() -> None:
    """Rows of a step that somebody looks at are few, however long the prompts are."""
    engine, rows = Engine(decoder(), tokenizer()), list[int]()
    run = engine.runner.run
    engine.runner.run = lambda spans, wanted: rows.append(len(wanted)) or run(spans, wanted)  # type: ignore[method-assign,func-returns-value]
    for n in range(3):
        engine.add([*range(n, n + 200)], SamplingParams(max_tokens=2, prompt_logprobs=0))
    while engine.busy:
        engine.step()
    assert sum(rows) == 3 * (200 - 1 + 2)
    assert max(rows) <= LOOKED * (1 + 1 / 2 + 1 / 3) + 3


def echoed() -> None:
    """Prompts of two texts beside their replies, one reply of two each, as a client gets them."""
    texts, asked = ["n\u00e9 en", "abcab"], {"model": "", "echo": True, "logprobs": 1, "best_of": 2, "max_tokens": 2}
    body, engine, count = CompletionRequest.model_validate(asked | {"prompt": texts}), Engine(decoder(), tokenizer()), 2
    rows = [tokenizer().encode(text) for text in texts]
    sequences = [
        engine.add(ids, body.params(seed=seed, max_tokens=count, top_logprobs=1)) for ids in rows for seed in range(2)
    ]
    events: dict[Sequence, list[Event]] = {sequence: [] for sequence in sequences}
    for _ in range(5):
        for sequence, event in engine.step():
            events[sequence].append(event)  # type: ignore[arg-type]
    form = completion_format(tokenizer(), body, texts, sequences)
    for i, (text, ids) in enumerate(zip(texts, rows, strict=True)):
        said = events[sequences[2 * i]]
        made = form.choice(i, said)
        told, logprobs_TV = made["logprobs"], whole(decoder(), ids).log_softmax(-1)
        of_prompt = [float(row_V[token]) for row_V, token in zip(logprobs_TV, ids[1:], strict=False)]
        expected = [*of_prompt, *(event.choice.logprob for event in said)]
        assert made["text"] == text + "".join(event.text for event in said)
        assert len(told["tokens"]) == 1 + len(expected)
        assert told["token_logprobs"][0] is None
        assert max(abs(a - b) for a, b in zip(told["token_logprobs"][1:], expected, strict=True)) < 1e-4
        assert told["top_logprobs"][0] is None
        found = [max(top.values()) for top in told["top_logprobs"][1 : len(ids)]]
        assert max(abs(a - float(b)) for a, b in zip(found, logprobs_TV.max(-1).values, strict=False)) < 1e-4
        within = [len(bytes(text, "utf8")[:k].decode(errors="ignore")) for k in range(len(ids))]
        assert told["text_offset"] == within + [len(text) + event.offset for event in said]


PROOFS: dict[str, Callable[[], object]] = {
    "service told": told,
    "service failing": failing,
    "service best": best,
    "service waits": waits,
    "service refuses": refuses,
    "prompts few": few,
    "prompts echoed": echoed,
    **{f"prompts {name}": partial(prompts, name) for name in ("llama", "gemma3")},
}
