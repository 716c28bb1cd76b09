"""Loud twins: tiny models of transformers against which a family of ours is proven, values and gradients.

Freshly initialized, a tiny reference hides what it should prove: norm weights are one, biases zero, and weights so
small that attention is nearly uniform, whatever rotation and scale do inside it. A loud twin has *every* tensor
drawn anew, matrices with fan-in variance and gain 2. Its shapes separate what could be confused: heads, key/value
heads, head width and width over heads all differ, sequences are longer than the window and of unequal lengths.

Nothing computed by ours ever enters the reference, nor the other way round; they share the checkpoint alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

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

transformers.logging.set_verbosity_error()

VOCAB = 97
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
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"layer_norm_epsilon": 1e-3}),
    "gpt2-untied": ("GPT2Config", "GPT2LMHeadModel", {"tie_word_embeddings": False, "activation_function": "relu"}),
    "bert": ("BertConfig", "BertModel", {"layer_norm_eps": 1e-3}),
    "bert-tanh": ("BertConfig", "BertModel", {"hidden_act": "gelu_new", "type_vocab_size": 3}),
}
SHAPES: dict[str, dict[str, Any]] = {"gpt2": GPT2_SHAPES, "bert": BERT_SHAPES}


@dataclass(frozen=True)
class Answers:
    """values: per sequence, [T, V] logits or [T, D] hidden states. gradients: by the names of transformers."""

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
        """Can the reference be told where a sequence begins?"""
        return "position_ids" in inspect.signature(self.reference.forward).parameters

    def answers(self, lengths: tuple[int, ...] = RAGGED, start: int = 0) -> Answers:
        """The reference's values and gradients, each sequence computed alone."""
        if (lengths, start) not in self.asked:
            with all_float64():
                self.asked[lengths, start] = self._ask(lengths, start)
        return self.asked[lengths, start]

    def _ask(self, lengths: tuple[int, ...], start: int) -> Answers:
        self.reference.zero_grad()
        values = []
        for tokens_T, source_T in zip(prompts(lengths), sources(lengths), strict=True):
            inputs = {"input_ids": tokens_T[None]}
            if self.has_source:
                inputs = {"input_ids": source_T[None], "decoder_input_ids": tokens_T[None]}
            if self.takes_positions:
                inputs["position_ids"] = torch.arange(start, start + len(tokens_T))[None]
            values.append(self.reference(**inputs)[0][0])
        weighted(values).backward()
        gradients = {name: p.grad.clone() for name, p in self.reference.named_parameters() if p.grad is not None}
        return Answers([value.detach() for value in values], self.saved(gradients))


@cache
def twin(name: str, loud: bool = True) -> Twin:
    """The reference called `name` in `ARCHITECTURES`. loud=False leaves it as transformers initializes it."""
    config_class, model_class, settings = ARCHITECTURES[name]
    shapes = SHAPES.get(name.partition("-")[0], LLAMA_SHAPES)
    with all_float64():
        torch.manual_seed(0)
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = getattr(transformers, config_class)(**{**shapes, **special, **settings}, attn_implementation="eager")
        reference = getattr(transformers, model_class)(config).eval()
        if loud:
            make_loud(reference)
    return Twin(name, reference)


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


def learned(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """Parameters, each once, and what checkpoints hold although no gradient reaches it: a router's bias, say."""
    kept = module.state_dict(keep_vars=True)
    buffers = {name: b for name, b in module.named_buffers(recurse=recurse) if name in kept and b.is_floating_point()}
    return {**dict(module.named_parameters(recurse=recurse)), **buffers}


@cache
def prompts(lengths: tuple[int, ...]) -> list[Tensor]:
    """Token ids, the same for every model."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(VOCAB, (n,), generator=generator) for n in lengths]


@cache
def sources(lengths: tuple[int, ...]) -> list[Tensor]:
    """What an encoder-decoder reads for each of the prompts: other tokens, and other lengths."""
    return [(prompt.repeat(2) * 7 + 3)[: len(prompt) + 4 - i] % VOCAB for i, prompt in enumerate(prompts(lengths))]


def weighted(values: Iterable[Tensor]) -> Tensor:
    """A scalar in which every value counts differently, so that every gradient is exercised."""
    generator = torch.Generator().manual_seed(7)
    return sum((v * torch.randn(v.shape, generator=generator, dtype=torch.float64)).sum() for v in values)  # type: ignore[return-value]


def ours(theirs: Twin, dtype: torch.dtype = torch.float64) -> Decoder | Encoder:
    """Our model with the twin's weights, read as any checkpoint is, but from memory."""
    state = theirs.state
    dense = any(name.endswith("pooler.dense.weight") for name in state)
    pooling = {"cutaway_pooling": {"dense": dense}} if theirs.family.pools else {}
    checkpoint = Checkpoint(
        path=Path(theirs.name),
        family=theirs.family,
        spec=spec_of(theirs.family, theirs.config | pooling),
        config=theirs.config,
        rows=theirs.family.rows,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        stored=dict.fromkeys(state, "F64"),
        read=lambda name: state[name].clone(),
        read_tokenizer=Tokenizerless,
    )
    return checkpoint.model(dtype)


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
        return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [str(i) for i in range(vocab)]}


def values(model: Decoder | Encoder, hidden_TD: Tensor) -> Tensor:
    """What is compared: logits where there is a head, else hidden states."""
    return model.logits(hidden_TD) if model.head else hidden_TD


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
    return list(values(model, hidden_TD).split(lengths))


def cached(model: Decoder, lengths: tuple[int, ...], chunk: Callable[[int, int], int]) -> list[Tensor]:
    """Our values by way of the key/value cache: in each step sequence i computes chunk(i, step) further tokens."""
    rows = prompts(lengths)
    caches = [KVCache(model.spec, model.dtype, model.device, capacity=4) for _ in rows]
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
    return {name: grad for row in rows for name, grad in row.save(grads, model.spec).items()}


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
    buffers = {name: b for name, b in type(theirs.reference)(config).named_buffers() if b.is_floating_point()}
    model = type(theirs.reference)(config).bfloat16().eval()
    model.load_state_dict(theirs.reference.state_dict())
    for name, buffer in buffers.items():  # which stay in float32 when a checkpoint is loaded in bfloat16
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)
    return Twin(theirs.name, model).answers(lengths, start).values
