"""What sets families with experts apart, beside the proofs that every family passes: packed weights, blocks that
predict ahead, published sizes, refusals, and the same tokens as transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError
from cutaway.models.build import build
from cutaway.models.cost import Cost
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.weights.checkpoint import open_checkpoint
from cutaway.weights.packed import fp8, mxfp4
from cutaway.weights.save import save_directory
from kit import twins
from kit.precision import all_float64
from kit.twins import Tokenizerless

EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4}

# name -> the published configuration, as far as it says what is computed; parameters, and those a token uses.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "Mixtral-8x7B": (
        "mixtral",
        {
            **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768},
            **{"num_local_experts": 8, "num_experts_per_tok": 2},
        },
        46_702_792_704,
        12_879_925_248,
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
        2_689_173_504,
    ),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {
            **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48},
            **{"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960},
            **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
        },
        30_532_122_624,
        3_353_554_944,
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
        2_661_147_648,
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
        37_552_297_472,
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
        5_712_654_336,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_published_size(name):
    """Counted from the configuration; a model without memory holds the same numbers."""
    family, config, total, active = PUBLISHED[name]
    spec = spec_of(FAMILIES[family], {**LLAMA, **config})
    cost = Cost(spec)
    cost.check(build(spec, "meta"))
    assert cost.parameters == total
    assert sum(int(p.weights * p.active) + p.bias for p in cost.parts) == active
