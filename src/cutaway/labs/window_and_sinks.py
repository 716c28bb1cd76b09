"""What happens when attention is cut to a recent window, and why first tokens matter (Xiao et al. 2023,
arXiv:2309.17453).

A trained model reads a text that it can attend to whole, through a window, and through a window that also shows the
first few tokens. Meanwhile its hidden states and attention weights are watched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, logits_of, subject
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal, Question, attention_weights
from cutaway.weights.checkpoint import Loaded

ANCHORS = 4


class Narrow(BlockDiagonal):
    """Every layer sees a recent window and the first few tokens."""

    def __init__(self, length: int, window: int | None, anchors: int) -> None:
        super().__init__([length])
        self.window, self.anchors = window, anchors

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        return super().attend(layer, q_THK, k_TGK, v_TGK, replace(question, window=self.window, anchors=self.anchors))


class Watched(BlockDiagonal):
    """Notes what share of attention the last half of the tokens gives to the very first, one number a layer."""

    def __init__(self, length: int) -> None:
        super().__init__([length])
        self.shares: list[float] = []

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor | None, question: Question) -> Tensor:
        """See `Context.attend`."""
        late_HQK = q_THK.transpose(0, 1)[:, len(q_THK) // 2 :]
        weights_HQS = attention_weights(late_HQK, k_TGK.transpose(0, 1), question)
        self.shares.append(float(weights_HQS[..., 0].mean()))
        return super().attend(layer, q_THK, k_TGK, v_TGK, question)


class Cut(NamedTuple):
    """A reading: window (None: everything), first tokens kept, mean loss over the first and the last half, nats."""

    window: int | None
    anchors: int
    first: float
    last: float


class Size(NamedTuple):
    """After one block: the largest absolute value at position 0 and at any other; attention to position 0."""

    first: float
    others: float
    share: float


@lab(
    "window-and-sinks",
    title=both("A window, and the first four tokens", "滑动窗口与最前面的四个词元"),
    question=both(
        "What happens to a real model when attention is cut to a recent window, and why do first tokens matter?",
        "把真实模型的注意力截到最近的窗口会怎样，为什么最前面的词元很重要？",
    ),
    seconds={"quick": 7, "full": 60},
)
def window_and_sinks(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that reads", "被测的模型")] = MODEL,
    length: Annotated[int, Knob("tokens that it reads", "读入的词元数", quick=384, min=256, max=4096)] = 1024,
    window: Annotated[int, Knob("tokens in the window", "窗口的词元数", min=8, max=2048)] = 64,
    thorough: Annotated[bool, Knob("other windows and numbers too", "也测其他窗口与个数", quick=False)] = True,
) -> Finding:
    loaded = subject(model)
    tokens_T = manual(loaded, length)
    cuts = [(window, 0), (window, ANCHORS)]
    cuts += [(window, 1), (window, 16), (4 * window, 0), (4 * window, ANCHORS)] if thorough else []
    whole, sizes = watch(decoder(loaded), tokens_T)
    found = [
        whole,
        *(cut(decoder(loaded), tokens_T, *c) for c in run.each(cuts, f"{loaded.name} reads through windows")),
    ]
    return Finding(
        table=_table(found, sizes), plot=_plot(sizes), verdict=_verdict(found, sizes), checks=_checks(found, sizes)
    )


def manual(loaded: Loaded, length: int) -> Tensor:
    """tokens_T of a text without repetitions: the chapter on execution that every Python carries in `pydoc_data`.

    Errors: more tokens than the text or the model's context has.
    """
    from pydoc_data.topics import topics

    tokens_T = torch.tensor(loaded.tokenizer.encode(topics["execmodel"]))[:length]
    if len(tokens_T) < length or length > loaded.model.spec.context:
        most = min(len(tokens_T), loaded.model.spec.context)
        raise CutawayError(f"{length} tokens are too many", "knob length", f"at most {most} with {loaded.name}")
    return tokens_T


@torch.inference_mode()
def cut(model: Decoder, tokens_T: Tensor, window: int | None, anchors: int) -> Cut:
    """Read through one window."""
    return Cut(window, anchors, *halves(model, tokens_T, Narrow(len(tokens_T), window, anchors)))


def halves(model: Decoder, tokens_T: Tensor, context: BlockDiagonal) -> tuple[float, float]:
    """Mean losses over the first and the last half, nats."""
    logits_TV = logits_of(model, tokens_T, context)
    loss_T = F.cross_entropy(logits_TV[:-1].float(), tokens_T[1:], reduction="none")
    first, last = loss_T.tensor_split([len(tokens_T) // 2])
    return float(first.mean()), float(last.mean())


@torch.inference_mode()
def watch(model: Decoder, tokens_T: Tensor) -> tuple[Cut, list[Size]]:
    """Read everything, and look at what every block puts out."""
    largest: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, x, out: largest.append(out.abs().amax(-1))) for block in model.layers
    ]
    context = Watched(len(tokens_T))
    try:
        losses = halves(model, tokens_T, context)
    finally:
        for hook in hooks:
            hook.remove()
    seen = zip(largest, context.shares, strict=True)
    return Cut(None, 0, *losses), [Size(float(x_T[0]), float(x_T[1:].max()), share) for x_T, share in seen]


def _table(found: list[Cut], sizes: list[Size]) -> Table:
    columns = {
        "what": "",
        "window": "tokens",
        "first tokens kept": "",
        "loss, first half": "nats",
        "loss, last half": "nats",
        "rise, last half": "nats",
        "largest value at position 0": "",
        "at any other": "",
        "attention to position 0": "%",
    }
    whole = found[0].last
    readings: list[list[Cell]] = [["reading", *c, c.last - whole, None, None, None] for c in found]
    blocks = [
        [f"block {i}", None, None, None, None, None, s.first, s.others, 100 * s.share] for i, s in enumerate(sizes)
    ]
    return table(columns, readings + blocks)


def _plot(sizes: list[Size]) -> Plot:
    def series(name: str, values: list[float]) -> Series:
        return Series(name=name, x=[float(i) for i in range(len(values))], y=values)

    return Plot(
        kind="line",
        x=Axis(label="block"),
        y=Axis(label="largest absolute value of the hidden state", log=True),
        series=[series("position 0", [s.first for s in sizes]), series("any other", [s.others for s in sizes])],
    )


def _checks(found: list[Cut], sizes: list[Size]) -> list[Check]:
    whole, bare, kept = found[:3]
    ratio = max(s.first / s.others for s in sizes)
    return [
        check(
            bare.last - whole.last > 1,
            f"seeing only the last {bare.window} tokens costs {bare.last - whole.last:.2f} nats over the last half",
            f"只看最近 {bare.window} 个词元，后半段损失上升 {bare.last - whole.last:.2f} 奈特",
        ),
        check(
            kept.last - whole.last < 0.5,
            f"with the first {kept.anchors} tokens visible as well it costs {kept.last - whole.last:.2f}",
            f"若同时看得见最前面 {kept.anchors} 个词元，只上升 {kept.last - whole.last:.2f}",
        ),
        check(
            ratio > 10,
            f"the hidden state of position 0 holds values up to {ratio:.0f} times larger than any other position's",
            f"位置 0 的隐藏状态最大可达其他任何位置的 {ratio:.0f} 倍",
        ),
    ]


def _verdict(found: list[Cut], sizes: list[Size]) -> Words:
    whole, bare, kept = found[:3]
    share, at = sum(s.share for s in sizes) / len(sizes), max(range(len(sizes)), key=lambda i: sizes[i].share)
    big = max(sizes, key=lambda s: s.first / s.others)
    return both(
        f"Over the last half of the text the loss is {whole.last:.2f} nats with everything visible, {bare.last:.2f} "
        f"with the last {bare.window} tokens alone, and {kept.last:.2f} with the first {kept.anchors} beside them: "
        f"little of what is lost is information. Later tokens give {share:.0%} of their attention to the very first "
        f"one ({sizes[at].share:.0%} in block {at}), whose hidden state is of another size ({big.first:,.0f} against "
        f"{big.others:,.0f} at most elsewhere). A softmax must give its weight to something; take that place away and "
        "weights go where they do harm.",
        f"文本后半段的损失：全部可见时 {whole.last:.2f} 奈特，只见最近 {bare.window} 个词元时 {bare.last:.2f}，再加上"
        f"最前面 {kept.anchors} 个时 {kept.last:.2f}：损失的信息其实不多。后面的词元把 {share:.0%} 的注意力给了第一个"
        f"词元（第 {at} 块中 {sizes[at].share:.0%}），它的隐藏状态大小迥异（{big.first:,.0f}，别处最多 "
        f"{big.others:,.0f}）。softmax 的权重总要有处可去；拿走这个去处，权重就落到有害的地方。",
    )
