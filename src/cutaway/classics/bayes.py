"""Two classifiers of bags of words with one and the same form, log p(class | words) = a sum of weights.

Naive Bayes models p(words, class) and asks Bayes' rule: it counts, and can also write documents and say how unusual
one is. Logistic regression models p(class | words) alone and fits the weights to that (Ng & Jordan 2002, "On
discriminative vs. generative classifiers").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.errors import CutawayError


class NaiveBayes(NamedTuple):
    """Logarithms: prior_C of the classes, words_CV of the words of each. float64, nats."""

    prior_C: Tensor
    words_CV: Tensor

    def joint(self, counts_NV: Tensor) -> Tensor:
        """log p(document as a sequence of words, class), [N, C]. The length is taken as given."""
        return self.prior_C + counts_NV @ self.words_CV.T

    def posterior(self, counts_NV: Tensor) -> Tensor:
        """log p(class | document), [N, C]."""
        return self.joint(counts_NV).log_softmax(-1)

    def evidence(self, counts_NV: Tensor) -> Tensor:
        """log p(document), whatever its class, [N]: low for what is like none of them."""
        return self.joint(counts_NV).logsumexp(-1)

    def sample(self, of: int, length: int, generator: torch.Generator) -> Tensor:
        """A document of class `of`: tokens_T."""
        return torch.multinomial(self.words_CV[of].exp(), length, replacement=True, generator=generator)


class Logistic(NamedTuple):
    """weights_CV, bias_C of the classes. float64."""

    weights_CV: Tensor
    bias_C: Tensor

    def posterior(self, counts_NV: Tensor) -> Tensor:
        """log p(class | document), [N, C]."""
        return F.linear(counts_NV, self.weights_CV, self.bias_C).log_softmax(-1)


def fit_naive_bayes(counts_NV: Tensor, labels_N: Tensor, classes: int, smoothing: float = 1.0) -> NaiveBayes:
    """By counting; `smoothing` is a count that every word and class has beforehand.

    Errors: counts that are none, labels that are no class, no smoothing.
    """
    _check(counts_NV, labels_N, classes, smoothing)
    member_NC = F.one_hot(labels_N, classes).double()
    words_CV = member_NC.T @ counts_NV.double() + smoothing
    classes_C = member_NC.sum(0) + smoothing
    return NaiveBayes((classes_C / classes_C.sum()).log(), (words_CV / words_CV.sum(-1, keepdim=True)).log())


def fit_logistic(counts_NV: Tensor, labels_N: Tensor, classes: int, penalty: float = 1.0) -> Logistic:
    """The minimum of sum of -log p(label | document) + penalty / 2 * |weights|^2, by L-BFGS. Errors: as there."""
    _check(counts_NV, labels_N, classes, penalty)
    x_NV = counts_NV.double()
    weights_CV = x_NV.new_zeros(classes, x_NV.shape[1], requires_grad=True)
    bias_C = x_NV.new_zeros(classes, requires_grad=True)
    search = torch.optim.LBFGS(
        [weights_CV, bias_C],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        wrong = F.cross_entropy(F.linear(x_NV, weights_CV, bias_C), labels_N, reduction="sum")
        value = wrong + penalty / 2 * weights_CV.square().sum()
        value.backward()
        return value

    search.step(loss)  # type: ignore[arg-type]  # a tensor serves as the float it asks for
    return Logistic(weights_CV.detach(), bias_C.detach())


def _check(counts_NV: Tensor, labels_N: Tensor, classes: int, strength: float) -> None:
    if counts_NV.ndim != 2 or len(counts_NV) != len(labels_N) or not len(labels_N) or bool((counts_NV < 0).any()):
        raise CutawayError(f"must be counts [documents, words], got {list(counts_NV.shape)}", "counts")
    if not 0 <= int(labels_N.min()) <= int(labels_N.max()) < classes:
        raise CutawayError(f"must be from 0 to {classes - 1}", "labels")
    if strength <= 0:
        raise CutawayError(f"must be above 0, got {strength}", "smoothing or penalty", "0 makes words impossible")
