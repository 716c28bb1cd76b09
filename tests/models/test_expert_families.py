"""What sets families with experts apart, beside the proofs that every family passes: packed weights, blocks that
predict ahead, published sizes and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.build import build
from cutaway.models.cost import Cost
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import config_of, spec_of
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.packed import fp8, mxfp4
from cutaway.weights.save import save_directory
from kit import twins
from kit.proofs.ahead import with_block_ahead
from kit.twins import Tokenizerless

LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4}

# name -> the published configuration, as far as it says what is computed, and the number of parameters published.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "Mixtral-8x7B": (
        "mixtral",
        {
            **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768},
            **{"num_local_experts": 8, "num_experts_per_tok": 2},
        },
        46_702_792_704,
    ),
    "Qwen1.5-MoE-A2.7B": (
        "qwen2_moe",
        {
            **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24},
            **{"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 8192},
            **{"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408},
            **{"shared_expert_intermediate_size": 5632, "norm_topk_prob": False, "decoder_sparse_step": 1},
        },
        14_315_784_192,
    ),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {
            **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48},
            **{"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960},
            **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
        },
        30_532_122_624,
    ),
    "DeepSeek-V2-Lite": (
        "deepseek_v2",
        {
            **{"vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27},
            **{"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 163840},
            **{"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
            **{"v_head_dim": 128, "n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1408},
            **{"n_shared_experts": 2, "first_k_dense_replace": 1, "topk_method": "greedy", "n_group": 1},
            **{"topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": False, "scoring_func": "softmax"},
        },
        15_706_484_224,
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            **{"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61},
            **{"num_attention_heads": 128, "num_key_value_heads": 128, "max_position_embeddings": 163840},
            **{"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
            **{"v_head_dim": 128, "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048},
            **{"n_shared_experts": 1, "first_k_dense_replace": 3, "topk_method": "noaux_tc", "n_group": 8},
            **{"topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "scoring_func": "sigmoid"},
            **{"num_nextn_predict_layers": 0, "moe_layer_freq": 1},
        },
        671_026_419_200,
    ),
    "gpt-oss-120b": (
        "gpt_oss",
        {
            **{"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36},
            **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "attention_bias": True},
            **{"max_position_embeddings": 131072, "sliding_window": 128, "num_local_experts": 128},
            **{"num_experts_per_tok": 4, "swiglu_limit": 7.0, "rope_theta": 150000.0},
        },
        116_829_156_672,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_published_size(name):
    """Counted from the configuration; and a token uses all but the experts that it is not sent to."""
    family, config, total = PUBLISHED[name]
    spec = spec_of(FAMILIES[family], {**LLAMA, **config})
    cost = Cost(spec)
    cost.check(build(spec, "meta"))
    assert cost.parameters == total
    used = sum(int(part.parameters * part.active) for part in cost.parts)
    count = config.get("num_experts") or config.get("n_routed_experts") or config["num_local_experts"]
    width, inner = config["hidden_size"], config.get("moe_intermediate_size", config["intermediate_size"])
    biases = 2 * inner + width if family == "gpt_oss" else 0
    layers = config["num_hidden_layers"] - config.get("first_k_dense_replace", 0)
    assert total - used == layers * (count - config["num_experts_per_tok"]) * (3 * width * inner + biases)


def test_what_is_said_of_deepseek_v3():
    """671.03 billion parameters, of which a token uses 36.63 without the input table; 70,272 bytes a token in cache."""
    cost = Cost(spec_of(FAMILIES["deepseek_v3"], {**LLAMA, **PUBLISHED["DeepSeek-V3"][1]}))
    used = sum(int(part.parameters * part.active) for part in cost.parts if part.use != "look up")
    assert round(cost.parameters / 1e9, 2) == 671.03
    assert round(used / 1e9, 2) == 36.63
    assert cost.kv_bytes_per_token("bfloat16").value == 70_272


def saved(path: Path, tensors: dict[str, Tensor], config: dict[str, Any], architecture: str) -> Path:
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    return path


# ---- DeepSeek-V3's block that predicts ahead; that it predicts the same is a proof of the kit


@pytest.fixture
def predicting_ahead(tmp_path) -> Path:
    """A directory as DeepSeek published it."""
    main, _, tensors = with_block_ahead()
    return saved(tmp_path, tensors, main.config.to_dict(), "DeepseekV3ForCausalLM")


def test_blocks_ahead_survive_being_saved(predicting_ahead, tmp_path):
    model = open_checkpoint(predicting_ahead).model(torch.float64)
    save_directory(model, Tokenizerless(), tmp_path / "saved", torch.float64)
    again = open_checkpoint(tmp_path / "saved").model(torch.float64)
    assert len(again.spec.ahead) == 1
    found, expected = again.state_dict(), model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_blocks_ahead_that_transformers_dropped_are_not_missed(predicting_ahead):
    """It leaves them out when it saves, and their number in config.json."""
    depth = twins.twin("deepseek_v3").reference.config.num_hidden_layers
    tensors = load_file(predicting_ahead / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if f"layers.{depth}." not in name}
    save_file(kept, predicting_ahead / "model.safetensors")
    assert json.loads((predicting_ahead / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert open_checkpoint(predicting_ahead).model().spec.ahead == ()


# ---- packed weights


def test_experts_in_mxfp4_are_read(tmp_path):
    """A directory as OpenAI published it: the same model as with the decoded weights."""
    settings = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 3, "num_experts_per_tok": 2}
    config = {**twins.twin("gpt_oss").config, **settings}
    plain = build(spec_of(FAMILIES["gpt_oss"], config))
    generator = torch.Generator().manual_seed(3)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    save_directory(plain, Tokenizerless(), tmp_path / "plain", torch.bfloat16)
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = tensors[name].shape
        codes = torch.randint(256, (experts, outer, inner // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 124, codes.shape[:-1], generator=generator).to(torch.uint8)
        tensors[name] = mxfp4(codes, scales)
        tensors |= {f"{name}_blocks": codes, f"{name}_scales": scales}
    packed = {n: t for n, t in tensors.items() if f"{n}_blocks" not in tensors}
    whole = {n: t for n, t in tensors.items() if not n.endswith(("_blocks", "_scales"))}
    (tmp_path / "packed").mkdir()
    opened = [
        open_checkpoint(saved(tmp_path / folder, part, config, "GptOssForCausalLM"))
        for folder, part in (("packed", packed), ("plain", whole))
    ]
    assert opened[0].stored_type("layers.0.ffn.down") == "MXFP4"
    found, expected = (checkpoint.model().state_dict() for checkpoint in opened)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_in_fp8_are_read(tmp_path):
    """A directory as DeepSeek published it: matrices in float8 with a scale per tile, each expert's too."""
    twin = twins.twin("deepseek_v3")
    matrices = [n for n in twin.state if n.endswith("_proj.weight")]
    whole = {n: t.float() for n, t in twin.state.items()}
    packed = dict(whole)
    for name in matrices:
        scale = torch.tensor([[whole[name].abs().max() / 448]])
        packed[name] = (whole[name] / scale).to(torch.float8_e4m3fn)
        packed[f"{name}_scale_inv"] = scale
        whole[name] = fp8(packed[name], scale)
    found, expected = {}, {}
    for folder, part, state in (("packed", packed, found), ("whole", whole, expected)):
        (tmp_path / folder).mkdir()
        path = saved(tmp_path / folder, part, twin.config, "DeepseekV3ForCausalLM")
        state.update(open_checkpoint(path).model().state_dict())
    assert len(matrices) > 20
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---- what bfloat16 would round away, and what is refused


def test_the_bias_that_chooses_keeps_float32_and_gets_no_gradient(tmp_path):
    twin = twins.twin("deepseek_v3")
    model = twins.ours(twin, torch.bfloat16)
    biases = {name: p for name, p in model.named_parameters() if name.endswith("choice_bias")}
    assert len(biases) == 2
    assert {(p.dtype, p.requires_grad) for p in biases.values()} == {(torch.float32, False)}
    assert {p.requires_grad for name, p in model.named_parameters() if name not in biases} == {True}
    save_directory(model, Tokenizerless(), tmp_path / "saved", torch.bfloat16)
    types = {name: t.dtype for name, t in load_file(tmp_path / "saved" / "model.safetensors").items()}
    assert {dtype for name, dtype in types.items() if name.endswith("correction_bias")} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "change", "names"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, r"router\.top_k"),
        ("mixtral", {"num_local_experts": 0}, "count"),
        ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3_moe", {"moe_intermediate_size": 0}, r"expert\.width"),
        ("deepseek_v2", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method"),
        ("deepseek_v2", {"n_group": 3}, r"router\.groups"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek_v3", {"topk_group": 5}, r"router\.kept_groups"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, r"router\.top_k"),
        ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit"),
        ("gpt_oss", {"sliding_window": None}, "sliding_window"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(name, change, names):
    twin = twins.twin(name)
    with pytest.raises(CutawayError, match=names):
        spec_of(twin.family, twin.config | change)


def test_layers_of_several_kinds_are_not_saved_as_if_they_were_of_one():
    spec = twins.ours(twins.twin("qwen3_moe")).spec
    ffn = replace(spec.layers[0].ffn, count=9)
    with pytest.raises(CutawayError, match="two kinds"):
        config_of(FAMILIES["qwen3_moe"], replace(spec, layers=(replace(spec.layers[0], ffn=ffn), *spec.layers[1:])))
