"""What the feed-forward half of a block is for: delete it from a small model, and from a trained one.

A token that carries two bits, each along a direction of its own, is asked for their exclusive or. No linear map can
answer: the two cases with unequal bits lie opposite each other. A feed-forward layer bends the space; attention
takes weighted means, and is linear where there is nothing to weigh.

    11 ·────· 01         answer 1 on one diagonal,
       │    │            answer 0 on the other:
    10 ·────· 00         no straight line parts them

Then a trained model, from which the sublayers of each block are taken out in turn, and all of one kind at once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.inside.ablation import Target, losses, without
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, reading, subject
from cutaway.labs.training import Batch, accuracy_of, fit, fresh, loss_of, small_spec, with_layers
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec
from cutaway.nn.attention import AttentionSpec

WIDTH, LENGTH, ROWS = 16, 16, 32
PARTS = ("attention", "ffn")


class Arm(NamedTuple):
    """A model with some of its parts. bare: no norms either. window: how many last tokens attention sees."""

    parts: tuple[str, ...]
    layers: int = 1
    bare: bool = False
    window: int | None = None


ARMS: Mapping[str, Arm] = {
    "attention only, sees itself, no norms": Arm(("attention",), bare=True, window=1),
    "attention only, sees itself": Arm(("attention",), window=1),
    "attention only": Arm(("attention",)),
    "attention only, two layers": Arm(("attention",), layers=2),
    "feed-forward only": Arm(("ffn",)),
    "both": Arm(PARTS),
}
LINEAR, PLAIN, FFN = "attention only, sees itself, no norms", "attention only", "feed-forward only"


class Learned(NamedTuple):
    """Of one arm, mean over seeds: loss on new tokens, nats, and share of right answers, with its extremes."""

    loss: float
    right: float
    least: float
    most: float


@lab(
    "feed-forward-role",
    title=both("What the feed-forward layer is for", "前馈层有什么用"),
    question=both(
        "What breaks if I delete the feed-forward half of every block?", "把每一层的前馈部分都删掉，会坏在哪里？"
    ),
    seconds={"quick": 4, "full": 70},
)
def feed_forward_role(
    run: Run,
    *,
    steps: Annotated[int, Knob("training steps of each small model", "每个小模型的训练步数", quick=150, min=1)] = 400,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
    model: Annotated[str, Knob("the trained model", "训练好的模型")] = MODEL,
    layer: Annotated[int, Knob("its layer that is compared", "拿来比较的层", min=0)] = 10,
    length: Annotated[int, Knob("tokens of text it reads", "读入文本的词元数", quick=64, min=8, max=2048)] = 256,
    every: Annotated[bool, Knob("take out every layer in turn", "逐层删除", quick=False)] = True,
) -> Finding:
    learned = {name: learn(arm, steps, range(run.seed, run.seed + seeds), run, name) for name, arm in ARMS.items()}
    loaded = subject(model)
    depth = len(decoder(loaded).spec.layers)
    taken = taken_out(decoder(loaded), reading(loaded, length), range(depth) if every else [layer])
    vocab = math.log(loaded.model.spec.vocab)
    return Finding(
        table=_table(learned, taken),
        plot=_plot(taken) if every else None,
        verdict=_verdict(learned, taken, layer, vocab),
        checks=_checks(learned, taken, layer, vocab),
    )


# ---- exclusive or


def exclusive_or(generator: torch.Generator) -> Batch:
    """Tokens 0 to 3 are the pairs of bits; each is asked for the exclusive or of its own."""
    tokens_T = torch.randint(4, (ROWS * LENGTH,), generator=generator)
    return Batch(tokens_T, (tokens_T // 2) ^ (tokens_T % 2), [LENGTH] * ROWS)


def arm_model(arm: Arm, seed: int) -> tuple[Decoder, list[nn.Parameter]]:
    """The model and what is trained of it: a part that it shall not have adds zero, and the embedding is given."""

    def change(layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.attention, AttentionSpec)
        attention = replace(layer.attention, window=arm.window, rope=None)
        return replace(layer, attention=attention, norm=None if arm.bare else layer.norm)

    spec = with_layers(small_spec(vocab=4, width=WIDTH, layers=arm.layers, heads=2), change)
    model = fresh(replace(spec, final_norm=None) if arm.bare else spec, seed, std=0.3)
    with torch.no_grad():
        model.embedding.tokens.weight.copy_(bits())
        for i in range(arm.layers):
            for part, out in zip(PARTS, ("attention.out", "ffn.down"), strict=True):
                if part not in arm.parts:
                    model.block(i).get_submodule(out).get_parameter("weight").zero_()
    missing = [f".{part}." for part in PARTS if part not in arm.parts] + ["embedding."]
    return model, [p for name, p in model.named_parameters() if not any(m in name for m in missing)]


def bits() -> Tensor:
    """A row per pair of bits: the sum of one direction per bit, [4, D]."""
    direction = torch.eye(WIDTH)
    return torch.stack([direction[a] + direction[2 + b] for a in (0, 1) for b in (0, 1)])


def learn(arm: Arm, steps: int, seeds: range, run: Run, name: str) -> Learned:
    """The arm trained with each seed, and asked about new tokens."""
    loss, right = zip(*(_learn(arm, steps, seed, run, name) for seed in seeds), strict=True)
    return Learned(statistics.mean(loss), statistics.mean(right), min(right), max(right))


def _learn(arm: Arm, steps: int, seed: int, run: Run, name: str) -> tuple[float, float]:
    model, trained = arm_model(arm, seed)
    note = f"exclusive or, {name}"
    fit(trained, lambda g: loss_of(model, exclusive_or(g)), steps, run, note, seed=seed, lr=1e-2, weight_decay=0)
    test = exclusive_or(torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        return float(loss_of(model, test)), accuracy_of(model, test)


# ---- a trained model


class Taken(NamedTuple):
    """Losses, nats per token: of the whole model, without all of one kind, and by (kind, layer)."""

    whole: float
    without_all: dict[str, float]
    without: dict[tuple[str, int], float]


@torch.inference_mode()
def taken_out(model: Decoder, tokens_T: Tensor, layers: range | list[int]) -> Taken:
    """Each sublayer of the layers replaced by zero, one at a time, then all of one kind."""
    single = [(part, n) for part in PARTS for n in layers]
    depth = range(len(model.spec.layers))
    groups = [[], *([Target(part, n)] for part, n in single), *([Target(part, n) for n in depth] for part in PARTS)]  # type: ignore[arg-type]
    found = losses(model, without(model, tokens_T, groups, "zero"), tokens_T)
    alone = dict(zip(single, found[1:], strict=False))
    return Taken(found[0], dict(zip(PARTS, found[-2:], strict=True)), alone)


# ---- what it comes to


def _table(learned: Mapping[str, Learned], taken: Taken) -> Table:
    columns = {"model": "", "loss": "nats", "right": "", "least": "", "most": "", "without attention": "nats"}
    columns |= {"without feed-forward": "nats"}
    rows: list[list[Cell]] = [[f"exclusive or: {name}", *values, None, None] for name, values in learned.items()]
    rows.append(["trained model", taken.whole, None, None, None, *(taken.without_all[part] for part in PARTS)])
    for n in sorted({n for _, n in taken.without}):
        rows.append([f"trained model, layer {n} alone", *[None] * 4, *(taken.without[part, n] for part in PARTS)])
    return table(columns, rows)


def _plot(taken: Taken) -> Plot:
    def series(part: str, name: str) -> Series:
        points = [(float(n), loss - taken.whole) for (p, n), loss in taken.without.items() if p == part]
        return Series(name=name, x=[x for x, _ in points], y=[y for _, y in points])

    return Plot(
        kind="line",
        x=Axis(label="layer"),
        y=Axis(label="loss gained without it, nats"),
        series=[series("ffn", "feed-forward"), series("attention", "attention")],
    )


def _checks(learned: Mapping[str, Learned], taken: Taken, layer: int, vocab: float) -> list[Check]:
    attention, ffn = (taken.without[part, layer] - taken.whole for part in PARTS)
    gone = taken.without_all["ffn"]
    return [
        check(
            learned[LINEAR].loss > 0.97 * math.log(2) and learned[LINEAR].most < 0.8,
            f"where attention is linear it learns nothing: loss {learned[LINEAR].loss:.3f}, ln 2 is 0.693",
            f"注意力处于线性时什么也学不到：损失 {learned[LINEAR].loss:.3f}，ln 2 是 0.693",
        ),
        check(
            learned[FFN].least > 0.99,
            f"one feed-forward layer answers {learned[FFN].least:.1%}",
            f"一层前馈答对 {learned[FFN].least:.1%}",
        ),
        check(
            ffn > attention,
            f"in the trained model layer {layer}'s feed-forward is worth more than its attention ({ffn:.3f} against "
            f"{attention:.3f} nats)",
            f"训练好的模型第 {layer} 层，前馈比注意力更值钱（{ffn:.3f} 对 {attention:.3f} 奈特）",
        ),
        check(
            gone > vocab,
            f"without any feed-forward its loss is {gone:.1f} nats, worse than guessing evenly ({vocab:.1f})",
            f"没有任何前馈时损失 {gone:.1f} 奈特，比均匀乱猜（{vocab:.1f}）还差",
        ),
    ]


def _verdict(learned: Mapping[str, Learned], taken: Taken, layer: int, vocab: float) -> Words:
    ffn, attention = taken.without["ffn", layer] - taken.whole, taken.without["attention", layer] - taken.whole
    without = taken.without_all
    said = "; ".join(f"{name} {arm.right:.0%}" for name, arm in learned.items())
    return both(
        f"Right answers to the exclusive or: {said}. The first is attention where it is a linear map; its loss is "
        f"{learned[LINEAR].loss:.3f}, a coin's is 0.693. But the weights of a softmax are a curve too: with other "
        f"tokens to weigh against, attention alone gets {learned[PLAIN].right:.0%} in one layer. In the trained model "
        f"taking out layer {layer}'s feed-forward costs {ffn:.3f} nats, its attention {attention:.3f}; without all "
        f"feed-forward layers the loss goes from {taken.whole:.2f} to {without['ffn']:.2f}, without all attention to "
        f"{without['attention']:.2f} (guessing evenly: {vocab:.2f}).",
        f"异或的正确率：{said}。第一项是注意力为线性映射的情形，损失 {learned[LINEAR].loss:.3f}，抛硬币是 0.693。但 "
        f"softmax 的权重本身也是弯的：有别的词元可比时，仅一层注意力就能到 {learned[PLAIN].right:.0%}。在训练好的模型"
        f"里，删掉第 {layer} 层的前馈损失多 {ffn:.3f} 奈特，删掉注意力多 {attention:.3f}；删掉全部前馈，损失从 "
        f"{taken.whole:.2f} 变为 {without['ffn']:.2f}，删掉全部注意力变为 {without['attention']:.2f}（均匀乱猜是 "
        f"{vocab:.2f}）。",
    )
