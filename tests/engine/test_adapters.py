"""Adapters at work: as PEFT merges them, apart from each other, and gone when they are unloaded."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfCheckpoint
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Native
from cutaway.engine.search import Beams, beam_search
from cutaway.errors import CutawayError, NotFound
from cutaway.native.build import library
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.save import save_gguf
from engine.tiny import adapter, decoder, spec, tokenizer
from kit.proofs import adapters as proofs
from kit.twins import Tokenizerless

NATIVE = pytest.mark.skipif(library() is None, reason="no C++ compiler, so no native kernels")
PROOFS = [pytest.param(n, marks=NATIVE if "native" in n else ()) for n in proofs.PROOFS if "reading" not in n]


@pytest.mark.parametrize("name", PROOFS)
def test_rows_are_those_of_the_merged_model(name):
    proofs.PROOFS[name]()


@NATIVE
def test_others_keep_their_bits():
    """Rows without an adapter, and rows of each, whoever else is in the batch and in whatever order."""
    made = proofs.engine("llama", True)
    prompts = proofs.prompts()
    whole = proofs.logits(made, prompts, proofs.MIX)
    for prompt, kind, got in zip(prompts, proofs.MIX, whole, strict=True):
        (alone,) = proofs.logits(made, [prompt], (kind,))
        assert torch.equal(got, alone)
    again = proofs.logits(made, prompts[::-1], proofs.MIX[::-1])
    assert all(map(torch.equal, whole, again[::-1]))
    (bare,) = proofs.logits(Engine(made.runner, made.tokenizer), prompts[:1], ("",))
    assert torch.equal(whole[0], bare)


@NATIVE
def test_memory_of_native_adapters_is_free_in_the_end():
    made = proofs.engine("llama", True)
    sequence = made.add([1, 2, 3], SamplingParams(adapter="b", max_tokens=2, ignore_eos=True))
    kept = weakref.ref(made.adapters.loaded["b"].made)
    while made.busy:
        made.step()
        made.adapters.loaded.pop("b", None)
    assert len(sequence.reply) == 2
    del sequence
    gc.collect()
    assert kept() is None


@NATIVE
@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
def test_weights_as_they_are_stored(kind, tmp_path):
    """About as far from the merged model in float64 as the bare one is from itself; adapters change far more."""
    save_gguf(proofs.lora.ours("llama"), Tokenizerless(), tmp_path / "tiny.gguf", kind)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    made = Engine(Native(checkpoint.spec, OfCheckpoint(checkpoint), 1), Tokenizerless())  # type: ignore[arg-type]
    for name in proofs.lora.KINDS:
        made.adapters.load(name, proofs.lora.adapter("llama", name).folder)
    found = zip(proofs.logits(made, proofs.prompts(), proofs.MIX), proofs.prompts(), proofs.MIX, strict=True)
    off = {name: proofs.off(got, proofs.merged("llama", name, tuple(ids))) for got, ids, name in found}
    assert 1e-4 < off[""] < {"Q8_0": 0.05, "BF16": 0.001}[kind], off
    assert all(off[name] < 4 * off[""] for name in proofs.lora.KINDS), off


@pytest.fixture
def engine(tmp_path) -> Engine:
    made = Engine(decoder(), tokenizer())
    made.adapters.load("one", adapter(tmp_path / "one", spec()))
    return made


def test_there_is_a_limit(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("cutaway.engine.adapters.MOST", 1)
    with pytest.raises(CutawayError, match="1 are loaded already"):
        engine.adapters.load("two", tmp_path / "one")
    engine.adapters.unload("one")
    assert engine.adapters.load("two", tmp_path / "one").name == "two"


def test_names(engine, tmp_path):
    with pytest.raises(CutawayError, match="'one' is loaded already"):
        engine.adapters.load("one", tmp_path / "one")
    with pytest.raises(CutawayError, match="is empty"):
        engine.adapters.load("", tmp_path / "one")
    with pytest.raises(NotFound, match="no adapter 'two' is loaded \\(there is one\\)"):
        engine.prepare([1], SamplingParams(adapter="two"))
    with pytest.raises(NotFound, match="no adapter 'two'"):
        engine.adapters.unload("two")
    engine.adapters.unload("one")
    with pytest.raises(NotFound, match="there is none"):
        engine.prepare([1], SamplingParams(adapter="one"))
    with pytest.raises(NotFound, match="holds no adapter_config"):
        engine.adapters.load("two", tmp_path)
    assert not engine.adapters.loaded


def test_requests_are_counted(engine):
    for name in ("one", "", "one"):
        engine.prepare([1], SamplingParams(adapter=name))
    assert engine.adapters.asked == {"one": 2}


def test_a_fork_that_waits_finds_the_pages_of_its_adapter():
    made = proofs.engine("llama", False, running=1)
    parent = made.add([*range(40)], SamplingParams(max_tokens=9, ignore_eos=True, adapter="a"))
    made.step()
    child = made.prepare(parent.prompt, SamplingParams(max_tokens=9), kept=parent.reply)
    made.scheduler.fork(parent, child)
    assert child in made.scheduler.waiting
    made.abort(parent)
    made.step()
    assert child.cached == 32


def test_a_search_keeps_the_adapter_it_began_with(engine, tmp_path):
    """Its forks too, though nobody else finds it by now."""
    params, prompt = SamplingParams(max_tokens=6, ignore_eos=True, adapter="one"), [*range(40)]
    wanted = beam_search(engine, prompt, params, Beams(3))
    bare = beam_search(engine, prompt, SamplingParams(max_tokens=6, ignore_eos=True), Beams(3))
    assert [h.reply for h in bare] != [h.reply for h in wanted]

    class Reloading(Engine):
        def prepare(self, *given, **how):
            made = super().prepare(*given, **how)
            self.adapters.loaded.clear()
            return made

    changing = Reloading(decoder(), tokenizer())
    changing.adapters.load("one", tmp_path / "one")
    assert [h.reply for h in beam_search(changing, prompt, params, Beams(3))] == [h.reply for h in wanted]
