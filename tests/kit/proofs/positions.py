"""Rotations, their scalings, sinusoids and biases by distance, against complex numbers, formulae and transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from cutaway.nn import position_bias
from cutaway.nn.position_bias import BucketSpec, RelativeBias, alibi_slopes, buckets_of
from cutaway.nn.positions import (
    RopeScaling,
    RopeSpec,
    deinterleave,
    interleave,
    rope_frequencies,
    rotate,
    rotate_interleaved,
    rotation,
    sinusoids,
)
from kit.precision import all_float64
from kit.proofs.models import agree
from kit.proofs.running import replies

EXACT = 1e-12
HEAD, BASE, TRAINED = 20, 500.0, 64
SHORT = tuple(1 + 0.1 * j for j in range(HEAD // 2))
LONG = tuple(2 + 0.7 * j for j in range(HEAD // 2))
STATED = {"original_max_position_embeddings": 24, "factor": 6.0}
YARN = partial(RopeScaling, "yarn", 6.0, low=1.0, high=32.0, original_context=24)

# name -> transformers' parameters, our spec. For "dynamic" the trained length is max_position_embeddings there.
ROPES: dict[str, tuple[dict[str, Any], RopeSpec]] = {
    "default": ({"rope_type": "default"}, RopeSpec(BASE)),
    "partial": ({"rope_type": "linear", "factor": 1.0, "partial_rotary_factor": 0.5}, RopeSpec(BASE, dim=HEAD // 2)),
    "linear": ({"rope_type": "linear", "factor": 3.0}, RopeSpec(BASE, RopeScaling("linear", 3.0))),
    "dynamic": (
        {"rope_type": "dynamic", "factor": 3.0},
        RopeSpec(BASE, RopeScaling("dynamic", 3.0, original_context=TRAINED)),
    ),
    "llama3": (
        {"rope_type": "llama3", "low_freq_factor": 0.5, "high_freq_factor": 3.0, **STATED},
        RopeSpec(BASE, RopeScaling("llama3", 6.0, 0.5, 3.0, 24)),
    ),
    "yarn": ({"rope_type": "yarn", **STATED}, RopeSpec(BASE, YARN())),
    "yarn-gpt-oss": ({"rope_type": "yarn", "truncate": False, **STATED}, RopeSpec(BASE, YARN(truncate=False))),
    "yarn-deepseek": (
        {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 0.7, **STATED},
        RopeSpec(BASE, YARN(mscale=1.0, mscale_all_dim=0.7)),
    ),
    "yarn-stated": (
        {"rope_type": "yarn", "attention_factor": 1.3, "beta_fast": 2.0, "beta_slow": 0.3, **STATED},
        RopeSpec(BASE, YARN(low=0.3, high=2.0, attention_factor=1.3)),
    ),
    "yarn-partial": (
        {"rope_type": "yarn", "partial_rotary_factor": 0.5, **STATED},
        RopeSpec(BASE, YARN(), dim=HEAD // 2),
    ),
    "longrope": (
        {"rope_type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG), **STATED},
        RopeSpec(BASE, RopeScaling("longrope", 6.0, original_context=24, short=SHORT, long=LONG)),
    ),
}
LENGTHS = (19, 24, 25, 64, 65, 300)  # on both sides of either trained length


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(name: str) -> float:
    """Cosines and sines at every position of texts of several lengths, attention factor included.

    transformers gets a fresh module for each length: its own remembers the longest text it has seen.
    """
    theirs, spec = ROPES[name]
    return max(_table(theirs, spec, torch.arange(length)) for length in LENGTHS)


def _table(theirs: dict[str, Any], spec: RopeSpec, positions_T: Tensor) -> float:
    parameters = {**theirs, "rope_theta": BASE}
    with all_float64():
        config = transformers.LlamaConfig(head_dim=HEAD, max_position_embeddings=TRAINED, rope_parameters=parameters)
        cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions_T[None])
    return agree(list(rotation(spec, HEAD, positions_T, torch.float64)), [cos[0], sin[0]], EXACT)


def reaches(name: str) -> float:
    """In a ragged batch every token is turned as its own text's length asks, not as the longest one's."""
    _, spec = ROPES[name]
    alone = [rotation(spec, HEAD, torch.arange(n), torch.float64) for n in LENGTHS]
    reach_T = torch.tensor(LENGTHS).repeat_interleave(torch.tensor(LENGTHS))
    positions_T = torch.cat([torch.arange(n) for n in LENGTHS])
    together = rotation(spec, HEAD, positions_T, torch.float64, reach_T)
    return agree(list(together), [torch.cat(parts) for parts in zip(*alone, strict=True)], EXACT)


def turned_as_complex_numbers(dim: int | None) -> float:
    """Values and gradients: pair j of position p is multiplied by e^(i p base^(-2j/dim)), the rest is left alone."""
    positions_T, weight, width = torch.tensor([0, 1, 2, 40, 7]), drawn(5, 3, HEAD, seed=1), dim or HEAD
    ours, theirs = (drawn(5, 3, HEAD).requires_grad_() for _ in range(2))
    found = rotate(ours, rotation(RopeSpec(BASE, dim=dim), HEAD, positions_T, torch.float64))
    angle_Tk = positions_T[:, None] * BASE ** (-torch.arange(width // 2, dtype=torch.float64) * 2 / width)
    halves = theirs[..., : width // 2], theirs[..., width // 2 : width]
    as_complex = torch.complex(*halves) * torch.polar(torch.ones(1).double(), angle_Tk)[:, None]
    expected = torch.cat([as_complex.real, as_complex.imag, theirs[..., width:]], -1)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    return agree([found.detach(), ours.grad], [expected.detach(), theirs.grad], EXACT)


def distance_alone(width: int) -> float:
    """<R(m) q, R(n) k> = <q, R(n - m) k> for 1,000 random queries, keys and positions; turning keeps the length."""
    spec, q_T1K, k_T1K = RopeSpec(), drawn(1000, 1, width), drawn(1000, 1, width, seed=1)
    m_T, n_T = torch.randint(5000, (2, 1000), generator=torch.Generator().manual_seed(2))

    def turned(x_T1K: Tensor, positions_T: Tensor) -> Tensor:
        return rotate(x_T1K, rotation(spec, width, positions_T, torch.float64))

    both = (turned(q_T1K, m_T) * turned(k_T1K, n_T)).sum(-1)
    one = (q_T1K * turned(k_T1K, n_T - m_T)).sum(-1)
    agree([turned(q_T1K, m_T).norm(dim=-1)], [q_T1K.norm(dim=-1)], EXACT)
    return agree([both], [one], EXACT)


def layouts() -> float:
    """Neighbors paired as complex numbers; `interleave` takes either layout's rotation to the other's."""
    x_THK, positions_T = drawn(6, 2, HEAD), torch.arange(6) * 7
    turn = rotation(RopeSpec(BASE), HEAD, positions_T, torch.float64)
    angle_Tk = positions_T[:, None] * BASE ** (-torch.arange(HEAD // 2, dtype=torch.float64) * 2 / HEAD)
    pairs = torch.view_as_complex(x_THK.unflatten(-1, (-1, 2))) * torch.polar(torch.ones(1).double(), angle_Tk)[:, None]
    assert torch.equal(deinterleave(interleave(x_THK)), x_THK), "not each other's inverse"
    found = [rotate_interleaved(x_THK, turn), interleave(rotate(deinterleave(x_THK), turn))]
    return agree(found, [torch.view_as_real(pairs).flatten(-2)] * 2, EXACT)


def ntk() -> float:
    """The published bases (d = 128, factor 4), the fastest pair as it was, the slowest slower by the factor."""
    errors = []
    for base, enlarged in [(1e4, 40890.0), (5e5, 2044497.0)]:
        plain, found = (rope_frequencies(RopeSpec(base, s), 128) for s in (None, RopeScaling("ntk", 4.0)))
        expected = enlarged ** (-torch.arange(64, dtype=torch.float64) / 64)
        assert found[0] == plain[0] == 1
        assert math.isclose(plain[-1] / found[-1], 4.0, rel_tol=EXACT)
        errors.append(agree([found.log()], [expected.log()], 2e-6))  # the bases are published as whole numbers
    return max(errors)


def waves() -> float:
    """The table of Attention Is All You Need as DistilBERT (interleaved) and Marian (concatenated) compute it."""
    length, width = 300, 26
    with all_float64():
        interleaved, marian = torch.empty(length, width), MarianSinusoidalPositionalEmbedding(length, width)
        create_sinusoidal_embeddings(length, width, interleaved)
        concatenated = marian.create_weight().detach()
    positions_T = torch.arange(length)
    agree([sinusoids(positions_T, width)], [interleaved.detach()], 1e-6)  # the reference rounds to float32
    return agree([sinusoids(positions_T, width, layout="concatenated")], [concatenated], 1e-6)


def waves_by_hand() -> float:
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i + 1) = cos(same), number by number."""
    rows = [[(math.sin, math.cos)[d % 2](p / 10000 ** ((d - d % 2) / 26)) for d in range(26)] for p in (0, 1, 5, 999)]
    found = sinusoids(torch.tensor([0, 1, 5, 999]), 26)
    return agree([found], [torch.tensor(rows, dtype=torch.float64)], EXACT)


def slopes() -> float:
    """ALiBi's slopes of 1 to 130 heads as BLOOM has them, and the published ones of 8 heads."""
    published = torch.tensor([2.0**-n for n in range(1, 9)], dtype=torch.float64)
    agree([alibi_slopes(8)], [published], EXACT)
    with all_float64():
        expected = [
            build_alibi_tensor(torch.ones(1, 2), heads, torch.float64).view(heads, 2)[:, 1] for heads in range(1, 131)
        ]
    return agree([alibi_slopes(heads) for heads in range(1, 131)], expected, EXACT)


def alibi() -> float:
    """The penalty of every key that a query may see, up to 256 back: BLOOM's, less what it says of the query itself."""
    heads, length = 6, 257
    with all_float64():
        theirs_HS = build_alibi_tensor(torch.ones(1, length), heads, torch.float64).view(heads, length)
    expected_HQS = theirs_HS[:, None, :] - theirs_HS[:, :, None]
    past_QS = torch.ones(length, length).tril()
    found_HQS = _bias(position_bias.Alibi(heads), length)
    agree([found_HQS[:, 0]], [-found_HQS.new_tensor(range(length)) * alibi_slopes(heads)[:, None]], EXACT)
    return agree([found_HQS * past_QS], [expected_HQS * past_QS], EXACT)


def _bias(module: torch.nn.Module, length: int) -> Tensor:
    """What a bias says to `length` queries and keys."""
    at_T, nothing = torch.arange(length), torch.zeros(1, 1, 1, dtype=torch.float64)
    return module(nothing, nothing, at_T - at_T[:, None])


BUCKETS = (BucketSpec(), BucketSpec(bidirectional=False), BucketSpec(16, 100), BucketSpec(10, 40, bidirectional=False))


def buckets() -> None:
    """Every distance from -256 to 256 falls into the bucket that T5 puts it into."""
    distance = torch.arange(-256, 257)
    for spec in BUCKETS:
        expected = T5Attention._relative_position_bucket(distance, spec.bidirectional, spec.buckets, spec.max_distance)
        found = buckets_of(distance, spec)
        assert torch.equal(found, expected), f"{spec}: differs at {distance[found != expected].tolist()[:5]}"


def relative(spec: BucketSpec) -> float:
    """T5's bias of 40 queries and keys from a random table, and the gradient of that table."""
    config = transformers.T5Config(
        num_heads=3,
        relative_attention_num_buckets=spec.buckets,
        relative_attention_max_distance=spec.max_distance,
        is_decoder=not spec.bidirectional,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double().relative_attention_bias
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    attention.relative_attention_bias = theirs
    ours, weight = RelativeBias(3, spec).double(), drawn(3, 40, 40, seed=4)
    with torch.no_grad():
        theirs.weight.copy_(drawn(spec.buckets, 3, seed=3))
        ours.weight.copy_(drawn(spec.buckets, 3, seed=3))
    expected, found = attention.compute_bias(40, 40)[0], _bias(ours, 40)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert theirs.weight.grad is not None
    assert ours.weight.grad is not None
    return agree([found.detach(), ours.weight.grad], [expected.detach(), theirs.weight.grad], EXACT)


PROOFS: dict[str, Callable[[], object]] = {
    **{f"rope table {name}": partial(table, name) for name in ROPES},
    **{f"rope reach {name}": partial(reaches, name) for name in ("dynamic", "longrope")},
    "rope complex": partial(turned_as_complex_numbers, None),
    "rope complex partial": partial(turned_as_complex_numbers, 12),
    "rope distance 2": partial(distance_alone, 2),
    "rope distance 64": partial(distance_alone, 64),
    "rope layouts": layouts,
    "rope ntk": ntk,
    "sinusoids": waves,
    "sinusoids by hand": waves_by_hand,
    "alibi slopes": slopes,
    "alibi": alibi,
    "replies phi3-long": partial(replies, "phi3-long"),
    "t5 buckets": buckets,
    "t5 bias": partial(relative, BUCKETS[0]),
    "t5 bias causal": partial(relative, BUCKETS[3]),
}
