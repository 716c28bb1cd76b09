"""An encoder layer lets every token see every other, a decoder layer those before it: what follows from that alone.

edit a token   an encoder's rows change on both sides of it, a decoder's from it on: the rows before stay the very bits
drop cross     a decoder layer of an encoder-decoder (Vaswani et al. 2017, arXiv:1706.03762) without its attention
               to the source holds the weights of a GPT block (Radford et al. 2018), no more and no fewer
fill a gap     choice  ...  [gap]  a  b      the gap holds a or b, as the first token says: the answer stands to the
               right of the gap, its rule to the left (Devlin et al. 2018, BERT, arXiv:1810.04805)
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, NamedTuple, cast

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import IGNORED, Batch, accuracy_of, fit, fresh, loss_of, small_spec, with_layers
from cutaway.models.block import Block, positions_of
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal, Place

LENGTH, EDITED = 24, 9  # tokens of the text that is edited, and the place
WORDS, FILLERS, ROWS = 16, 3, 64  # of the gap task: words, tokens between rule and gap, texts a batch
GAP = WORDS
SETTLED = 50  # last steps of a training whose loss is reported


class Outcome(NamedTuple):
    """What one kind of layer makes of the gap task."""

    name: tuple[str, str]
    losses: list[float]
    accuracy: float


@lab(
    "encoder-vs-decoder",
    title=both("Encoder and decoder layers", "编码器层与解码器层"),
    question=both(
        "What separates an encoder layer from a decoder layer, and is either useful alone?",
        "编码器层和解码器层差在哪里？单独使用有用吗？",
    ),
    seconds={"quick": 4, "full": 25},
)
def encoder_vs_decoder(
    run: Run,
    *,
    width: Annotated[int, Knob("width of the small models", "小模型的宽度", quick=32, min=8, max=256)] = 64,
    steps: Annotated[
        int, Knob("training steps on the gap task", "填空任务的训练步数", quick=120, min=10, max=10**4)
    ] = 600,
) -> Finding:
    spec = small_spec(vocab=WORDS + 3, width=width, layers=2)
    kinds = {False: both("encoder", "编码器"), True: both("decoder", "解码器")}
    moved = {causal: edited(seeing(spec, causal), run) for causal in kinds}
    outcomes = [gaps(seeing(spec, causal), (name.en, name.zh), steps, run) for causal, name in kinds.items()]
    dropped = without_source(width, run)
    return Finding(
        table=_table(moved, outcomes),
        plot=_plot(moved),
        verdict=_verdict(moved, outcomes, dropped),
        checks=_checks(moved, outcomes, dropped),
    )


def seeing(spec: Spec, causal: bool) -> Spec:
    """The same model, each token seeing those before it or all."""
    attention = cast(AttentionSpec, spec.layers[0].attention)
    return with_layers(spec, lambda layer: replace(layer, attention=replace(attention, causal=causal)))


# ---- one token is edited


@torch.no_grad()
def edited(spec: Spec, run: Run) -> Tensor:
    """By how much each row of the hidden states moves when one token becomes another: largest difference, [T]."""
    model = fresh(spec, run.seed, std=0.2).double()
    tokens_T = torch.randint(WORDS, (LENGTH,), generator=run.generator())
    other_T = tokens_T.clone()
    other_T[EDITED] = (tokens_T[EDITED] + 1) % WORDS
    before_TD, after_TD = (model(t, positions_of([LENGTH]), BlockDiagonal([LENGTH])) for t in (tokens_T, other_T))
    return (after_TD - before_TD).abs().amax(-1)


# ---- a decoder layer without its source


class Dropped(NamedTuple):
    """parameters: of the layer with and without a source, and of a GPT's block. difference: of their outputs."""

    whole: int
    left: int
    block: int
    same_names: bool
    difference: float


@torch.no_grad()
def without_source(width: int, run: Run) -> Dropped:
    """Take the attention to the source out of a decoder layer and give what is left to a block of a GPT."""
    gpt = small_spec(width=width).layers[0]
    torch.manual_seed(run.seed)
    layer, block = Block(width, replace(gpt, cross=AttentionSpec(4, 4, width // 4, 1.0))), Block(width, gpt)
    whole = _size(layer)
    layer.cross = layer.cross_norm = None
    left = layer.state_dict()
    same = {n: t.shape for n, t in left.items()} == {n: t.shape for n, t in block.state_dict().items()}
    block.load_state_dict(left)
    x_TD = torch.randn(LENGTH, width, generator=run.generator())
    found_TD, expected_TD = (b(x_TD, 0, Place(), BlockDiagonal([LENGTH])) for b in (layer, block))
    return Dropped(whole, _size(layer), _size(block), same, float((found_TD - expected_TD).abs().max()))


def _size(block: Block) -> int:
    return sum(p.numel() for p in block.parameters())


# ---- a gap whose content both sides tell


def gap_batch(generator: torch.Generator) -> Batch:
    """Texts "rule, fillers, gap, a, b": the gap asks for a if the rule is the first of two tokens, else for b."""
    rule = torch.randint(2, (ROWS,), generator=generator)
    fillers = torch.randint(WORDS, (ROWS, FILLERS), generator=generator)
    ends = torch.randint(WORDS, (ROWS, 2), generator=generator)
    gap = torch.full((ROWS, 1), GAP)
    inputs = torch.cat([GAP + 1 + rule[:, None], fillers, gap, ends], 1)
    targets = torch.full_like(inputs, IGNORED)
    targets[:, 1 + FILLERS] = ends[torch.arange(ROWS), rule]
    return Batch(inputs.flatten(), targets.flatten(), [inputs.shape[1]] * ROWS)


def gaps(spec: Spec, name: tuple[str, str], steps: int, run: Run) -> Outcome:
    """Train on gaps, then fill fresh ones."""
    model = fresh(spec, run.seed, std=0.05)
    fitted = fit(
        model.parameters(), lambda g: loss_of(model, gap_batch(g)), steps, run, name[0], seed=run.seed, warmup=20
    )
    return Outcome(name, fitted.losses, tested(model))


def tested(model: Decoder) -> float:
    """Share of fresh gaps that are filled rightly."""
    generator = torch.Generator().manual_seed(10_000)
    return sum(accuracy_of(model, gap_batch(generator)) for _ in range(8)) / 8


# ---- what it comes to


def _settled(outcome: Outcome) -> float:
    last = outcome.losses[-SETTLED:]
    return sum(last) / len(last)


def _table(moved: dict[bool, Tensor], outcomes: list[Outcome]) -> Table:
    columns = {
        "layers": "",
        "largest change before the edit": "",
        "largest change after it": "",
        "gaps filled rightly": "",
        "loss on gaps": "nats",
    }
    rows: list[list[Cell]] = [
        [o.name[0], float(m[:EDITED].max()), float(m[EDITED + 1 :].max()), o.accuracy, _settled(o)]
        for m, o in zip(moved.values(), outcomes, strict=True)
    ]
    return table(columns, rows)


def _plot(moved: dict[bool, Tensor]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label=f"place in the text (edited: {EDITED})"),
        y=Axis(label="largest change of its hidden state"),
        series=[
            Series(name="decoder" if causal else "encoder", x=[float(i) for i in range(LENGTH)], y=m.tolist())
            for causal, m in moved.items()
        ],
    )


def _checks(moved: dict[bool, Tensor], outcomes: list[Outcome], dropped: Dropped) -> list[Check]:
    encoder, decoder = outcomes
    return [
        check(
            float(moved[True][:EDITED].max()) == 0.0 and float(moved[False][:EDITED].min()) > 0,
            "before the edited token the decoder's rows do not change at all (difference 0.0), the encoder's all do",
            "被改词元之前，解码器的行完全不变（差为 0.0），编码器的行全都变化",
        ),
        check(
            all(float(m[EDITED:].min()) > 0 for m in moved.values()),
            "from the edited token on, all rows of both change",
            "从被改词元起，两者的所有行都变化",
        ),
        check(
            dropped.same_names and dropped.left == dropped.block and dropped.difference == 0.0,
            "a decoder layer without attention to the source has a GPT block's weights and gives its very output",
            "去掉对源序列的注意力后，解码器层的权重就是 GPT 块的权重，输出逐位相同",
        ),
        check(
            encoder.accuracy > 0.9,
            "the encoder fills gaps whose content stands on both sides",
            "编码器能填上由两侧共同决定的空",
        ),
        check(
            decoder.accuracy < 2 / WORDS,
            "the decoder of equal size guesses: the answer is behind what it sees",
            "同样大小的解码器只能瞎猜：答案在它看不到的后面",
        ),
    ]


def _verdict(moved: dict[bool, Tensor], outcomes: list[Outcome], dropped: Dropped) -> Words:
    encoder, decoder = outcomes
    lost, kept = (float(m[:EDITED].max()) for m in moved.values())
    losses, guess = [_settled(o) for o in outcomes], f"{1 / WORDS:.0%}"
    chance = math.log(WORDS)
    return both(
        f"The mask alone. With equal weights, editing token {EDITED} moves the rows before it by up to {lost:.2g} "
        f"where all see all, and by {kept:.1f} where each sees the past. A decoder layer of an encoder-decoder has "
        f"{dropped.whole:,} weights, without its source {dropped.left:,}: those of a GPT block one by one, with the "
        f"same output (difference {dropped.difference:.1f}). Alone, each is good for what it sees: of gaps whose "
        f"content both sides decide, the encoder fills {encoder.accuracy:.0%} and the decoder of equal size "
        f"{decoder.accuracy:.0%} (loss {losses[0]:.2f} and {losses[1]:.2f}; guessing among {WORDS} words is {guess} "
        f"and {chance:.2f}). In return a decoder's later tokens never change earlier rows: it may write on, and keep "
        f"what it computed.",
        f"只差在掩码。权重相同，改动第 {EDITED} 个词元：人人互见时，其前各行最多变动 {lost:.2g}；只看过去时变动 "
        f"{kept:.1f}。编码器-解码器中的一个解码器层有 {dropped.whole:,} 个权重，去掉源序列后剩 {dropped.left:,} "
        f"个，与 GPT 块一一对应，输出相同（差 {dropped.difference:.1f}）。单独使用时各有所长：由两侧共同决定的空，"
        f"编码器填对 {encoder.accuracy:.0%}，同样大小的解码器填对 {decoder.accuracy:.0%}（损失 {losses[0]:.2f} 与 "
        f"{losses[1]:.2f}；在 {WORDS} 个词中瞎猜是 {guess} 和 {chance:.2f}）。解码器换来的是：后面的词元不会改变"
        f"前面的行，因此可以一直写下去，并保留算过的结果。",
    )
