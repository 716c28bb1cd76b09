"""What happens when attention is cut to a recent window, and why first tokens matter (Xiao et al. 2023,
arXiv:2309.17453).

A trained model reads a text that it can attend to whole, through a window, and through a window that also shows the
first few tokens. Meanwhile its hidden states and attention weights are watched.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
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
    """A reading: text, window (None: everything), first tokens kept, mean loss over the first and last half, nats."""

    text: str
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
    seconds={"quick": 6, "full": 90},
)
def window_and_sinks(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that reads", "被测的模型")] = MODEL,
    length: Annotated[int, Knob("tokens that it reads", "读入的词元数", quick=384, min=256, max=4096)] = 1024,
    window: Annotated[int, Knob("tokens in the window", "窗口的词元数", min=8, max=2048)] = 64,
    texts: Annotated[int, Knob("texts that it reads", "文本数", quick=1, min=1, max=20)] = 6,
    thorough: Annotated[bool, Knob("other windows and numbers too", "也测其他窗口与个数", quick=False)] = True,
) -> Finding:
    loaded = subject(model)
    chosen = chapters(loaded, length, texts)
    found, sizes = watch(decoder(loaded), *chosen[0])
    found += [cut(decoder(loaded), *chapter, None, 0) for chapter in run.each(chosen[1:], "reading")]
    for keep in (0, ANCHORS):
        found += [cut(decoder(loaded), *chapter, window, keep) for chapter in run.each(chosen, "through a window")]
    others = [(window, 1), (window, 16), (4 * window, 0), (4 * window, ANCHORS)] if thorough else []
    found += [cut(decoder(loaded), *chosen[0], *c) for c in run.each(others, "through other windows")]
    return Finding(
        table=_table(found, sizes),
        plot=_plot(sizes),
        verdict=_verdict(found, window, sizes),
        checks=_checks(found, window, sizes),
    )


def chapters(loaded: Loaded, length: int, count: int) -> list[tuple[str, Tensor]]:
    """Name and first tokens_T of the longest chapters of Python's own manual, which `pydoc_data` carries.

    They are long enough to be read without repetition. Errors: too many tokens for the model's context or the text.
    """
    from pydoc_data.topics import topics

    names = sorted(topics, key=lambda name: -len(topics[name]))[:count]
    texts = [(name, torch.tensor(loaded.tokenizer.encode(topics[name]))[:length]) for name in names]
    most = min(loaded.model.spec.context, *(len(tokens_T) for _, tokens_T in texts))
    if length > most:
        raise CutawayError(f"{length} tokens are too many", "knob length", f"at most {most} with {loaded.name}")
    return texts


@torch.inference_mode()
def cut(model: Decoder, name: str, tokens_T: Tensor, window: int | None, anchors: int) -> Cut:
    """Read through one window."""
    return Cut(name, window, anchors, *halves(model, tokens_T, Narrow(len(tokens_T), window, anchors)))


def halves(model: Decoder, tokens_T: Tensor, context: BlockDiagonal) -> tuple[float, float]:
    """Mean losses over the first and the last half, nats."""
    logits_TV = logits_of(model, tokens_T, context)
    loss_T = F.cross_entropy(logits_TV[:-1].float(), tokens_T[1:], reduction="none")
    first, last = loss_T.tensor_split([len(tokens_T) // 2])
    return float(first.mean()), float(last.mean())


@torch.inference_mode()
def watch(model: Decoder, name: str, tokens_T: Tensor) -> tuple[list[Cut], list[Size]]:
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
    return [Cut(name, None, 0, *losses)], [Size(float(x_T[0]), float(x_T[1:].max()), share) for x_T, share in seen]


def rises(found: list[Cut], window: int, anchors: int) -> list[float]:
    """By text: how much more the last half costs through a window than with everything visible."""
    whole = {c.text: c.last for c in found if c.window is None}
    return [c.last - whole[c.text] for c in found if (c.window, c.anchors) == (window, anchors)]


def _table(found: list[Cut], sizes: list[Size]) -> Table:
    columns = {
        "text or block": "",
        "window": "tokens",
        "first tokens kept": "",
        "loss, first half": "nats",
        "loss, last half": "nats",
        "rise, last half": "nats",
        "largest value at position 0": "",
        "at any other": "",
        "attention to position 0": "%",
    }
    whole = {c.text: c.last for c in found if c.window is None}
    readings: list[list[Cell]] = [[*c, c.last - whole[c.text], None, None, None] for c in found]
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


def _checks(found: list[Cut], window: int, sizes: list[Size]) -> list[Check]:
    bare, kept = (rises(found, window, anchors) for anchors in (0, ANCHORS))
    ratio = max(s.first / s.others for s in sizes)
    return [
        check(
            mean(bare) > 1,
            f"seeing only the last {window} tokens costs {_told(bare, 'to')} nats over the last half",
            f"只看最近 {window} 个词元，后半段损失上升 {_told(bare, '到')} 奈特",
        ),
        check(
            mean(kept) < 0.5,
            f"with the first {ANCHORS} tokens visible as well it costs {_told(kept, 'to')}",
            f"若同时看得见最前面 {ANCHORS} 个词元，只上升 {_told(kept, '到')}",
        ),
        check(
            ratio > 10,
            f"the hidden state of position 0 holds values up to {ratio:.0f} times larger than any other position's",
            f"位置 0 的隐藏状态最大可达其他任何位置的 {ratio:.0f} 倍",
        ),
    ]


def _told(values: list[float], to: str) -> str:
    """Mean and range."""
    return f"{mean(values):.2f} ({min(values):.2f} {to} {max(values):.2f})"


def _verdict(found: list[Cut], window: int, sizes: list[Size]) -> Words:
    whole = mean([c.last for c in found if c.window is None])
    bare, kept = (whole + mean(rises(found, window, anchors)) for anchors in (0, ANCHORS))
    share, at = mean([s.share for s in sizes]), max(range(len(sizes)), key=lambda i: sizes[i].share)
    big = max(sizes, key=lambda s: s.first / s.others)
    return both(
        f"Over the last half of the text the loss is {whole:.2f} nats with everything visible, {bare:.2f} with the "
        f"last {window} tokens alone, and {kept:.2f} with the first {ANCHORS} beside them: most of what is lost is not "
        f"information. Later tokens give {share:.0%} of their attention to the very first one ({sizes[at].share:.0%} "
        f"in block {at}), whose hidden state is of another size ({big.first:,.0f} against {big.others:,.0f} at most "
        "elsewhere). A softmax must give its weight to something; take that place away and weights go where they do "
        "harm.",
        f"文本后半段的损失：全部可见时 {whole:.2f} 奈特，只见最近 {window} 个词元时 {bare:.2f}，再加上最前面 {ANCHORS} "
        f"个时 {kept:.2f}：损失的大部分并不是信息。后面的词元把 {share:.0%} 的注意力给了第一个词元（第 {at} 块中 "
        f"{sizes[at].share:.0%}），它的隐藏状态大小迥异（{big.first:,.0f}，别处最多 {big.others:,.0f}）。softmax 的权重"
        "总要有处可去；拿走这个去处，权重就落到有害的地方。",
    )
