"""Who may look at whom; the proofs compare pair by pair, and with transformers' masks and sparse attentions."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.nn import patterns
from cutaway.nn.attention import Question, visible
from cutaway.nn.patterns import BigBird, Blocks, Causal, Fixed, Longformer, Prefix, Strided, Window, both, mask
from kit.proofs.attention_forms import PROOFS


@pytest.mark.parametrize("name", [name for name in PROOFS if name.split()[0] == "pattern"])
def test_every_pattern_is_its_definition(name):
    PROOFS[name]()


def test_rules_know_positions_not_rows():
    """A tile asked about in the middle is that part of the whole mask."""
    for rule in (Causal(), Window(4, 1), Prefix(5), Blocks((4, 9)), Longformer(2, (7,)), Strided(3), Fixed(4, 2)):
        q_Q1, s_1S = torch.arange(5, 11)[:, None], torch.arange(3, 8)[None]
        assert torch.equal(rule(q_Q1, s_1S), mask(rule, 16)[5:11, 3:8]), rule


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 7)])
def test_a_window_with_anchors_is_the_one_that_attention_uses(queries, keys):
    for size, anchors in ((3, 0), (2, 1), (4, 2)):
        found = Window(size, anchors)(torch.arange(keys - queries, keys)[:, None], torch.arange(keys)[None])
        question = Question(1.0, window=size, anchors=anchors)
        assert torch.equal(found, visible(queries, keys, question, torch.device("cpu")))


def test_prefix_is_the_one_that_attention_uses():
    question = Question(1.0)
    assert torch.equal(mask(Prefix(3), 8), visible(8, 8, question, torch.device("cpu"), prefix=3))


def test_documents_packed_causally():
    seen = mask(both(Causal(), Blocks((2, 3))), 5).int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_two_steps_of_a_strided_pattern_reach_everything_before():
    """What Child et al. ask of a sparse pattern, and why its stride is near the root of the length."""
    for rule in (Strided(5), Fixed(5, 1)):
        one = mask(rule, 25).float()
        assert torch.equal((one @ one) > 0, mask(Causal(), 25)), rule


def test_sparse_patterns_cost_less_than_the_square():
    n = 4096
    assert Strided(64).pairs(n) < 0.03 * n * n
    assert Fixed(64, 1).pairs(n) < 0.03 * n * n
    assert BigBird(n, 64, 3).pairs(n) < 0.16 * n * n
    assert Longformer(256, (0,)).pairs(2 * n) / Longformer(256, (0,)).pairs(n) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), "Window.size: must be at least 1, got 0"),
        (lambda: Window(3, -1), "Window.anchors: must be at least 0"),
        (lambda: Strided(0), "Strided.stride: must be at least 1"),
        (lambda: Longformer(2, (0, -3)), "Longformer.everywhere: must be at least 0"),
        (lambda: BigBird(64, 0, 1), "BigBird.block: must be at least 1"),
        (lambda: BigBird(65, 8, 1), "BigBird.length: 65 tokens are not 6 or more whole blocks of 8"),
        (lambda: BigBird(40, 8, 1), "BigBird.length: 40 tokens are not 6 or more whole blocks of 8"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(make, message):
    with pytest.raises(CutawayError, match=message):
        make()


def test_more_documents_than_tokens_are_refused():
    with pytest.raises(CutawayError, match="9 tokens of documents"):
        Blocks((5, 4)).pairs(8)


def test_every_pattern_has_a_formula():
    kinds = [kind for kind in vars(patterns).values() if isinstance(kind, type) and issubclass(kind, patterns.Pattern)]
    assert all("pairs" in vars(kind) for kind in kinds)
