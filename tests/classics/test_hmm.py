"""Hidden Markov models against the sum over all paths, and a known one learned back."""

from __future__ import annotations

import itertools

import torch

from cutaway.classics import hmm
from kit.proofs import classics


def test_forward_is_the_sum_over_all_paths():
    classics.hmm_paths()


def test_baum_welch_is_expected_counts():
    classics.hmm_learning()


def test_probabilities_of_all_sequences_sum_to_one():
    model, every = hmm.fresh(3, 4, seed=1), [*itertools.product(range(4), repeat=3)]
    log_p_T = hmm.log_probabilities(model, torch.tensor(every).flatten(), [3] * len(every))
    assert abs(float(log_p_T.view(-1, 3).sum(1).exp().sum()) - 1) < 1e-12


def test_two_dice_are_told_apart():
    """Two loaded dice, changed rarely: learned from rolls alone, up to the names of the states."""
    move, emit = torch.tensor([[0.95, 0.05], [0.1, 0.9]]), torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.15, 0.8]])
    generator, state, rolls = torch.Generator().manual_seed(0), 0, []
    for _ in range(4000):
        rolls.append(int(torch.multinomial(emit[state], 1, generator=generator)))
        state = int(torch.multinomial(move[state], 1, generator=generator))
    model, lengths = hmm.fresh(2, 3, seed=0), [50] * 80
    for _ in range(100):
        model, _ = hmm.baum_welch(model, torch.tensor(rolls), lengths)
    if model.emit_SV[0, 0] < model.emit_SV[1, 0]:
        model = hmm.HMM(*(table.flip(0) for table in model))._replace(move_SS=model.move_SS.flip(0, 1))
    torch.testing.assert_close(model.move_SS, move.double(), atol=0.07, rtol=0)
    torch.testing.assert_close(model.emit_SV, emit.double(), atol=0.07, rtol=0)


def test_a_prior_keeps_the_unseen_possible():
    model, tokens = hmm.fresh(2, 3, seed=0), torch.tensor([0, 1, 0, 1])
    never, rarely = (hmm.baum_welch(model, tokens, [4], prior)[0].emit_SV[:, 2] for prior in (0.0, 0.1))
    assert never.tolist() == [0, 0]
    assert (rarely > 0.01).all()
    assert model.parameters == 2 + 4 + 6
