"""`Spec`: one plain description of an architecture, from which everything else about it follows.

A spec is a tree of frozen dataclasses, each defined beside the mechanism that it configures:

    Spec
    |- embedding: EmbeddingSpec          tokens, learned positions, token types
    |- layers: one LayerSpec per layer   so that alternating or special layers need no extra vocabulary
    |    |- attention: MixerSpec         full, latent, linear, disentangled; heads, window, rope, q/k norm
    |    |- cross: AttentionSpec         to the source, in an encoder-decoder
    |    |- ffn: FeedSpec                dense or experts
    |    |- norm: NormSpec               and where it stands: pre, post, sandwich or after
    |- final_norm, head, pooling, task   what becomes of the last hidden state
    |- encoder: Spec                     what reads the source, in an encoder-decoder
    |- ahead: LayerSpecs                 further blocks that predict the tokens after the next one

A further kind of mechanism is a further dataclass in the slot that it shares; it never adds a flag to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from cutaway.errors import CutawayError
from cutaway.nn import disentangled, feed_forward, heads, position_bias, positions
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.disentangled import DisentangledSpec
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.experts import ExpertsSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.heads import HeadSpec, TaskSpec
from cutaway.nn.latent import LatentSpec
from cutaway.nn.linear_attention import LinearSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.position_bias import AlibiSpec, BucketSpec
from cutaway.nn.positions import RopeSpec

MixerSpec = AttentionSpec | LatentSpec | LinearSpec | DisentangledSpec
FeedSpec = FeedForwardSpec | ExpertsSpec


@dataclass(frozen=True)
class LayerSpec:
    """One block. placement says where the norms stand, x being the residual stream and f attention or feed-forward.

    pre:   x + f(norm(x))    post:  norm(x + f(x))    sandwich:  x + norm(f(norm(x)))    after:  x + norm(f(x))

    cross: attention to the source. residual: factor on x in those sums (DeepNet's alpha, arXiv:2203.00555); 0 leaves
    no residual stream. dropout: on f(x), in training. bare: attention reads x without a norm (ModernBERT's first).
    """

    attention: MixerSpec
    ffn: FeedSpec
    norm: NormSpec | None
    placement: Literal["pre", "post", "sandwich", "after"] = "pre"
    cross: AttentionSpec | None = None
    residual: float = 1.0
    dropout: float = 0.0
    bare: bool = False


@dataclass(frozen=True)
class PoolingSpec:
    """How an encoder makes one vector of a sequence. dense: its checkpoint holds BERT's pooler layer as well."""

    kind: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    dense: bool = False


@dataclass(frozen=True)
class Spec:
    """An architecture. `pooling` makes it an encoder, `encoder` an encoder-decoder, else it is a decoder.

    encoder: shares the token embedding. start: the token that a reply begins with, in an encoder-decoder.
    ahead: blocks for multi-token prediction. task: a head that gives a few labels instead of a vocabulary.
    distinct: how many blocks have weights of their own, where several layers share one (ALBERT, arXiv:1909.11942).
    Errors: inconsistent fields, by name.
    """

    family: str
    vocab: int
    width: int
    context: int
    embedding: EmbeddingSpec
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec | None
    head: HeadSpec | None = None
    pooling: PoolingSpec | None = None
    task: TaskSpec | None = None
    encoder: Spec | None = None
    start: int = 0
    ahead: tuple[LayerSpec, ...] = ()
    distinct: int | None = None

    def __post_init__(self) -> None:
        for field, wrong, why in _inconsistencies(self):
            if wrong:
                raise CutawayError(why, f"Spec.{field}", "the checkpoint's configuration contradicts itself")

    @property
    def blocks(self) -> tuple[LayerSpec, ...]:
        """The layers that have weights of their own, in the order of their first use."""
        first = {self.block_of(i): layer for i, layer in reversed([*enumerate(self.layers)])}
        return tuple(first[block] for block in sorted(first))

    @property
    def position_bias(self) -> AlibiSpec | BucketSpec | None:
        """What layers add to scores by distance; all that do add the same."""
        return next((a.position_bias for a in (layer.attention for layer in self.layers) if a.position_bias), None)

    @property
    def relative(self) -> DisentangledSpec | None:
        """What describes the table of rows for distances, if layers use one; all that do use the same."""
        mixers = (layer.attention for layer in self.layers)
        return next((a for a in mixers if isinstance(a, DisentangledSpec)), None)

    def block_of(self, i: int) -> int:
        """Which block layer i runs."""
        return i * (self.distinct or len(self.layers)) // len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Spec:
        """The inverse of `to_dict`. Errors: unknown or missing fields."""
        return _build(Spec, values, "Spec")


Fault = tuple[str, bool, str]
"""(field, is it wrong?, what is wrong)"""


def _inconsistencies(s: Spec) -> Iterator[Fault]:
    for name in ("vocab", "width", "context"):
        yield _positive(name, getattr(s, name))
    yield "layers", not s.layers, "must not be empty"
    yield "head", not (s.head or s.pooling or s.task), "one of head, pooling and task must be given"
    yield "pooling", s.pooling is not None and s.encoder is not None, "an encoder has no encoder of its own"
    depth = len(s.layers)
    yield "distinct", s.distinct is not None and not 1 <= s.distinct <= depth, f"{s.distinct} blocks, {depth} layers"
    unlike = s.distinct is not None and any(s.blocks[s.block_of(i)] != layer for i, layer in enumerate(s.layers))
    yield "distinct", unlike, "layers that share a block must be alike"
    yield from ((f"task.{field}", True, why) for field, why in (heads.faults(s.task) if s.task else ()))
    if s.encoder:
        yield "encoder.width", s.encoder.width != s.width, f"{s.encoder.width} is not the decoder's {s.width}"
        yield "encoder.vocab", s.encoder.vocab != s.vocab, f"{s.encoder.vocab} is not the decoder's {s.vocab}"
        yield "start", not 0 <= s.start < s.vocab, f"{s.start} is no token of the vocabulary of {s.vocab}"
    if s.head and s.head.tied and s.embedding.width and not s.head.transform:
        yield "head.tied", True, f"embedding rows of {s.embedding.width} do not fit hidden states of {s.width}"
    for i, layer in enumerate((*s.layers, *s.ahead)):
        yield from _layer(f"layers[{i}]" if i < depth else f"ahead[{i - depth}]", s, layer)


def _layer(at: str, s: Spec, layer: LayerSpec) -> Iterator[Fault]:
    yield f"{at}.cross", (layer.cross is None) != (s.encoder is None), "cross-attention and an encoder go together"
    yield f"{at}.dropout", not 0 <= layer.dropout < 1, f"must be at least 0 and below 1, got {layer.dropout}"
    for name, attention in (("attention", layer.attention), ("cross", layer.cross)):
        if attention is not None:
            yield from _within(f"{at}.{name}", CHECKS[type(attention)](attention))
    if isinstance(layer.ffn, FeedForwardSpec):  # experts check themselves
        yield from _within(f"{at}.ffn", feed_forward.faults(layer.ffn))


def _within(at: str, faults: Iterable[Fault]) -> Iterator[Fault]:
    return ((f"{at}.{field}", wrong, why) for field, wrong, why in faults)


def _positive(name: str, value: float) -> Fault:
    return name, value < 1, f"must be at least 1, got {value}"


def _attention(a: AttentionSpec) -> Iterator[Fault]:
    yield from (_positive(name, getattr(a, name)) for name in ("heads", "kv_heads", "head_dim"))
    yield "kv_heads", a.heads % max(a.kv_heads, 1) != 0, f"{a.kv_heads} does not divide heads = {a.heads}"
    yield from _rope(a.rope, a.head_dim)
    if a.position_bias:
        yield from ((f"position_bias.{field}", True, why) for field, why in position_bias.faults(a.position_bias))
    yield "window", a.window is not None and a.window < 1, f"must be at least 1, got {a.window}"
    yield "anchors", a.anchors < 0, f"must not be negative, got {a.anchors}"
    yield "softcap", a.softcap is not None and a.softcap <= 0, f"must be above 0, got {a.softcap}"


def _rope(rope: RopeSpec | None, head_dim: int) -> Iterator[Fault]:
    yield from ((f"rope.{field}", True, why) for field, why in (positions.faults(rope, head_dim) if rope else ()))


def _latent(a: LatentSpec) -> Iterator[Fault]:
    sizes = ("heads", "kv_rank", "plain_dim", "rope_dim", "value_dim")
    yield from (_positive(name, getattr(a, name)) for name in sizes)
    yield from _rope(a.rope, a.rope_dim)
    yield "query_rank", a.query_rank is not None and a.query_rank < 1, f"must be at least 1, got {a.query_rank}"


def _disentangled(a: DisentangledSpec) -> Iterator[Fault]:
    yield from (_positive(name, getattr(a, name)) for name in ("heads", "head_dim"))
    yield from ((field, True, why) for field, why in disentangled.faults(a))


CHECKS: dict[type, Any] = {
    DisentangledSpec: _disentangled,
    AttentionSpec: _attention,
    LatentSpec: _latent,
    LinearSpec: lambda a: _rope(a.rope, a.head_dim),  # the rest it checks itself
}


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, where `kind` is a dataclass, a tuple of something, an optional or a plain type."""
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        kind = _fitting([k for k in get_args(kind) if k is not NoneType], value)
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


def _fitting(kinds: list[Any], value: Any) -> Any:
    """Of several dataclasses that share a slot, the one whose fields `value` has: required ones all, unknown ones none.

    If none fits, the one that it shares most fields with, so that the error names what is wrong.
    """

    def fit(kind: Any) -> tuple[bool, int]:
        every = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
        required = {name for name, needed in every.items() if needed}
        return required <= set(value) <= set(every), len(set(value) & set(every))

    return max(kinds, key=fit) if len(kinds) > 1 and isinstance(value, Mapping) else kinds[0]


def _plain(kind: Any, value: Any, where: str) -> Any:
    """`value` if it is of `kind`: a number, a text, a boolean, one of several. Whole numbers pass as float."""
    allowed = get_args(kind) if get_origin(kind) is Literal else None
    if allowed is not None and value not in allowed:
        raise CutawayError(f"{value!r} is not one of {list(allowed)}", where)
    types = (int, float) if kind is float else (kind,)
    if allowed is None and (type(value) not in types):
        raise CutawayError(f"expected {kind.__name__}, got {value!r:.80}", where)
    return value
