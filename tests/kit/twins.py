"""Loud twins: tiny models of transformers against which a family of ours is proven, values and gradients.

Freshly initialized, a tiny reference hides what it should prove: norm weights are one, biases zero, and weights so
small that attention is nearly uniform, whatever rotation and scale do inside it. A loud twin has *every* tensor
drawn anew, matrices with fan-in variance and gain 2. Its shapes separate what could be confused: heads, key/value
heads, head width and width over heads all differ, sequences are longer than the window and of unequal lengths.

Nothing computed by ours ever enters the reference, nor the other way round; they share the checkpoint alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import torch
import transformers
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.bloom.modeling_bloom import BloomGelu, bloom_gelu_forward
from transformers.models.electra.modeling_electra import ElectraForPreTrainingOutput

from cutaway.engine.cache import KVCache, Spans
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.encoder import Encoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import Family, rows_of, spec_of
from cutaway.nn.attention import BlockDiagonal
from cutaway.text.stream import Detokenizer
from cutaway.weights.checkpoint import Checkpoint
from kit.precision import all_float64

with all_float64(), catch_warnings(action="ignore"):  # it compiles its scale when imported, in what is float then
    deberta = import_module("transformers.models.deberta_v2.modeling_deberta_v2")

transformers.logging.set_verbosity_error()

VOCAB = 97
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}  # fused ones know no float64
RAGGED = (19, 1, 8)  # lengths of the batch that is compared; windows are 7, Llama 3's original context 16
EQUAL = (9, 9)
OFFSET = 5  # first position of the sequences that do not begin at zero

LLAMA_SHAPES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 53,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [1.5, 2.5, 5.0],
    "original_max_position_embeddings": 16,
}
GEMMA_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 3000.0, "factor": 4.0},
}
GPT2_SHAPES = {"vocab_size": VOCAB, "n_embd": 48, "n_inner": 53, "n_layer": 3, "n_head": 6, "n_positions": 64}
BERT_SHAPES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 53,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
OPT_SHAPES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "ffn_dim": 53,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
MOE_SHAPES = {**LLAMA_SHAPES, "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
LATENT_SHAPES = {
    **{key: value for key, value in LLAMA_SHAPES.items() if key != "head_dim"},
    "num_key_value_heads": 6,
    "q_lora_rank": 22,
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 9,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 3.0,
    "beta_slow": 0.5,
}
T5_SHAPES = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 53,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 6,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
BART_SHAPES = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 53,
    "max_position_embeddings": 64,
}

LABELS = {0: "neutral", 1: "for", 2: "against"}

ROBERTA_SHAPES = BERT_SHAPES | {"type_vocab_size": 1, "pad_token_id": 5}  # no prompt holds token 5

DISTANCES = {  # distances up to 4 have a row each, those beyond 12 the last
    **{
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "pos_att_type": ["c2p", "p2c"],
    },
    **{"position_buckets": 8, "max_relative_positions": 12, "norm_rel_ebd": "layer_norm"},
}

MODERN_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 3000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

# name -> configuration class, model class, settings. The name up to the first "-" is the family.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"rms_norm_eps": 1e-3}),
    "llama-3": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.5},
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "gelu",
        },
    ),
    "llama-yarn": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "llama-dynamic": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 2.5},
            "rms_norm_eps": 1e-3,
        },
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 7, "rms_norm_eps": 1e-5}),
    "mistral-whole": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "phi3": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {"rms_norm_eps": 1e-3, "sliding_window": 7, "partial_rotary_factor": 0.75},
    ),
    "phi3-long": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
        },
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", {"activation_function": "relu", "tie_word_embeddings": True}),
    "opt-post": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "do_layer_norm_before": False,
            "enable_bias": False,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"layer_norm_epsilon": 1e-3}),
    "bloom-untied": ("BloomConfig", "BloomForCausalLM", {"tie_word_embeddings": False}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
            "rms_norm_eps": 1e-4,
        },
    ),
    "gemma2-published": (  # as far as a GGUF file can say it
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"sliding_window": 7, "query_pre_attn_scalar": 10},
    ),
    "gemma2-uncapped": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 7,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
        },
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"rms_norm_eps": 1e-5}),
    "qwen2-tied": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"rms_norm_eps": 1e-3}),
    "qwen3-biased": ("Qwen3Config", "Qwen3ForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "rope_parameters": GEMMA_ROPES,
            "query_pre_attn_scalar": 12,
            "rms_norm_eps": 1e-4,
        },
    ),
    "gemma3-published": (  # as far as a GGUF file can say it
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"num_hidden_layers": 7, "sliding_window": 7, "query_pre_attn_scalar": 10},
    ),
    "gemma3-untied": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 7,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7, "rms_norm_eps": 1e-3},
    ),
    "mixtral-tied": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"intermediate_size": 56, "tie_word_embeddings": True, "hidden_act": "gelu", "num_experts_per_tok": 3},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {"shared_expert_intermediate_size": 31, "mlp_only_layers": [1], "rms_norm_eps": 1e-3},
    ),
    "qwen2_moe-sparse": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            "shared_expert_intermediate_size": 16,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "qkv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"mlp_only_layers": [1], "norm_topk_prob": True, "rms_norm_eps": 1e-3},
    ),
    "qwen3_moe-biased": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {"attention_bias": True, "hidden_act": "gelu"}),
    "deepseek_v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.7,
            "rope_parameters": {**YARN, "mscale": 1.3, "mscale_all_dim": 0.7},
            "rms_norm_eps": 1e-3,
        },
    ),
    "deepseek_v2-lite": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "attention_bias": True},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            "routed_scaling_factor": 1.7,
            "rope_parameters": {**YARN, "mscale": 1.3, "mscale_all_dim": 0.7},
            "num_nextn_predict_layers": 0,
            "rms_norm_eps": 1e-3,
        },
    ),
    "deepseek_v3-plain": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
            "first_k_dense_replace": 0,
            "q_lora_rank": None,
            "attention_bias": True,
            "num_nextn_predict_layers": 0,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 7,
            "rope_parameters": {**YARN, "truncate": False},
            "rms_norm_eps": 1e-3,
        },
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"layer_norm_epsilon": 1e-3}),
    "gpt2-untied": ("GPT2Config", "GPT2LMHeadModel", {"tie_word_embeddings": False, "activation_function": "relu"}),
    "bert": ("BertConfig", "BertModel", {"layer_norm_eps": 1e-3}),
    "bert-tanh": ("BertConfig", "BertModel", {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "bert-masked": ("BertConfig", "BertForMaskedLM", {}),
    "bert-classifier": ("BertConfig", "BertForSequenceClassification", {"id2label": LABELS}),
    "bert-tagger": ("BertConfig", "BertForTokenClassification", {"num_labels": 5}),
    "bert-span": ("BertConfig", "BertForQuestionAnswering", {}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {"layer_norm_eps": 1e-3}),
    "roberta-bare": ("RobertaConfig", "RobertaModel", {"hidden_act": "relu"}),
    "roberta-classifier": ("RobertaConfig", "RobertaForSequenceClassification", {"num_labels": 4}),
    "roberta-tagger": ("RobertaConfig", "RobertaForTokenClassification", {"num_labels": 7}),
    "xlm_roberta": ("XLMRobertaConfig", "XLMRobertaForMaskedLM", {}),
    "electra": ("ElectraConfig", "ElectraForPreTraining", {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"}),
    "electra-bare": ("ElectraConfig", "ElectraModel", {"embedding_size": 48}),
    "electra-generator": ("ElectraConfig", "ElectraForMaskedLM", {"hidden_act": "relu"}),
    "electra-classifier": ("ElectraConfig", "ElectraForSequenceClassification", {"id2label": LABELS}),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", {"layer_norm_eps": 1e-3}),
    "albert-groups": ("AlbertConfig", "AlbertModel", {"num_hidden_groups": 2}),
    "albert-classifier": ("AlbertConfig", "AlbertForSequenceClassification", {"hidden_act": "relu"}),
    "deberta": ("DebertaV2Config", "DebertaV2ForMaskedLM", {"layer_norm_eps": 1e-3}),
    "deberta-to-position": ("DebertaV2Config", "DebertaV2Model", {"pos_att_type": "c2p", "norm_rel_ebd": "none"}),
    "deberta-to-content": (
        "DebertaV2Config",
        "DebertaV2ForTokenClassification",
        {"pos_att_type": ["p2c"], "position_buckets": -1, "max_relative_positions": 6, "type_vocab_size": 2},
    ),
    "deberta-classifier": ("DebertaV2Config", "DebertaV2ForSequenceClassification", {"hidden_act": "relu"}),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", {"norm_eps": 1e-3}),
    "modernbert-biased": (
        "ModernBertConfig",
        "ModernBertModel",
        {
            **{"norm_bias": True, "attention_bias": True, "mlp_bias": True, "hidden_activation": "silu"},
            **{"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "local_attention": 9},
        },
    ),
    "modernbert-classifier": ("ModernBertConfig", "ModernBertForSequenceClassification", {"id2label": LABELS}),
    "modernbert-mean": (
        "ModernBertConfig",
        "ModernBertForSequenceClassification",
        {"classifier_pooling": "mean", "norm_bias": True},
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", {"layer_norm_epsilon": 1e-3}),
    "t5-gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 5},
    ),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"}),
    "bart": ("BartConfig", "BartForConditionalGeneration", {"decoder_start_token_id": 2}),
    "bart-scaled": (
        "BartConfig",
        "BartForConditionalGeneration",
        {"scale_embedding": True, "activation_function": "relu"},
    ),
}
SHAPES: dict[str, dict[str, Any]] = {
    "phi3": {name: size for name, size in LLAMA_SHAPES.items() if name != "head_dim"},
    "opt": OPT_SHAPES,
    "bloom": {"vocab_size": VOCAB, "hidden_size": 48, "n_layer": 3, "n_head": 6},
    "gpt2": GPT2_SHAPES,
    "bert": BERT_SHAPES,
    "roberta": ROBERTA_SHAPES,
    "xlm_roberta": ROBERTA_SHAPES,
    "electra": BERT_SHAPES | {"embedding_size": 22},
    "albert": BERT_SHAPES | {"embedding_size": 22},
    "deberta": BERT_SHAPES | DISTANCES,
    "modernbert": BERT_SHAPES | {"local_attention": 12, "rope_parameters": MODERN_ROPES},
    "t5": T5_SHAPES,
    "mt5": T5_SHAPES,
    "bart": BART_SHAPES,
    "qwen2_moe": MOE_SHAPES,
    "qwen3_moe": MOE_SHAPES,
    "deepseek_v2": LATENT_SHAPES,
    "deepseek_v3": LATENT_SHAPES,
}


@dataclass(frozen=True)
class Answers:
    """values: per sequence, [T, V] logits, [L] or [T, L] labels, or [T, D] hidden states.

    gradients: by the names of transformers.
    """

    values: list[Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Twin:
    """A reference model and what it answers; `answers` computes each question once."""

    name: str
    reference: nn.Module
    asked: dict[tuple[tuple[int, ...], int], Answers] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        return FAMILIES[self.name.partition("-")[0]]

    @property
    def config(self) -> dict[str, Any]:
        """As `save_pretrained` would write it."""
        return {**self.reference.config.to_dict(), "architectures": [type(self.reference).__name__]}

    @property
    def state(self) -> dict[str, Tensor]:
        """Every tensor once, by the name and in the layout in which `save_pretrained` writes it."""
        return self.saved({name: tensor.detach() for name, tensor in learned(self.reference).items()})

    def saved(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by names in memory as they are on disk: experts, fused in memory, are apart there."""
        return revert_weight_conversion(self.reference, tensors)

    @property
    def has_source(self) -> bool:
        """Is it an encoder-decoder?"""
        return bool(self.reference.config.is_encoder_decoder)

    @property
    def takes_positions(self) -> bool:
        """Can the reference be told where a sequence begins, in positions that start at 0? RoBERTa's do not."""
        counts = any(hasattr(m, "create_position_ids_from_input_ids") for m in self.reference.modules())
        return "position_ids" in inspect.signature(self.reference.forward).parameters and not counts

    def answers(self, lengths: tuple[int, ...] = RAGGED, start: int = 0) -> Answers:
        """The reference's values and gradients, each sequence computed alone."""
        if (lengths, start) not in self.asked:
            with all_float64():
                self.asked[lengths, start] = self._ask(lengths, start)
        return self.asked[lengths, start]

    @torch.no_grad()
    def reply(self, prompt_T: Tensor, tokens: int, start: int) -> list[int]:
        """What `generate` answers greedily, whatever ends a reply otherwise. start: of an encoder-decoder's.

        Without a cache: T5's is sized by the encoder's depth.
        """
        never = {"eos_token_id": None, "forced_eos_token_id": None, "pad_token_id": 0}
        first = {"decoder_start_token_id": start} if self.has_source else {}
        with all_float64():
            ids = self.reference.generate(
                prompt_T[None], attention_mask=torch.ones_like(prompt_T)[None], do_sample=False,
                use_cache=False, max_new_tokens=tokens,
                **never, **first,
            )  # fmt: skip
        return ids[0, -tokens:].tolist()

    def _ask(self, lengths: tuple[int, ...], start: int) -> Answers:
        self.reference.zero_grad()
        values = []
        for tokens_T, source_T in zip(prompts(lengths), sources(lengths), strict=True):
            inputs = {"input_ids": tokens_T[None]}
            if self.has_source:
                inputs = {"input_ids": source_T[None], "decoder_input_ids": tokens_T[None]}
            if self.takes_positions:
                inputs["position_ids"] = torch.arange(start, start + len(tokens_T))[None]
            forget(self.reference)
            values.append(answer(self.reference(**inputs)))
        weighted(values).backward()
        gradients = {name: p.grad.clone() for name, p in parameters(self.reference).items() if p.grad is not None}
        return Answers([value.detach() for value in values], self.saved(gradients))


def answer(output: Any) -> Tensor:
    """What it says of its one sequence, as ours does: a span's two numbers together, a single number on an axis."""
    if "start_logits" in output:
        return torch.stack([output.start_logits[0], output.end_logits[0]], -1)
    return output.logits[0][:, None] if isinstance(output, ElectraForPreTrainingOutput) else output[0][0]


@cache
def twin(name: str, loud: bool = True) -> Twin:
    """The reference called `name` in `ARCHITECTURES`. loud=False leaves it as transformers initializes it."""
    config_class, model_class, settings = ARCHITECTURES[name]
    shapes = SHAPES.get(name.partition("-")[0], LLAMA_SHAPES)
    with all_float64():
        torch.manual_seed(0)
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = getattr(transformers, config_class)(**{**shapes, **special, **settings}, **EAGER)
        reference = getattr(transformers, model_class)(config).eval()
        if loud:
            make_loud(reference)
    for module in reference.modules():
        if isinstance(module, BloomGelu):  # whose gradient, written by hand, rounds a constant to ten digits
            module.forward = bloom_gelu_forward
    return Twin(name, reference)


def forget(model: nn.Module) -> None:
    """Each text is read as if it were the first: dynamic rotation remembers the longest that it has seen."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached"):
            module.max_seq_len_cached = 0


@torch.no_grad()
def make_loud(model: nn.Module, seed: int = 1, gain: float = 2.0) -> None:
    """Draw every parameter anew: matrices with variance gain^2 / fan-in, embeddings 1, norms around 1, biases around 0.

    Everything is rounded to bfloat16, so that a model of any dtype holds exactly the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {id(m.weight) for m in model.modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")}
    for module in model.modules():
        for parameter in learned(module, recurse=False).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() < 2:
                noise = 0.5 * noise + (id(parameter) in norms)
            elif not isinstance(module, nn.Embedding):  # GPT-2 keeps its matrices as [in, out]
                fan_in = parameter.shape[0 if type(module).__name__ == "Conv1D" else -1]
                noise = noise * gain / fan_in**0.5
            parameter.copy_(noise.bfloat16())
    for module in model.modules():
        if type(module).__name__.endswith("T5Attention"):  # which leaves the division by sqrt(K) to its query matrix
            module.q.weight.div_(2 ** round(math.log2(module.key_value_proj_dim) / 2))


def learned(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """Parameters, each once, and what checkpoints hold although no gradient reaches it: a router's bias, say."""
    kept = module.state_dict(keep_vars=True)
    buffers = {name: b for name, b in module.named_buffers(recurse=recurse) if name in kept and b.is_floating_point()}
    return {**parameters(module, recurse), **buffers}


def parameters(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """Each once; a tied one under the name by which it is saved."""
    tied = getattr(module, "all_tied_weights_keys", {})
    return {n: p for n, p in module.named_parameters(recurse=recurse, remove_duplicate=False) if n not in tied}


@cache
def prompts(lengths: tuple[int, ...]) -> list[Tensor]:
    """Token ids, the same for every model."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(VOCAB, (n,), generator=generator) for n in lengths]


@cache
def sources(lengths: tuple[int, ...]) -> list[Tensor]:
    """What an encoder-decoder reads for each of the prompts: other tokens, and other lengths.

    Never token 0, the padding, whose row gets no gradient in transformers.
    """
    return [
        (prompt.repeat(2) * 7)[: len(prompt) + 4 - i] % (VOCAB - 1) + 1 for i, prompt in enumerate(prompts(lengths))
    ]


def weighted(values: Iterable[Tensor]) -> Tensor:
    """A scalar in which every value counts differently, so that every gradient is exercised."""
    generator = torch.Generator().manual_seed(7)
    return sum((v * torch.randn(v.shape, generator=generator, dtype=torch.float64)).sum() for v in values)  # type: ignore[return-value]


def ours(theirs: Twin, dtype: torch.dtype = torch.float64) -> Decoder | Encoder:
    """Our model with the twin's weights."""
    return checkpoint(theirs).model(dtype)


def checkpoint(theirs: Twin) -> Checkpoint:
    """The twin's weights as any checkpoint is read, but from memory."""
    state = theirs.state
    seen = theirs.family.observed(theirs.config, state)
    return Checkpoint(
        path=Path(theirs.name),
        family=theirs.family,
        spec=spec_of(theirs.family, theirs.config | seen),
        config=theirs.config,
        rows=theirs.family.rows,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        stored=dict.fromkeys(state, "F64"),
        read=lambda name: state[name].clone(),
        read_tokenizer=Tokenizerless,
    )


class Tokenizerless:
    """Stands in for the tokenizer of a model that only ever sees ids."""

    bos_id = eos_id = pad_id = None
    stop_ids: frozenset[int] = frozenset()

    def save(self, directory: Path) -> None:
        """There is nothing to write."""

    def stream(self, *, continuing: bool = False) -> Detokenizer:
        """Text in which every token is a letter."""
        return Detokenizer(lambda id: b"x")

    def to_gguf(self, vocab: int) -> dict[str, Any]:
        """The smallest vocabulary that readers of GGUF accept."""
        tokens = [str(i) for i in range(vocab)]
        return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.padding_token_id": 0}


def values(model: Decoder | Encoder, hidden_TD: Tensor) -> Tensor:
    """What is compared of each token: logits where there is a head, else hidden states."""
    return model.logits(hidden_TD) if model.head else hidden_TD


def said(model: Decoder | Encoder, hidden_TD: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """What is compared of each sequence: labels where there is a task, else the values of its tokens."""
    if model.task is None:
        return list(values(model, hidden_TD).split(lengths))
    labels_NL = model.task(hidden_TD, list(lengths))
    return list(labels_NL.split(lengths) if model.task.spec.each else labels_NL)


def told(model: Decoder | Encoder, lengths: tuple[int, ...]) -> BlockDiagonal:
    """The context of a ragged batch, with what the encoder made of the sources."""
    if not isinstance(model, EncoderDecoder):
        return BlockDiagonal(list(lengths))
    read = sources(lengths)
    spans = [len(source_T) for source_T in read]
    return BlockDiagonal(list(lengths), memory_MD=model.encode(torch.cat(read), spans), sources=spans)


def ragged(model: Decoder | Encoder, lengths: tuple[int, ...] = RAGGED, start: int = 0) -> list[Tensor]:
    """Our values of all sequences computed in one ragged batch."""
    hidden_TD = model(torch.cat(prompts(lengths)), positions_of(list(lengths)) + start, told(model, lengths))
    return said(model, hidden_TD, lengths)


def cached(model: Decoder, lengths: tuple[int, ...], chunk: Callable[[int, int], int]) -> list[Tensor]:
    """Our values by way of the key/value cache: in each step sequence i computes chunk(i, step) further tokens."""
    rows = prompts(lengths)
    caches = [KVCache(model.spec, model.dtype, model.device, capacity=4, reach=len(row)) for row in rows]
    if isinstance(model, EncoderDecoder):
        for cache_, source_T in zip(caches, sources(lengths), strict=True):
            cache_.memory_SD = model.encode(source_T, [len(source_T)])
    out: list[list[Tensor]] = [[] for _ in rows]
    done, step = [0] * len(rows), 0
    while any(d < len(row) for d, row in zip(done, rows, strict=True)):
        left = [(i, len(row) - done[i]) for i, row in enumerate(rows) if done[i] < len(row)]
        spans = [(i, done[i], min(chunk(i, step), missing)) for i, missing in left]
        tokens_T = torch.cat([rows[i][start : start + n] for i, start, n in spans])
        positions_T = torch.cat([torch.arange(start, start + n) for _, start, n in spans])
        hidden_TD = model(tokens_T, positions_T, Spans([(caches[i], start, n) for i, start, n in spans]))
        for (i, start, n), part in zip(spans, values(model, hidden_TD).split([n for *_, n in spans]), strict=True):
            out[i].append(part)
            done[i] = start + n
        step += 1
    return [torch.cat(parts) for parts in out]


def foreign_gradients(theirs: Twin, model: Decoder | Encoder) -> dict[str, Tensor]:
    """Our gradients under the names and in the layout of transformers, translated by the rows that saving uses."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    rows = [row for row in rows_of(theirs.family.rows, model.spec) if set(row.ours) <= set(grads)]
    fixed = theirs.saved(
        {name: buffer for name, buffer in theirs.reference.named_buffers() if buffer.is_floating_point()}
    )
    found = {name: grad for row in rows for name, grad in row.save(grads, model.spec).items()}
    return {name: grad for name, grad in found.items() if name not in fixed}


def is_encoder(name: str) -> bool:
    """Does the twin of this name see everything at once, so that there is nothing to cache?"""
    return FAMILIES[name.partition("-")[0]].pools


def is_bounded(theirs: Twin) -> bool:
    """Does the model look its positions up in a table, so that there is no further one, or take none?"""
    spec = spec_of(theirs.family, theirs.config)
    return spec.embedding.positions > 0 or not theirs.takes_positions


@torch.no_grad()
def pooled(theirs: Twin, lengths: tuple[int, ...] = RAGGED) -> list[Tensor]:
    """BERT's pooler output of each sequence alone, [D]."""
    with all_float64():
        return [theirs.reference(tokens_T[None]).pooler_output[0] for tokens_T in prompts(lengths)]


def in_bfloat16(theirs: Twin, lengths: tuple[int, ...], start: int) -> list[Tensor]:
    """What transformers itself makes of the same weights in bfloat16, each sequence alone."""
    config = theirs.reference.config
    fresh, stored = type(theirs.reference)(config), theirs.reference.state_dict()
    buffers = {n: b for n, b in fresh.named_buffers() if n not in stored and b.is_floating_point()}
    model = type(theirs.reference)(config).bfloat16().eval()
    model.load_state_dict(stored)
    for name, buffer in buffers.items():  # which stay in float32 when a checkpoint is loaded in bfloat16
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)
    return Twin(theirs.name, model).answers(lengths, start).values
