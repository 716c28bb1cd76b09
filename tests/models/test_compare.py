"""The comparison of two models module by module must name the place where a mistake was made."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cutaway.models.compare import compare, difference, first, settings
from cutaway.models.decoder import EncoderDecoder
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.diff import diff
from cutaway.weights.sides import Answer, Ours, Witness
from kit import twins
from kit.mutants import MUTANTS
from kit.precision import all_float64
from kit.twins import ARCHITECTURES

IDS = twins.prompts((19,))[0].tolist()
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def saved(name: str, folder: Path) -> Path:
    with all_float64():
        twins.twin(name).reference.save_pretrained(folder)
    return folder


def ours(folder: Path) -> Ours:
    checkpoint = open_checkpoint(folder)
    return Ours("ours", checkpoint, checkpoint.model(torch.float64))


def theirs(name: str, folder: Path) -> Answer:
    with all_float64():
        return Witness("theirs", open_checkpoint(folder), twins.twin(name).reference).answer(IDS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_module_with_weights_is_compared_and_agrees(name, tmp_path):
    found, expected = ours(saved(name, tmp_path)).answer(IDS), theirs(name, tmp_path)
    divergences = compare(found.traces, expected.traces)
    assert first(divergences, 1e-13) is None
    model = twins.ours(twins.twin(name))
    owners = {parameter.rpartition(".")[0] for parameter in model.state_dict()}
    silent = {"embedding.types", "pooler", "relative", "relative.norm"}  # what is added, not run, or not run on tokens
    if model.task is not None and not model.task.spec.each:
        silent |= {"task.dense", "task.norm", "task.out"}
    silent |= {owner for owner in owners if "position_bias" in owner}
    if isinstance(model, EncoderDecoder):  # both stacks of theirs look tokens up in copies of the shared module
        silent |= {"embedding.tokens", "encoder.embedding.tokens"}
    scaled = {"embedding.tokens"} if "embedding" in expected.traces else set()
    tied = {"head"} & owners  # logits are asked of the model, its head is a module if it has weights
    assert owners - silent - scaled - tied <= {d.module for d in divergences}
    torch.testing.assert_close(found.result_TN, expected.result_TN, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "mutant", "module", "inside"),
    [
        ("llama", "rms norm: weight ignored", "layers.0.attention_norm", True),
        ("llama", "rope: none", "layers.0.attention.out", False),
        ("llama", "attention: scale missing", "layers.0.attention.out", False),
        ("llama", "feed-forward: gate and up swapped", "layers.0.ffn.down", False),
        ("llama", "block: residual dropped", "layers.0.ffn_norm", False),
        ("llama", "final norm: skipped", "head", False),
        ("gemma3", "embedding: scale dropped", "embedding", True),
        ("gemma3", "window: one too wide", "layers.0.attention.out", False),
        ("gemma3", "window: on every layer", "layers.2.attention.out", False),
        ("gemma3", "block: post norm skipped after feed-forward", "layers.1.attention_norm", False),
        ("gpt2", "positions: learned ones off by one", "embedding.positions", False),
        ("bert", "embedding: token type dropped", "embedding.norm", False),
        ("bert", "activation: tanh form for exact gelu", "layers.0.ffn.down", False),
    ],
)
def test_the_first_module_that_differs_is_where_the_mistake_is(name, mutant, module, inside, tmp_path):
    expected = theirs(name, saved(name, tmp_path))
    with BY_NAME[mutant].change():
        mutated = ours(tmp_path).answer(IDS)
    found = first(compare(mutated.traces, expected.traces), 1e-9)
    assert found is not None
    assert found.module == module
    assert found.where(1e-9).startswith("inside" if inside else "between")


def test_a_report_tells_configuration_tensors_modules_and_outcome(tmp_path):
    plain, changed = ours(saved("llama", tmp_path)), ours(tmp_path)
    with torch.no_grad():
        changed.model.layers[1].ffn.up.weight[3, 4] += 0.5
    report = diff(plain, changed, IDS, 1e-6)
    assert not report.same
    assert [t.name for t in report.tensors] == ["layers.1.ffn.up.weight"]
    assert report.tensors[0].gap.absolute == pytest.approx(0.5)
    assert report.first is not None
    assert report.first.module == "layers.1.ffn.up"
    assert report.outcome.kl_max > report.outcome.kl_mean > 0  # type: ignore[operator]
    assert report.settings == []
    same = diff(plain, plain, IDS, 0.0)
    assert same.same
    assert (same.outcome.kl_max, same.outcome.agreement) == (0, 1)


def test_settings_that_differ_are_named_once_per_kind():
    spec = twins.ours(twins.twin("gemma3")).spec
    assert settings(spec, spec) == []
    layers = [replace(layer, attention=replace(layer.attention, scale=0.5)) for layer in spec.layers]
    layers[1] = replace(layers[1], ffn=replace(layers[1].ffn, activation="relu"))
    found = settings(spec, replace(spec, layers=tuple(layers), context=spec.context + 1))
    assert [s.field for s in found] == ["context", "layers[*].attention.scale", "layers[1].ffn.activation"]
    assert found[2][1:] == ("gelu_tanh", "relu")


def test_numbers_that_formats_round_are_the_same_setting():
    spec = twins.ours(twins.twin("llama")).spec
    rounded = replace(spec, final_norm=replace(spec.final_norm, eps=float(torch.tensor(spec.final_norm.eps))))
    assert rounded != spec
    assert settings(spec, rounded) == []


def test_difference_measures_what_it_says():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert difference(a, b) == (4.0, pytest.approx(5 / 4))
    assert difference(a, a) == (0, 0)
    assert difference(a, torch.zeros(3)).absolute == math.inf
    assert difference(a, torch.zeros(2)).relative == math.inf
    assert math.isnan(difference(a, torch.tensor([math.nan, 0.0])).relative)
