"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): what decoders learned in six years, given back to BERT.

Norms before each sublayer and without biases, rotation instead of positions, gated feed-forward; one layer in three
sees everything and turns slowly, the others see 64 tokens to each side. The first layer reads the embedding's norm.
"""

from __future__ import annotations

from typing import Any

from cutaway.models.families import bert
from cutaway.models.families.endings import VOCABULARY, Ending, ending_fields, ending_rows, observed
from cutaway.models.families.gemma3 import GLOBAL, LOCAL
from cutaway.models.families.gemma3 import layer_types as stated_types
from cutaway.models.families.llama import ACTIVATION_NAMES
from cutaway.models.families.phi3 import HALVES
from cutaway.models.families.rope import read_rope, rope_entries
from cutaway.models.families.table import Config, Each, Family, Field, Row, named, one, pair, same, split

EPS, EVERY, WINDOW = 1e-5, 3, 128
BASES = {GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}


def layer_types(config: Config) -> list[str]:
    """Stated per layer, or everything in one layer of `global_attn_every_n_layers`, the first among them."""
    every, depth = config.get("global_attn_every_n_layers", EVERY), config["num_hidden_layers"]
    pattern = [LOCAL if i % every else GLOBAL for i in range(depth)]
    return stated_types({"layer_types": config.get("layer_types") or pattern, "num_hidden_layers": depth})


def read_windows(config: Config) -> Each:
    """`local_attention` counts both sides, ours one side and the token itself."""
    window = config.get("local_attention", WINDOW) // 2 + 1
    return Each(window if kind == LOCAL else None for kind in layer_types(config))


def write_windows(windows: list[int | None]) -> dict[str, Any]:
    kinds = [LOCAL if w else GLOBAL for w in windows]
    sizes = [w for w in windows if w]
    local = {"local_attention": 2 * (one(sizes, "layer.attention.window") - 1)} if sizes else {}
    return {"layer_types": kinds, **local}


def read_ropes(config: Config) -> Each:
    """A rope per layer, from either spelling."""
    nested = config.get("rope_parameters") or {}
    by_kind = {
        kind: read_rope({**config, "rope_theta": config.get(key, base), "rope_parameters": nested.get(kind)})
        for kind, (key, base) in BASES.items()
    }
    return Each(by_kind[kind] for kind in layer_types(config))


def write_ropes(mixers: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind of layer, as transformers 5 has it, and the two bases alone, which version 4 reads."""
    by_kind = {LOCAL if a["window"] else GLOBAL: rope_entries(a["rope"]) for a in mixers}
    nested = {
        kind: {"rope_type": "default", "rope_theta": said["rope_theta"], **said.get("rope_scaling", {})}
        for kind, said in by_kind.items()
    }
    return {"rope_parameters": nested, **{BASES[kind][0]: said["rope_theta"] for kind, said in by_kind.items()}}


def norm(config: Config) -> dict[str, Any]:
    """The LayerNorm that stands everywhere."""
    return {"kind": "layer", "eps": config.get("norm_eps", EPS), "bias": config.get("norm_bias", False)}


def write_norm(norms: list[dict[str, Any]]) -> dict[str, Any]:
    found = one(norms, "layer.norm")
    return {"norm_eps": found["eps"], "norm_bias": found["bias"]}


def transform(config: Config) -> dict[str, Any]:
    """The layer before every kind of head."""
    return {"activation": "gelu", "norm": norm(config), "bias": False}


def _head_rows(ours: str) -> tuple[Row, ...]:
    return (*pair("head.dense", f"{ours}.dense"), *pair("head.norm", f"{ours}.norm"))


LABELS = (*_head_rows("task"), *pair("classifier", "task.out"))
CLASSIFIER = "ModernBertForSequenceClassification"
ENDINGS = (
    Ending("ModernBertModel"),
    Ending(
        "ModernBertForMaskedLM", VOCABULARY, transform, rows=(*_head_rows("head"), Row("decoder.bias", "head.bias"))
    ),
    Ending(CLASSIFIER, "first", transform, rows=LABELS, entries={"classifier_pooling": "cls"}),
    Ending(CLASSIFIER, "mean", transform, rows=LABELS, entries={"classifier_pooling": "mean"}),
    Ending("ModernBertForTokenClassification", "each", transform, rows=LABELS),
    Ending("ModernBertForQuestionAnswering", "span", transform, rows=LABELS),
)

AT = "[model.]layers.{i}"
FAMILY = Family(
    name="modernbert",
    architectures=tuple(dict.fromkeys(e.name for e in ENDINGS)),
    fields=(
        *bert.WIDTHS,
        Field("vocab", lambda c: c["vocab_size"], lambda n: {"pad_token_id": None}),  # transformers' own is 50,283
        *bert.ATTENTION,
        same("max_position_embeddings", "context"),
        Field("layer.attention.window", read_windows, write_windows),
        Field("layer.attention.rope", read_ropes, write_ropes, given="layer.attention"),
        same("attention_bias", "layer.attention.bias", False),
        Field("layer.attention.out_bias", lambda c: c.get("attention_bias", False)),
        named("hidden_activation", "layer.ffn.activation", ACTIVATION_NAMES, "gelu"),
        same("mlp_bias", "layer.ffn.bias", False),
        Field("layer.norm", norm, write_norm),
        Field("layer.bare", lambda c: Each(i == 0 for i in range(c["num_hidden_layers"]))),
        Field("embedding.norm", norm),
        Field("final_norm", norm),
        *ending_fields(ENDINGS),
    ),
    constants={"layer.attention.causal": False, "layer.ffn.gated": True},
    prefix="model.",
    rows=(
        Row("[model.]embeddings.tok_embeddings.weight", "embedding.tokens.weight"),
        *pair("[model.]embeddings.norm", "embedding.norm"),
        *pair(f"{AT}.attn_norm", "layers.{i}.attention_norm"),
        *(
            Row(f"{AT}.attn.Wqkv.{part}", tuple(f"layers.{{i}}.attention.{x}.{part}" for x in "qkv"), split(0))
            for part in ("weight", "bias")
        ),
        *pair(f"{AT}.attn.Wo", "layers.{i}.attention.out"),
        *pair(f"{AT}.mlp_norm", "layers.{i}.ffn_norm"),
        *(
            Row(f"{AT}.mlp.Wi.{part}", tuple(f"layers.{{i}}.ffn.{x}.{part}" for x in ("gate", "up")), HALVES)
            for part in ("weight", "bias")
        ),
        *pair(f"{AT}.mlp.Wo", "layers.{i}.ffn.down"),
        *pair("[model.]final_norm", "final_norm"),
        *ending_rows(ENDINGS),
    ),
    requires={"classifier_activation": ("gelu",), "classifier_bias": (False,), "decoder_bias": (True,)},
    ignored=(r"decoder\.weight",),
    observed=observed(ENDINGS, (), "model."),
    pools=True,
)
