"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): Gemma 3's blocks, with soft-caps instead of norms on q and k.

Every other layer has a sliding window, the first one included; all turn alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.models.families import gemma3, llama
from cutaway.models.families.rope import ROPE
from cutaway.models.families.table import OFFSET_FROM_ONE, Config, Family, Field, named, one, same

LAYERS_OF_27B = 46


def read_windows(config: Config) -> list[int | None]:
    """As in Gemma 3, in a pattern of two."""
    return gemma3.read_windows({"sliding_window": 4096, **config, "sliding_window_pattern": 2})


def capped(key: str, path: str, default: float) -> Field:
    """A soft-cap, which the entry null leaves out; without the entry it is the published one."""
    return Field(path, lambda c: c.get(key, default), lambda caps: {key: one(caps, path)})


def gguf_config(metadata: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What scores are divided by is a head's width, but width / heads in the 27B, as llama.cpp has it."""
    wide = metadata["gemma2.embedding_length"] // metadata["gemma2.attention.head_count"]
    largest = metadata["gemma2.block_count"] == LAYERS_OF_27B
    return {
        **llama.gguf_sizes(metadata, shapes),
        "query_pre_attn_scalar": wide if largest else metadata["gemma2.attention.key_length"],
    }


FAMILY = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM", "Gemma2Model"),
    gguf="gemma2",
    fields=(
        *llama.sizes(tied=True),
        *llama.RMS,
        ROPE,
        named("hidden_activation", "layer.ffn.activation", llama.ACTIVATION_NAMES, "gelu_pytorch_tanh"),
        same("attention_bias", "layer.attention.bias", False),
        Field("layer.attention.out_bias", lambda c: c.get("attention_bias", False)),
        gemma3.SCALE,
        Field("layer.attention.window", read_windows, gemma3.write_windows),
        Field("embedding.scale", lambda c: c["hidden_size"] ** 0.5),
        capped("attn_logit_softcapping", "layer.attention.softcap", 50.0),
        capped("final_logit_softcapping", "head.softcap", 30.0),
    ),
    constants={key: value for key, value in gemma3.FAMILY.constants.items() if "qk_norm" not in key},
    rows=(*(gemma3.gemma_row(row) for row in llama.ROWS), *gemma3.POST_ROWS),
    gguf_rows=tuple(
        row._replace(via=OFFSET_FROM_ONE) if "norm" in row.theirs else row
        for row in (*llama.GGUF_ROWS, *gemma3.POST_GGUF_ROWS)
    ),
    gguf_keys={
        **llama.GGUF_KEYS,
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    gguf_config=gguf_config,
    gguf_extra=llama.gguf_dims,
    requires={"use_bidirectional_attention": (False, None)},
)
