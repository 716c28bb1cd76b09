"""What the families with mixtures of experts share: feed-forward slots of two kinds, and rows of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cutaway.errors import CutawayError
from cutaway.models.families import llama
from cutaway.models.families.rope import head_dim
from cutaway.models.families.table import Config, Each, Field, Row, find, named, nest, same

DENSE = (
    same("intermediate_size", "width"),
    named("hidden_act", "activation", llama.ACTIVATION_NAMES, "silu"),
    Field("gated", lambda c: True),
)
EXPERT = (
    same("moe_intermediate_size", "expert.width"),
    named("hidden_act", "expert.activation", llama.ACTIVATION_NAMES, "silu"),
    Field("expert.gated", lambda c: True),
)
NORMS = {"embedding": {}, "layer.norm.kind": "rms", "final_norm.kind": "rms"}


def sizes(dim: Callable[[Config], int] | None = head_dim) -> tuple[Field, ...]:
    """Those of Llama without the width of its feed-forward layers. dim: see there."""
    return tuple(field for field in llama.sizes(dim=dim) if field.path != "layer.ffn.width")


def rms(eps: float) -> tuple[Field, ...]:
    """The fields of RMSNorm. eps: what a file without the entry means."""
    return same("rms_norm_eps", "layer.norm.eps", eps), Field("final_norm.eps", lambda c: c.get("rms_norm_eps", eps))


def feed_forwards(
    experts: tuple[Field, ...],
    is_dense: Callable[[Config, int], bool],
    say: Callable[[list[int], list[Mapping[str, Any]]], dict[str, Any]],
) -> Field:
    """The `ffn` slot of layers of which some have experts and some are dense.

    experts: the fields of `ExpertsSpec`, by paths in it. is_dense: of a configuration's i-th layer. say: the entries
    for the numbers of the dense layers, and for what the fields of `experts` cannot write by themselves.
    """

    def read(config: Config) -> Each:
        kinds = [DENSE if is_dense(config, i) else experts for i in range(config["num_hidden_layers"])]
        return Each(nest({f.path: f.read(config) for f in fields}) for fields in kinds)

    def write(slots: list[Mapping[str, Any]]) -> dict[str, Any]:
        sparse, dense = ([s for s in slots if ("count" in s) is wanted] for wanted in (True, False))
        if not sparse or any(s != kind[0] for kind in (sparse, dense) for s in kind):
            raise CutawayError("layers must be of two kinds, one of them with experts", "Spec", "save another family")
        entries = [f.write(find(sparse[0], f.path)) for f in experts]
        entries += [f.write(find(dense[0], f.path)) for f in DENSE if dense]
        numbers = [i for i, s in enumerate(slots) if "count" not in s]
        return {key: value for entry in (*entries, say(numbers, sparse)) for key, value in entry.items()}

    return Field("layer.ffn", read, write)


def rows(block: str, names: Mapping[str, str]) -> tuple[Row, ...]:
    """Rows of a router and of experts under `block`. names: of the three matrices, theirs -> ours."""
    at = f"model.layers.{{i}}.{block}"
    return (
        Row(f"{at}.gate.weight", "layers.{i}.ffn.router.weight"),
        *(Row(f"{at}.experts.{{e}}.{theirs}.weight", f"layers.{{i}}.ffn.{ours}") for theirs, ours in names.items()),
    )


GGUF_ROWS = (
    Row("blk.{i}.ffn_gate_inp.weight", "layers.{i}.ffn.router.weight"),
    *(Row(f"blk.{{i}}.ffn_{name}_exps.weight", f"layers.{{i}}.ffn.{name}") for name in ("gate", "up", "down")),
)
SHARED_GGUF_ROWS = tuple(
    Row(f"blk.{{i}}.ffn_{name}_shexp.weight", f"layers.{{i}}.ffn.shared.{name}.weight")
    for name in ("gate", "up", "down")
)
GGUF_KEYS = {
    **llama.GGUF_KEYS,
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
PROJECTIONS = {f"{name}_proj": name for name in ("gate", "up", "down")}
