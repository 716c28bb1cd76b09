"""The same request gives the same tokens and the same log-probabilities, to the bit, however it is computed.

On native kernels, keys and values in float16 and in 8 bits; `test_engine.py` and the proofs ask the same of the
modules, whose last bits depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch

from cutaway.engine.draft_model import DraftModel
from cutaway.engine.drafter import InTurn, PromptLookup
from cutaway.engine.engine import LOOKED, Engine
from cutaway.engine.matrices import OfModel
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Native
from cutaway.engine.sequence import Sequence
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.native.build import library
from engine.tiny import adapter, spec, tokenizer
from kit.lora import shelf

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler, so no native kernels")

Answer = list[tuple[int, float]]
REQUESTS = [  # prompt's length, settings
    (70, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)),
    (3, SamplingParams(seed=5, max_tokens=90, ignore_eos=True)),
    (33, SamplingParams(seed=6, top_k=20, temperature=1.7, max_tokens=25, ignore_eos=True)),
    (64, SamplingParams(seed=7, top_p=0.8, repetition_penalty=1.3, max_tokens=20, ignore_eos=True)),
    (70, SamplingParams(seed=8, max_tokens=15, ignore_eos=True, adapter="a")),
    (70, SamplingParams(seed=8, max_tokens=15, ignore_eos=True, adapter="b")),
    (33, SamplingParams(seed=9, max_tokens=12, ignore_eos=True, adapter="a")),
]
RANKS = {"a": 5, "b": 33}  # of adapters


def model() -> Decoder:
    """Two layers that the native kernels know, the second with a window, every tensor random."""
    plain = spec(160)
    layers = []
    for i, layer in enumerate(plain.layers):
        attention = replace(layer.attention, heads=4, kv_heads=2, head_dim=32, scale=32**-0.5, window=40 if i else None)
        layers.append(replace(layer, attention=attention, ffn=replace(layer.ffn, width=96)))
    made = Decoder(replace(plain, width=64, layers=tuple(layers))).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2 / parameter.shape[-1] ** 0.5)
    return made


def prompt(length: int) -> list[int]:
    """Some bytes that come again and again, so that there is something to look up."""
    return (torch.randint(0, 256, (23,), generator=torch.Generator().manual_seed(length)).tolist() * 9)[:length]


class Looked(PromptLookup):
    """Says what it finds, however often it is wrong."""

    def worth(self, sequence: Sequence, company: int) -> int:
        return self.most


class Drafted(DraftModel):
    """A model like the other but for some noise, that always guesses."""

    def __init__(self, noise: float, most: int = 5, **limits: int) -> None:
        made, generator = model(), torch.Generator().manual_seed(9)
        for parameter in made.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
        super().__init__(Native(made.spec, OfModel(made), 1), most=most, **limits)

    def worth(self, sequence: Sequence, company: int) -> int:
        return self.most


@lru_cache
def folders() -> dict[str, Path]:
    """Where adapters for the model are."""
    return {name: adapter(Path(shelf().name, name), model().spec, rank, rank) for name, rank in RANKS.items()}


def engine(cache: str, threads: int = 2, pages: int = 99, **limits: object) -> Engine:
    """cache: how keys and values are kept."""
    made = model()
    runner = Native(made.spec, OfModel(made), threads, cache)
    ready = Engine(runner, tokenizer(), cache=pages * runner.page_bytes, **limits)
    for name, folder in folders().items():
        ready.adapters.load(name, folder)
    return ready


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_prompts_are_thought_of_the_same(cache):
    """Of each token of a prompt what the model says of it in a reply, in any pieces and company, few rows at a time."""
    made = engine(cache)
    (reply,) = answers(made, [1])
    text, looks = prompt(3) + [token for token, _ in reply], SamplingParams(max_tokens=1, prompt_logprobs=0)
    for limits in ({}, {"budget": 7, "running": 3}, {"budget": 512, "running": 16}, {"pages": 7}):
        made, rows = engine(cache, **limits), list[int]()
        run = made.runner.run
        made.runner.run = lambda spans, wanted, run=run, rows=rows: rows.append(len(wanted)) or run(spans, wanted)
        answers(made, [1])  # whose prompt is in the cache from now on
        others = [made.add(prompt(REQUESTS[i][0]), REQUESTS[i][1]) for i in (0, 3, 4)]
        several = [made.add(text, looks) for _ in range(3)]
        while made.busy:
            made.step()
        assert max(rows) <= LOOKED + LOOKED // 2 + LOOKED // 3 + len(others) + len(several)
        assert all(len(s.reply) for s in others)
        for sequence in several:
            assert [(c.token, c.logprob) for c in sequence.seen[2:]] == reply


def answers(e: Engine, wanted: list[int]) -> list[Answer]:
    """Of the requests with these numbers, computed together."""
    sequences = [e.add(prompt(REQUESTS[i][0]), REQUESTS[i][1]) for i in wanted]
    told: dict[object, Answer] = {s: [] for s in sequences}
    while e.busy:
        for who, event in e.step():
            told[who].append((event.choice.token, event.choice.logprob))
        e.scheduler.pages.check([s.table for s in sequences])
    return [told[s] for s in sequences]


def after_others(cache: str) -> Engine:
    """One that has seen every prompt, so that their pages are found."""
    made = engine(cache)
    answers(made, [*range(len(REQUESTS))])
    return made


def page() -> int:
    """Bytes."""
    return engine("float16").runner.page_bytes


CROWDED = 5  # pages: room for the longest request and a little more, the others are preempted
WAYS: dict[str, Callable[[str], Engine]] = {
    "together": engine,
    "in pieces of seven tokens": partial(engine, budget=7),
    "two at a time": partial(engine, running=2),
    "one thread": partial(engine, threads=1),
    "three threads": partial(engine, threads=3),
    "from pages of those before": after_others,
    "preempted": partial(engine, pages=CROWDED),
    "speculated": lambda cache: engine(cache, drafter=Looked(shortest=1)),
    "speculated, preempted and in pieces": lambda cache: engine(
        cache, drafter=Looked(shortest=1), budget=9, pages=CROWDED
    ),
    "speculated by a model": lambda cache: engine(cache, drafter=Drafted(0.02)),
    "speculated by a model, preempted and in pieces, both short of pages": lambda cache: engine(
        cache, drafter=Drafted(0.02, budget=8, cache=4 * page()), budget=7, pages=CROWDED
    ),
    "speculated by the text, then by a model": lambda cache: engine(cache, drafter=InTurn(Looked(), Drafted(0.02))),
    "speculated as far as it pays": lambda cache: engine(
        cache, drafter=InTurn(PromptLookup(), DraftModel(engine(cache).runner))
    ),
}


@pytest.fixture(scope="module", params=["float16", "int8"])
def cache(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(cache) -> list[Answer]:
    return [answers(engine(cache), [i])[0] for i in range(len(REQUESTS))]


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_of_each_alone(way, cache, expected):
    made = WAYS[way](cache)
    hits, preemptions = made.scheduler.pages.hits, made.scheduler.preemptions
    assert answers(made, [*range(len(REQUESTS))]) == expected
    if "pages" in way:
        assert made.scheduler.pages.hits > hits, "no page was found, so nothing was tested"
    if "preempted" in way:
        assert made.scheduler.preemptions > preemptions, "nobody was preempted, so nothing was tested"
    if "speculated" in way and "pays" not in way:
        assert made.stats.accepted.total() > 5, "no draft was right, so nothing was tested"


def test_a_page_holds_as_many_bytes_as_it_says(cache):
    made = engine(cache).runner.graph
    assert sum(store[0].nbytes for store in (*made.keys, *made.values)) == engine(cache).runner.page_bytes
    assert engine(cache).runner.page_bytes == 2 * 2 * 2 * 32 * {"float16": 64, "int8": 34}[cache]


def test_unknown_caches_are_refused():
    with pytest.raises(CutawayError, match="float16, int8"):
        engine("int4")


def test_the_requests_differ(expected):
    assert len({tuple(told) for told in expected}) == len(REQUESTS)
    assert all(len({token for token, _ in told}) > 3 for told in expected)
