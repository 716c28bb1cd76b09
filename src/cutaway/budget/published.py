"""Shapes of well-known models, as their config.json states them, read by the same family tables as any checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutaway.errors import CutawayError, NotFound
from cutaway.models.families import family_of_architecture
from cutaway.models.families.table import spec_of
from cutaway.models.spec import LayerSpec, Spec
from cutaway.weights import sources
from cutaway.weights.checkpoint import open_checkpoint


@dataclass(frozen=True)
class Published:
    """config: what differs from the family's defaults. change: what no family's configuration can say."""

    architecture: str
    config: dict[str, Any]
    source: str
    change: Callable[[Spec], Spec] = lambda spec: spec

    @property
    def spec(self) -> Spec:
        """The architecture."""
        config = {"architectures": [self.architecture], **self.config}
        return self.change(spec_of(family_of_architecture([self.architecture], self.source), config))


def _gpt(width: int, layers: int, heads: int, context: int = 1024, vocab: int = 50257) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context, "vocab_size": vocab}


def _bert(width: int, layers: int, heads: int, vocab: int = 30522, context: int = 512) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab,
        "intermediate_size": 4 * width, "max_position_embeddings": context, "type_vocab_size": 2,
        "cutaway_pooling": {"dense": True},
    }  # fmt: skip


def _llama(width: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": ffn, "vocab_size": vocab, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **more,
    }  # fmt: skip


def _post_norm(spec: Spec) -> Spec:
    """GPT-1 normalizes after each sublayer, so that nothing is left to do at the end."""

    def changed(layer: LayerSpec) -> LayerSpec:
        return replace(layer, placement="post")

    return replace(spec, final_norm=None, layers=tuple(map(changed, spec.layers)))


_LLAMA3 = {"rope_theta": 500000.0, "tie_word_embeddings": False}
_YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0,
         "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
_DEEPSEEK = {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
    "n_routed_experts": 256, "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True, "hidden_act": "silu",
    "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": _YARN,
    "tie_word_embeddings": False, "attention_bias": False, "rope_interleave": True,
}  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": layers,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": experts,
        "num_experts_per_tok": 4, "sliding_window": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0, "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu",
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
    }  # fmt: skip


_GPT2, _RADFORD = "GPT2LMHeadModel", "Radford et al. 2019; huggingface.co/openai-community/gpt2"
_LLAMAS, _META = "LlamaForCausalLM", "Grattafiori et al. 2024, arXiv:2407.21783"

PUBLISHED: dict[str, Published] = {
    "gpt-1": Published(_GPT2, _gpt(768, 12, 12, 512, 40478), "Radford et al. 2018", _post_norm),
    "gpt-2-small": Published(_GPT2, _gpt(768, 12, 12), _RADFORD),
    "gpt-2-medium": Published(_GPT2, _gpt(1024, 24, 16), _RADFORD),
    "gpt-2-large": Published(_GPT2, _gpt(1280, 36, 20), _RADFORD),
    "gpt-2-xl": Published(_GPT2, _gpt(1600, 48, 25), _RADFORD),
    "gpt-3": Published(_GPT2, _gpt(12288, 96, 96, 2048), "Brown et al. 2020, arXiv:2005.14165, table 2.1"),
    "bert-base": Published("BertModel", _bert(768, 12, 12), "Devlin et al. 2018, arXiv:1810.04805"),
    "bert-large": Published("BertModel", _bert(1024, 24, 16), "Devlin et al. 2018, arXiv:1810.04805"),
    "minilm-l6": Published("BertModel", _bert(384, 6, 12), "Wang et al. 2020, arXiv:2002.10957"),
    "t5-small": Published(
        "T5ForConditionalGeneration",
        {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        "Raffel et al. 2020, arXiv:1910.10683",
    ),
    "llama-3-8b": Published(_LLAMAS, _llama(4096, 32, 32, 8, 14336, 128256, **_LLAMA3), _META),
    "llama-3-70b": Published(_LLAMAS, _llama(8192, 80, 64, 8, 28672, 128256, **_LLAMA3), _META),
    "smollm2-135m": Published(
        _LLAMAS, _llama(576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True, rope_theta=100000.0),
        "Allal et al. 2025, arXiv:2502.02737",
    ),
    "mistral-7b": Published(
        "MistralForCausalLM",
        _llama(4096, 32, 32, 8, 14336, 32000, head_dim=128, sliding_window=4096, tie_word_embeddings=False),
        "Jiang et al. 2023, arXiv:2310.06825",
    ),
    "mixtral-8x7b": Published(
        "MixtralForCausalLM",
        _llama(4096, 32, 32, 8, 14336, 32000, head_dim=128, num_local_experts=8, num_experts_per_tok=2,
               sliding_window=None, tie_word_embeddings=False),
        "Jiang et al. 2024, arXiv:2401.04088",
    ),
    "qwen2.5-0.5b": Published(
        "Qwen2ForCausalLM",
        _llama(896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True, use_sliding_window=False, head_dim=64),
        "Yang et al. 2024, arXiv:2412.15115",
    ),
    "qwen3-0.6b": Published(
        "Qwen3ForCausalLM",
        _llama(1024, 28, 16, 8, 3072, 151936, head_dim=128, tie_word_embeddings=True, use_sliding_window=False),
        "Yang et al. 2025, arXiv:2505.09388",
    ),
    "deepseek-v3": Published("DeepseekV3ForCausalLM", _DEEPSEEK, "DeepSeek-AI 2024, arXiv:2412.19437"),
    "deepseek-r1": Published("DeepseekV3ForCausalLM", _DEEPSEEK, "DeepSeek-AI 2025, arXiv:2501.12948"),
    "gpt-oss-20b": Published("GptOssForCausalLM", _gpt_oss(24, 32), "OpenAI 2025, arXiv:2508.10925"),
    "gpt-oss-120b": Published("GptOssForCausalLM", _gpt_oss(36, 128), "OpenAI 2025, arXiv:2508.10925"),
}  # fmt: skip


def spec_named(name: str) -> Spec:
    """The architecture of a published model, or of any checkpoint that is here. Errors: neither, with the nearest."""
    if name in PUBLISHED:
        return PUBLISHED[name].spec
    try:
        return open_checkpoint(Path(sources.resolve(name))).spec
    except CutawayError as error:
        near = difflib.get_close_matches(name.lower(), PUBLISHED, 3, 0.5)
        if not near:
            raise
        raise NotFound(f"no model {name!r}: {error.what}", hint=f"published shapes: {', '.join(near)}") from None
