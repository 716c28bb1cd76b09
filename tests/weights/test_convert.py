"""Conversion: what comes out runs elsewhere, nothing is lost unasked, nothing is left half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf as ggml
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from cutaway.errors import CutawayError
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal
from cutaway.weights.checkpoint import load, open_checkpoint
from cutaway.weights.convert import convert, narrowest
from kit.threads import one_thread
from weights import checkpoints

__all__ = ["one_thread"]

TEXT = "Hello, 世界! 🙂\n\tdef f(x): return x**2  # naïve café, 12345 don't"
SAMPLES = (TEXT, " leading", "", "a" * 40, "Ωmega ﬁ ½ ①\u200b", "<|im_start|>user\n")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoints.directory(tmp_path / "source")


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    assert isinstance(model, Decoder)
    with torch.inference_mode():
        return model.logits(model(torch.tensor(ids), positions_of([len(ids)]), BlockDiagonal([len(ids)])))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


# ---- formats and types


def test_there_and_back_is_the_same(source: Path, tmp_path: Path) -> None:
    there = convert(str(source), tmp_path / "there.gguf")
    back = convert(str(there.path), tmp_path / "back")
    assert (there.format, there.type, back.format, back.type) == ("gguf", "BF16", "safetensors", "BF16")
    first, last = load(str(source)), load(str(tmp_path / "back"))
    assert same(first.model, last.model)
    assert first.checkpoint.spec == last.checkpoint.spec
    assert first.tokenizer.chat_template == last.tokenizer.chat_template
    assert first.tokenizer.stop_ids == last.tokenizer.stop_ids
    assert all(first.tokenizer.encode(text) == last.tokenizer.encode(text) for text in SAMPLES)


def test_the_summary_counts(source: Path, tmp_path: Path) -> None:
    made = convert(str(source), tmp_path / "made.gguf", type="F32")
    assert made.parameters == load(str(source)).model.cost.parameters
    assert made.bytes_before == sum(file.stat().st_size for file in source.iterdir())
    assert made.bytes_after == (tmp_path / "made.gguf").stat().st_size


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_ggmls_own_reader_finds_what_was_asked_for(source: Path, tmp_path: Path, kind: str) -> None:
    convert(str(source), tmp_path / "made.gguf", type=kind)
    reader = ggml.GGUFReader(tmp_path / "made.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    matrices = {name: t.tensor_type.name for name, t in tensors.items() if len(t.shape) > 1}
    vectors = {t.tensor_type.name for t in tensors.values() if len(t.shape) == 1}
    assert set(matrices.values()) == {kind}
    assert vectors == {"F32"}
    assert reader.fields["general.architecture"].contents() == "llama"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 260
    up = tensors["blk.1.ffn_up.weight"]
    found = ggml.quants.dequantize(up.data, up.tensor_type)
    ours = checkpoints.model().layers[1].ffn.up.weight.detach().numpy()
    bits = {"F32": 24, "F16": 11, "BF16": 8, "Q8_0": 7, "Q4_0": 3}[kind]
    assert np.abs(found - ours).max() <= np.abs(ours).max() * 2.0**-bits
    assert same(load(str(tmp_path / "made.gguf")).model, load(str(tmp_path / "made.gguf")).model)


def test_rows_that_no_block_divides_stay_wider(tmp_path: Path) -> None:
    checkpoints.directory(tmp_path / "odd", intermediate_size=80)
    convert(str(tmp_path / "odd"), tmp_path / "odd.gguf", type="Q8_0")
    stored = open_checkpoint(tmp_path / "odd.gguf").stored
    assert (stored["blk.0.ffn_down.weight"], stored["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_without_a_type_the_narrowest_is_taken_that_loses_nothing() -> None:
    model = checkpoints.model()
    assert narrowest(model) == "BF16"
    with torch.no_grad():
        model.layers[0].ffn.up.weight[0, :2] = torch.tensor([1 + 2**-10, 2**-30])
    assert narrowest(model) == "F32", "BF16 loses the last bit, F16 what is small"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1 + 2**-10)
    assert narrowest(model) == "F16"


def test_a_weight_that_would_become_infinite_is_refused(tmp_path: Path) -> None:
    from cutaway.weights.save import save_directory

    model = checkpoints.model()
    with torch.no_grad():
        model.layers[0].ffn.up.weight[0, 0] = 1e9
    save_directory(model, checkpoints.tokenizer(), tmp_path / "large", torch.float32)
    for target in ("narrow", "narrow.gguf"):
        with pytest.raises(CutawayError, match="too large for torch"):
            convert(str(tmp_path / "large"), tmp_path / target, type="F16")
    assert [p.name for p in tmp_path.iterdir()] == ["large"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_transformers_loads_every_family(tmp_path: Path, family: str) -> None:
    own: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "gemma3": {"sliding_window": 7, "query_pre_attn_scalar": 8},
    }
    path = checkpoints.directory(tmp_path / family, family, **own.get(family, {}))
    ids = list(range(3, 40))
    theirs, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits(load(str(path)).model, ids), expected, rtol=1e-4, atol=1e-4)


def test_transformers_loads_an_encoder(tmp_path: Path) -> None:
    path = checkpoints.directory(tmp_path / "bert", "bert", cutaway_pooling={"dense": True})
    theirs = AutoModel.from_pretrained(path)
    ids, ours = torch.arange(3, 40), load(str(path)).model
    with torch.inference_mode():
        expected = theirs(ids[None]).last_hidden_state[0]
        found = ours(ids, positions_of([37]), BlockDiagonal([37]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert open_checkpoint(path).spec.pooling == ours.spec.pooling


# ---- the real one


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("smollm2") / "safetensors"
    made = convert(str(smollm2_gguf), target)
    assert (made.type, made.parameters) == ("F32", 134_515_008), "Q4_1's steps need more than 16 bits"
    return target


def test_transformers_answers_as_we_do(smollm2_gguf: Path, smollm2: Path) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1)))
    ours, theirs = load(str(smollm2_gguf)), AutoModelForCausalLM.from_pretrained(smollm2)
    assert theirs.dtype == torch.float32
    ids = ours.tokenizer.encode(TEXT)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits(ours.model, ids), expected, rtol=1e-3, atol=1e-3)
    assert set(theirs.generation_config.eos_token_id) == set(ours.tokenizer.stop_ids)


def test_transformers_tokenizer_is_ours(smollm2_gguf: Path, smollm2: Path) -> None:
    ours, theirs = open_checkpoint(smollm2_gguf).read_tokenizer(), AutoTokenizer.from_pretrained(smollm2)
    for text in SAMPLES:
        assert theirs(text)["input_ids"] == ours.encode(text), text
    turns = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    rendered = theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert rendered == ours.chat(turns)


def test_llama_cpp_answers_as_we_do(smollm2: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="an extra, built from source in 20 minutes")
    torch.set_num_threads(max(1, (os.cpu_count() or 1)))
    convert(str(smollm2), tmp_path / "smollm2.gguf", type="F16")
    ours = load(str(tmp_path / "smollm2.gguf"))
    theirs = llama_cpp.Llama(str(tmp_path / "smollm2.gguf"), n_ctx=64, logits_all=True, verbose=False)
    ids = ours.tokenizer.encode("The capital of France is")
    assert theirs.tokenize(b"The capital of France is", add_bos=False, special=True) == ids
    theirs.eval(ids)
    expected = torch.tensor(theirs.scores[: len(ids)]).log_softmax(-1)
    found = logits(ours.model, ids).log_softmax(-1)
    assert (found - expected).abs().max() < 0.1
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


# ---- places


@pytest.mark.parametrize("target", ["there", "there.gguf"])
def test_what_exists_is_only_replaced_if_asked(source: Path, tmp_path: Path, target: str) -> None:
    convert(str(source), tmp_path / target)
    before = load(str(tmp_path / target)).model
    other = checkpoints.directory(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(CutawayError, match=r"exists already .*--force"):
        convert(str(other), tmp_path / target)
    assert same(before, load(str(tmp_path / target)).model)
    convert(str(other), tmp_path / target, force=True)
    assert len(load(str(tmp_path / target)).model.layers) == 1


def test_only_a_model_is_ever_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("rain")
    (tmp_path / "letter").write_text("Dear")
    checkpoints.directory(tmp_path / "thesis")
    (tmp_path / "thesis" / "chapter.txt").write_text("It")
    for name in ("diary", "letter", "thesis"):
        with pytest.raises(CutawayError, match="not a model that could be replaced"):
            convert(str(source), tmp_path / name, force=True)
    assert (tmp_path / "diary" / "monday.txt").read_text() == "rain"
    assert (tmp_path / "letter").read_text() == "Dear"
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "It"


@pytest.mark.parametrize("name", ["letter/model", "letter/model.gguf"])
def test_a_place_that_cannot_be_is_said(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "letter").write_text("Dear")
    with pytest.raises(CutawayError, match="letter"):
        convert(str(source), tmp_path / name)


@pytest.mark.parametrize("name", ["source", "."])
def test_a_model_is_not_converted_onto_itself(source: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(source.parent)
    with pytest.raises(CutawayError, match="is, or holds, the model"):
        convert("source", name, force=True)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("made", {"format": "gguf"}, "name ends in .gguf"),
        ("made.gguf", {"format": "safetensors"}, "is no name for safetensors"),
        ("made", {"format": "onnx"}, "unknown format 'onnx'"),
        ("made", {"type": "Q8_0"}, "safetensors is not written as 'Q8_0'"),
        ("made.gguf", {"type": "Q4_K"}, "gguf is not written as 'Q4_K'"),
    ],
)
def test_senseless_requests_are_refused(
    source: Path, tmp_path: Path, target: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(CutawayError, match=expected):
        convert(str(source), tmp_path / target, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_progress_is_told_of_reading_and_writing(source: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    convert(str(source), tmp_path / "there.gguf", progress=lambda *step: told.append(step))
    count = len(open_checkpoint(source).shapes)
    assert told == [(doing, i + 1, count) for doing in ("reading", "writing") for i in range(count)]


@pytest.mark.parametrize(
    ("target", "how"), [("there", signal.SIGKILL), ("there.gguf", signal.SIGKILL), ("there.gguf", signal.SIGINT)]
)
def test_a_killed_conversion_leaves_no_model(smollm2_gguf: Path, tmp_path: Path, target: str, how: int) -> None:
    """Killed as soon as something is being written; interrupted, it even tidies up."""
    code = "from cutaway.cli.main import run; run()"
    command = [sys.executable, "-c", code, "convert", str(smollm2_gguf), str(tmp_path / target), "--type", "F32"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 130), said
    assert not (tmp_path / target).exists()
    assert how == signal.SIGKILL or not list(tmp_path.iterdir())
    assert "Traceback" not in said
