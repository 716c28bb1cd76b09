"""`cutaway diff` on tiny checkpoints: what it prints, and its exit status."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tokenizers import Tokenizer as Reference
from tokenizers import models
from typer.testing import CliRunner, Result

from cutaway.cli.diff import diff
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.save import save_gguf
from kit import twins
from kit.precision import all_float64
from kit.threads import one_thread  # noqa: F401

app = typer.Typer()
app.command()(diff)
PROMPT = "from A to B"


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "160"})


def report(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--prompt", PROMPT, "--json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def saved(name: str, folder: Path) -> Path:
    """A twin as transformers saves it, with a tokenizer of letters."""
    with all_float64():
        twins.twin(name).reference.save_pretrained(folder)
    Reference(models.BPE({c: i for i, c in enumerate(string.printable[:90])}, [])).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory, llama) -> Path:
    """The same but for one number of one tensor."""
    folder = saved("llama", tmp_path_factory.mktemp("changed"))
    reference = twins.twin("llama").reference
    up = reference.model.layers[1].mlp.up_proj.weight  # type: ignore[attr-defined]
    with torch.no_grad(), all_float64():
        up[0, 0] += 0.25
        reference.save_pretrained(folder)
        up[0, 0] -= 0.25
    return folder


def test_the_same_checkpoint_is_the_same(llama):
    result = run(llama, llama, "--prompt", PROMPT)
    assert result.exit_code == 0, result.output
    assert "The same within the tolerance." in result.output
    assert "100.0% of positions" in result.output


def test_one_changed_number_is_found_and_named(llama, changed):
    result = run(llama, changed, "--prompt", PROMPT)
    assert result.exit_code == 1
    assert "Tensors that differ: 1" in result.output
    assert "They part inside layers.1.ffn.up: what enters it agrees." in result.output
    found = report(llama, changed)
    assert [t["name"] for t in found["tensors"]] == ["layers.1.ffn.up.weight"]
    assert found["tensors"][0]["gap"]["absolute"] == pytest.approx(0.25)
    assert found["first"]["module"] == "layers.1.ffn.up"
    assert found["outcome"]["kl_max"] > 0
    assert not found["same"]


def test_a_tolerance_lets_it_pass(llama, changed):
    assert run(llama, changed, "--prompt", PROMPT, "--tolerance", 10).exit_code == 0


def test_settings_that_differ_are_listed(llama, tmp_path):
    other = saved("llama-linear", tmp_path)
    found = report(llama, other)
    settings = {s["field"]: (s["a"], s["b"]) for s in found["settings"]}
    assert settings["layers[*].ffn.activation"] == ("silu", "gelu")
    assert settings["layers[*].attention.rope.base"] == (10000, 300)
    missing = [t for t in found["tensors"] if t["name"] == "layers.0.ffn.up.bias"]
    assert (missing[0]["a"], missing[0]["b"], missing[0]["gap"]["relative"]) == ("", "F64", "inf")
    assert "layers[*].ffn.activation" in run(llama, other, "--prompt", PROMPT).output


def test_formats_are_compared_by_what_they_hold(llama, tmp_path):
    """A twin's weights fit float16, so a GGUF file of them is the same model; one of other weights is not."""
    loaded = open_checkpoint(llama)
    tokenizer, model = loaded.read_tokenizer(), loaded.model()
    tokenizer.to_gguf = letters  # type: ignore[method-assign]
    save_gguf(model, tokenizer, tmp_path / "half.gguf", "F16")
    found = report(llama, tmp_path / "half.gguf")
    assert found["same"]
    with torch.no_grad():
        model.final_norm.weight *= 1.001
    save_gguf(model, tokenizer, tmp_path / "changed.gguf", "F16")
    found = report(llama, tmp_path / "changed.gguf")
    furthest = max(found["tensors"], key=lambda t: t["gap"]["relative"])
    assert (furthest["name"], furthest["a"], furthest["b"]) == ("final_norm.weight", "F64", "F32")
    assert furthest["gap"]["relative"] == pytest.approx(1e-3, rel=1e-2)
    assert found["first"]["module"] == "final_norm"


def letters(vocab: int) -> dict[str, Any]:
    tokens = [*string.printable[:90], *(f"<{i}>" for i in range(90, vocab))]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": []}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bert"])
def test_transformers_as_a_witness(name, tmp_path):
    folder = saved(name, tmp_path)
    found = report(folder, folder, "--reference", "transformers")
    assert found["same"]
    assert found["b"].endswith("in transformers")
    assert len(found["modules"]) > 20
    assert found["outcome"]["gap"]["relative"] < 1e-5


def test_every_module_can_be_listed(llama):
    assert "layers.2.attention.k " not in run(llama, llama, "--prompt", PROMPT).output
    assert "layers.2.attention.k " in run(llama, llama, "--prompt", PROMPT, "--all").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such/model"], "no/such/model"),
        ([".", "--prompt", ""], "prompt: has 0 tokens"),
        ([".", "--prompt", "a" * 100], "prompt: has 100 tokens, both models take 1 to 64"),
    ],
)
def test_what_cannot_be_compared_is_an_error(llama, arguments, said):
    other, *options = arguments
    result = run(llama, llama if other == "." else other, *options)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_token_beyond_the_smaller_vocabulary_is_an_error(llama, tmp_path):
    config = json.loads((saved("llama", tmp_path) / "config.json").read_text())
    with all_float64():
        reference = twins.twin("llama").reference
        small = type(reference)(type(reference.config)(**config | {"vocab_size": 11}))
        small.save_pretrained(tmp_path)
    result = run(llama, tmp_path, "--prompt", PROMPT)
    assert result.exit_code == 2
    assert "the smaller vocabulary ends at 10" in result.output
