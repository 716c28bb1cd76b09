"""What only a GPU can show: `python -m pytest tests/engine/test_cuda.py` where there is one.

The kernel against its definition, to the bit in any company; replayed steps against the same operations started one by
one, to the bit; replies of whole engines. Matrix products of PyTorch's libraries depend in their last bits on how many
rows there are, so replies alone and in company are compared as tokens, and log-probabilities within rounding.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutaway.engine.cache import Pool
from cutaway.engine.drafter import PromptLookup
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.paged_attention import DTYPES, tokens_of_tile
from cutaway.engine.params import SamplingParams
from cutaway.engine.replay import Replay, Together, compute, laid_out, moved
from cutaway.engine.runner import Modules
from cutaway.errors import NotFound
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import Question
from cutaway.weights import sources
from cutaway.weights.checkpoint import load
from engine.paging import CASES, Case, agrees, same_bits
from engine.test_equality import REQUESTS, answers, prompt
from engine.test_graph import SPECS, model
from engine.tiny import decoder, tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SHAPES = CASES | {
    "smollm2": Case(9, 3, 64, 32, 16, ((0, 300), (1000, 1), (513, 70), (31, 1)), Question(0.125)),
    "a long text": Case(8, 2, 128, 32, 16, ((1500, 1), (0, 129)), Question(0.09, window=400)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_says_what_the_definition_says(name, dtype):
    agrees(replace(SHAPES[name], dtype=dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernels_bits_do_not_depend_on_the_company(name, dtype):
    same_bits(replace(SHAPES[name], dtype=dtype), "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_what_is_replayed_has_the_bits_of_what_was_recorded(name, dtype):
    """Twice, so that the second step replays what the first recorded; beside another graph in the same memory."""
    made, ids = model(SPECS[name]()).to("cuda", dtype), [*range(1, 14)]
    pool, memory = Pool(made.spec, dtype, made.device, 9, 32), torch.cuda.graph_pool_handle()
    small, large = (Replay(made, pool, rows, 3, tokens_of_tile(made.spec), memory=memory) for rows in (4, 16))
    for start in (0, 13):
        pieces = [(start, 10, [2, 5], 99), (start, 3, [7], 99)]
        replayed = large(ids, pieces, [9, 12]).clone()
        assert torch.equal(replayed, large.step()[:2])
        beside = small(ids[:2], [(start, 2, [4], 99)], [1]).clone()
        assert torch.equal(beside, small.step()[:1])
        assert torch.equal(replayed, large(ids, pieces, [9, 12]))
    assert replayed.isfinite().all()


@pytest.mark.parametrize("name", SPECS)
def test_replies_are_those_of_the_processor(name):
    made, got = model(SPECS[name]()), {}
    for device in ("cpu", "cuda"):
        engine = Engine(made.to(device), tokenizer(), context=128, budget=12)
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        sequences = [engine.add([*range(1, n)], params) for n in (40, 7)]
        while engine.busy:
            engine.step()
        got[device] = [sequence.reply for sequence in sequences]
    assert got["cuda"] == got["cpu"]


WAYS = {
    "together": {},
    "in pieces of seven tokens": {"budget": 7},
    "two at a time": {"running": 2},
    "preempted": {"cache": 5},
    "speculated": {"drafter": PromptLookup(shortest=1)},
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_of_each_alone(way):
    made = decoder(context=160, window=40).to("cuda")

    def engine(**limits) -> Engine:
        runner = Modules(made)
        if "cache" in limits:
            limits["cache"] *= runner.page_bytes
        return Engine(runner, tokenizer(), **limits)

    alone = [answers(engine(), [i])[0] for i in range(len(REQUESTS))]
    for ours, theirs in zip(answers(engine(**WAYS[way]), [*range(len(REQUESTS))]), alone, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-3, rtol=0)


def test_small_steps_are_replayed_and_long_ones_are_not():
    engine = Engine(decoder().to("cuda"), tokenizer(), context=200)
    assert isinstance(engine.runner, Modules)
    engine.add(prompt(90), SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    engine.step()
    assert not engine.runner.replays
    while engine.busy:
        engine.step()
    assert set(engine.runner.replays) == {1}
    assert not engine.runner.memories, "nothing is kept of a sequence but its pages"


def test_smollm2_says_the_same_as_on_the_processor():
    try:
        sources.resolve("smollm2-135m-instruct")
    except NotFound as error:
        pytest.skip(str(error))
    replies = {}
    for device in ("cpu", "cuda"):
        loaded = load("smollm2-135m-instruct", "float32", device)
        assert isinstance(loaded.model, Decoder)
        engine = engine_of(loaded, context=256)
        asked = [loaded.tokenizer.encode(text) for text in ("The capital of France is", "Once upon a time, " * 30)]
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        sequences = [engine.add(ids, params) for ids in asked]
        while engine.busy:
            engine.step()
        replies[device] = [sequence.reply for sequence in sequences]
    assert replies["cuda"] == replies["cpu"]


def test_a_step_is_the_same_padded_and_as_it_is():
    """Within rounding: products of other shapes are other operations."""
    made, pieces, ids, wanted = decoder(window=7).to("cuda"), [(0, 5, [1], 9), (0, 6, [2], 9)], [*range(11)], [4, 10]
    pool, tile = Pool(made.spec, made.dtype, made.device, 4, 32), tokens_of_tile(made.spec)
    with torch.inference_mode():
        padded = Replay(made, pool, 16, 3, tile)(ids, pieces, wanted).clone()
        inputs = moved(laid_out(ids, pieces, wanted, 32, tile), made.device)
        plain = compute(made, inputs, Together(pool, inputs, tile, []))
    torch.testing.assert_close(padded, plain, atol=1e-4, rtol=1e-4)
