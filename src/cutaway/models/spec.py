"""`Spec`: one plain description of an architecture, from which everything else about it follows.

A spec is a tree of frozen dataclasses, each defined beside the mechanism that it configures:

    Spec
    |- embedding: EmbeddingSpec          tokens, learned positions, token types
    |- layers: one LayerSpec per block   so that alternating or special layers need no extra vocabulary
    |    |- attention: AttentionSpec     heads, window, rope, q/k norm
    |    |- ffn: FeedForwardSpec
    |    |- norm: NormSpec               and where it stands: pre, post or sandwich
    |- final_norm, head, pooling         what becomes of the last hidden state

A further kind of mechanism is a further dataclass in the slot that it shares (a latent attention or a linear one in
`attention`, experts in `ffn`, ALiBi beside `rope`); it never adds a flag to the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from cutaway.errors import CutawayError
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import ACTIVATIONS, FeedForwardSpec
from cutaway.nn.norms import NormSpec


@dataclass(frozen=True)
class LayerSpec:
    """One block. placement says where the norms stand, x being the residual stream and f attention or feed-forward.

    pre:      x + f(norm(x))             post:  norm(x + f(x))             sandwich:  x + norm(f(norm(x)))
    """

    attention: AttentionSpec
    ffn: FeedForwardSpec
    norm: NormSpec
    placement: Literal["pre", "post", "sandwich"] = "pre"


@dataclass(frozen=True)
class HeadSpec:
    """The language-model head. tied: it is the token embedding, used the other way round."""

    tied: bool


@dataclass(frozen=True)
class PoolingSpec:
    """How an encoder makes one vector of a sequence. dense: its checkpoint holds BERT's pooler layer as well."""

    kind: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    dense: bool = False


@dataclass(frozen=True)
class Spec:
    """An architecture. `head` makes it a decoder, `pooling` an encoder. Errors: inconsistent fields, by name."""

    family: str
    vocab: int
    width: int
    context: int
    embedding: EmbeddingSpec
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec | None
    head: HeadSpec | None = None
    pooling: PoolingSpec | None = None

    def __post_init__(self) -> None:
        for field, wrong, why in _inconsistencies(self):
            if wrong:
                raise CutawayError(why, f"Spec.{field}", "the checkpoint's configuration contradicts itself")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Spec:
        """The inverse of `to_dict`. Errors: unknown or missing fields."""
        return _build(Spec, values, "Spec")


def _inconsistencies(s: Spec) -> Iterator[tuple[str, bool, str]]:
    """(field, is it wrong?, what is wrong)."""
    for name in ("vocab", "width", "context"):
        yield name, getattr(s, name) < 1, f"must be at least 1, got {getattr(s, name)}"
    yield "layers", not s.layers, "must not be empty"
    yield "head", (s.head is None) == (s.pooling is None), "exactly one of head and pooling must be given"
    for i, layer in enumerate(s.layers):
        a, at = layer.attention, f"layers[{i}].attention"
        for name in ("heads", "kv_heads", "head_dim"):
            yield f"{at}.{name}", getattr(a, name) < 1, f"must be at least 1, got {getattr(a, name)}"
        yield f"{at}.kv_heads", a.heads % max(a.kv_heads, 1) != 0, f"{a.kv_heads} does not divide heads = {a.heads}"
        yield f"{at}.head_dim", a.rope is not None and a.head_dim % 2 != 0, f"{a.head_dim} is odd, rotation needs pairs"
        yield f"{at}.window", a.window is not None and a.window < 1, f"must be at least 1, got {a.window}"
        yield f"layers[{i}].ffn.width", layer.ffn.width < 1, f"must be at least 1, got {layer.ffn.width}"
        known = layer.ffn.activation in ACTIVATIONS
        yield f"layers[{i}].ffn.activation", not known, f"{layer.ffn.activation!r} is not one of {list(ACTIVATIONS)}"


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, where `kind` is a dataclass, a tuple of something, an optional or a plain type."""
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is tuple:
        return tuple(_build(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if not is_dataclass(kind):
        return _plain(kind, value, where)
    hints, names, build = get_type_hints(kind), {f.name for f in fields(kind)}, cast(Any, kind)
    if not isinstance(value, Mapping) or not set(value) <= names:
        raise CutawayError(f"expected the fields {sorted(names)}, got {value!r:.200}", where)
    try:
        return build(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    except TypeError as error:
        raise CutawayError(str(error), where) from None


def _plain(kind: Any, value: Any, where: str) -> Any:
    """`value` if it is of `kind`: a number, a text, a boolean, one of several. Whole numbers pass as float."""
    allowed = get_args(kind) if get_origin(kind) is Literal else None
    if allowed is not None and value not in allowed:
        raise CutawayError(f"{value!r} is not one of {list(allowed)}", where)
    types = (int, float) if kind is float else (kind,)
    if allowed is None and (type(value) not in types):
        raise CutawayError(f"expected {kind.__name__}, got {value!r:.80}", where)
    return value
