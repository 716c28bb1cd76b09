"""Losses and output layers against PyTorch's own and against loops that spell out the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.nn.adaptive_softmax import AdaptiveSoftmax
from cutaway.nn.capsules import AttentionPooling, CapsulePooling, route
from cutaway.nn.divergence import ESTIMATORS, kl_divergence
from cutaway.nn.losses import IGNORED, cross_entropy, linear_cross_entropy, mean_loss

TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers in float64 that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True)


def targets(rows: int, vocab: int, ignored: bool = True) -> Tensor:
    """Random tokens, the first and the last among them; two positions that do not count."""
    targets_T = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(9))
    targets_T[0], targets_T[1] = 0, vocab - 1
    if ignored:
        targets_T[[2, rows - 1]] = IGNORED
    return targets_T


def same(ours: Tensor, theirs: Tensor, of: list[Tensor]) -> None:
    """Values agree, and so do the gradients of their sum, weighted at random, for every tensor in `of`."""
    torch.testing.assert_close(ours, theirs, **TIGHT)
    probe = drawn(*ours.shape, seed=77).detach()
    mine, other = (torch.autograd.grad((out * probe).sum(), of, retain_graph=True) for out in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def plain(z_loss: float) -> None:
    """Cross-entropy with and without z-loss, ignored targets among them; sum and mean."""
    logits_TV, targets_T = drawn(11, 7), targets(11, 7)
    same(cross_entropy(logits_TV, targets_T, z_loss), reference(logits_TV, targets_T, z_loss), [logits_TV])
    mean = mean_loss(cross_entropy(logits_TV, targets_T), targets_T)
    same(mean, F.cross_entropy(logits_TV, targets_T), [logits_TV])


def reference(logits_TV: Tensor, targets_T: Tensor, z_loss: float) -> Tensor:
    """PyTorch's, plus the z-loss where a target counts."""
    extra_T = z_loss * torch.log(torch.exp(logits_TV).sum(-1)) ** 2
    return F.cross_entropy(logits_TV, targets_T, reduction="none") + extra_T * (targets_T != IGNORED)


def chunked(bias: bool, softcap: float | None, z_loss: float) -> None:
    """The loss of hidden states and table, whatever the chunks, equals that of the whole logits."""
    hidden_TD, table_VD, bias_V, targets_T = drawn(11, 5), drawn(7, 5, seed=1), drawn(7, seed=2), targets(11, 7)
    logits_TV = hidden_TD @ table_VD.T + (bias_V if bias else 0)
    logits_TV = logits_TV if softcap is None else softcap * torch.tanh(logits_TV / softcap)
    expected_T = reference(logits_TV, targets_T, z_loss)
    for chunk in (1, 4, 9, 100):
        found_T = linear_cross_entropy(
            hidden_TD, table_VD, targets_T, bias_V if bias else None, softcap=softcap, z_loss=z_loss, chunk=chunk
        )
        same(found_T, expected_T, [hidden_TD, table_VD, *([bias_V] if bias else [])])


def adaptive() -> None:
    """PyTorch's adaptive softmax with the same weights: log-probabilities, losses, gradients."""
    width, vocab, cutoffs = 12, 31, [5, 13]
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(width, vocab, cutoffs, div_value=2.0).double()
    ours = AdaptiveSoftmax(width, vocab, cutoffs, factor=2.0).double()
    for i, (name, parameter) in enumerate(theirs.named_parameters()):
        parameter.data = drawn(*parameter.shape, seed=i).detach()
        mine = ours.get_parameter(name.replace("tail", "tails"))
        assert mine.shape == parameter.shape, name
        mine.data = parameter.data.clone()
    hidden_TD, targets_T = drawn(40, width), targets(40, vocab, ignored=False)
    same(ours.log_probs(hidden_TD), theirs.log_prob(hidden_TD), [hidden_TD])
    found, expected = ours(hidden_TD, targets_T), theirs(hidden_TD, targets_T).output
    torch.testing.assert_close(found, expected, **TIGHT)
    gradients = (torch.autograd.grad(out.sum(), [*m.parameters()]) for m, out in ((ours, found), (theirs, expected)))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def capsules() -> None:
    """Routing, number by number, and its gradient through every round."""
    votes_TJK, lengths = drawn(9, 3, 4), [4, 1, 4]
    for rounds in (1, 2, 3):
        out_NJK, weights_TJ = route(votes_TJK, lengths, rounds)
        expected_NJK, expected_TJ = looped(votes_TJK, lengths, rounds)
        same(out_NJK, expected_NJK, [votes_TJK])
        torch.testing.assert_close(weights_TJ, expected_TJ, **TIGHT)
    pooling = CapsulePooling(5, 3, 4).double()
    hidden_TD = drawn(9, 5)
    votes_TJK = torch.stack([hidden_TD @ pooling.votes.weight[4 * j : 4 * j + 4].T for j in range(3)], 1)
    same(pooling(hidden_TD, lengths), looped(votes_TJK, lengths, 3)[0], [hidden_TD, pooling.votes.weight])


def looped(votes_TJK: Tensor, lengths: list[int], rounds: int) -> tuple[Tensor, Tensor]:
    """Procedure 1 of the paper, sequence by sequence, parent by parent."""
    parents, shares = [], []
    for votes in votes_TJK.split(lengths):
        b = [[torch.zeros(()).double() for _ in vote] for vote in votes]
        for _ in range(rounds):
            c = [[torch.exp(x) / sum(torch.exp(y) for y in row) for x in row] for row in b]
            s = [sum(c[i][j] * votes[i][j] for i in range(len(votes))) for j in range(len(c[0]))]
            v = [(x @ x) / (1 + x @ x) * x / torch.sqrt(x @ x) for x in s]
            b = [[b[i][j] + votes[i][j] @ v[j] for j in range(len(v))] for i in range(len(votes))]
        parents.append(torch.stack(v))
        shares += [torch.stack(row) for row in c]
    return torch.stack(parents), torch.stack(shares)


def attention_pooling() -> None:
    """PyTorch's attention with one query that scores without scaling."""
    pooling, hidden_TD, lengths = AttentionPooling(5).double(), drawn(9, 5), [4, 1, 4]
    query_D = pooling.score.weight
    expected_ND = torch.cat(
        [
            F.scaled_dot_product_attention(query_D[None], rows[None], rows[None], scale=1.0)[0]
            for rows in hidden_TD.split(lengths)
        ]
    )
    same(pooling(hidden_TD, lengths), expected_ND, [hidden_TD, query_D])


def divergence() -> None:
    """KL by PyTorch and by hand; what each estimator gives on average over all that can be drawn."""
    p_RV, q_RV = drawn(6, 5), drawn(6, 5, seed=1)
    expected_R = F.kl_div(q_RV.log_softmax(-1), p_RV.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    same(kl_divergence(p_RV, q_RV), expected_R, [p_RV, q_RV])
    fair, bent = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.5, 0.5], [0.9, 0.1]))
    assert math.isclose(kl_divergence(fair, bent), 0.5 * math.log(0.25 / 0.09))
    sure = torch.tensor([0.0, -torch.inf]).double()
    assert math.isclose(kl_divergence(sure, fair), math.log(2))
    assert kl_divergence(fair, sure) == torch.inf
    log_r = bent - fair  # drawn from fair
    means = {name: float((fair.exp() * estimate(log_r)).sum()) for name, estimate in ESTIMATORS.items()}
    halves = (math.log(1.8) ** 2 + math.log(0.2) ** 2) / 4
    expected = {"k1": 0.5 * math.log(0.25 / 0.09), "k2": halves, "k3": 0.5 * math.log(0.25 / 0.09)}
    assert all(math.isclose(means[name], expected[name]) for name in expected)
    assert ESTIMATORS["k3"](log_r).min() > 0


PROOFS: dict[str, Callable[[], object]] = {
    "cross-entropy": partial(plain, 0.0),
    "cross-entropy z-loss": partial(plain, 0.3),
    "chunked plain": partial(chunked, False, None, 0.0),
    "chunked bias, soft-cap, z-loss": partial(chunked, True, 1.5, 0.3),
    "adaptive softmax": adaptive,
    "capsules": capsules,
    "attention pooling": attention_pooling,
    "divergence": divergence,
}
