"""Known values of the parts of the labs about norms, the residual path, dropout and initialization."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.labs.lab import Run
from cutaway.labs.norm import (
    dropout,
    dropout_policy,
    init_scale,
    layer_vs_batch,
    normalizing,
    pre_vs_post,
    residual_path,
    transformer_init,
)
from cutaway.labs.training import Batch, prose, small_spec
from cutaway.models.decoder import Decoder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- residual-path


def test_slopes_of_one_and_two_sigmoids() -> None:
    """A quarter at zero; two of them are a product, largest a little left of zero."""

    def slope(p: float) -> float:
        q = 1 / (1 + math.exp(-p))
        return p * (1 - p) * q * (1 - q)

    assert residual_path.steepest(1) == pytest.approx(0.25)
    assert residual_path.steepest(2) == pytest.approx(max(slope(i / 1000) for i in range(1001)), rel=1e-4)


def test_a_skip_adds_the_input() -> None:
    with_skip, without = (residual_path.Sigmoid(5, skip, seeded()) for skip in (True, False))
    x_TD = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(with_skip(x_TD), x_TD + without(x_TD))
    torch.testing.assert_close(without(x_TD), torch.sigmoid(x_TD @ without.weight.T))


@pytest.mark.parametrize(
    ("rows", "expected"), [([[1, 0], [1, 0]], 1.0), ([[1, 0], [0, 3]], 0.0), ([[1, 0], [-2, 0]], -1.0)]
)
def test_likeness_is_the_mean_cosine(rows: list, expected: float) -> None:
    class Fixed(Decoder):
        def forward(self, *inputs: object) -> torch.Tensor:
            return torch.tensor(rows).float()

    assert residual_path.likeness(Fixed(small_spec(width=8, layers=1)), torch.tensor([1, 2])) == pytest.approx(expected)


# ---- layer-vs-batch


def test_what_moves_a_norm_by_hand() -> None:
    """Ten rows beside ten others: the mean of the batch is what a mate shifts."""
    assert layer_vs_batch.mate("layer", True, seeded()) == 0.0
    assert layer_vs_batch.mate("batch", False, seeded()) == 0.0
    assert layer_vs_batch.padding("batch", seeded()) > layer_vs_batch.mate("batch", True, seeded()) > 0.1


def test_losses_in_training_mode_leave_no_trace() -> None:
    """Both modes of a model with layer norms are one function, and batches do not matter to it."""
    spec = small_spec(width=16, layers=1, norm=layer_vs_batch.NormSpec("layer", 1e-5))
    found = layer_vs_batch.trained(layer_vs_batch.fresh(spec, 0), "layer", 2, 16, Run())
    assert found.training == found.evaluation
    assert found.usual == pytest.approx(found.training, rel=1e-5)


# ---- pre-vs-post


def test_tilt_is_top_over_bottom() -> None:
    assert pre_vs_post.tilt([1.0, 5.0, 5.0, 5.0, 5.0, 2.0]) == 2.0
    assert pre_vs_post.tilt([1.0, 4.0, *[9.0] * 8, 8.0, 2.0]) == pytest.approx(2.0)


def test_frequencies_of_bytes_are_an_entropy() -> None:
    assert pre_vs_post.frequencies(torch.tensor([1, 1, 2, 2])) == pytest.approx(math.log(2))
    assert pre_vs_post.frequencies(torch.tensor([7, 7])) == 0.0


def test_post_norm_has_no_final_norm() -> None:
    finals = [pre_vs_post.fresh_at(place, 2, 16, 0).final_norm is None for place in pre_vs_post.PLACEMENTS]
    assert finals == [False, True, False, False]


# ---- what-norms-buy


@pytest.mark.parametrize("kind", normalizing.KINDS)
def test_ten_times_the_matrix_is_a_tenth_of_the_gradient(kind: normalizing.Kind) -> None:
    found = normalizing.ten_times(kind, seeded(3))
    assert found.output < 1e-12
    assert found.gradient == pytest.approx(10, rel=1e-12)


def test_the_largest_stable_rate() -> None:
    assert normalizing.stable([1, 2, 3, 4], [3.0, 3.5, 9.0, math.inf]) == 2
    assert normalizing.stable([1, 2], [5.0, math.inf]) == 0


def test_an_arm_without_norms_has_none() -> None:
    names = [name for name, _ in normalizing.fresh_arm("without", 2, 16, 0).named_parameters()]
    assert not [name for name in names if "norm" in name]
    assert [name for name, _ in normalizing.fresh_arm("with norms", 2, 16, 0).named_parameters() if "norm" in name]


# ---- dropout, dropout-policy


def test_ratios_of_a_constant() -> None:
    """For a constant the unscaled mean is the share that survives, and so is the unscaled second moment."""
    torch.manual_seed(0)
    inverted, original, never = dropout.compared(torch.full((200_000,), 3.0, dtype=torch.float64), 0.25)
    assert never.mean == never.power == pytest.approx(0.75, abs=0.005)
    assert inverted.power == pytest.approx(inverted.mean / 0.75)
    assert original.power == pytest.approx(original.mean / 0.75)


def test_every_sequence_once_a_pass() -> None:
    sequences = [torch.tensor([10 * i, 10 * i + 1, 10 * i + 2]) for i in range(11)]
    batches = dropout_policy.read(sequences, seeded())
    seen = [token for _ in range(2) for token in next(batches).inputs_T.tolist()]
    assert sorted(seen) == sorted(token for s in sequences for token in s[:2].tolist())
    batch = dropout_policy.together(sequences[:2])
    assert batch.inputs_T.tolist() == [0, 1, 10, 11]
    assert batch.targets_T.tolist() == [1, 2, 11, 12]
    assert batch.lengths == [2, 2]


def test_sequences_do_not_overlap_and_run_out() -> None:
    found, unseen = dropout_policy.shuffled(5, 50, seeded())
    assert (len(found), len(unseen)) == (50, dropout_policy.UNSEEN)
    there = Counter(tuple(prose()[i : i + 401].tolist()) for i in range(0, len(prose()) - 400, 400))
    found, unseen = dropout_policy.shuffled(400, 200, seeded())
    assert Counter(tuple(s.tolist()) for s in [*found, *unseen]) <= there
    with pytest.raises(CutawayError, match="take fewer"):
        dropout_policy.shuffled(1000, 10**6, seeded())


# ---- init-scale, transformer-init


def test_equal_units_stay_equal() -> None:
    assert init_scale.distinct(0.3, seeded()) == 1
    assert init_scale.distinct(None, seeded()) == 16


def test_imbalance_counts_powers_of_ten() -> None:
    assert init_scale.Passage([1.0, 5.0, 0.01], 10.0).imbalance == pytest.approx(2)
    assert init_scale.Passage([1.0, 1.0], 1e-3).imbalance == pytest.approx(3)


def test_one_relu_layer_halves_the_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_scale, "DEPTH", 1)
    assert init_scale.halved(500, seeded()) == pytest.approx(0.5, rel=0.05)


def test_the_loss_of_ignorance_does_not_depend_on_the_width() -> None:
    """GPT-2 small's s is 0.02 sqrt(768) = 0.554."""
    assert transformer_init.ignorance(64) == pytest.approx(transformer_init.ignorance(768))
    assert transformer_init.ignorance(768) == pytest.approx(math.log(256) + 0.554**2 / 2, abs=1e-3)


def test_zero_projections_leave_the_stream_as_it_was() -> None:
    batch = Batch(torch.arange(8), torch.arange(1, 9), [8])
    found = transformer_init.start("zero", 3, 32, batch, Run())
    assert len(set(found.stream)) == 1
    assert found.written == 0.0
