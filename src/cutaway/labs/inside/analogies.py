"""Word arithmetic in a language model's input table: which relations are directions, and which are not.

    king - man + woman ≈ queen            (Mikolov et al. 2013, arXiv:1301.3781)

If "royal" and "female" are directions that add up, the step from man to king is the step from woman to queen. That is
asked of ten relations, each pair against each other pair, in a table whose rows are centered and of unit length. Two
things are told beside the usual score: what happens if the question's own words may be the answer, and whether the
table knows opposites from synonyms, which stand in the same contexts.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Annotated, NamedTuple

from torch import Tensor

from cutaway.inside.geometry import directions, word_id
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, subject
from cutaway.weights.checkpoint import Loaded

FIXED = (
    "man king woman queen",
    "France Paris Japan Tokyo",
    "walk walked look looked",
    "big bigger small smaller",
    "good better bad worse",
    "cat cats dog dogs",
    "France French Germany German",
    "run running swim swimming",
)
"""a is to b as c is to d, one of eight kinds."""

RELATIONS: Mapping[str, str] = {
    "man and woman": "man:woman king:queen actor:actress father:mother son:daughter brother:sister uncle:aunt",
    "country and capital": "France:Paris Japan:Tokyo Italy:Rome Germany:Berlin Russia:Moscow England:London",
    "country and nationality": "France:French Germany:German Italy:Italian Spain:Spanish Russia:Russian China:Chinese",
    "one and many": "cat:cats dog:dogs car:cars tree:trees house:houses child:children mouse:mice",
    "present and past": "walk:walked look:looked play:played go:went see:saw take:took write:wrote",
    "verb and participle": "walk:walking look:looking play:playing swim:swimming run:running write:writing",
    "comparative": "big:bigger small:smaller fast:faster strong:stronger long:longer good:better bad:worse",
    "adverb": "quick:quickly slow:slowly quiet:quietly careful:carefully complete:completely sudden:suddenly",
    "opposites": "hot:cold big:small good:bad open:closed up:down fast:slow happy:sad",
    "animal and its young": "dog:puppy cat:kitten cow:calf sheep:lamb bear:cub",
}
OPPOSITES = (
    "hot:cold big:small good:bad open:closed up:down fast:slow happy:sad light:dark old:new rich:poor strong:weak "
    "early:late high:low true:false hard:soft first:last win:lose love:hate buy:sell begin:end"
)
SYNONYMS = (
    "big:large small:little fast:quick happy:glad begin:start end:finish buy:purchase strong:powerful smart:clever "
    "ill:sick shut:close correct:right rich:wealthy hard:difficult job:work wrong:incorrect quiet:silent sad:unhappy "
    "road:street beautiful:lovely"
)


class Rank(NamedTuple):
    """How many tokens lie closer than the right one: the question's words left out, and left in."""

    out: int
    left_in: int


class Score(NamedTuple):
    """Of one relation: questions asked, share answered right with the question's words left out, and left in."""

    asked: int
    right: float
    left_in: float


@lab(
    "analogies",
    title=both("Word arithmetic and its limits", "类比算术及其边界"),
    question=both(
        "Why does vector arithmetic solve some analogies, does it also hold inside an LLM's embedding table, and "
        "which relations does it miss?",
        "向量加减为什么能解一些类比？在大模型的嵌入表里还成立吗？哪些关系它做不到？",
    ),
    seconds={"quick": 3, "full": 4},
)
def analogies(
    run: Run,
    *,
    model: Annotated[str, Knob("whose input table", "取谁的输入嵌入表")] = MODEL,
    pairs: Annotated[
        int, Knob("word pairs per relation, 7 at most", "每种关系的词对数，最多 7", quick=4, min=2, max=7)
    ] = 7,
) -> Finding:
    loaded = subject(model)
    table_VD = directions(loaded.model)
    fixed = {text: ranked(table_VD, ids(loaded, text.split())) for text in FIXED}
    scores = {
        name: scored(table_VD, [ids(loaded, pair.split(":")) for pair in text.split()[:pairs]])
        for name, text in run.each(list(RELATIONS.items()), "relations")
    }
    apart = auc(*(cosines(table_VD, loaded, text) for text in (SYNONYMS, OPPOSITES)))
    return Finding(
        table=_table(fixed, scores, apart),
        plot=_plot(scores),
        verdict=_verdict(fixed, scores, apart),
        checks=_checks(fixed),
    )


def ids(loaded: Loaded, words: Sequence[str]) -> list[int]:
    """One token each. Errors: a word that is several in this model's vocabulary."""
    return [word_id(loaded.tokenizer, word) for word in words]


def ranked(table_VD: Tensor, question: Sequence[int]) -> Rank:
    """Where d comes among the tokens closest to b - a + c, for a question [a, b, c, d]."""
    a, b, c, d = question
    cosine_V = table_VD @ (table_VD[b] - table_VD[a] + table_VD[c])
    closer_V = cosine_V > cosine_V[d]
    return Rank(int(closer_V.sum() - closer_V[[a, b, c]].sum()), int(closer_V.sum()))


def scored(table_VD: Tensor, pairs: Sequence[Sequence[int]]) -> Score:
    """Every pair of the relation asked by way of every other."""
    questions = [(a, b, c, d) for (a, b), (c, d) in permutations(pairs, 2) if d not in (a, b, c)]
    ranks = [ranked(table_VD, question) for question in questions]
    right, left_in = (statistics.mean(rank == 0 for rank in side) for side in zip(*ranks, strict=True))
    return Score(len(ranks), right, left_in)


def cosines(table_VD: Tensor, loaded: Loaded, text: str) -> list[float]:
    """Of each pair "a:b"."""
    pairs = [ids(loaded, pair.split(":")) for pair in text.split()]
    return [float(table_VD[a] @ table_VD[b]) for a, b in pairs]


def auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Probability that one of the first is above one of the second, ties counting half: 0.5 tells nothing."""
    return statistics.mean((a > b) + (a == b) / 2 for a in higher for b in lower)


# ---- what it comes to


def _table(fixed: Mapping[str, Rank], scores: Mapping[str, Score], apart: float) -> Table:
    columns = {"asked": "", "questions": "", "right": "", "right, its own words allowed": "", "rank": ""}
    columns |= {"rank, its own words allowed": ""}
    rows: list[list[Cell]] = []
    for text, rank in fixed.items():
        a, b, c, d = text.split()
        rows.append([f"{b} - {a} + {c} = {d}", 1, float(rank.out == 0), float(rank.left_in == 0), *rank])
    rows += [[name, *score, None, None] for name, score in scores.items()]
    return table(columns, [*rows, ["synonyms above opposites (AUC)", None, apart, None, None, None]])


def _plot(scores: Mapping[str, Score]) -> Plot:
    names = list(scores)
    series = [
        Series(name="right", x=names, y=[scores[name].right for name in names]),
        Series(name="its own words allowed", x=names, y=[scores[name].left_in for name in names]),
    ]
    return Plot(kind="bar", x=Axis(label="relation"), y=Axis(label="share answered right"), series=series)


def _checks(fixed: Mapping[str, Rank]) -> list[Check]:
    right = sum(rank.out == 0 for rank in fixed.values())
    queen = fixed[FIXED[0]]
    return [
        check(
            right >= 6 and queen.out == 0,
            f"{right} of {len(fixed)} fixed analogies come out first, king - man + woman among them",
            f"{len(fixed)} 个固定类比有 {right} 个排第一，其中包括 king - man + woman",
        ),
    ]


def _verdict(fixed: Mapping[str, Rank], scores: Mapping[str, Score], apart: float) -> Words:
    right, allowed = (sum(rank[side] == 0 for rank in fixed.values()) for side in (0, 1))
    by_score = sorted(scores, key=lambda name: -scores[name].right)
    good, poor = (", ".join(f"{n} {scores[n].right:.0%}" for n in some) for some in (by_score[:3], by_score[-3:]))
    whole = statistics.mean(score.right for score in scores.values())
    with_own = statistics.mean(score.left_in for score in scores.values())
    return both(
        f"{right} of {len(fixed)} fixed analogies are solved if the question's words are left out, {allowed} if they "
        f"may be the answer. Over ten relations it is {whole:.0%} and {with_own:.0%}. Best: {good}. Worst: {poor}. A "
        f"random pair of synonyms is closer than a random pair of opposites with probability {apart:.2f} (0.5: no "
        "difference).",
        f"排除题目中的词，{len(fixed)} 个固定类比解出 {right} 个；允许它们作答案则为 {allowed} 个。十种关系平均为 "
        f"{whole:.0%} 与 {with_own:.0%}。最好：{good}。最差：{poor}。随机一对同义词比随机一对反义词更近的概率为 "
        f"{apart:.2f}（0.5 即无差别）。",
    )
