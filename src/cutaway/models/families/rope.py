"""Rotary positions in a config.json: all kinds of scaling, there and back.

Two spellings: {rope_theta, rope_scaling, partial_rotary_factor} up to transformers 4, {rope_parameters} from 5 on.
Written is the former, which both understand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cutaway.errors import CutawayError
from cutaway.models.families.table import Config, Field


class Entry(NamedTuple):
    """One number of a scaling: its name in `RopeScaling`, its key there, and what a file without the key means.

    default: None if it must be stated, else a function of the parameters and the rest of the configuration.
    """

    ours: str
    theirs: str
    default: Callable[[Config], Any] | None = None
    kind: Callable[[Any], Any] = float


def _trained(config: Config) -> int:
    """The length a model was trained on, before it was extended: beside the scaling or within it."""
    stated = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if stated is None:
        raise CutawayError("has no 'max_position_embeddings'", "config.json", "the rope scaling refers to it")
    return int(stated)


def _extended(config: Config) -> float:
    """The factor, where only the lengths before and after are stated."""
    return float(config["max_position_embeddings"] / _trained(config))


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _nothing(config: Config) -> None:
    return None


FACTOR = Entry("factor", "factor")
TRAINED = Entry("original_context", "original_max_position_embeddings", _trained, int)
ATTENTION = Entry("attention_factor", "attention_factor", _nothing, _optional)

SCALINGS: dict[str, tuple[Entry, ...]] = {
    "linear": (FACTOR,),
    "dynamic": (FACTOR, Entry("original_context", "", lambda c: c["max_position_embeddings"], int)),
    "llama3": (FACTOR, Entry("low", "low_freq_factor"), Entry("high", "high_freq_factor"), TRAINED),
    "yarn": (
        FACTOR._replace(default=_extended),
        Entry("low", "beta_slow", lambda c: 1.0),
        Entry("high", "beta_fast", lambda c: 32.0),
        TRAINED,
        Entry("truncate", "truncate", lambda c: True, bool),
        ATTENTION,
        Entry("mscale", "mscale", _nothing, _optional),
        Entry("mscale_all_dim", "mscale_all_dim", _nothing, _optional),
    ),
    "longrope": (
        FACTOR._replace(default=_extended),
        TRAINED,
        ATTENTION,
        Entry("short", "short_factor", None, tuple),
        Entry("long", "long_factor", None, tuple),
    ),
}


def read_rope(config: Config) -> dict[str, Any]:
    """RopeSpec's fields. Errors: a kind of scaling that is not known, or incomplete."""
    p = rope_parameters(config)
    kind = p.get("rope_type", p.get("type", "default"))
    kind = {"su": "longrope"}.get(kind, kind)
    scaling = None if kind == "default" else _read_scaling(kind, p)
    part = float(p.get("partial_rotary_factor") or 1.0)
    return {
        "base": float(p["rope_theta"]),
        **({"scaling": scaling} if scaling else {}),
        **({"dim": int(part * head_dim(config))} if part != 1.0 else {}),
    }


def head_dim(config: Config) -> int:
    """`head_dim` where a config states it, else width / heads."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_parameters(config: Config) -> dict[str, Any]:
    """The rest of the configuration, overridden by what is said of rotation, in either spelling."""
    said = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    return {"rope_theta": 10000.0, **config, **said}


def _read_scaling(kind: str, parameters: Config) -> dict[str, Any]:
    if kind not in SCALINGS:
        known = ", ".join(("default", *SCALINGS))
        raise CutawayError(f"rope scaling {kind!r} is not implemented", "config.json", f"known: {known}")
    return {"kind": kind, **{e.ours: _read_entry(e, kind, parameters) for e in SCALINGS[kind]}}


def _read_entry(entry: Entry, kind: str, parameters: Config) -> Any:
    value = parameters.get(entry.theirs)
    if value is None and entry.default is None:
        raise CutawayError(f"rope scaling {kind!r} has no {entry.theirs!r}", "config.json")
    return entry.kind(value if value is not None else entry.default(parameters))  # type: ignore[misc]


def write_rope(attentions: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that transformers 4 and 5 both understand, from the layers' attention: they all turn alike."""
    rope, width = attentions[0]["rope"], attentions[0]["head_dim"]
    part = {} if rope["dim"] is None else {"partial_rotary_factor": rope["dim"] / width}
    return {**rope_entries(rope), **part}


def rope_entries(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a rotation of the whole head. Errors: a scaling that config.json has no word for."""
    base, scaling = rope["base"], rope["scaling"]
    if scaling is None:
        return {"rope_theta": base}
    kind = scaling["kind"]
    if kind not in SCALINGS:
        raise CutawayError(f"config.json has no word for rope scaling {kind!r}", "Spec.layers.attention.rope")
    stated = {e.theirs: scaling[e.ours] for e in SCALINGS[kind] if e.theirs and scaling[e.ours] is not None}
    lists = {key: [*value] if isinstance(value, tuple) else value for key, value in stated.items()}
    return {"rope_theta": base, "rope_scaling": {"rope_type": kind, **lists}}


ROPE = Field("layer.attention.rope", read_rope, write_rope, given="layer.attention")
