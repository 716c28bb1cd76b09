"""What is read of adapters, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from cutaway.errors import CutawayError, NotFound
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.weights.adapters import ALLOWED, OBEYED, SILENT, read_adapter
from engine.tiny import adapter, spec
from kit import lora
from kit.proofs.adapters import PROOFS

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora"


@pytest.mark.parametrize("name", [name for name in PROOFS if "reading" in name])
def test_updates_are_those_of_peft(name):
    PROOFS[name]()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats(dtype, tmp_path):
    wide = read_adapter(adapter(tmp_path, spec()), spec())
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    narrow = read_adapter(tmp_path, spec())
    assert narrow.keys() == wide.keys()
    for name, update in wide.items():
        assert torch.equal(narrow[name].a_RK, update.a_RK.to(dtype))
        assert narrow[name].scale == update.scale == 2


def test_a_bare_base_model_was_adapted(tmp_path):
    """Names without the "model." of the class with a head."""
    wanted = read_adapter(adapter(tmp_path, spec()), spec())
    file = tmp_path / "adapter_model.safetensors"
    save_file({name.replace("model.model.", "model.", 1): t for name, t in load_file(file).items()}, file)
    assert read_adapter(tmp_path, spec()).keys() == wanted.keys()


CONFIGS: dict[str, dict[str, Any]] = {
    "use_dora = True is not": {"use_dora": True},
    "bias = 'all' is not": {"bias": "all"},
    "modules_to_save = ['lm_head']": {"modules_to_save": ["lm_head"]},
    "lora_bias = True": {"lora_bias": True},
    "peft_type = 'IA3'": {"peft_type": "IA3"},
    "init_lora_weights = 'pissa'": {"init_lora_weights": "pissa"},
    "alora_invocation_tokens = [1]": {"alora_invocation_tokens": [1]},
    "anything_new = 1 is not": {"anything_new": 1},
    "says rank 5 for 'model.layers.0.mlp.down_proj'": {"r": 5},
    "r is 0 for": {"r": 0},
    "r is True for": {"r": True},
    "lora_alpha is 'x' for": {"lora_alpha": "x"},
    "lora_alpha is inf for": {"lora_alpha": float("inf")},
    "lora_alpha is None for": {"lora_alpha": None},
    "bad rank_pattern": {"rank_pattern": {"(": 4}},
    "bad alpha_pattern": {"alpha_pattern": [1]},
}


@pytest.mark.parametrize("why", CONFIGS)
def test_configurations_that_are_refused(why, tmp_path):
    with pytest.raises(CutawayError) as caught:
        read_adapter(adapter(tmp_path, spec(), **CONFIGS[why]), spec())
    assert why in str(caught.value)
    assert caught.value.where.endswith("adapter_config.json")


def _without(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def _with(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return lambda tensors: tensors.update({name: torch.zeros(*shape, dtype=dtype)})


TENSORS = {
    "has only one of A and B for 'model.layers.0.self_attn.q_proj'": _without(f"{Q}_A.weight"),
    "holds no tensors": lambda tensors: tensors.clear(),
    "A [4, 47] and B [60, 4] of": _with(f"{Q}_A.weight", 4, 47),
    "A [4, 48] and B [61, 4] of": _with(f"{Q}_B.weight", 61, 4),
    "A [4, 48] and B [60, 3] of": _with(f"{Q}_B.weight", 60, 3),
    "says rank 4 for 'model.layers.0.self_attn.q_proj', its matrices have 6": _with(f"{Q}_A.weight", 6, 48),
    "'base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector'": _with(f"{Q}_magnitude_vector", 60),
    "'base_model.model.lm_head.weight' of shape": _with("base_model.model.lm_head.weight", 3, 3),
    "'base_model.model.model.embed_tokens.lora_embedding_A'": _with(
        "base_model.model.model.embed_tokens.lora_embedding_A", 3, 3
    ),
    "adapts 'lm_head'": lambda t: [_with(f"base_model.model.lm_head.lora_{x}.weight", 4, 4)(t) for x in "AB"],
    "adapts 'model.layers.2.self_attn.q_proj'": lambda t: [
        _with(f"{Q}_{x}.weight".replace("layers.0", "layers.2"), 4, 4)(t) for x in "AB"
    ],
    "q_proj.lora_A.weight' of shape [4, 48, 1]": _with(f"{Q}_A.weight", 4, 48, 1),
    "q_proj.lora_A.weight' of shape [4, 48] is": _with(f"{Q}_A.weight", 4, 48, dtype=torch.int8),
}


@pytest.mark.parametrize("why", TENSORS)
def test_tensors_that_are_refused(why, tmp_path):
    file = adapter(tmp_path, spec()) / "adapter_model.safetensors"
    tensors = load_file(file)
    TENSORS[why](tensors)
    save_file(tensors, file)
    with pytest.raises(CutawayError) as caught:
        read_adapter(tmp_path, spec())
    assert why in str(caught.value)
    assert str(tmp_path) in caught.value.where


def test_files_that_are_missing_or_no_files(tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        folder = adapter(tmp_path / name, spec())
        (folder / name).unlink()
        with pytest.raises(NotFound, match=f"holds no {name}"):
            read_adapter(folder, spec())
    folder = adapter(tmp_path / "damaged", spec())
    (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CutawayError, match="damaged"):
        read_adapter(folder, spec())


def test_what_models_cannot_be_adapted():
    """Matrices that latent attention folds into others, and a model with a source."""
    with pytest.raises(CutawayError, match="no linear layer of deepseek_v2 that can be adapted"):
        read_adapter(lora.adapter("deepseek_v2", "folded").folder, lora.ours("deepseek_v2").spec)
    t5 = {"vocab_size": 97, "d_model": 48, "d_ff": 53, "d_kv": 10, "num_heads": 6, "num_layers": 2}
    with pytest.raises(CutawayError, match="only decoders without a source"):
        read_adapter(lora.adapter("llama", "a").folder, spec_of(FAMILIES["t5"], t5))


def test_every_setting_of_peft_is_known_or_off(tmp_path):
    """A plain adapter passes; what PEFT may add later is refused unless it is off."""
    known = {*ALLOWED, *OBEYED, *SILENT}
    stated = json.loads((lora.adapter("llama", "a").folder / "adapter_config.json").read_text())
    assert all(not value for key, value in stated.items() if key not in known)
    with warnings.catch_warnings(action="ignore"):
        assert known - {"auto_mapping"} <= {*peft.LoraConfig().to_dict()}


def test_paths_are_folders(tmp_path):
    with pytest.raises(NotFound, match="holds no adapter_config"):
        read_adapter(Path(tmp_path, "nothing"), spec())
