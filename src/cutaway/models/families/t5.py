"""T5 (Raffel et al. 2020, arXiv:1910.10683): every task is text in, text out.

An encoder and a decoder, RMSNorm before each sublayer, no biases, scores not divided by sqrt(K), positions only as
learned numbers per bucket of distances, one table for each stack. T5 1.1 and mT5 (Xue et al. 2021, arXiv:2010.11934)
gate the feed-forward layer, untie the head and do not scale what enters it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.families.table import Config, Family, Field, Row, same
from cutaway.models.spec import Spec
from cutaway.nn.feed_forward import FeedForwardSpec

ACTIVATIONS = {
    "relu": {"activation": "relu", "gated": False},
    "gelu": {"activation": "gelu", "gated": False},
    "silu": {"activation": "silu", "gated": False},
    "gated-gelu": {"activation": "gelu_tanh", "gated": True},
    "gated-silu": {"activation": "silu", "gated": True},
}
CONTEXT = 512  # what T5 was trained on; distances have no end


def read_ffn(config: Config, default: str = "relu") -> dict[str, Any]:
    """The feed-forward layer. Errors: an activation that is not implemented."""
    name = config.get("feed_forward_proj", default)
    if name not in ACTIVATIONS:
        what = f"feed_forward_proj = {name!r} is not supported"
        raise CutawayError(what, "config.json", f"known: {', '.join(ACTIVATIONS)}")
    return {"width": config["d_ff"], **ACTIVATIONS[name]}


def write_ffn(layers: list[dict[str, Any]]) -> dict[str, Any]:
    kind = {key: layers[0][key] for key in ("activation", "gated")}
    return {
        "d_ff": layers[0]["width"],
        "feed_forward_proj": next(name for name, values in ACTIVATIONS.items() if values == kind),
    }


def _read_scale(config: Config) -> float:
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return config["d_model"] ** -0.5 if scaled else 1.0


def _observed(config: Config, names: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the head is tied, which later files do not say: theirs has a tensor of its own or not."""
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return {"tie_word_embeddings": "lm_head.weight" not in names, "scale_decoder_outputs": scaled}


def _stack(at: str, depth: str, buckets_both_ways: bool) -> tuple[Field, ...]:
    """The fields of one of the two stacks."""
    return (
        same(depth, f"{at}depth", lambda c: c["num_layers"]),
        same("n_positions", f"{at}context", CONTEXT),
        Field(f"{at}final_norm.eps", lambda c: c.get("layer_norm_epsilon", 1e-6)),
        same("layer_norm_epsilon", f"{at}layer.norm.eps", 1e-6),
        Field(f"{at}layer.ffn", read_ffn, write_ffn),
        *_attention(f"{at}layer.attention."),
        same("relative_attention_num_buckets", f"{at}layer.attention.position_bias.buckets", 32),
        same("relative_attention_max_distance", f"{at}layer.attention.position_bias.max_distance", 128),
        Field(f"{at}layer.attention.position_bias.bidirectional", lambda c: buckets_both_ways),
    )


def _attention(at: str) -> tuple[Field, ...]:
    return (
        same("num_heads", f"{at}heads"),
        Field(f"{at}kv_heads", lambda c: c["num_heads"]),
        same("d_kv", f"{at}head_dim"),
        Field(f"{at}scale", lambda c: 1.0),
    )


def _constants(at: str, causal: bool) -> dict[str, Any]:
    return {
        f"{at}embedding": {},
        f"{at}layer.norm.kind": "rms",
        f"{at}layer.attention.causal": causal,
        f"{at}final_norm.kind": "rms",
    }


def _rows(stack: str, number: str, ours: str, sublayers: tuple[tuple[str, str, str], ...]) -> tuple[Row, ...]:
    """The rows of one stack. sublayers: their attention's name, ours, the norm before it."""
    block, layer = f"{stack}.block.{number}.layer", f"{ours}layers.{number}"
    rows = [
        Row(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{ours}position_bias.weight"),
        Row(f"{stack}.final_layer_norm.weight", f"{ours}final_norm.weight"),
    ]
    for i, (theirs, attention, norm) in enumerate(sublayers):
        rows.append(Row(f"{block}.{i}.layer_norm.weight", f"{layer}.{norm}.weight"))
        rows += [
            Row(f"{block}.{i}.{theirs}.{letter}.weight", f"{layer}.{attention}.{name}.weight")
            for letter, name in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
        ]
    ffn = f"{block}.{len(sublayers)}"
    rows.append(Row(f"{ffn}.layer_norm.weight", f"{layer}.ffn_norm.weight"))
    rows += [
        Row(f"{ffn}.DenseReluDense.{theirs}.weight", f"{layer}.ffn.{name}.weight", when=when)
        for theirs, name, when in (("wi", "up", _plain), ("wi_0", "gate", _gated), ("wi_1", "up", _gated))
    ]
    rows.append(Row(f"{ffn}.DenseReluDense.wo.weight", f"{layer}.ffn.down.weight"))
    return tuple(rows)


def _gated(spec: Spec) -> bool:
    ffn = spec.layers[0].ffn
    return isinstance(ffn, FeedForwardSpec) and ffn.gated


def _plain(spec: Spec) -> bool:
    return not _gated(spec)


SELF, CROSS = ("SelfAttention", "attention", "attention_norm"), ("EncDecAttention", "cross", "cross_norm")

FAMILY = Family(
    name="t5",
    architectures=("T5ForConditionalGeneration",),
    fields=(
        same("vocab_size", "vocab"),
        same("d_model", "width"),
        *_stack("", "num_decoder_layers", buckets_both_ways=False),
        *_stack("encoder.", "num_layers", buckets_both_ways=True),
        *_attention("layer.cross."),
        same("tie_word_embeddings", "head.tied", True),
        Field("head.scale", _read_scale, lambda scale: {"scale_decoder_outputs": scale != 1.0}),
        same("decoder_start_token_id", "start", lambda c: c.get("pad_token_id", 0)),
    ),
    constants={
        **_constants("", causal=True),
        **_constants("encoder.", causal=False),
        "layer.cross.causal": False,
        "encoder.pooling": {},
    },
    prefix="",
    rows=(
        Row("shared.weight", "embedding.tokens.weight"),
        *_rows("encoder", "{j}", "encoder.", (SELF,)),
        *_rows("decoder", "{i}", "", (SELF, CROSS)),
        Row("lm_head.weight", "head.weight"),
    ),
    observed=_observed,
    ignored=(
        r"(en|de)coder\.embed_tokens\.weight",
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
)
