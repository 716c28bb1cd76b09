"""A step laid out as arrays and padded, as a GPU replays it; here its operations run as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cutaway.engine import replay
from cutaway.engine.cache import Pool
from cutaway.engine.engine import Engine
from cutaway.engine.paged_attention import tokens_of_tile
from cutaway.engine.params import SamplingParams
from cutaway.engine.replay import Replay, laid_out, replayable
from cutaway.engine.runner import Modules
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.nn.norms import NormSpec
from engine.paging import interpreted
from engine.test_engine import ids
from engine.test_graph import SIZES, SPECS
from engine.tiny import decoder, tokenizer

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 4.0}
OTHERS = {
    "experts": lambda: spec_of(FAMILIES["mixtral"], SIZES | {"num_local_experts": 4}),
    "tables of a rotation": lambda: spec_of(
        FAMILIES["phi3"],
        SIZES | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64, "pad_token_id": 0},
    ),
}


def test_what_a_step_must_know_is_laid_out():
    """Pages of four tokens, tiles of two: three tokens from position 6 on, and two of another from position 0 on."""
    arrays = laid_out([5, 6, 7, 8, 9], [(6, 3, [4, 2, 7], 12), (0, 2, [1], 1)], [2, 4], 4, 2)
    tokens, positions, slots, reach, wanted, tiles, tables = (array.tolist() for array in arrays)
    assert (tokens, wanted) == ([5, 6, 7, 8, 9], [2, 4])
    assert positions == [6, 7, 8, 0, 1]
    assert slots == [2 * 4 + 2, 2 * 4 + 3, 7 * 4, 4, 5]
    assert reach == [12, 12, 12, 2, 2]
    assert tiles == [[0, 2, 6, 0], [2, 1, 8, 0], [3, 2, 0, 1]]
    assert tables == [[4, 2, 7], [1, 0, 0]]


REQUESTS = [(9, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)),
            (20, SamplingParams(seed=3, max_tokens=3, ignore_eos=True)),
            (1, SamplingParams(seed=4, max_tokens=4, ignore_eos=True))]  # fmt: skip


def told(model: Decoder, fused: bool, **limits: int) -> tuple[list[list[tuple[int, float]]], Modules]:
    """Token and log-probability of all that the requests were told."""
    runner = Modules(model, fused)
    engine = Engine(runner, tokenizer(), **limits)
    sequences = [engine.add(ids(n, n), params) for n, params in REQUESTS]
    events = {sequence: [] for sequence in sequences}
    while engine.busy:
        for sequence, event in engine.step():
            events[sequence].append((event.choice.token, event.choice.logprob))
    return [events[sequence] for sequence in sequences], runner


@pytest.mark.parametrize(("few", "used"), [(16, {4, 16}), (0, set())], ids=["padded", "as it is"])
def test_replies_are_those_of_each_sequence_by_itself(few, used, monkeypatch):
    """Whether steps are padded or not: with one kernel for all, a window, and a prompt in pieces."""
    monkeypatch.setattr("cutaway.engine.runner.FEW", few)
    model = decoder(window=7)
    expected, _ = told(model, fused=False, budget=16)
    with interpreted():
        found, runner = told(model, fused=True, budget=16)
    assert used <= set(runner.replays)
    assert bool(runner.replays) == bool(used)
    for ours, theirs in zip(found, expected, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=0)


def test_the_spare_page_is_written_and_never_read():
    """With rubbish in it and in the pages of nobody, the logits are the same; only it and the pages at hand change."""
    model, size = decoder(), 4
    pool = Pool(model.spec, model.dtype, model.device, pages=6, size=size)
    step, pieces = Replay(model, pool, 8, 3, tokens_of_tile(model.spec)), [(0, 3, [3], 9), (0, 2, [1], 9)]
    with interpreted(), torch.inference_mode():
        clean = step([1, 2, 3, 4, 5], pieces, [2, 4]).clone()
        for store in (store for stores in pool.stores for store in stores):
            store.fill_(torch.nan)
        soiled = step([1, 2, 3, 4, 5], pieces, [2, 4])
    assert clean.shape == (2, model.spec.vocab)
    assert torch.equal(clean, soiled)
    kept_S = torch.cat(pool.stores[0], 1).isfinite().flatten(1).all(1)
    written = {slot // size for slot in kept_S.nonzero()[:, 0].tolist()}
    assert written == {1, 3, 5}


class Recording(TorchDispatchMode):
    """What would be an error while a GPU records: tensors of the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            assert not isinstance(tensor, Tensor) or tensor.is_meta, f"{function} gives a tensor of the host"
        return made


def record(spec, monkeypatch) -> None:
    """A padded step without numbers: what needs any, a shape or a choice, cannot go on, nor what brings some."""

    def brought(data, **_):
        assert isinstance(data, Tensor), "a tensor is made of the host's numbers"
        return data

    monkeypatch.setattr(replay, "paged_attention", lambda q_THK, *_, **__: torch.empty_like(q_THK))
    monkeypatch.setattr(torch, "tensor", brought)
    monkeypatch.setattr(torch, "as_tensor", brought)
    model = build(spec, "meta")
    step = Replay(model, Pool(spec, model.dtype, model.device, 4, 32), 8, 3, tokens_of_tile(spec))
    with Recording(), torch.inference_mode():
        assert step.step().shape == (8, spec.vocab)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_recorded_never_asks_the_host(name, monkeypatch):
    spec = SPECS[name]()
    assert replayable(build(spec, "meta"))
    record(spec, monkeypatch)


@pytest.mark.parametrize("name", OTHERS)
def test_steps_that_ask_the_host_are_not_recorded(name, monkeypatch):
    spec = OTHERS[name]()
    assert not replayable(build(spec, "meta"))
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        record(spec, monkeypatch)


def test_rows_that_know_of_each_other_and_models_that_are_watched_are_not_recorded():
    spec = decoder().spec
    over = tuple(replace(layer, norm=NormSpec("batch", 1e-5)) for layer in spec.layers)
    assert not replayable(build(replace(spec, layers=over), "meta"))
    assert not replayable(build(spec, "meta").double())
    assert not replayable(object())
