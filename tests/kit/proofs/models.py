"""Models of every family against their loud twins in transformers; each proof returns the largest error it saw."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.nn.norms import RMSNorm
from kit import twins

# One rounding per multiply-add of the longest chain a value goes through: products of 53 terms, some nine in a row.
ROUNDINGS = 512
FAR = 3000  # a position at which a rotation kept in bfloat16, or even in float32, is far off


def bound(dtype: torch.dtype) -> float:
    """The largest relative error that rounding alone explains."""
    return ROUNDINGS * torch.finfo(dtype).eps


def error(found: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """Largest absolute difference, relative to `scale` or to the largest expected number."""
    assert found.shape == expected.shape, f"shape {list(found.shape)} instead of {list(expected.shape)}"
    difference = (found.double() - expected.double()).abs().max().item()
    return difference / (scale or expected.double().abs().max().item())


def agree(found: list[Tensor], expected: list[Tensor], allowed: float) -> float:
    """Assert that every tensor of ours is within `allowed` of its reference; the largest error."""
    worst = max(error(f, e) for f, e in zip(found, expected, strict=True))
    assert worst <= allowed, f"relative error {worst:.1e}, rounding explains {allowed:.1e}"
    return worst


def values(name: str) -> float:
    """A ragged batch, an even one and one that begins later give what the reference gives for each sequence alone."""
    twin = twins.twin(name)
    model = twins.ours(twin)
    batches = [(twins.RAGGED, 0), (twins.EQUAL, 0), *[(twins.RAGGED, twins.OFFSET)] * twin.takes_positions]
    return max(
        agree(twins.ragged(model, lengths, start), twin.answers(lengths, start).values, bound(torch.float64))
        for lengths, start in batches
    )


def gradients(name: str) -> float:
    """Every parameter of the reference gets the same gradient from ours, translated back by the family's rows.

    Errors are relative to the largest gradient of a parameter, but to no less than a hundredth of the largest of all:
    some gradients, such as those of BERT's key biases, are sums that cancel to nothing but rounding.
    """
    twin = twins.twin(name)
    model = twins.ours(twin)
    twins.weighted(twins.ragged(model)).backward()
    found, expected = twins.foreign_gradients(twin, model), twin.answers().gradients
    assert set(found) == set(expected), f"only one side has {sorted(set(found) ^ set(expected))}"
    floor = 0.01 * max(g.abs().max().item() for g in expected.values())
    errors = {n: error(found[n], g, max(floor, g.abs().max().item())) for n, g in expected.items()}
    worst = max(errors, key=lambda n: errors[n])
    assert errors[worst] <= bound(torch.float64), f"gradient of {worst}: relative error {errors[worst]:.1e}"
    return errors[worst]


CHUNKINGS: dict[str, Callable[[int, int], int]] = {
    "one by one": lambda sequence, step: 1,
    "all but the last two": lambda sequence, step: 100 if step else 17,
    "each sequence otherwise": lambda sequence, step: (3, 1, 9)[(sequence + step) % 3],
}


def cache_values(name: str) -> float:
    """However sequences are cut into spans, the key/value cache gives what the reference gives without one."""
    twin = twins.twin(name)
    model = twins.ours(twin)
    assert isinstance(model, Decoder)
    expected = twin.answers().values
    return max(
        agree(twins.cached(model, twins.RAGGED, chunk), expected, bound(torch.float64)) for chunk in CHUNKINGS.values()
    )


REPLY = 7  # short of where longrope changes its factors, and transformers begins again


def generation(name: str) -> float:
    """Greedy replies by the engine are transformers' own, token for token."""
    twin = twins.twin(name)
    model = twins.ours(twin)
    assert isinstance(model, Decoder)
    engine = Engine(model, cast(Any, twins.Tokenizerless()))
    for prompt_T in twins.prompts(twins.RAGGED):
        events = engine.generate(prompt_T.tolist(), SamplingParams(temperature=0, max_tokens=REPLY))
        found = [event.choice.token for event in events]
        expected = twin.reply(prompt_T, REPLY, model.spec.start)
        assert found == expected, f"{found} instead of {expected}"
    return 0.0


def single_precision(name: str) -> float:
    """In float32 ours stays within rounding of the float64 reference, at late positions too."""
    twin = twins.twin(name)
    start = 0 if twins.is_bounded(twin) else FAR
    found = twins.ragged(twins.ours(twin, torch.float32), twins.RAGGED, start)
    return agree(found, twin.answers(twins.RAGGED, start).values, bound(torch.float32))


def half_precision(name: str) -> float:
    """In bfloat16 ours is no further from the float64 reference than transformers is, within a factor of two.

    This is where it shows whether statistics, angles and softmax keep the precision that they need.
    """
    twin = twins.twin(name)
    start = 0 if twins.is_bounded(twin) else FAR
    truth = torch.cat(twin.answers(twins.RAGGED, start).values)
    found = torch.cat(twins.ragged(twins.ours(twin, torch.bfloat16), twins.RAGGED, start))
    theirs = torch.cat(_reference_in_bfloat16(name, start))
    ours_off, theirs_off = ((x.double() - truth).norm().item() for x in (found, theirs))
    assert ours_off <= 2 * theirs_off, f"off by {ours_off / theirs_off:.2f} times what transformers is"
    return ours_off / theirs_off


@cache
def _reference_in_bfloat16(name: str, start: int) -> list[Tensor]:
    return twins.in_bfloat16(twins.twin(name), twins.RAGGED, start)


def pooler(name: str = "bert") -> float:
    """BERT's pooler layer, of which ours keeps the weights: tanh(W h_0 + b) of each sequence."""
    twin = twins.twin(name)
    model = twins.ours(twin)
    assert isinstance(model, Encoder)
    assert model.pooler is not None
    found = [model.pooler(hidden_TD[0]).tanh() for hidden_TD in twins.ragged(model)]
    return agree(found, twins.pooled(twin), bound(torch.float64))


def norms_in_bfloat16() -> float:
    """RMSNorm in bfloat16 gives the very bits of transformers': where it rounds, and what it keeps in float32."""
    x_TD = (torch.randn(64, 48, generator=torch.Generator().manual_seed(3)) * 30).bfloat16()
    for ours, theirs in [(RMSNorm(48, 1e-6), LlamaRMSNorm(48)), (RMSNorm(48, 1e-6, True), Gemma3RMSNorm(48))]:
        twins.make_loud(theirs)
        ours.load_state_dict(theirs.state_dict())
        found, expected = ours.bfloat16()(x_TD), theirs.bfloat16()(x_TD)
        assert torch.equal(found, expected), f"{(found != expected).sum()} of {found.numel()} numbers differ"
    return 0.0


TWIN_PROOFS = {
    "values": values,
    "gradients": gradients,
    "cache": cache_values,
    "generation": generation,
    "float32": single_precision,
    "bfloat16": half_precision,
}
PROOFS: dict[str, Callable[[], float]] = {
    f"{kind} {name}": partial(proof, name)
    for name in twins.ARCHITECTURES
    for kind, proof in TWIN_PROOFS.items()
    if not (kind in ("cache", "generation") and twins.is_encoder(name))
} | {"pooler bert": pooler, "bfloat16 norms": norms_in_bfloat16}
