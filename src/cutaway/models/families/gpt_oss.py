"""gpt-oss (OpenAI 2025, arXiv:2508.10925): experts behind clamped gates, sinks in the softmax, every other layer local.

Published weights of the experts are in MXFP4, see `cutaway.weights.packed`. In memory and in transformers, gate and
up take turns in the columns of one matrix.
"""

from __future__ import annotations

import torch

from cutaway.models.families import gemma3, llama, moe
from cutaway.models.families.rope import ROPE, read_rope
from cutaway.models.families.table import Config, Family, Field, Row, Via, same

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def with_yarn(config: Config) -> Config:
    """A configuration that says nothing of rotation means what transformers takes it to mean."""
    stated = config.get("rope_scaling") or config.get("rope_parameters")
    return {"rope_theta": 150000.0, **config, **({} if stated else {"rope_scaling": YARN})}


def alternating(config: Config) -> Config:
    """A configuration that does not list layers begins with a local one."""
    return {"sliding_window_pattern": 2, **config}


HALVES = Via(
    lambda t, s: (t[..., ::2].contiguous(), t[..., 1::2].contiguous()),
    lambda ts, s: torch.stack(ts, -1).flatten(-2),
)
TURNED = Via(lambda t, s: (t.transpose(1, 2).contiguous(),), lambda ts, s: ts[0].transpose(1, 2).contiguous())
TURNED_HALVES = Via(
    lambda t, s: tuple(TURNED.load(half, s)[0] for half in HALVES.load(t, s)),
    lambda ts, s: HALVES.save(tuple(TURNED.save((t,), s) for t in ts), s),
)
_AT, _OURS = "model.layers.{i}.mlp", "layers.{i}.ffn"

FAMILY = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    fields=(
        *moe.sizes(dim=None),
        *moe.rms(1e-5),
        ROPE._replace(read=lambda c: read_rope(with_yarn(c))),
        llama.SCALE,
        same("attention_bias", "layer.attention.bias", True),
        Field("layer.attention.out_bias", lambda c: c.get("attention_bias", True)),
        Field("layer.attention.window", lambda c: gemma3.read_windows(alternating(c)), gemma3.write_windows),
        same("num_local_experts", "layer.ffn.count"),
        same("num_experts_per_tok", "layer.ffn.router.top_k"),
        same("intermediate_size", "layer.ffn.expert.width"),
    ),
    constants={
        **moe.NORMS,
        "layer.attention.sinks": True,
        "layer.ffn.router.bias": True,
        "layer.ffn.expert.activation": "quick_gelu",
        "layer.ffn.expert.gated": True,
        "layer.ffn.expert.bias": True,
        "layer.ffn.expert.limit": 7.0,
    },
    rows=(
        *llama.ROWS,
        Row("model.layers.{i}.self_attn.sinks", "layers.{i}.attention.sinks"),
        Row(f"{_AT}.router.weight", f"{_OURS}.router.weight"),
        Row(f"{_AT}.router.bias", f"{_OURS}.router.bias"),
        Row(f"{_AT}.experts.gate_up_proj", (f"{_OURS}.gate", f"{_OURS}.up"), TURNED_HALVES),
        Row(f"{_AT}.experts.gate_up_proj_bias", (f"{_OURS}.gate_bias", f"{_OURS}.up_bias"), HALVES),
        Row(f"{_AT}.experts.down_proj", f"{_OURS}.down", TURNED),
        Row(f"{_AT}.experts.down_proj_bias", f"{_OURS}.down_bias"),
    ),
    gguf="gpt-oss",
    gguf_rows=(
        *(
            row._replace(theirs=row.theirs.replace("ffn_norm", "post_attention_norm"))
            for row in (*llama.GGUF_ROWS, *moe.GGUF_ROWS)
        ),
        Row("blk.{i}.attn_sinks.weight", "layers.{i}.attention.sinks"),
        Row("blk.{i}.ffn_gate_inp.bias", "layers.{i}.ffn.router.bias"),
        *(Row(f"blk.{{i}}.ffn_{name}_exps.bias", f"layers.{{i}}.ffn.{name}_bias") for name in ("gate", "up", "down")),
    ),
    gguf_keys={
        **llama.GGUF_KEYS,
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
        "attention.sliding_window": "sliding_window",
    },
    gguf_config=lambda metadata, shapes: {**llama.gguf_sizes(metadata, shapes), "rope_scaling": {"truncate": False}},
    gguf_extra=llama.gguf_dims,
    requires={"swiglu_limit": (7.0,)},
    ignored=llama.FAMILY.ignored,
)
