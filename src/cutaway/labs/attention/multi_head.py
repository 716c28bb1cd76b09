"""What several heads do that one cannot: look in two places for one token (Vaswani et al. 2017, section 3.2.2).

One block of the package. Each question names two items, and asks for what is in the first and what is in the second.
A head returns one weighted mean of values: of a mean m = w a + (1 - w) b of independent numbers, the best guesses at a
and b explain w²/(w² + (1 - w)²) and (1 - w)²/(w² + (1 - w)²) of their variance, together 1 of 2 whatever w.
"""

from __future__ import annotations

import copy
import statistics
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit
from cutaway.models.block import Block
from cutaway.models.spec import LayerSpec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal, Place
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec

ITEMS, ASKED, ROWS, WIDTH, CONTENT = 8, 8, 32, 64, 8
Kind = Literal["numbers", "symbols"]
KINDS: tuple[Kind, ...] = ("numbers", "symbols")
NOTHING: list[Cell] = [None] * 4

COLUMNS = {
    "an item holds": "",
    "heads": "",
    "seed": "",
    "parameters": "",
    "first answer": "",
    "second answer": "",
    "first, without head 1": "",
    "second, without head 1": "",
    "first, without head 2": "",
    "second, without head 2": "",
}


class Questions(NamedTuple):
    """items_BIC, what each of I items holds; places_BQ2, which two a question names; answers_BQ2C, what they hold."""

    items_BIC: Tensor
    places_BQ2: Tensor
    answers_BQ2C: Tensor


class TwoLookups(nn.Module):
    """Items and questions in, one block, two answers out."""

    def __init__(self, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.head_dim = WIDTH // heads
        attention = AttentionSpec(heads, heads, self.head_dim, self.head_dim**-0.5)
        ffn = FeedForwardSpec(2 * WIDTH, "silu", gated=True)
        self.block = Block(WIDTH, LayerSpec(attention, ffn, NormSpec("rms", 1e-5)))
        self.content, self.out = nn.Linear(CONTENT, WIDTH, bias=False), nn.Linear(WIDTH, 2 * CONTENT)
        self.places_ID = nn.Parameter(torch.empty(ITEMS, WIDTH))
        self.questions_2ID = nn.Parameter(torch.empty(2, ITEMS, WIDTH))
        for name, parameter in self.named_parameters():
            std = {"places_ID": 1.0, "questions_2ID": 1.0, "content.weight": CONTENT**-0.5}.get(name, 0.1)
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, asked: Questions) -> Tensor:
        """Answers_BQ2C: numbers, or scores of symbols."""
        first_BQ, second_BQ = asked.places_BQ2.unbind(-1)
        question_BQD = self.questions_2ID[0][first_BQ] + self.questions_2ID[1][second_BQ]
        x_BTD = torch.cat([self.content(asked.items_BIC) + self.places_ID, question_BQD], 1)
        context = BlockDiagonal([x_BTD.shape[1]] * len(x_BTD))
        out_BTD = self.block(x_BTD.flatten(0, 1), 0, Place(), context).view_as(x_BTD)
        return self.out(out_BTD[:, ITEMS:]).unflatten(-1, (2, CONTENT))


class Outcome(NamedTuple):
    """One trained model: the share of each answer that is right, as it is and with each of two heads taken out."""

    kind: Kind
    heads: int
    seed: int
    parameters: int
    right: tuple[float, float]
    pruned: list[tuple[float, float]]


@lab(
    "multi-head",
    title=both("Two lookups, one head or two", "两处查找：一个头还是两个头"),
    question=both(
        "What do several small heads do that one wide head cannot?", "多个小头能做到哪些一个宽头做不到的事？"
    ),
    seconds={"quick": 5, "full": 90},
)
def multi_head(
    run: Run,
    *,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=200, min=100, max=20_000)] = 1200,
    seeds: Annotated[int, Knob("models of each kind", "每种模型的个数", quick=1, min=1, max=20)] = 3,
) -> Finding:
    jobs = [(kind, heads, run.seed + s) for kind in KINDS for s in range(seeds) for heads in (1, 2)]
    found = [outcome(*job, steps, run) for job in jobs]
    return Finding(
        table=table(COLUMNS, map(_row, found)), plot=_plot(found), verdict=_verdict(found), checks=_checks(found)
    )


def questions(kind: Kind, rows: int, generator: torch.Generator) -> Questions:
    """numbers: normal ones. symbols: one of as many, as a unit vector."""
    if kind == "numbers":
        items_BIC = torch.randn(rows, ITEMS, CONTENT, generator=generator)
    else:
        items_BIC = F.one_hot(torch.randint(CONTENT, (rows, ITEMS), generator=generator), CONTENT).float()
    places_BQ2 = torch.randint(ITEMS, (rows, ASKED, 2), generator=generator)
    row_B = torch.arange(rows)[:, None, None]
    return Questions(items_BIC, places_BQ2, items_BIC[row_B, places_BQ2])


def outcome(kind: Kind, heads: int, seed: int, steps: int, run: Run) -> Outcome:
    """Train a model; then test it whole and without each head."""
    model = TwoLookups(heads, torch.Generator().manual_seed(seed))
    note = f"{kind}, {heads} head{'s' * (heads > 1)}"
    fit(
        model.parameters(), lambda g: loss_of(kind, model, questions(kind, ROWS, g)), steps, run, note,
        seed=seed, lr=1e-2, warmup=20, weight_decay=0,
    )  # fmt: skip
    asked = questions(kind, 300, torch.Generator().manual_seed(seed + 1))
    pruned = [right(kind, without(model, head), asked) for head in range(heads)] if heads > 1 else []
    return Outcome(kind, heads, seed, sum(p.numel() for p in model.parameters()), right(kind, model, asked), pruned)


def loss_of(kind: Kind, model: TwoLookups, asked: Questions) -> Tensor:
    """Squared error of numbers, cross-entropy of symbols."""
    out_BQ2C = model(asked)
    if kind == "numbers":
        return F.mse_loss(out_BQ2C, asked.answers_BQ2C)
    return F.cross_entropy(out_BQ2C.flatten(0, 2), asked.answers_BQ2C.argmax(-1).flatten())


@torch.no_grad()
def right(kind: Kind, model: TwoLookups, asked: Questions) -> tuple[float, float]:
    """Of the first and of the second answer: the share of variance explained, or of symbols named."""
    out_BQ2C, answers_BQ2C = model(asked), asked.answers_BQ2C
    if kind == "numbers":
        shares_2 = 1 - (out_BQ2C - answers_BQ2C).square().mean((0, 1, 3)) / answers_BQ2C.square().mean((0, 1, 3))
    else:
        shares_2 = (out_BQ2C.argmax(-1) == answers_BQ2C.argmax(-1)).float().mean((0, 1))
    first, second = shares_2.tolist()
    return first, second


def without(model: TwoLookups, head: int) -> TwoLookups:
    """The same with one head's output thrown away."""
    twin = copy.deepcopy(model)
    out, k = twin.block.get_submodule("attention.out"), model.head_dim
    assert isinstance(out, nn.Linear)
    with torch.no_grad():
        out.weight[:, head * k : (head + 1) * k] = 0
    return twin


def _row(o: Outcome) -> list[Cell]:
    pruned = [share for pair in o.pruned for share in pair]
    return [o.kind, o.heads, o.seed, o.parameters, *o.right, *(pruned or NOTHING)]


def _of(found: list[Outcome], kind: Kind, heads: int) -> list[Outcome]:
    return [o for o in found if (o.kind, o.heads) == (kind, heads)]


def _mean(outcomes: list[Outcome]) -> float:
    return statistics.mean(share for o in outcomes for share in o.right)


def _plot(found: list[Outcome]) -> Plot:
    names = [f"{kind}, {heads} head{'s' * (heads > 1)}" for kind in KINDS for heads in (1, 2)]
    groups = [_of(found, kind, heads) for kind in KINDS for heads in (1, 2)]
    return Plot(
        kind="bar",
        x=Axis(label="what items hold, and heads"),
        y=Axis(label="share right"),
        series=[
            Series(name=name, x=names, y=[statistics.mean(o.right[i] for o in group) for group in groups])
            for i, name in enumerate(("first answer", "second answer"))
        ],
    )


def divided(o: Outcome) -> bool:
    """Each head's removal costs one answer more than half of it, the two heads different ones, and spares the other."""
    kept = [[after / before for after, before in zip(pair, o.right, strict=True)] for pair in o.pruned]
    return all(min(pair) < 0.5 < max(pair) for pair in kept) and (kept[0][0] < 0.5) != (kept[1][0] < 0.5)


def _checks(found: list[Outcome]) -> list[Check]:
    one, two = (_of(found, "numbers", heads) for heads in (1, 2))
    low = min(min(o.right) for o in two)
    sizes = {o.parameters for o in found}
    return [
        check(
            low > 0.95 and _mean(one) < 0.7 and len(sizes) == 1,
            f"at {sizes.pop():,} parameters each, two heads explain at least {low:.1%} of both answers, one head "
            f"{_mean(one):.1%} on average, near the half that a single mean can tell",
            f"参数同为 {one[0].parameters:,} 个：两个头对两处答案都至少解释 {low:.1%}，一个头平均只有 "
            f"{_mean(one):.1%}，接近单个加权平均所能说明的一半",
        ),
        check(
            all(divided(o) for o in two),
            "taking out either of the two heads destroys one answer, and each head another",
            "去掉任一个头都毁掉一处答案，两个头各管一处",
        ),
    ]


def _verdict(found: list[Outcome]) -> Words:
    (one, two), (named, both_named) = ([_of(found, kind, heads) for heads in (1, 2)] for kind in KINDS)
    best = max(named, key=lambda o: sum(o.right))
    return both(
        f"A head returns one weighted mean, so it can look in one place at a time. Where items hold numbers, one head "
        f"of width {WIDTH} explains {_mean(one):.0%} of the two answers (mean of {len(one)}), two of width "
        f"{WIDTH // 2} explain {_mean(two):.0%} with as many parameters. Where items hold one of {CONTENT} symbols the "
        f"limit is softer: unequal weights let a mean tell which symbol was where, and one head names "
        f"{_mean(named):.0%} on average ({best.right[0]:.0%} and {best.right[1]:.0%} at best), two heads "
        f"{_mean(both_named):.0%}.",
        f"一个头只返回一个加权平均，一次只能查一处。若各项存的是数，一个宽 {WIDTH} 的头平均解释两处答案的 "
        f"{_mean(one):.0%}（{len(one)} 次平均），两个宽 {WIDTH // 2} 的头以同样的参数解释 {_mean(two):.0%}。若各项是 "
        f"{CONTENT} 种符号之一，限制较松：不等的权重可让一个平均值说出哪个符号在哪处，一个头平均答对 {_mean(named):.0%}"
        f"（最好的一次 {best.right[0]:.0%} 与 {best.right[1]:.0%}），两个头 {_mean(both_named):.0%}。",
    )
