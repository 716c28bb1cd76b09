"""Families with experts as GGUF files: back as they were, under names that llama.cpp knows, and the same logits."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import gguf as theirs
import numpy as np
import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.models.block import positions_of
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import config_of_gguf, spec_of
from cutaway.nn.attention import BlockDiagonal
from cutaway.weights import gguf
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.save import save_gguf
from weights.checkpoints import CONFIG, tokenizer

STOCK = {
    **{key: value for key, value in CONFIG.items() if key != "head_dim"},
    **{"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4},
}
MANY = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    **{"num_key_value_heads": 4, "q_lora_rank": 20, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "v_head_dim": 16},
    **{"qk_rope_head_dim": 8, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3},
    **{"moe_intermediate_size": 48, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1}
GROUPS = {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "num_nextn_predict_layers": 0}
ALL = {"n_group": 1, "topk_group": 1, "topk_method": "greedy"}

# name -> the family's configuration; the name begins with the family's.
CASES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen2_moe": {**MANY, "shared_expert_intermediate_size": 32, "norm_topk_prob": False},
    "qwen3_moe": {**MANY, "norm_topk_prob": True, "head_dim": 24},
    "deepseek_v2": {**LATENT, **ALL},
    "deepseek_v2-yarn": {**LATENT, **ALL, "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
    "deepseek_v3": {**LATENT, **GROUPS},
    "deepseek_v3-yarn": {**LATENT, **GROUPS, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "gpt_oss": {
        **{"head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8},
        "rope_scaling": {**YARN, "truncate": True},  # whatever a model says: llama.cpp rounds
    },
}


def model(name: str) -> Decoder:
    made = build(spec_of(FAMILIES[name.partition("-")[0]], {**STOCK, **CASES[name]}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            spread = 2 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (parameter.dim() == 1))
    assert isinstance(made, Decoder)
    return made


@pytest.fixture(params=CASES)
def written(request, tmp_path) -> tuple[str, Decoder, Path]:
    made = model(request.param)
    save_gguf(made, tokenizer(), tmp_path / "model.gguf", "F32")
    return request.param, made, tmp_path / "model.gguf"


def test_a_file_gives_the_model_it_was_made_of(written):
    """A GGUF of gpt-oss always means a ramp that is not rounded: the model's, not llama.cpp's."""
    name, made, path = written
    opened = open_checkpoint(path)
    assert opened.family.name == name.partition("-")[0]
    if name != "gpt_oss":
        assert opened.spec == made.spec
    found, expected = opened.model().state_dict(), made.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)


def test_llamacpp_knows_every_name(written):
    """By the tables of its own Python package: tensors of the architecture, and keys of metadata."""
    _, _, path = written
    file = gguf.read(path)
    architecture = next(a for a, n in theirs.MODEL_ARCH_NAMES.items() if n == file.metadata["general.architecture"])
    known = {theirs.TENSOR_NAMES[t].format(bid=0) for t in theirs.MODEL_TENSORS[architecture]}
    said = {re.sub(r"^blk\.\d+\.", "blk.0.", name).rpartition(".")[0] for name in file.tensors}
    assert said - known == set()
    keys = {value.replace("{arch}", theirs.MODEL_ARCH_NAMES[architecture]) for value in every_key()}
    assert {key for key in file.metadata if not key.startswith("tokenizer.")} - keys == set()


def every_key() -> set[str]:
    """Of the nested classes of constants that the package has."""
    groups = [group for group in vars(theirs.Keys).values() if isinstance(group, type)]
    return {value for group in groups for value in vars(group).values() if isinstance(value, str)}


def test_what_chooses_among_experts_is_kept_in_float32(tmp_path):
    save_gguf(model("deepseek_v3"), tokenizer(), tmp_path / "model.gguf", "Q8_0")
    types = {name: info.type for name, info in gguf.read(tmp_path / "model.gguf").tensors.items()}
    assert {types[f"blk.1.{name}"] for name in ("ffn_gate_inp.weight", "exp_probs_b.bias")} == {"F32"}
    assert {types[f"blk.1.{name}"] for name in ("ffn_up_shexp.weight", "ffn_gate_shexp.weight")} == {"Q8_0"}


@pytest.mark.parametrize(
    ("change", "names"),
    [({"expert_gating_func": 2}, "scoring_func"), ({"attention.key_length_mla": None}, "one matrix")],
)
def test_what_deepseek2_may_mean_besides_is_refused(change, names, tmp_path):
    """llama.cpp uses the name for other models, too, and used it before keys and values stood apart."""
    save_gguf(model("deepseek_v2"), tokenizer(), tmp_path / "model.gguf", "F32")
    file, family = gguf.read(tmp_path / "model.gguf"), FAMILIES["deepseek_v2"]
    metadata = dict(file.metadata) | {f"deepseek2.{key}": value for key, value in change.items()}
    said = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(CutawayError, match=names):
        spec_of(family, config_of_gguf(family, said, {name: info.shape for name, info in file.tensors.items()}))


if importlib.util.find_spec("llama_cpp"):

    def test_llamacpp_computes_the_same(written):
        """Where llama-cpp-python is installed; in float32 throughout, to rounding."""
        from llama_cpp import Llama

        _, made, path = written
        tokens_T = torch.randint(256, (40,), generator=torch.Generator().manual_seed(2))
        settings = {"n_threads": 1, "type_k": 0, "type_v": 0, "flash_attn": False}
        other = Llama(str(path), n_ctx=64, logits_all=True, verbose=False, **settings)
        other.eval(tokens_T.tolist())
        with torch.no_grad():
            found_TV = made.logits(made(tokens_T, positions_of([40]), BlockDiagonal([40])))
        expected_TV = torch.from_numpy(np.array(other.scores[:40]))
        torch.testing.assert_close(found_TV, expected_TV, rtol=0, atol=2e-5 * float(expected_TV.abs().max()))
