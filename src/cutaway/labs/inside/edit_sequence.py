"""One edit after another: tracing where a planted fact is carried, and how many edits a model can take.

The model and its facts are those of `cutaway.labs.inside.where_facts_live`. First causal tracing (Meng et al. 2022,
arXiv:2202.05262): the question about one subject is computed with one activation taken from the question about
another, by layer, position and part; what swings the answer over carries the fact. Then facts are rewritten one after
the other in the same matrix, each edit on top of those before, and after each it is asked how many of the edited facts
still give the new answer and how many of the others still give the old one.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from cutaway.inside.patching import patched
from cutaway.inside.rome import Matrix, Place, edit
from cutaway.inside.sites import Part
from cutaway.inside.sites import run as read
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.inside.where_facts_live import SEARCH, Facts, keys_of, trained
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.models.decoder import Decoder

PARTS: tuple[Part, ...] = ("residual", "attention", "ffn")
POSITIONS = ("first name", "last name", "end")
MATRICES: tuple[Matrix, Matrix] = ("ffn", "attention")


class Kept(NamedTuple):
    """After some edits. new: share of the edited facts that give their new answer; elsewhere: that in other words.
    old: share of the others whose answer is the same in all three ways as before any edit."""

    edits: int
    new: float
    elsewhere: float
    old: float


Traces = dict[Part, list[list[float]]]
"""[layer][position]: how much of the way one activation swings the answer."""


@lab(
    "edit-sequence",
    title=both("Tracing a fact, and edit after edit", "追踪一条知识，再一条接一条地改"),
    question=both(
        "Where in the network is a single fact carried, and how many edits can one matrix take before damage adds up?",
        "一条知识由网络的哪里承载？一个矩阵能承受多少次改写，损伤才开始累积？",
    ),
    seconds={"quick": 4, "full": 40},
)
def edit_sequence(
    run: Run,
    *,
    facts: Annotated[int, Knob("planted facts", "埋入的知识条数", quick=60, min=20, max=5000)] = 500,
    width: Annotated[int, Knob("the model's width", "模型宽度", quick=32, min=16, max=512)] = 64,
    layers: Annotated[int, Knob("its layers", "层数", quick=2, min=1, max=16)] = 4,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=150, min=1)] = 600,
    traced: Annotated[int, Knob("facts traced", "追踪的知识条数", quick=4, min=1, max=500)] = 24,
    edits: Annotated[int, Knob("edits, one after another", "连续改写的次数", quick=8, min=2, max=500)] = 50,
    layer: Annotated[int, Knob("layer whose matrix is edited", "改哪一层的矩阵", min=0)] = 0,
) -> Finding:
    planted = Facts(facts, run.seed)
    model = trained(planted, width, layers, steps, run)
    chosen = torch.randperm(facts, generator=run.generator()).tolist()
    traces = {part: trace(model, planted, part, chosen[:traced]) for part in run.each(PARTS, "tracing")}
    curves = {matrix: sequence(model, planted, Place(layer, matrix), chosen[:edits], run) for matrix in MATRICES}
    return Finding(
        table=_table(traces, curves),
        plot=_plot(curves),
        verdict=_verdict(traces, curves),
        checks=_checks(traces, curves),
    )


@torch.no_grad()
def trace(model: Decoder, facts: Facts, part: Part, chosen: list[int]) -> list[list[float]]:
    """Mean over facts, [layer][position]; the corrupt question is about a subject `unlike` the clean one's."""
    found = []
    for fact in chosen:
        answer, other = facts.objects_N[fact], unlike(facts, fact)
        clean_T, corrupt_T = facts.prompts[0][fact], facts.prompts[0][other]
        ends = torch.stack([read(model, tokens_T)[-1] for tokens_T in (clean_T, corrupt_T)])
        hidden_ND = torch.cat([ends, patched(model, clean_T, corrupt_T, part)])
        logits_NV = model.logits(hidden_ND)
        swing_N = logits_NV[:, answer] - logits_NV[:, facts.objects_N[other]]
        found.append((swing_N[2:] - swing_N[1]) / (swing_N[0] - swing_N[1]))
    return torch.stack(found).mean(0).unflatten(0, (-1, len(POSITIONS))).tolist()


def unlike(facts: Facts, fact: int) -> int:
    """The next fact whose subject shares neither name, and that has another answer."""
    names_NT, count = facts.prompts[0][:, :2], facts.count
    ahead = ((fact + i) % count for i in range(1, count))
    return next(
        i for i in ahead if facts.objects_N[i] != facts.objects_N[fact] and not (names_NT[i] == names_NT[fact]).any()
    )


def sequence(model: Decoder, facts: Facts, place: Place, chosen: list[int], run: Run) -> list[Kept]:
    """What is left after each edit, all in one matrix, keys taken at the end of the question."""
    covariance_NN, before = keys_of(model, facts, place), facts.said(model)
    edited: list[int] = []
    answers: list[int] = []
    curve = []
    for fact in run.each(chosen, f"editing {place.matrix}, fact"):
        wish, answer = facts.wish(fact, "end")
        model = edit(model, place, [wish], covariance_NN, search=SEARCH).model
        edited.append(fact)
        answers.append(answer)
        after = facts.said(model)
        right = after[:, edited] == torch.tensor(answers)
        others = torch.ones(facts.count, dtype=torch.bool).index_fill(0, torch.tensor(edited), False)
        same = (after == before)[:, others]
        curve.append(Kept(len(edited), *(float(x.float().mean()) for x in (right[0], right[1:], same))))
    return curve


# ---- what it comes to


def _marks(count: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to count, and count."""
    return sorted({n for power in range(6) for n in (10**power, 2 * 10**power, 5 * 10**power) if n < count} | {count})


def _table(traces: Traces, curves: dict[Matrix, list[Kept]]) -> Table:
    columns = {"what": "", **dict.fromkeys((f"at the {position}" for position in POSITIONS), "")}
    columns |= {"edits": "", "new answers": "", "in other words": "", "others unchanged": ""}
    rows: list[list[Cell]] = [
        [f"tracing: {part} {n}", *row, None, None, None, None]
        for part, grid in traces.items()
        for n, row in enumerate(grid)
    ]
    rows += [
        [f"edits of {matrix}", None, None, None, *curve[n - 1]]
        for matrix, curve in curves.items()
        for n in _marks(len(curve))
    ]
    return table(columns, rows)


def _plot(curves: dict[Matrix, list[Kept]]) -> Plot:
    lines = {
        f"{matrix}: {name}": [kept[i] for kept in curve]
        for matrix, curve in curves.items()
        for name, i in (("new answers", 1), ("others unchanged", 3))
    }
    series = [Series(name=name, x=[float(i + 1) for i in range(len(y))], y=y) for name, y in lines.items()]
    return Plot(kind="line", x=Axis(label="edits"), y=Axis(label="share"), series=series)


def peak(grid: list[list[float]]) -> tuple[int, str, float]:
    """Layer, position and size of the largest effect."""
    value, n, t = max((value, n, t) for n, row in enumerate(grid) for t, value in enumerate(row))
    return n, POSITIONS[t], value


def _checks(traces: Traces, curves: dict[Matrix, list[Kept]]) -> list[Check]:
    last = traces["residual"][-1]
    ffn = curves["ffn"]
    return [
        check(
            last[2] > 0.5 and max(last[:2]) < 0.5,
            f"tracing works: before the last block the answer is carried at the end of the question ({last[2]:.2f}), "
            f"not at the names ({max(last[:2]):.2f})",
            f"追踪有效：进入最后一层时答案已在句末（{last[2]:.2f}），不在名字上（{max(last[:2]):.2f}）",
        ),
        check(
            ffn[0].old > 0.9 and ffn[-1].old < ffn[0].old,
            f"one edit of the feed-forward matrix leaves {ffn[0].old:.1%} of the others unchanged, {ffn[-1].edits} "
            f"leave {ffn[-1].old:.1%}: damage adds up",
            f"前馈矩阵改一次，其他知识 {ffn[0].old:.1%} 不变；改 {ffn[-1].edits} 次剩 {ffn[-1].old:.1%}：损伤会累积",
        ),
    ]


def _verdict(traces: Traces, curves: dict[Matrix, list[Kept]]) -> Words:
    spots = {part: peak(traces[part]) for part in ("attention", "ffn")}  # type: ignore[index]
    where = "; ".join(f"{part} of layer {n} at the {at} ({value:.2f})" for part, (n, at, value) in spots.items())
    names = {"first name": "名", "last name": "姓", "end": "句末"}
    zh_where = "；".join(f"第 {n} 层 {part} 在{names[at]}（{value:.2f}）" for part, (n, at, value) in spots.items())
    first = {matrix: curve[0] for matrix, curve in curves.items()}
    last = {matrix: curve[-1] for matrix, curve in curves.items()}
    en = "; ".join(
        f"{m}: {last[m].new:.0%} of the edited facts give the new answer, {last[m].elsewhere:.0%} in other words, and "
        f"{last[m].old:.1%} of the others are unchanged (after the first edit {first[m].old:.1%})"
        for m in MATRICES
    )
    zh = "；".join(
        f"{m}：改过的有 {last[m].new:.0%} 给出新答案，换说法 {last[m].elsewhere:.0%}，其他知识 {last[m].old:.1%} 不变"
        f"（第一次后为 {first[m].old:.1%}）"
        for m in MATRICES
    )
    count = last["ffn"].edits
    return both(
        f"A single activation swings the answer most at: {where} (1: all the way). After {count} edits in one matrix, "
        f"{en}.",
        f"单个激活最能左右答案之处：{zh_where}（1 为完全）。同一矩阵连改 {count} 次后，{zh}。",
    )
