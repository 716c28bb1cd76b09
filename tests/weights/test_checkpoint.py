"""Checkpoints that are whole, and every way in which one can be broken: one error that names the fault."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.cli import main
from cutaway.errors import CutawayError
from cutaway.nn.positions import RopeScaling
from cutaway.weights import gguf
from cutaway.weights.checkpoint import load, open_checkpoint
from cutaway.weights.save import save_gguf
from kit.threads import one_thread
from weights import checkpoints
from weights.checkpoints import configure, directory, retensor

__all__ = ["one_thread"]

Q = "model__layers__1__self_attn__q_proj__weight"
DOWN = "model__layers__0__mlp__down_proj__weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("checkpoints") / "whole")


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def test_a_whole_one_gives_the_model_it_was_made_of(whole: Path) -> None:
    loaded = load(str(whole))
    assert loaded.name == "whole"
    assert same(loaded.model, checkpoints.model())
    assert loaded.checkpoint.stored_type("layers.0.attention.q.weight") == "F32"
    assert load(str(whole), "bfloat16").model.dtype == torch.bfloat16


def test_names_without_the_base_models_prefix_are_known(broken: Path) -> None:
    """As checkpoints of `LlamaModel` have them, without the head's class around it."""
    from safetensors.torch import load_file, save_file

    path = broken / "model.safetensors"
    save_file({name.removeprefix("model."): t for name, t in load_file(path).items()}, path)
    assert same(load(str(broken)).model, checkpoints.model())


def test_a_tied_head_that_is_stored_as_well_is_not_a_stranger(broken: Path) -> None:
    retensor(broken, lm_head__weight=lambda t: checkpoints.model().embedding.tokens.weight.detach().clone())
    assert same(load(str(broken)).model, checkpoints.model())


def test_progress_counts_every_tensor(whole: Path) -> None:
    told: list[tuple[int, int]] = []
    opened = open_checkpoint(whole)
    opened.model(each=lambda done, total: told.append((done, total)))
    count = len(opened.shapes)
    assert told == [(i + 1, count) for i in range(count)]


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return change


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **changes)


def tensors(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: retensor(folder, **changes)


def two_ggufs(folder: Path) -> None:
    remove("*.json")(folder)
    remove("*.safetensors")(folder)
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"GGUF")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tokenizer": (remove("tokenizer*"), "no tokenizer.json"),
    "a tokenizer that is no JSON": (write("tokenizer.json", b"{"), "tokenizer.json: this is not JSON"),
    "an empty directory": (remove("*"), "holds no model"),
    "no configuration": (remove("config.json"), "no config.json"),
    "no weights": (remove("*.safetensors"), "holds no model"),
    "two GGUF files": (two_ggufs, "holds 2 GGUF files .*a.gguf"),
    "a configuration that is no JSON": (write("config.json", b"{'a': 1}"), "config.json: cannot be read"),
    "a configuration that is not UTF-8": (write("config.json", b'{"a": "\xff"}'), "config.json: cannot be read"),
    "a configuration that is a list": (write("config.json", b"[]"), "config.json: should hold a JSON object"),
    "an empty configuration": (write("config.json", b""), "config.json: cannot be read"),
    "a configuration nested too deep": (write("config.json", b"[" * 100_000), "config.json: cannot be read"),
    "an unknown architecture": (config(architectures=["LlamaForCausaLM"]), "nearest: LlamaForCausalLM"),
    "no architecture": (config(architectures=None), "architectures should be a list"),
    "an architecture that is no list": (config(architectures="LlamaForCausalLM"), "architectures should be a list"),
    "a size in words": (config(hidden_size="64"), "width: expected int, got '64'"),
    "half a size": (config(hidden_size=64.5), "width: expected int, got 64.5"),
    "a size that is a truth": (config(intermediate_size=True), "ffn.width: expected int, got True"),
    "a size of nothing": (config(num_attention_heads=0), "bad configuration|at least 1"),
    "a negative size": (config(vocab_size=-5), "vocab: must be at least 1, got -5"),
    "an absurd size": (config(hidden_size=2**62), "absurdly large|does not give"),
    "a missing size": (config(intermediate_size=None), "has no 'intermediate_size'"),
    "absurdly many layers": (config(num_hidden_layers=10**9), "layers are not plausible"),
    "layers in words": (config(num_hidden_layers="two"), "layers are not plausible"),
    "an epsilon in words": (config(rms_norm_eps="tiny"), "eps: expected float, got 'tiny'"),
    "a rotation that is a list": (config(rope_theta=[1]), "bad configuration"),
    "heads that do not divide": (config(num_key_value_heads=3), "3 does not divide heads = 4"),
    "an activation nobody knows": (config(hidden_act="swoosh"), "'swoosh' is not supported"),
    "a rotation nobody knows": (
        config(rope_scaling={"rope_type": "spiral", "factor": 2.0}),
        "'spiral' is not implemented",
    ),
    "a missing tensor": (tensors(**{DOWN: None}), "tensor 'model.layers.0.mlp.down_proj.weight' is missing"),
    "a tensor too many": (
        tensors(model__layers__0__mlp__router__weight=lambda t: t),
        "'model.layers.0.mlp.router.weight'",
    ),
    "a tensor of the wrong shape": (
        tensors(**{Q: lambda t: t[:-1].contiguous()}),
        r"'model.layers.1.self_attn.q_proj.weight' of shape \[31, 64\] does not give \[32, 64\]",
    ),
    "a configuration of another model": (config(hidden_size=128), "configuration and weights do not belong together"),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]) and None,
        "model.safetensors",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_error_says_what_is_broken(broken: Path, name: str) -> None:
    change, expected = BROKEN[name]
    change(broken)
    with pytest.raises(CutawayError, match=expected) as raised:
        load(str(broken))
    assert "broken" in str(raised.value), "the error does not say where"


@pytest.mark.parametrize("name", ["no tokenizer", "an unknown architecture", "a missing tensor", "a size in words"])
def test_the_command_says_it_in_one_line(
    broken: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    BROKEN[name][0](broken)
    target = broken.parent / "converted"
    monkeypatch.setattr("sys.argv", ["cutaway", "convert", str(broken), str(target)])
    with pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.out == ""
    assert re.fullmatch(r"error: .*\n", said.err.lstrip("\n")), said.err
    assert not target.exists()
    assert [p.name for p in broken.parent.iterdir()] == ["broken"], "something half-written is left"


@pytest.mark.parametrize(
    ("source", "expected"), [("nowhere.gguf", "check the path"), ("notes.txt", "is not a model"), ("", "no such model")]
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, source: str, expected: str) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(CutawayError, match=expected):
        load(str(tmp_path / source) if source else "")


def test_an_unknown_dtype_is_refused(whole: Path) -> None:
    with pytest.raises(CutawayError, match="dtype: unknown dtype 'int8'"):
        load(str(whole), "int8")


# ---- GGUF


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    save_gguf(checkpoints.model(), checkpoints.tokenizer(), path, "F32")
    return path


def rewritten(path: Path, target: Path, changes: dict[str, Any], **shapes: Any) -> Path:
    """A GGUF file with other metadata (None takes a key out) and tensors changed by `shapes`."""
    file = gguf.read(path)
    metadata = {key: value for key, value in (file.metadata | changes).items() if value is not None}
    loaded = {name: shapes.get(name.replace(".", "__"), lambda t: t)(file.load(name)) for name in file.tensors}
    entries = [(name, tuple(t.shape), "F32", t) for name, t in loaded.items() if t is not None]
    gguf.write(target, metadata, entries)
    return target


def test_a_gguf_file_gives_the_model_it_was_made_of(gguf_file: Path) -> None:
    loaded = load(str(gguf_file))
    assert same(loaded.model, checkpoints.model())
    assert loaded.checkpoint.config["rms_norm_eps"] == 1e-6, "float32 noise is left in"
    text = "Hello, 世界!\n"
    assert loaded.tokenizer.encode(text) == checkpoints.tokenizer().encode(text)


BROKEN_GGUF: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an unknown architecture": ({"general.architecture": "lama"}, {}, "nearest: llama"),
    "no architecture": ({"general.architecture": None}, {}, "unknown architecture ''"),
    "a missing size": ({"llama.embedding_length": None}, {}, "has no 'hidden_size'"),
    "a size in words": ({"llama.embedding_length": "64"}, {}, "width: expected int"),
    "absurdly many layers": ({"llama.block_count": 2**31}, {}, "layers are not plausible"),
    "a rotation that is scaled": (
        {"llama.rope.scaling.type": "spiral"},
        {},
        "rope scaling 'spiral' is not implemented",
    ),
    "a missing tensor": ({}, {"output_norm__weight": lambda t: None}, "'output_norm.weight' is missing"),
    "heads that do not come out even": ({}, {"blk__0__attn_q__weight": lambda t: t[:30]}, r"\[30, 64\] does not give"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, {}, "tokenizer"),
}


@pytest.mark.parametrize("name", BROKEN_GGUF)
def test_one_error_says_what_is_broken_in_a_gguf_file(gguf_file: Path, tmp_path: Path, name: str) -> None:
    changes, shapes, expected = BROKEN_GGUF[name]
    path = rewritten(gguf_file, tmp_path / "broken.gguf", changes, **shapes)
    with pytest.raises(CutawayError, match=expected):
        load(str(path))


@pytest.mark.parametrize(
    "scaling",
    [
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"rope_type": "linear", "factor": 2.2},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 20.0, "original_max_position_embeddings": 32},
    ],
)
def test_the_scaling_of_a_rotation_survives_a_gguf_file(tmp_path: Path, scaling: dict[str, object]) -> None:
    original = checkpoints.model(rope_theta=500000.0, rope_scaling=scaling)
    save_gguf(original, checkpoints.tokenizer(), tmp_path / "scaled.gguf", "F32")
    assert open_checkpoint(tmp_path / "scaled.gguf").spec == original.spec


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling cannot be written"),
        ("llama", {"hidden_act": "gelu"}, "GGUF cannot express layers.0.ffn.activation = gelu"),
        ("llama", {"attention_bias": True}, "GGUF cannot express layers.0.attention.bias = True"),
        (
            "gemma3",
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
            "GGUF cannot express",
        ),
    ],
)
def test_what_gguf_cannot_say_is_not_written(
    tmp_path: Path, family: str, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(CutawayError, match=expected):
        save_gguf(checkpoints.model(family, **changes), checkpoints.tokenizer(), tmp_path / "x.gguf", "F32")
    assert list(tmp_path.iterdir()) == []


def test_every_spelling_of_a_pooling_is_read(tmp_path: Path) -> None:
    path = checkpoints.directory(tmp_path / "bert", "bert")
    spellings = ({"pooling_mode": "cls"}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    for spelling in spellings:
        (path / "1_Pooling" / "config.json").write_text(json.dumps(spelling))
        pooling = open_checkpoint(path).spec.pooling
        assert pooling is not None
        assert pooling.kind == "cls"


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "pooling other"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pooling other"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "has a Dense step"),
    ],
)
def test_a_vector_that_would_be_wrong_is_refused(tmp_path: Path, file: str, content: object, expected: str) -> None:
    path = checkpoints.directory(tmp_path / "bert", "bert")
    (path / file).write_text(json.dumps(content))
    with pytest.raises(CutawayError, match=expected):
        open_checkpoint(path)


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused(whole: Path, device: str) -> None:
    with pytest.raises(CutawayError, match=r"cannot be used.*try \"cpu\""):
        load(str(whole), device=device)


def test_linear_scaling_in_a_gguf_file_is_read(gguf_file: Path, tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}
    path = rewritten(gguf_file, tmp_path / "scaled.gguf", scaling)
    rope = open_checkpoint(path).spec.layers[0].attention.rope
    assert rope is not None
    assert rope.scaling == RopeScaling("linear", 8.0)


def test_a_configuration_is_the_only_thing_that_json_says(whole: Path) -> None:
    """What is written is what transformers writes: plain JSON, no numbers of ours."""
    saved = json.loads((whole / "config.json").read_text())
    assert {key: saved[key] for key in checkpoints.CONFIG} == checkpoints.CONFIG
    assert saved["dtype"] == "float32"


def test_an_unknown_architecture_is_told_what_comes_nearest_and_differs(broken: Path) -> None:
    """A Llama with a norm that Llama does not have."""
    from safetensors.torch import load_file, save_file

    configure(broken, architectures=["LemurForCausalLM"])
    path, extra = broken / "model.safetensors", "model.layers.0.self_attn.v_norm.weight"
    whole = load_file(path)
    save_file({**whole, extra: torch.ones(4)}, path)
    with pytest.raises(CutawayError) as caught:
        open_checkpoint(broken)
    assert (
        f"nearest: LlamaForCausalLM ({len(whole)} of {len(whole) + 1} tensors fit; not '{extra}')" in caught.value.hint
    )
