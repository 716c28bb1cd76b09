"""Where a small model keeps its facts, and where one can be edited out at the least cost.

Facts are planted: a subject of two tokens and an object, asked for in three ways.

    ann lee is -> rome        of ann lee comes -> rome        who sees ann lee thinks of -> rome

Then facts are rewritten one at a time, in the words of the first way, by the rank-one edit of `cutaway.inside.rome`:
in the feed-forward output matrix or the attention output matrix of each layer, at the subject's last token or at the
last of the question. A place is good if the new answer comes, in the other two ways as well, and the other facts stay.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from cutaway.inside.rome import Matrix, Place, Search, Wish, covariance, edit
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import IGNORED, Batch, fit, fresh, loss_of, small_spec
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal

ROWS = 128  # facts per training step
SAMPLE = 150  # questions whose keys make the covariance
SEARCH = Search(rate=0.1, steps=40)
WAYS = ((0, 1), (1, 1), (2, 2))  # per way to ask: how many words before the subject and after it
At = Literal["subject", "end"]


class Spot(NamedTuple):
    """Which matrix of which layer, and at which token its key is taken."""

    layer: int
    matrix: Matrix
    at: At


class Outcome(NamedTuple):
    """Means over edits. fact, paraphrases: share that give the new answer. damage: share of the other facts' answers
    that are different now. changed: numbers in the matrix."""

    fact: float
    paraphrases: float
    damage: float
    changed: int


@dataclass(frozen=True)
class Facts:
    """count subjects, each a pair of a first and a last name, with one of count / 10 objects."""

    count: int
    seed: int

    @cached_property
    def names(self) -> tuple[int, int]:
        """How many first and last names."""
        first = int(self.count**0.5) + 1
        return first, -(-self.count // first)

    @cached_property
    def objects_N(self) -> Tensor:
        """The right answers, as tokens."""
        generator = torch.Generator().manual_seed(self.seed)
        return sum(self.names) + torch.randint(self.kinds, (self.count,), generator=generator)

    @property
    def kinds(self) -> int:
        """How many objects."""
        return max(8, self.count // 10)

    @property
    def vocab(self) -> int:
        return sum(self.names) + self.kinds + sum(before + after for before, after in WAYS)

    @cached_property
    def prompts(self) -> list[Tensor]:
        """Every fact asked in each way: prompts_NT."""
        subject_N, words = torch.arange(self.count), iter(range(sum(self.names) + self.kinds, self.vocab))
        first_N, last_N = subject_N % self.names[0], self.names[0] + subject_N // self.names[0]
        asked = []
        for before, after in WAYS:
            ahead, behind = ([torch.full_like(subject_N, next(words)) for _ in range(n)] for n in (before, after))
            asked.append(torch.stack([*ahead, first_N, last_N, *behind], 1))
        return asked

    def batch(self, generator: torch.Generator) -> Batch:
        """Some facts in one of the ways; only the answer is asked for."""
        prompts_NT = self.prompts[int(torch.randint(len(WAYS), (1,), generator=generator))]
        chosen = torch.randint(self.count, (ROWS,), generator=generator)
        inputs_BT = prompts_NT[chosen]
        targets_BT = torch.full_like(inputs_BT, IGNORED)
        targets_BT[:, -1] = self.objects_N[chosen]
        return Batch(inputs_BT.flatten(), targets_BT.flatten(), [inputs_BT.shape[1]] * ROWS)

    @torch.no_grad()
    def said(self, model: Decoder) -> Tensor:
        """The likeliest token after every fact in every way, [ways, N]."""
        answers = []
        for prompts_NT in self.prompts:
            lengths = [prompts_NT.shape[1]] * self.count
            hidden_RD = model(prompts_NT.flatten(), positions_of(lengths), BlockDiagonal(lengths))
            answers.append(model.logits(hidden_RD.unflatten(0, prompts_NT.shape)[:, -1]).argmax(-1))
        return torch.stack(answers)

    def known(self, model: Decoder) -> float:
        """Share of right answers over facts and ways."""
        return float((self.said(model) == self.objects_N).float().mean())

    def wish(self, fact: int, at: At) -> tuple[Wish, int]:
        """The fact asked in the first way, with another object for its answer."""
        others = [i for i in range(self.kinds) if i != int(self.objects_N[fact]) - sum(self.names)]
        answer = sum(self.names) + others[fact % len(others)]
        return Wish([*self.prompts[0][fact].tolist(), answer], 1 if at == "subject" else 2, 1), answer


@lab(
    "where-facts-live",
    title=both("Where facts live", "知识存在哪一层"),
    question=both(
        "Which matrices hold facts, and where is the cheapest place to edit one out?",
        "哪些矩阵存着知识？要改掉一条，改哪里代价最小？",
    ),
    seconds={"quick": 6, "full": 75},
)
def where_facts_live(
    run: Run,
    *,
    facts: Annotated[int, Knob("planted facts", "埋入的知识条数", quick=60, min=20, max=5000)] = 500,
    width: Annotated[int, Knob("the model's width", "模型宽度", quick=32, min=16, max=512)] = 64,
    layers: Annotated[int, Knob("its layers", "层数", quick=2, min=1, max=16)] = 4,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=150, min=1)] = 600,
    edits: Annotated[int, Knob("facts rewritten at each place", "每处改写的条数", quick=4, min=1, max=500)] = 16,
) -> Finding:
    planted = Facts(facts, run.seed)
    model = trained(planted, width, layers, steps, run)
    known = planted.known(model)
    spots = [Spot(n, matrix, at) for n in range(layers) for matrix in ("ffn", "attention") for at in ("subject", "end")]  # type: ignore[arg-type]
    chosen = torch.randperm(facts, generator=run.generator())[:edits].tolist()
    outcomes = {spot: rewritten(model, planted, spot, chosen) for spot in run.each(spots, "rewriting facts")}
    return Finding(
        table=_table(outcomes),
        plot=_plot(outcomes),
        verdict=_verdict(outcomes, known, facts),
        checks=_checks(outcomes, known),
    )


def trained(facts: Facts, width: int, layers: int, steps: int, run: Run) -> Decoder:
    """A model that has been told every fact in every way, over and over."""
    model = fresh(small_spec(vocab=facts.vocab, width=width, layers=layers), run.seed, std=0.05)
    lr, loss = 1e-2 if width < 64 else 5e-3, lambda generator: loss_of(model, facts.batch(generator))
    fit(model.parameters(), loss, steps, run, "planting", seed=run.seed, lr=lr, warmup=20, weight_decay=0.01)
    return model


def keys_of(model: Decoder, facts: Facts, place: Place) -> Tensor:
    """Covariance of the keys of a sample of questions."""
    every = -(-facts.count * len(WAYS) // SAMPLE)
    return covariance(model, place, [p for prompts_NT in facts.prompts for p in prompts_NT[::every]])


def rewritten(model: Decoder, facts: Facts, spot: Spot, chosen: list[int]) -> Outcome:
    """Rewrite the chosen facts one at a time, each in the model as it was trained."""
    place = Place(spot.layer, spot.matrix)
    covariance_NN, before, rows = keys_of(model, facts, place), facts.said(model), []
    for fact in chosen:
        wish, answer = facts.wish(fact, spot.at)
        edited = edit(model, place, [wish], covariance_NN, search=SEARCH)
        rows.append(shares(before, facts.said(edited.model), fact, answer))
    fact_share, paraphrases, damage = (statistics.mean(column) for column in zip(*rows, strict=True))
    return Outcome(fact_share, paraphrases, damage, edited.changed)


def shares(before: Tensor, after: Tensor, fact: int, answer: int) -> tuple[float, float, float]:
    """Of what is said, [ways, N]: is the fact new in the first way, in the others; how many other facts are too."""
    right = (after[:, fact] == answer).float()
    others = torch.arange(before.shape[1]) != fact
    damage = (after[:, others] != before[:, others]).float().mean()
    return float(right[0]), float(right[1:].mean()), float(damage)


# ---- what it comes to


def best(outcomes: Mapping[Spot, Outcome]) -> Spot:
    """The most rewritten in all three ways; among equals the least damage."""
    return max(
        outcomes, key=lambda spot: (outcomes[spot].fact + 2 * outcomes[spot].paraphrases, -outcomes[spot].damage)
    )


def _table(outcomes: Mapping[Spot, Outcome]) -> Table:
    columns = {"layer": "", "matrix": "", "key taken at": "", "new answer": "", "in other words": ""}
    columns |= {"other answers changed": "", "numbers in the matrix": ""}
    return table(columns, [[*spot, *outcome] for spot, outcome in outcomes.items()])


def _plot(outcomes: Mapping[Spot, Outcome]) -> Plot:
    kinds = list(dict.fromkeys(spot[1:] for spot in outcomes))
    series = [
        Series(
            name=f"{matrix}, {at}",
            x=[float(spot.layer) for spot in outcomes if spot[1:] == (matrix, at)],
            y=[o.paraphrases for spot, o in outcomes.items() if spot[1:] == (matrix, at)],
        )
        for matrix, at in kinds
    ]
    return Plot(kind="line", x=Axis(label="layer"), y=Axis(label="new answer in other words"), series=series)


def _checks(outcomes: Mapping[Spot, Outcome], known: float) -> list[Check]:
    found = best(outcomes)
    fact, paraphrases, damage, _ = outcomes[found]
    return [
        check(known > 0.9, f"the model knows its facts ({known:.1%} right)", f"模型记住了知识（正确率 {known:.1%}）"),
        check(
            fact >= 0.5 and paraphrases >= 0.25 and damage < 0.1,
            f"one matrix of one layer is enough: {fact:.0%} rewritten, {paraphrases:.0%} in other words, {damage:.1%} "
            "of the other answers changed",
            f"改一层里的一个矩阵就够：改写成功 {fact:.0%}，换说法后 {paraphrases:.0%}，其他答案变了 {damage:.1%}",
        ),
    ]


WHERE = {"subject": "主语处", "end": "句末"}


def _verdict(outcomes: Mapping[Spot, Outcome], known: float, count: int) -> Words:
    found = best(outcomes)
    kinds = dict.fromkeys((matrix, at) for _, matrix, at in outcomes)
    said = [_said(best({s: o for s, o in outcomes.items() if s[1:] == kind}), outcomes) for kind in kinds]
    en, zh = "; ".join(words.en for words in said), "；".join(words.zh for words in said)
    return both(
        f"Of {count} planted facts the model knows {known:.1%}. The best layer for each kind of edit: {en}. Most is "
        f"rewritten by {found.matrix} of layer {found.layer} with the key at the {found.at}, by changing "
        f"{outcomes[found].changed:,} numbers.",
        f"埋入的 {count} 条知识，模型记住了 {known:.1%}。各种改法最好的一层：{zh}。改写最多的是第 {found.layer} 层的 "
        f"{found.matrix}，键取自{WHERE[found.at]}，改动 {outcomes[found].changed:,} 个数。",
    )


def _said(spot: Spot, outcomes: Mapping[Spot, Outcome]) -> Words:
    """What the best spot of a kind achieves."""
    layer, matrix, at = spot
    fact, paraphrases, damage, _ = outcomes[spot]
    if fact + paraphrases == 0:
        return both(f"{matrix} at the {at}, nothing rewritten in any layer", f"{matrix} 在{WHERE[at]}，哪层都改不动")
    return both(
        f"{matrix} at the {at}, layer {layer}: {fact:.0%} rewritten, {paraphrases:.0%} in other words, {damage:.2%} "
        "of the other answers changed",
        f"{matrix} 在{WHERE[at]}，第 {layer} 层：改写 {fact:.0%}，换说法 {paraphrases:.0%}，其他答案变了 {damage:.2%}",
    )
