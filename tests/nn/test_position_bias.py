"""ALiBi against BLOOM and T5's buckets against T5; what makes no sense is named."""

from __future__ import annotations

import pytest
import torch

from cutaway.nn.position_bias import (
    Alibi,
    AlibiSpec,
    BucketSpec,
    RelativeBias,
    alibi_slopes,
    buckets_of,
    faults,
    make_bias,
)
from kit.proofs.positions import PROOFS


@pytest.mark.parametrize("proof", [name for name in PROOFS if name.startswith(("alibi", "t5"))])
def test_agrees_with_its_reference(proof):
    PROOFS[proof]()


def test_published_slopes():
    """Press et al. 2021, section 3: 1/2, 1/4, ... 1/256 for 8 heads, 1/2^0.5, 1/2, ... for 16."""
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(16).tolist() == pytest.approx([2.0 ** (-n / 2) for n in range(1, 17)])
    assert alibi_slopes(12)[8:].tolist() == pytest.approx([2.0 ** (-n - 0.5) for n in range(4)])


def test_a_bucket_for_each_near_distance_and_ever_longer_ones_further_off():
    """The drawing in the module: 16 buckets, causal."""
    spec, age = BucketSpec(16, 128, bidirectional=False), torch.arange(200)
    bucket = buckets_of(-age, spec)
    assert bucket[:8].tolist() == [*range(8)]
    first = [int((bucket == b).nonzero()[0]) for b in range(16)]
    assert first == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert set(bucket[128:].tolist()) == {15}
    assert buckets_of(age, spec).tolist() == [0] * 200  # keys to come share the query's own bucket


def test_a_spec_makes_its_module():
    assert isinstance(make_bias(AlibiSpec(), 6), Alibi)
    relative = make_bias(BucketSpec(8, 20), 6)
    assert isinstance(relative, RelativeBias)
    assert relative.weight.shape == (8, 6)
    assert not list(make_bias(AlibiSpec(), 6).parameters())


def test_a_penalty_has_the_dtype_of_the_queries():
    distance_QS = torch.arange(4) - torch.arange(4)[:, None]
    q_HQK = torch.zeros(3, 4, 2, dtype=torch.bfloat16)
    assert Alibi(3)(q_HQK, q_HQK, distance_QS).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (AlibiSpec(), set()),
        (BucketSpec(), set()),
        (BucketSpec(2, 8, bidirectional=False), set()),
        (BucketSpec(1, 8, bidirectional=False), {"buckets"}),
        (BucketSpec(7, 8), {"buckets"}),
        (BucketSpec(2, 8), {"buckets"}),
        (BucketSpec(32, 8), {"max_distance"}),
    ],
)
def test_nonsense_is_named(spec, fields):
    assert {name for name, _ in faults(spec)} == fields
