"""What a model family is: tables between a foreign checkpoint and ours, each read in both directions.

    config.json      <- Field table ->   Spec            a path such as "layer.attention.heads" names the spec's field
    GGUF metadata    <- key table   ->   config.json
    tensor names     <- Row table   ->   our parameter names, with a `Via` where the numbers are laid out otherwise

A family file holds nothing but such tables. Loading and saving share them, and `config_of` refuses to write a
configuration from which the same `Spec` would not come back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.spec import LayerSpec, Spec

Config = Mapping[str, Any]
LAYER = "layer."  # path prefix: the field of every layer
ENCODER = "encoder."  # path prefix: a field of the encoder's spec
BRACKETS = re.compile(r"\[(.*?)\]")


class Each(list[Any]):
    """A value per layer, where `Field.read` gives layers different ones."""


class Field(NamedTuple):
    """One row of a configuration table. read: from the whole config. write: the config entries for a spec's value.

    For a path under "layer." `read` gives one value for all or an `Each`, and `write` gets the list over layers.
    given: the path of what `write` gets, where that takes more than the field itself.
    """

    path: str
    read: Callable[[Config], Any]
    write: Callable[[Any], dict[str, Any]] = lambda value: {}
    given: str = ""


def same(key: str, path: str, default: Any = None) -> Field:
    """`config[key]` is the spec's value. default: a value or a function of the config, for files without the key."""

    def read(config: Config) -> Any:
        value = config.get(key)
        if value is None:
            value = default(config) if callable(default) else default
        if value is None:
            raise CutawayError(f"has no {key!r}", "config.json", "the checkpoint's configuration is incomplete")
        return value

    return Field(path, read, lambda value: {key: one(value, path)})


def named(key: str, path: str, names: Mapping[str, str], default: str | None = None) -> Field:
    """`config[key]` is a name that we spell differently. Errors: names the table does not know."""
    back = {ours: theirs for theirs, ours in reversed(list(names.items()))}

    def read(config: Config) -> str:
        theirs: Any = config.get(key) or default
        if theirs not in names:
            raise CutawayError(f"{key} = {theirs!r} is not supported", "config.json", f"known: {', '.join(names)}")
        return names[theirs]

    return Field(path, read, lambda value: {key: back[one(value, path)]})


def one(value: Any, path: str) -> Any:
    """The single value of a field, or the one that all layers share."""
    if not path.removeprefix(ENCODER).startswith(LAYER):
        return value
    if any(v != value[0] for v in value):
        raise CutawayError(f"layers differ in {path.removeprefix(LAYER)}: {value}", "Spec", "this family has one value")
    return value[0]


class Via(NamedTuple):
    """How one foreign tensor becomes ours (one or several) and back; both see the spec for head counts and widths."""

    load: Callable[[Tensor, Spec], tuple[Tensor, ...]]
    save: Callable[[tuple[Tensor, ...], Spec], Tensor]


class Row(NamedTuple):
    """One row of a tensor table. Numbers in the names:

    {i} a layer   {j} a layer of the encoder   {m} a block that predicts ahead, {n} the same counted on from the layers
    {e} an expert: theirs has a tensor for each, ours one with all of them, [E, ...]

    What stands in brackets, "[bert.]encoder", is left out by models that have neither head nor task.
    when: which models of the family have it, where two rows give the same tensor of ours.
    """

    theirs: str
    ours: str | tuple[str, ...]
    via: Via | None = None
    when: Callable[[Spec], bool] = lambda spec: True


class Binding(NamedTuple):
    """A row whose numbers are filled in: one of their tensors or, of experts, one after the other; ours."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    via: Via | None

    def load(self, read: Callable[[str], Tensor], spec: Spec) -> tuple[Tensor, ...]:
        """Our tensors."""
        parts = [read(name) for name in self.theirs]
        whole = parts[0] if len(parts) == 1 else torch.stack(parts)
        return (whole,) if self.via is None else self.via.load(whole, spec)

    def save(self, ours: Mapping[str, Tensor], spec: Spec) -> dict[str, Tensor]:
        """Theirs, by name."""
        parts = tuple(ours[name] for name in self.ours)
        whole = parts[0] if self.via is None else self.via.save(parts, spec)
        return dict(zip(self.theirs, [whole] if len(self.theirs) == 1 else whole.unbind(0), strict=True))


def pair(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a module that holds a weight and a bias, a norm or a linear layer."""
    return tuple(Row(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias"))


TRANSPOSED = Via(lambda t, s: (t.T.contiguous(),), lambda ts, s: ts[0].T.contiguous())
OFFSET_FROM_ONE = Via(lambda t, s: (t - 1,), lambda ts, s: ts[0] + 1)


def split(axis: int, transpose: bool = False) -> Via:
    """Query, key and value fused in one tensor along `axis`, which GPT-2 stores transposed."""

    def load(t: Tensor, s: Spec) -> tuple[Tensor, ...]:
        a = s.layers[0].attention
        sizes = [a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.head_dim]
        return tuple((p.T if transpose else p).contiguous() for p in t.split(sizes, axis))

    return Via(load, lambda ts, s: torch.cat([p.T if transpose else p for p in ts], axis).contiguous())


def interleaved(heads: Callable[[Spec], int]) -> Via:
    """Rows of each head in the order (2j, 2j + 1) of GGUF's llama family, ours being (j, j + K/2)."""

    def swap(t: Tensor, s: Spec, inner: tuple[int, int]) -> Tensor:
        return t.reshape(heads(s), *inner, *t.shape[1:]).transpose(1, 2).reshape(t.shape)

    return Via(lambda t, s: (swap(t, s, (-1, 2)),), lambda ts, s: swap(ts[0], s, (2, -1)))


@dataclass(frozen=True)
class Family:
    """The tables of one family.

    architectures: class names of transformers, the first is written unless a field says another.
    gguf: llama.cpp's name for it, if it has one.
    gguf_mark: how a tensor's name ends that tells it from another family of that name.
    constants: what the family fixes, by spec path. requires: config entries with the only values that we implement.
    prefix: of tensor names that bare base-model checkpoints leave out. ignored: buffers that older files carry.
    gguf_config: config entries that GGUF metadata does not state, from the metadata and the tensor shapes.
    observed: config entries that only the names of the tensors tell.
    pools: these are encoders; how they make a sentence's vector is kept beside the weights.
    """

    name: str
    architectures: tuple[str, ...]
    fields: tuple[Field, ...]
    constants: Mapping[str, Any]
    rows: tuple[Row, ...]
    gguf: str = ""
    gguf_mark: str = ""
    gguf_rows: tuple[Row, ...] = ()
    gguf_keys: Mapping[str, str] = field(default_factory=dict)
    gguf_config: Callable[[Config, Mapping[str, tuple[int, ...]]], dict[str, Any]] = lambda metadata, shapes: {}
    gguf_extra: Callable[[Spec], dict[str, Any]] = lambda spec: {}
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    prefix: str = "model."
    ignored: tuple[str, ...] = ()
    observed: Callable[[Config, Mapping[str, Any]], dict[str, Any]] = lambda config, names: {}
    pools: bool = False
    model_type: str = ""


def spec_of(family: Family, config: Config) -> Spec:
    """The spec that a config.json of this family describes. Errors: missing keys, unsupported values, by name."""
    for key, allowed in family.requires.items():
        if key in config and config[key] not in allowed:
            raise CutawayError(
                f"{key} = {config[key]!r} is not implemented for {family.name}", "config.json", f"supported: {allowed}"
            )
    values = {**family.constants, "family": family.name, **{f.path: f.read(config) for f in family.fields}}
    return Spec.from_dict(_assembled(values))


def _assembled(values: dict[str, Any]) -> dict[str, Any]:
    """Nested fields from paths: "layer." ones for each layer, "encoder." ones as a spec of their own."""
    encoder = {p.removeprefix(ENCODER): v for p, v in values.items() if p.startswith(ENCODER)}
    values = {p: v for p, v in values.items() if not p.startswith(ENCODER)}
    depth, ahead = values.pop("depth"), values.pop("ahead", 0)
    _check_depth(depth)
    layers = [
        nest({p.removeprefix(LAYER): _pick(v, i) for p, v in values.items() if p.startswith(LAYER)})
        for i in range(depth)
    ]
    nested = nest({p: v for p, v in values.items() if not p.startswith(LAYER)})
    if encoder:
        shared = {name: values[name] for name in ("family", "vocab", "width")}
        nested["encoder"] = _assembled(shared | encoder)
    return {**nested, "layers": layers, "ahead": [layers[-1]] * ahead}


def config_of(family: Family, spec: Spec) -> dict[str, Any]:
    """The config.json of a spec. Errors: a spec that this family's configuration cannot express."""
    nested = spec.to_dict()
    config: dict[str, Any] = {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type or family.name,
    }
    for entry in family.fields:
        config.update(entry.write(find(nested, entry.given or entry.path)))
    if (back := spec_of(family, config)) != spec:
        wrong = [p for p in _leaves(nested) if find(nested, p) != find(back.to_dict(), p)]
        raise CutawayError(f"cannot express {', '.join(wrong[:4])}", f"family {family.name}", "save another family")
    return config


def config_of_gguf(family: Family, metadata: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """config.json entries from GGUF metadata. Errors: keys that the format requires and the file lacks."""
    keys = {f"{family.gguf}.{suffix}": key for suffix, key in family.gguf_keys.items()}
    config = {key: metadata[k] for k, key in keys.items() if k in metadata}
    return {**config, **family.gguf_config(metadata, shapes)}


def gguf_of_config(family: Family, config: Config, spec: Spec) -> dict[str, Any]:
    """GGUF metadata of the architecture (not of the tokenizer) from config.json entries."""
    stated = {suffix: config[key] for suffix, key in family.gguf_keys.items() if config.get(key) is not None}
    entries = {**stated, **family.gguf_extra(spec)}
    return {"general.architecture": family.gguf, **{f"{family.gguf}.{k}": v for k, v in entries.items()}}


def kept_in(ours: str, dtype: torch.dtype) -> torch.dtype:
    """The type of one of our parameters in a model of `dtype`. A bias that only chooses among experts moves by steps
    that bfloat16 cannot tell from nothing."""
    return torch.promote_types(dtype, torch.float32) if ours.endswith(".choice_bias") else dtype


def rows_of(rows: tuple[Row, ...], spec: Spec) -> Iterator[Binding]:
    """The table with its numbered rows repeated for each layer, of which the model may have only some."""
    kept = r"\1" if spec.head or spec.task else ""
    for row in (row._replace(theirs=BRACKETS.sub(kept, row.theirs)) for row in rows if row.when(spec)):
        yield from (_bound(row, numbers, layer) for numbers, layer in _numbered(row, spec))


def _numbered(row: Row, spec: Spec) -> list[tuple[dict[str, int], LayerSpec | None]]:
    """What the numbers of a row go through, and the layers that they belong to."""
    if "{i}" in row.theirs:
        return [({"i": i}, layer) for i, layer in enumerate(spec.blocks)]
    if "{j}" in row.theirs:
        return [({"j": j}, layer) for j, layer in enumerate(spec.encoder.blocks if spec.encoder else ())]
    if "{n}" in row.theirs:
        return [({"m": m, "n": len(spec.layers) + m}, layer) for m, layer in enumerate(spec.ahead)]
    return [({}, None)]


def _bound(row: Row, numbers: dict[str, int], layer: LayerSpec | None) -> Binding:
    def filled(name: str, more: Mapping[str, int]) -> str:
        for key, number in {**numbers, **more}.items():
            name = name.replace(f"{{{key}}}", str(number))
        return name

    experts = getattr(layer.ffn, "count", 1) if layer and "{e}" in row.theirs else 1
    theirs = tuple(filled(row.theirs, {"e": e}) for e in range(experts))
    ours = (row.ours,) if isinstance(row.ours, str) else row.ours
    return Binding(theirs, tuple(filled(name, {}) for name in ours), row.via)


def _check_depth(depth: Any) -> None:
    if not isinstance(depth, int) or not 1 <= depth <= 10_000:
        raise CutawayError(f"{depth!r} layers are not plausible", "config.json", "the file is probably damaged")


def _pick(value: Any, i: int) -> Any:
    return value[i] if isinstance(value, Each) else value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}; a path set to None stays None even where others go deeper."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        at = nested
        for name in parents:
            at = at.setdefault(name, {})
        at[leaf] = value
    return nested


def find(nested: Mapping[str, Any], path: str) -> Any:
    """The value at a path; for "layer." paths the list over layers; "depth" is their number."""
    if path.startswith(ENCODER):
        return None if nested["encoder"] is None else find(nested["encoder"], path.removeprefix(ENCODER))
    if path == "depth":
        return len(nested["layers"])
    if path.startswith(LAYER):
        return [find(layer, path.removeprefix(LAYER)) for layer in nested["layers"]]
    at: Any = nested
    for name in path.split("."):
        at = None if at is None else at[name]
    return at


def _leaves(nested: Mapping[str, Any]) -> list[str]:
    """Top-level and per-layer field paths, to name a difference."""
    return [k for k in nested if k != "layers"] + [LAYER + k for k in nested["layers"][0]]
