"""Adapters that PEFT made of loud twins, as folders, and what PEFT's merged models answer."""

from __future__ import annotations

import copy
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from cutaway.models.decoder import Decoder
from kit import twins
from kit.precision import all_float64

LLAMA = {
    "vocab_size": twins.VOCAB, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {  # that the native kernels take
    "llama": LLAMA,
    "qwen2": {k: v for k, v in LLAMA.items() if k != "head_dim"} | {"num_attention_heads": 3, "num_key_value_heads": 1},
    "phi3": {k: v for k, v in LLAMA.items() if k != "head_dim"} | {"hidden_size": 128},
    "gemma2": LLAMA,
    "gpt2": {"vocab_size": 97, "n_embd": 96, "n_inner": 160, "n_layer": 2, "n_head": 3, "n_positions": 256},
    "opt": {"vocab_size": 97, "hidden_size": 96, "ffn_dim": 160, "num_hidden_layers": 2, "num_attention_heads": 3,
            "max_position_embeddings": 256},
}  # fmt: skip
# Ranks and scales that no mistake leaves as they are; "b" has others in some places, and leaves some layers alone.
KINDS: dict[str, dict[str, Any]] = {
    "a": {"r": 5, "lora_alpha": 12, "target_modules": "all-linear"},
    "b": {
        "r": 18, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 7},
        "alpha_pattern": {"v_proj": 9, "c_proj": 8, "proj": 100}, "layers_to_transform": [1],
        "target_modules": [
            "q_proj", "v_proj", "down_proj", "up_proj", "qkv_proj", "gate_up_proj", "c_attn", "c_proj", "fc1",
        ],
    },
    "c": {"r": 2, "lora_alpha": 4, "target_modules": ["k_proj", "gate_proj", "o_proj", "out_proj", "c_fc", "fc2"]},
}  # fmt: skip
LATENT: dict[str, dict[str, Any]] = {
    "latent": {"r": 3, "target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]},
    "folded": {"r": 3, "target_modules": ["kv_b_proj"]},
}


@dataclass(frozen=True)
class Adapted:
    """A folder that PEFT wrote, and the model with it merged in, as transformers runs it and as ours."""

    folder: Path
    merged: twins.Twin


@cache
def base(name: str) -> twins.Twin:
    """A loud twin of shapes that the native kernels take, float64."""
    config_class, model_class, settings = twins.ARCHITECTURES[name]
    with all_float64():
        torch.manual_seed(0)
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = getattr(transformers, config_class)(
            **{**SHAPES.get(name, twins.SHAPES.get(name)), **special, **settings}, **twins.EAGER
        )
        reference = getattr(transformers, model_class)(config).eval()
        twins.make_loud(reference, gain=1.5)
    return twins.Twin(name, reference)


@cache
def shelf() -> tempfile.TemporaryDirectory[str]:
    """Where adapters are as long as this process runs."""
    return tempfile.TemporaryDirectory()


@cache
def adapter(name: str, kind: str) -> Adapted:
    """One of `KINDS` for a base."""
    import peft

    folder = Path(shelf().name, name, kind)
    with all_float64(), warnings.catch_warnings(action="ignore"):  # PEFT's, of patterns that match nothing
        wrapped = peft.get_peft_model(copy.deepcopy(base(name).reference), peft.LoraConfig(**{**KINDS, **LATENT}[kind]))
        loud(wrapped, seed=ord(kind[0]))
        wrapped.save_pretrained(folder)
        return Adapted(folder, twins.Twin(name, wrapped.merge_and_unload().eval()))


@torch.no_grad()
def loud(wrapped: nn.Module, seed: int) -> None:
    """Every A and B drawn anew, in float32 numbers, so that a change is about as large as what it is added to."""
    generator = torch.Generator().manual_seed(seed)
    for part, parameter in wrapped.named_parameters():
        if "lora_" in part:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            size = parameter.shape[1] ** -0.5 if "lora_A" in part else 0.4
            parameter.copy_((noise * size).bfloat16())


def answers(twin: twins.Twin, ids: list[int]) -> Tensor:
    """Logits of every token, [T, V], float64."""
    with all_float64(), torch.no_grad():
        return twin.reference(torch.tensor([ids])).logits[0]


@cache
def ours(name: str, kind: str = "", dtype: torch.dtype = torch.float32) -> Decoder:
    """Our model of a base, or of one with an adapter merged in."""
    made = twins.ours(adapter(name, kind).merged if kind else base(name), dtype)
    assert isinstance(made, Decoder)
    return made
