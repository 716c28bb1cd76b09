"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671, arXiv:2412.15115): Llama with biases on q, k and v."""

from __future__ import annotations

from cutaway.models.families import llama
from cutaway.models.families.table import Family

FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    gguf="qwen2",
    fields=(*llama.sizes(dim=llama.head_dim), *llama.RMS, llama.ROPE, llama.SCALE, llama.ACTIVATION),
    constants={**llama.GATED_RMS_DECODER, "layer.attention.bias": True},
    rows=llama.ROWS,
    gguf_rows=llama.GGUF_ROWS,
    gguf_keys=llama.GGUF_KEYS,
    gguf_config=llama.gguf_sizes,
    gguf_extra=llama.gguf_dims,
    requires={"use_sliding_window": (False,)},
    ignored=llama.FAMILY.ignored,
)
