"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a sliding window in every layer, in its first version.

llama.cpp has no name of its own for it: GGUF files of Mistral say "llama" and know of no window.
"""

from __future__ import annotations

from typing import Any

from cutaway.models.families import llama
from cutaway.models.families.rope import ROPE, head_dim
from cutaway.models.families.table import Config, Family, Field, one


def read_window(config: Config) -> int | None:
    """Without the entry 4096, as in the first version; null, as in all later ones, means that there is none."""
    return config.get("sliding_window", 4096)


def write_window(windows: list[Any]) -> dict[str, Any]:
    return {"sliding_window": one(windows, "layer.attention.window")}


FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    fields=(
        *llama.sizes(dim=head_dim),
        *llama.RMS,
        ROPE,
        llama.SCALE,
        llama.ACTIVATION,
        Field("layer.attention.window", read_window, write_window),
    ),
    constants=llama.GATED_RMS_DECODER,
    rows=llama.ROWS,
    ignored=llama.FAMILY.ignored,
)
