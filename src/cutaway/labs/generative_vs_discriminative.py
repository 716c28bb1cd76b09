"""Naive Bayes against logistic regression (Ng & Jordan 2002): a model of p(text, class) against one of p(class | text).

The two have the same form. Three corpora tell them apart: one whose words are drawn independently given the class, so
that naive Bayes is right; one where a phrase of many words comes whole or not at all, so that it is wrong; and real
text, twelve words at a time from four sections of the Python language reference.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.classics.bayes import Logistic, NaiveBayes, fit_logistic, fit_naive_bayes
from cutaway.labs.evidence import Axis, Cell, Finding, Plot, Series, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab

SECTIONS = (("specialnames",), ("compound",), ("types",), ("formatstrings", "string-methods"))
STRANGE = "debugger"  # a section that is none of the classes
SPREAD=0.3
WORDS, VOCAB, TESTED = 12, 600, 600  # words of a snippet, words that are known, documents held out
PHRASE, LEANING = 20, 0.65  # the phrase's words, and how often the class that likes it has it


class Corpus(NamedTuple):
    """Documents as counts of words; `strange_NV` are like none of the classes."""

    name: str
    counts_NV: Tensor
    labels_N: Tensor
    strange_NV: Tensor


class Found(NamedTuple):
    """One corpus and number of labels: errors on held-out documents, one per seed."""

    corpus: str
    labels: int
    bayes: list[float]
    logistic: list[float]


class Beyond(NamedTuple):
    """What else the models can say. sampled: share of naive Bayes' own documents that logistic regression assigns to
    the class they were drawn from. by_likelihood, by_doubt: probability that a strange document looks stranger than a
    held-out one, by p(document) and by 1 - max p(class | document)."""

    sampled: float
    by_likelihood: float
    by_doubt: float


@lab(
    "generative-vs-discriminative",
    title=both("Generative against discriminative classifiers", "生成式分类器对判别式分类器"),
    question=both(
        "What separates models of p(x, y) from models of p(y | x), and when does each win?",
        "p(x, y) 的模型与 p(y | x) 的模型区别何在？各自何时占优？",
    ),
    seconds={"quick": 2, "full": 60},
)
def generative_vs_discriminative(
    run: Run,
    *,
    most: Annotated[int, Knob("labels at most", "最多的标注数", quick=320, min=40, max=4000)] = 2000,
    seeds: Annotated[int, Knob("draws of the labels", "抽取标注的次数", quick=4, min=3, max=100)] = 10,
    smoothing: Annotated[
        float, Knob("count that naive Bayes adds to every word", "朴素贝叶斯给每个词加的计数", min=1e-3, max=100.0)
    ] = 1.0,
    penalty: Annotated[
        float, Knob("on the squared weights of logistic regression", "逻辑回归权重平方的惩罚", min=1e-3, max=1e3)
    ] = 1.0,
) -> Finding:
    sizes = [n for n in (10, 20, 40, 80, 160, 320, 640, 1280, 2560) if n < most] + [most]
    pool, generator = most + TESTED, run.generator()
    corpora = [planted(pool, False, generator), planted(pool, True, generator), sections(generator)]
    found, beyond = [], []
    for corpus in run.each(corpora, "corpus"):
        for size in (n for n in sizes if n <= len(corpus.labels_N) - TESTED):
            models = [draw(corpus, size, seed, smoothing, penalty) for seed in range(run.seed, run.seed + seeds)]
            found.append(Found(corpus.name, size, *([m[i] for m in models] for i in (2, 3))))
        beyond.append(abilities(corpus, *models[-1][:2], generator))
    return Finding(
        table=_table(found),
        plot=_plot(found),
        verdict=_verdict(found, beyond),
        checks=_checks(found, beyond),
    )


# ---- corpora


def planted(documents: int, phrase: bool, generator: torch.Generator) -> Corpus:
    """Two classes that prefer different words; with a phrase, which comes whole in `LEANING` of the one class's
    documents and in the rest of the other's. Strange documents use words as neither class does."""
    liking_CV = torch.randn(3, VOCAB - PHRASE, generator=generator) * SPREAD - torch.arange(1, VOCAB - PHRASE + 1).log()
    labels_N = torch.randint(2, (documents,), generator=generator)
    usual_NV = _bags(liking_CV.softmax(-1)[labels_N], generator)
    strange_NV = _bags(liking_CV.flip(-1).softmax(-1)[2].expand(TESTED, -1), generator)
    likely_N = torch.where(labels_N == 0, LEANING, 1 - LEANING) if phrase else torch.zeros(documents)
    has_NV = torch.bernoulli(likely_N, generator=generator)[:, None].expand(-1, PHRASE)
    name = "planted, with a phrase" if phrase else "planted, independent words"
    return Corpus(name, torch.cat([usual_NV, has_NV], 1), labels_N, F.pad(strange_NV, (0, PHRASE)))


def _bags(words_NV: Tensor, generator: torch.Generator) -> Tensor:
    drawn_NW = torch.multinomial(words_NV, 2 * WORDS, replacement=True, generator=generator)
    return torch.zeros_like(words_NV).scatter_add_(1, drawn_NW, torch.ones(drawn_NW.shape))


def sections(generator: torch.Generator) -> Corpus:
    """Snippets of the language reference, the section being the class; in random order."""
    from pydoc_data.topics import topics

    texts = [" ".join(topics[name] for name in names) for names in SECTIONS]
    snippets = [_snippets(text) for text in (*texts, topics[STRANGE])]
    number = {word: i for i, word in enumerate(sorted({w for part in snippets for snippet in part for w in snippet}))}
    bags = [_count(part, number) for part in snippets]
    counts_NV = torch.cat(bags[:-1])
    labels_N = torch.cat([torch.full((len(bag),), c) for c, bag in enumerate(bags[:-1])])
    order_N = torch.randperm(len(labels_N), generator=generator)
    return Corpus("four sections of the reference", counts_NV[order_N], labels_N[order_N], bags[-1])


def _snippets(text: str) -> list[list[str]]:
    words = re.findall(r"[a-z_]+", text.lower())
    return [words[i : i + WORDS] for i in range(0, len(words) - WORDS + 1, WORDS)]


def _count(snippets: Sequence[list[str]], number: dict[str, int]) -> Tensor:
    counts_NV = torch.zeros(len(snippets), len(number))
    for row_V, snippet in zip(counts_NV, snippets, strict=True):
        for word in snippet:
            row_V[number[word]] += 1
    return counts_NV


# ---- measurements


def draw(
    corpus: Corpus, size: int, seed: int, smoothing: float, penalty: float
) -> tuple[NaiveBayes, Logistic, float, float]:
    """Both models from the same labels, drawn anew per seed, and their errors on the documents held out."""
    generator = torch.Generator().manual_seed(seed)
    chosen = TESTED + torch.randperm(len(corpus.labels_N) - TESTED, generator=generator)[:size]
    classes, counts_NV, labels_N = int(corpus.labels_N.max()) + 1, corpus.counts_NV[chosen], corpus.labels_N[chosen]
    bayes = fit_naive_bayes(counts_NV, labels_N, classes, smoothing)
    logistic = fit_logistic(counts_NV, labels_N, classes, penalty)
    test_NV, truth_N = corpus.counts_NV[:TESTED].double(), corpus.labels_N[:TESTED]
    errors = [float((m.posterior(test_NV).argmax(-1) != truth_N).double().mean()) for m in (bayes, logistic)]
    return bayes, logistic, errors[0], errors[1]


def abilities(corpus: Corpus, bayes: NaiveBayes, logistic: Logistic, generator: torch.Generator) -> Beyond:
    """What else can be done with models of the largest number of labels."""
    classes, per_class = len(bayes.prior_C), 50
    drawn = torch.stack([bayes.sample(c, 2 * WORDS, generator) for c in range(classes) for _ in range(per_class)])
    bags_NV = torch.zeros(len(drawn), len(bayes.words_CV[0])).scatter_add_(1, drawn, torch.ones(drawn.shape))
    of_N = torch.arange(classes).repeat_interleave(per_class)
    sampled = float((logistic.posterior(bags_NV.double()).argmax(-1) == of_N).double().mean())
    usual_NV, strange_NV = (part[part.sum(1) > 0].double() for part in (corpus.counts_NV[:TESTED], corpus.strange_NV))
    likelihood = [-bayes.evidence(part) / part.sum(1) for part in (usual_NV, strange_NV)]
    doubt = [-logistic.posterior(part).amax(-1) for part in (usual_NV, strange_NV)]
    return Beyond(sampled, stranger(*likelihood), stranger(*doubt))


def stranger(usual_N: Tensor, strange_M: Tensor) -> float:
    """Probability that a strange score is above a usual one, ties counted half: the area under the ROC curve."""
    above_MN = (strange_M[:, None] > usual_N).double() + 0.5 * (strange_M[:, None] == usual_N).double()
    return float(above_MN.mean())


def crossing(found: Sequence[Found]) -> int | None:
    """The fewest labels from which on logistic regression has the smaller mean error, None if there are none."""
    worse = [f.labels for f in found if statistics.mean(f.logistic) >= statistics.mean(f.bayes)]
    better = [f.labels for f in found if not worse or f.labels > worse[-1]]
    return better[0] if better else None
