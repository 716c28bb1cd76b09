"""What the causal mask is for: without it a language model learns to read the answer.

Two small models of the same size train on the same text, one of them without the mask. Both are then asked for bytes
that follow what is there, as in generation. The masks of `cutaway.nn.patterns` are held against PyTorch's attention.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import last_logits, logits_of
from cutaway.labs.training import fit, fresh, loss_of, next_bytes, prose, small_spec, with_layers
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec
from cutaway.nn import patterns
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.flash import Tile, flash

LENGTH, ROWS, GENERATED, ASKED = 64, 12, 40, 60
RULES: dict[str, patterns.Rule] = {
    "causal": patterns.CAUSAL,
    "everything": patterns.Everything(),
    "causal, no padding": patterns.both(patterns.CAUSAL, patterns.Padded(41)),
    "prefix of 16": patterns.Prefix(16),
    "causal within documents": patterns.both(patterns.CAUSAL, patterns.Blocks((20, 9, 19))),
    "window of 8, 2 anchors": patterns.Window(8, 2),
    "nobody sees anything": patterns.Padded(0),
}


class Reader(NamedTuple):
    """A trained model: its loss by step; its loss on held-out bytes that nothing follows; how far logits of earlier
    tokens move when a later one is changed; what it writes."""

    name: str
    losses: list[float]
    unseen: float
    moved: float
    writes: str

    @property
    def final(self) -> float:
        """Mean training loss of the last tenth."""
        return statistics.mean(self.losses[-max(1, len(self.losses) // 10) :])


@lab(
    "causal-mask",
    title=both("Without the causal mask", "没有因果掩码会怎样"),
    question=both(
        "How do masks stop a model from reading the future or the padding, and how are they combined?",
        "掩码怎样阻止模型偷看未来或填充，又怎样组合？",
    ),
    seconds={"quick": 6, "full": 30},
)
def causal_mask(
    run: Run,
    *,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=130, min=50, max=20_000)] = 600,
    start: Annotated[str, Knob("what both continue", "两个模型续写的开头")] = "The value of the expression is ",
) -> Finding:
    readers = [reader(causal, steps, start, run) for causal in (True, False)]
    apart = {name: differences(rule, run) for name, rule in RULES.items()}
    return Finding(
        table=_table(readers, apart),
        plot=_plot(readers),
        verdict=_verdict(readers),
        checks=_checks(readers, apart),
    )


def reader(causal: bool, steps: int, start: str, run: Run) -> Reader:
    """Train with or without the mask on nine tenths of the text."""
    text = prose()
    cut = len(text) * 9 // 10
    spec = small_spec() if causal else with_layers(small_spec(), unmasked)
    model, task = fresh(spec, run.seed), next_bytes(text[:cut], LENGTH, ROWS)
    name = "with the mask" if causal else "without"
    fitted = fit(
        model.parameters(), lambda g: loss_of(model, task(g)), steps, run, name, seed=run.seed, lr=5e-3, warmup=10
    )
    bytes_T = torch.tensor(list(start.encode()))
    return Reader(name, fitted.losses, unseen(model, text[cut:]), moved(model, bytes_T), continued(model, bytes_T))


def unmasked(layer: LayerSpec) -> LayerSpec:
    """The same, seeing everything."""
    assert isinstance(layer.attention, AttentionSpec)
    return replace(layer, attention=replace(layer.attention, causal=False))


@torch.no_grad()
def unseen(model: Decoder, text_T: Tensor) -> float:
    """Mean loss of the byte after a stretch of text, the stretch being all that there is."""
    starts = torch.linspace(0, len(text_T) - LENGTH - 1, ASKED).long().tolist()
    losses = [F.cross_entropy(last_logits(model, text_T[s : s + LENGTH]), text_T[s + LENGTH]) for s in starts]
    return float(torch.stack(losses).mean())


@torch.no_grad()
def moved(model: Decoder, bytes_T: Tensor) -> float:
    """Largest change of the logits before each position when the byte there is another: 0 to the last bit, or not."""
    before_TV, largest = logits_of(model, bytes_T), 0.0
    for t in range(1, len(bytes_T)):
        other_T = bytes_T.clone()
        other_T[t] ^= 1
        largest = max(largest, float((logits_of(model, other_T) - before_TV)[:t].abs().max()))
    return largest


@torch.no_grad()
def continued(model: Decoder, bytes_T: Tensor) -> str:
    """The likeliest byte, again and again."""
    for _ in range(GENERATED):
        bytes_T = torch.cat([bytes_T, last_logits(model, bytes_T).argmax()[None]])
    return bytes(bytes_T[-GENERATED:].tolist()).decode(errors="replace")


def differences(rule: patterns.Rule, run: Run) -> float:
    """Of attention under a rule from PyTorch's under its mask, values and gradients; a row that sees nothing is 0."""
    n, shape = 48, (3, 48, 2, 8)
    inputs = torch.randn(shape, generator=run.generator(), dtype=torch.float64).requires_grad_(True)
    up_QHK = torch.randn(shape[1:], generator=run.generator(), dtype=torch.float64)
    mask_QS = patterns.mask(rule, n)
    blind_Q = ~mask_QS.any(-1)
    q, k, v = (x.transpose(0, 1) for x in inputs)
    wanted = F.scaled_dot_product_attention(q, k, v, mask_QS | blind_Q[:, None], scale=1.0).transpose(0, 1)
    wanted = wanted.masked_fill(blind_Q[:, None, None], 0)
    found = flash(*inputs, scale=1.0, rule=rule, tile=Tile(10, 7)).out_QHV
    sides = [(out, torch.autograd.grad(out, inputs, up_QHK)[0]) for out in (found, wanted)]
    return max(float((a - b).detach().abs().max()) for a, b in zip(*sides, strict=True))


def _table(readers: list[Reader], apart: dict[str, float]) -> Table:
    columns = {
        "model or mask": "",
        "training loss at the end": "nats/byte",
        "loss where the next byte is not there": "nats/byte",
        "earlier logits move by": "",
        "it writes": "",
        "pairs seen of 48²": "",
        "from PyTorch's attention": "",
    }
    trained: list[list[Cell]] = [[r.name, r.final, r.unseen, r.moved, r.writes, None, None] for r in readers]
    counted = {name: int(patterns.mask(rule, 48).sum()) for name, rule in RULES.items()}
    return table(columns, trained + [[name, None, None, None, None, counted[name], off] for name, off in apart.items()])


def _plot(readers: list[Reader]) -> Plot:
    return Plot(
        kind="line",
        x=Axis(label="training step"),
        y=Axis(label="training loss, nats per byte"),
        series=[Series(name=r.name, x=[float(i) for i in range(len(r.losses))], y=r.losses) for r in readers],
    )


def _checks(readers: list[Reader], apart: dict[str, float]) -> list[Check]:
    masked, open_ = readers
    worst = max(apart.values())
    return [
        check(
            masked.moved == 0 < open_.moved,
            f"with the mask a changed token leaves all earlier logits as they are, to the last bit; without it they "
            f"move by up to {open_.moved:.1f}",
            f"有掩码时改动一个词元，之前的 logits 一位不变；没有时最多变动 {open_.moved:.1f}",
        ),
        check(
            open_.final < masked.final / 4,
            f"without the mask the training loss falls to {open_.final:.2f}, with it to {masked.final:.2f} nats",
            f"没有掩码时训练损失降到 {open_.final:.2f}，有掩码时 {masked.final:.2f} 奈特",
        ),
        check(
            open_.unseen > masked.unseen + 0.5,
            f"where the next byte is not there to be read it has {open_.unseen:.2f}, the other {masked.unseen:.2f}",
            f"下一个字节不在眼前时，它的损失为 {open_.unseen:.2f}，有掩码的模型为 {masked.unseen:.2f}",
        ),
        check(
            worst < 1e-12,
            f"{len(apart)} masks, single and combined, equal PyTorch's attention, values and gradients, to {worst:.0e}",
            f"{len(apart)} 种掩码（单独与组合）的值与梯度都与 PyTorch 的注意力一致，相差 {worst:.0e}",
        ),
    ]


def _verdict(readers: list[Reader]) -> Words:
    masked, open_ = readers
    guess = math.log(256)
    return both(
        f"A token may not look at what it is asked for. Without the mask training looks splendid ({open_.final:.2f} "
        f"nats per byte against {masked.final:.2f}), because the next byte is there to be copied; asked for a byte "
        f"that is not there yet, that model has {open_.unseen:.2f} ({guess:.2f} is guessing) and the masked one "
        f"{masked.unseen:.2f}. It writes {open_.writes!r}, the other {masked.writes!r}. Masks combine by and: a key "
        "must be in the past, in the same document, and no padding; a row that sees nothing gives zeros.",
        f"词元不能看到要它回答的东西。没有掩码，训练看起来极好（每字节 {open_.final:.2f} 奈特，对 "
        f"{masked.final:.2f}），因为下一个字节就在眼前；要它预测还不存在的字节时，损失为 {open_.unseen:.2f}"
        f"（瞎猜为 {guess:.2f}），有掩码的模型 {masked.unseen:.2f}。它写出 {open_.writes!r}，另一个写出 "
        f"{masked.writes!r}。掩码以“且”组合：键必须在过去、在同一文档、且不是填充；什么都看不到的行输出零。",
    )
