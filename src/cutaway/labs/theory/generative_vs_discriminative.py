"""Naive Bayes against logistic regression (Ng & Jordan 2002): a model of p(text, class) against one of p(class | text).

The two have the same form. Three corpora tell them apart: one whose words are drawn independently given the class, so
that naive Bayes is right; one where a phrase of many words comes whole or not at all, so that it is wrong; and real
text, a dozen words at a time from four sections of the Python language reference.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.classics.bayes import Logistic, NaiveBayes, fit_logistic, fit_naive_bayes
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab

SECTIONS = (("specialnames",), ("compound",), ("types",), ("formatstrings", "string-methods"))
STRANGE = "debugger"  # a section that is none of the classes
SNIPPET, DOCUMENT, TESTED = 12, 24, 600  # words of a real and of a planted document, documents held out
PHRASE, LEANING = 20, 0.65  # the phrase's words, and how often the class that likes it has it
SPREAD = 0.3  # by how much classes prefer words: standard deviation of log p
NAMES_ZH = {
    "planted, independent words": "人造语料，词相互独立",
    "planted, with a phrase": "人造语料，带短语",
    "four sections of the reference": "语言参考的四个章节",
}
PLANTED = ("planted, independent words", "planted, with a phrase")


class Corpus(NamedTuple):
    """Documents as counts of words; `strange_NV` are like none of the classes. floor: the smallest possible error."""

    name: str
    counts_NV: Tensor
    labels_N: Tensor
    strange_NV: Tensor
    floor: float | None


class Found(NamedTuple):
    """One corpus and number of labels: errors on held-out documents, one per seed."""

    corpus: str
    labels: int
    bayes: list[float]
    logistic: list[float]
    floor: float | None


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
    seeds: Annotated[int, Knob("draws of the labels", "抽取标注的次数", quick=3, min=3, max=100)] = 10,
    words: Annotated[int, Knob("words of the planted corpora", "人造语料的词数", min=20, max=5000)] = 200,
    tail: Annotated[
        float, Knob("how unequal they are: frequency falls as rank^-tail", "词频随排名下降的指数", min=0.0, max=2.0)
    ] = 0.0,
    smoothing: Annotated[
        float, Knob("count that naive Bayes adds to every word", "朴素贝叶斯给每个词加的计数", min=1e-3, max=100.0)
    ] = 1.0,
    penalty: Annotated[
        float, Knob("on the squared weights of logistic regression", "逻辑回归权重平方的惩罚", min=1e-3, max=1e3)
    ] = 1.0,
) -> Finding:
    sizes = [n for n in (10, 20, 40, 80, 160, 320, 640, 1280, 2560) if n < most] + [most]
    generator, usual_V = run.generator(), -tail * torch.arange(1, words + 1).log()
    corpora = [*(planted(2 * most + TESTED, usual_V, name, generator) for name in PLANTED), sections(generator)]
    found, beyond = [], []
    for corpus in run.each(corpora, "corpus"):
        for size in (n for n in sizes if n <= len(corpus.labels_N) - TESTED):
            models = [draw(corpus, size, seed, smoothing, penalty) for seed in range(run.seed, run.seed + seeds)]
            found.append(Found(corpus.name, size, [m[2] for m in models], [m[3] for m in models], corpus.floor))
        beyond.append(abilities(corpus, *models[-1][:2], generator))
    return Finding(
        table=_table(found),
        plot=_plot(found),
        verdict=_verdict(found, beyond),
        checks=_checks(found, beyond),
    )


# ---- corpora


def planted(documents: int, usual_V: Tensor, name: str, generator: torch.Generator) -> Corpus:
    """Two classes that prefer different words; with a phrase, which comes whole in `LEANING` of the one class's
    documents and in the rest of the other's. Strange documents use the words that both avoid."""
    liking_CV = SPREAD * torch.randn(2, len(usual_V), generator=generator)
    words_CV = torch.cat([usual_V + liking_CV, usual_V - liking_CV.mean(0, keepdim=True)]).double().softmax(-1)
    labels_N = torch.randint(2, (documents,), generator=generator)
    usual_NV, strange_NV = (bags(words_CV[which], generator) for which in (labels_N, torch.full((TESTED,), 2)))
    odds_C = torch.tensor([LEANING, 1 - LEANING] if name == PLANTED[1] else [0.0, 0.0]).double()
    has_N = torch.bernoulli(odds_C[labels_N], generator=generator)
    counts_NV = torch.cat([usual_NV, has_N[:, None].expand(-1, PHRASE)], 1)
    known_NC = usual_NV @ words_CV[:2].log().T + torch.where(has_N[:, None] > 0, odds_C, 1 - odds_C).log()
    floor = float((known_NC.argmax(-1) != labels_N)[:TESTED].double().mean())
    return Corpus(name, counts_NV, labels_N, F.pad(strange_NV, (0, PHRASE)), floor)


def bags(words_NV: Tensor, generator: torch.Generator) -> Tensor:
    """One document per row of probabilities, as counts [N, V]."""
    drawn_NW = torch.multinomial(words_NV, DOCUMENT, replacement=True, generator=generator)
    return torch.zeros_like(words_NV).scatter_add_(1, drawn_NW, torch.ones_like(drawn_NW).to(words_NV))


def sections(generator: torch.Generator) -> Corpus:
    """Snippets of the language reference, the section being the class; in random order."""
    from pydoc_data.topics import topics

    texts = [" ".join(topics[name] for name in names) for names in SECTIONS]
    snippets = [_snippets(text) for text in (*texts, topics[STRANGE])]
    number = {word: i for i, word in enumerate(sorted({w for part in snippets for snippet in part for w in snippet}))}
    documents = [_count(part, number) for part in snippets]
    counts_NV = torch.cat(documents[:-1])
    labels_N = torch.cat([torch.full((len(part),), c) for c, part in enumerate(documents[:-1])])
    order_N = torch.randperm(len(labels_N), generator=generator)
    return Corpus("four sections of the reference", counts_NV[order_N], labels_N[order_N], documents[-1], None)


def _snippets(text: str) -> list[list[str]]:
    words = re.findall(r"[a-z_]+", text.lower())
    return [words[i : i + SNIPPET] for i in range(0, len(words) - SNIPPET + 1, SNIPPET)]


def _count(snippets: Sequence[list[str]], number: dict[str, int]) -> Tensor:
    counts_NV = torch.zeros(len(snippets), len(number), dtype=torch.float64)
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
    classes = int(corpus.labels_N.max()) + 1
    counts_NV, labels_N = corpus.counts_NV[chosen], corpus.labels_N[chosen]
    bayes = fit_naive_bayes(counts_NV, labels_N, classes, smoothing)
    logistic = fit_logistic(counts_NV, labels_N, classes, penalty)
    test_NV, truth_N = corpus.counts_NV[:TESTED], corpus.labels_N[:TESTED]
    errors = [float((m.posterior(test_NV).argmax(-1) != truth_N).double().mean()) for m in (bayes, logistic)]
    return bayes, logistic, errors[0], errors[1]


def abilities(corpus: Corpus, bayes: NaiveBayes, logistic: Logistic, generator: torch.Generator) -> Beyond:
    """What else can be done with models of the largest number of labels."""
    of_N = torch.arange(len(bayes.prior_C)).repeat_interleave(50)
    drawn_NV = bags(bayes.words_CV.exp()[of_N], generator)
    sampled = float((logistic.posterior(drawn_NV).argmax(-1) == of_N).double().mean())
    pair = corpus.counts_NV[:TESTED], corpus.strange_NV
    likelihood = [-bayes.evidence(part_NV) / part_NV.sum(1) for part_NV in pair]
    doubt = [-logistic.posterior(part_NV).amax(-1) for part_NV in pair]
    return Beyond(sampled, stranger(*likelihood), stranger(*doubt))


def stranger(usual_N: Tensor, strange_M: Tensor) -> float:
    """Probability that a strange score is above a usual one, ties counted half: the area under the ROC curve."""
    above_MN = (strange_M[:, None] > usual_N).double() + 0.5 * (strange_M[:, None] == usual_N).double()
    return float(above_MN.mean())


def crossing(found: Sequence[Found]) -> int | None:
    """The fewest labels from which on logistic regression has the smaller mean error, None if there are none."""
    worse = [f.labels for f in found if mean(f.logistic) >= mean(f.bayes)]
    better = [f.labels for f in found if not worse or f.labels > worse[-1]]
    return better[0] if better else None


# ---- what it comes to


def mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def _of(found: Sequence[Found], corpus: str) -> list[Found]:
    return [f for f in found if f.corpus == corpus]


def _table(found: Sequence[Found]) -> Table:
    def row(f: Found) -> list[Cell]:
        each = [100 * value for errors in (f.bayes, f.logistic) for value in (mean(errors), statistics.stdev(errors))]
        return [f.corpus, f.labels, *each, None if f.floor is None else 100 * f.floor]

    columns = {"corpus": "", "labels": ""}
    columns |= {f"{who}, {what}": "%" for who in ("naive Bayes", "logistic") for what in ("error", "spread")}
    return table(columns | {"smallest possible error": "%"}, map(row, found))


def _plot(found: Sequence[Found]) -> Plot:
    def series(corpus: str, name: str, errors: Callable[[Found], list[float]]) -> Series:
        rows = _of(found, corpus)
        x, y = [float(f.labels) for f in rows], [100 * mean(errors(f)) for f in rows]
        return Series(name=f"{name}: {corpus}", x=x, y=y)

    models = {"naive Bayes": lambda f: f.bayes, "logistic": lambda f: f.logistic}
    corpora = dict.fromkeys(f.corpus for f in found)
    return Plot(
        kind="line",
        x=Axis(label="labels", log=True),
        y=Axis(label="error on held-out documents, %"),
        series=[series(corpus, *model) for corpus in corpora for model in models.items()],
    )


def _checks(found: Sequence[Found], beyond: Sequence[Beyond]) -> list[Check]:
    right, wrong = (_of(found, name) for name in PLANTED)
    gap = mean([mean(f.logistic) - mean(f.bayes) for f in right])
    last, chance = wrong[-1], 1 / 2
    return [
        check(
            gap > 0,
            f"where words are independent, naive Bayes errs less: by {gap:.1%} on average over the sizes",
            f"词相互独立时朴素贝叶斯错得更少：各标注量平均少 {gap:.1%}",
        ),
        check(
            mean(last.logistic) < mean(last.bayes) < chance,
            f"where a phrase breaks that, logistic regression errs less with {last.labels} labels "
            f"({mean(last.logistic):.1%} against {mean(last.bayes):.1%})",
            f"短语打破独立性后，有 {last.labels} 个标注时逻辑回归错得更少（{mean(last.logistic):.1%} 对 "
            f"{mean(last.bayes):.1%}）",
        ),
        check(
            beyond[0].sampled > 0.7 and beyond[0].by_likelihood > beyond[0].by_doubt,
            "only the generative model writes documents, and its likelihood notices strange ones better than the "
            "other's doubt",
            "只有生成式模型能写出文档，它的似然也比另一个模型的不确定性更能认出异常文档",
        ),
    ]


def _verdict(found: Sequence[Found], beyond: Sequence[Beyond]) -> Words:
    names = list(dict.fromkeys(f.corpus for f in found))
    where = [crossing(_of(found, name)) for name in names]
    ends = [_of(found, name)[-1] for name in names]
    en = [
        f"{f.corpus}: {mean(f.bayes):.1%} for naive Bayes and {mean(f.logistic):.1%} for logistic regression with "
        f"{f.labels} labels, " + (f"logistic ahead from {at} labels on" if at else "no crossing")
        for f, at in zip(ends, where, strict=True)
    ]
    zh = [
        f"{NAMES_ZH[f.corpus]}：{f.labels} 个标注时朴素贝叶斯 {mean(f.bayes):.1%}，逻辑回归 {mean(f.logistic):.1%}，"
        + (f"从 {at} 个标注起逻辑回归领先" if at else "没有交叉")
        for f, at in zip(ends, where, strict=True)
    ]
    b, real = beyond[0], beyond[-1]
    return both(
        f"Errors on held-out documents. {'; '.join(en)}. Of the documents that naive Bayes writes, logistic regression "
        f"takes {b.sampled:.0%} for their class (real text {real.sampled:.0%}). A document like none of the classes "
        f"looks stranger than a usual one in {b.by_likelihood:.0%} by likelihood and {b.by_doubt:.0%} by the "
        f"classifier's doubt; on real text in {real.by_likelihood:.0%} and {real.by_doubt:.0%} (50% is chance).",
        f"留出文档上的错误率。{'；'.join(zh)}。朴素贝叶斯写出的文档有 {b.sampled:.0%} 被逻辑回归判回原类（真实文本 "
        f"{real.sampled:.0%}）。不属于任何类的文档，按似然有 {b.by_likelihood:.0%} 显得比普通文档更反常，按分类器的"
        f"不确定性为 {b.by_doubt:.0%}；真实文本上为 {real.by_likelihood:.0%} 和 {real.by_doubt:.0%}（50% 即随机）。",
    )
