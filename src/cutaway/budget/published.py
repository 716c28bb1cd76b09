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
    """config: what differs from the family's defaults. change: what no family's configuration can say.

    said: parameters as the makers round them, in billions, in all and, with experts, of a token.
    """

    architecture: str
    config: dict[str, Any]
    source: str
    said: tuple[float, ...] = ()
    change: Callable[[Spec], Spec] = lambda spec: spec

    @property
    def spec(self) -> Spec:
        """The architecture."""
        config = {"architectures": [self.architecture], **self.config}
        return self.change(spec_of(family_of_architecture([self.architecture], self.source), config))


SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


def _gpt(width: int, layers: int, heads: int, context: int = 1024, vocab: int = 50257) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context, "vocab_size": vocab}


def _bert(width: int, layers: int, heads: int, vocab: int = 30522, context: int = 512) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab,
        "intermediate_size": 4 * width, "max_position_embeddings": context, "type_vocab_size": 2,
        "cutaway_pooling": {"dense": True},
    }  # fmt: skip


def _llama(*sizes: int, **more: Any) -> dict[str, Any]:
    """sizes: in the order of `SIZES`."""
    named = dict(zip(SIZES, sizes, strict=True))
    return {**named, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **more}


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
    "tie_word_embeddings": False, "attention_bias": False, "rope_interleave": True, "num_nextn_predict_layers": 1,
}  # fmt: skip
_DEEPSEEK_V2 = {
    "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
    "num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 2,
    "n_routed_experts": 160, "routed_scaling_factor": 16.0, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "topk_method": "group_limited_greedy",
    "n_group": 8, "topk_group": 3, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "norm_topk_prob": False,
    "hidden_act": "silu", "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "tie_word_embeddings": False,
    "attention_bias": False,
}  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": layers,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": experts,
        "num_experts_per_tok": 4, "sliding_window": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0, "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu",
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
    }  # fmt: skip


_GPT2, _RADFORD = "GPT2LMHeadModel", "Radford et al. 2019; github.com/openai/gpt-2"
_LLAMAS, _META = "LlamaForCausalLM", "Grattafiori et al. 2024, arXiv:2407.21783"
_DEVLIN = "Devlin et al. 2018, arXiv:1810.04805"

PUBLISHED: dict[str, Published] = {
    "gpt-1": Published(_GPT2, _gpt(768, 12, 12, 512, 40478), "Radford et al. 2018", (0.117,), _post_norm),
    "gpt-2-small": Published(_GPT2, _gpt(768, 12, 12), _RADFORD, (0.124,)),
    "gpt-2-medium": Published(_GPT2, _gpt(1024, 24, 16), _RADFORD, (0.355,)),
    "gpt-2-large": Published(_GPT2, _gpt(1280, 36, 20), _RADFORD, (0.774,)),
    "gpt-2-xl": Published(_GPT2, _gpt(1600, 48, 25), _RADFORD, (1.558,)),
    "gpt-3": Published(_GPT2, _gpt(12288, 96, 96, 2048), "Brown et al. 2020, arXiv:2005.14165, table 2.1", (175,)),
    "bert-base": Published("BertModel", _bert(768, 12, 12), _DEVLIN, (0.110,)),
    "bert-large": Published("BertModel", _bert(1024, 24, 16), _DEVLIN, (0.340,)),
    "roberta-base": Published(
        "RobertaModel", _bert(768, 12, 12, 50265, 514) | {"type_vocab_size": 1}, "Liu et al. 2019, arXiv:1907.11692",
        (0.125,),
    ),
    "albert-base": Published(
        "AlbertModel", _bert(768, 12, 12, 30000) | {"embedding_size": 128}, "Lan et al. 2019, arXiv:1909.11942",
        (0.012,),
    ),
    "deberta-v3-base": Published(
        "DebertaV2Model",
        {**_bert(768, 12, 12, 128100), "type_vocab_size": 0, "relative_attention": True, "position_buckets": 256,
         "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "max_relative_positions": -1,
         "position_biased_input": False, "cutaway_pooling": {"dense": False}},
        "He et al. 2021, arXiv:2111.09543", (0.184,),
    ),
    "minilm-l6": Published("BertModel", _bert(384, 6, 12), "Wang et al. 2020, arXiv:2002.10957", (0.0227,)),
    "t5-small": Published(
        "T5ForConditionalGeneration",
        {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        "Raffel et al. 2020, arXiv:1910.10683", (0.060,),
    ),
    "llama-3-8b": Published(_LLAMAS, _llama(4096, 32, 32, 8, 14336, 128256, **_LLAMA3), _META, (8,)),
    "llama-3-70b": Published(_LLAMAS, _llama(8192, 80, 64, 8, 28672, 128256, **_LLAMA3), _META, (70,)),
    "smollm2-135m": Published(
        _LLAMAS, _llama(576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True, rope_theta=100000.0),
        "Allal et al. 2025, arXiv:2502.02737", (0.135,),
    ),
    "mistral-7b": Published(
        "MistralForCausalLM",
        _llama(4096, 32, 32, 8, 14336, 32000, head_dim=128, sliding_window=4096, tie_word_embeddings=False),
        "Jiang et al. 2023, arXiv:2310.06825", (7.24,),
    ),
    "mixtral-8x7b": Published(
        "MixtralForCausalLM",
        _llama(4096, 32, 32, 8, 14336, 32000, head_dim=128, num_local_experts=8, num_experts_per_tok=2,
               sliding_window=None, tie_word_embeddings=False, max_position_embeddings=32768),
        "Jiang et al. 2024, arXiv:2401.04088", (47, 13),
    ),
    "gemma-2-2b": Published(
        "Gemma2ForCausalLM",
        _llama(2304, 26, 8, 4, 9216, 256000, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096),
        "Gemma Team 2024, arXiv:2408.00118", (2.6,),
    ),
    "gemma-3-270m": Published(
        "Gemma3ForCausalLM",
        _llama(640, 18, 4, 1, 2048, 262144, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
               max_position_embeddings=32768),
        "Gemma Team 2025, arXiv:2503.19786; huggingface.co/google/gemma-3-270m", (0.270,),
    ),
    "qwen2.5-0.5b": Published(
        "Qwen2ForCausalLM",
        _llama(896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True, use_sliding_window=False,
               max_position_embeddings=32768),
        "Yang et al. 2024, arXiv:2412.15115", (0.49,),
    ),
    "qwen3-0.6b": Published(
        "Qwen3ForCausalLM",
        _llama(1024, 28, 16, 8, 3072, 151936, head_dim=128, tie_word_embeddings=True, use_sliding_window=False,
               max_position_embeddings=40960),
        "Yang et al. 2025, arXiv:2505.09388", (0.6,),
    ),
    "qwen3-30b-a3b": Published(
        "Qwen3MoeForCausalLM",
        _llama(2048, 48, 32, 4, 6144, 151936, head_dim=128, moe_intermediate_size=768, num_experts=128,
               num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
               tie_word_embeddings=False, use_sliding_window=False, max_position_embeddings=40960),
        "Yang et al. 2025, arXiv:2505.09388", (30.5, 3.3),
    ),
    "deepseek-v2": Published("DeepseekV2ForCausalLM", _DEEPSEEK_V2, "DeepSeek-AI 2024, arXiv:2405.04434", (236, 21)),
    "deepseek-v3": Published("DeepseekV3ForCausalLM", _DEEPSEEK, "DeepSeek-AI 2024, arXiv:2412.19437", (671, 37)),
    "deepseek-r1": Published("DeepseekV3ForCausalLM", _DEEPSEEK, "DeepSeek-AI 2025, arXiv:2501.12948", (671, 37)),
    "gpt-oss-20b": Published("GptOssForCausalLM", _gpt_oss(24, 32), "OpenAI 2025, arXiv:2508.10925", (20.9, 3.6)),
    "gpt-oss-120b": Published("GptOssForCausalLM", _gpt_oss(36, 128), "OpenAI 2025, arXiv:2508.10925", (117, 5.1)),
}  # fmt: skip


def spec_named(name: str) -> Spec:
    """The architecture of a published model, or of any checkpoint that is here. Errors: neither, with the nearest.

    Names are those that `cutaway inspect` takes as well: of a path that exists, the checkpoint is meant.
    """
    if name in PUBLISHED and not Path(name).exists():
        return PUBLISHED[name].spec
    try:
        return open_checkpoint(Path(sources.resolve(name))).spec
    except CutawayError as error:
        near = difflib.get_close_matches(name.lower(), PUBLISHED, 3, 0.5)
        if not near:
            raise
        raise NotFound(f"no model {name!r}: {error.what}", hint=f"published shapes: {', '.join(near)}") from None
