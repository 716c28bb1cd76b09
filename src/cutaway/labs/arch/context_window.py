"""What a full context ran out of: slots, one for each token of prompt and reply alike, and positions that were learned.

    |<- prompt: P ->|<- reply: at most limit - P ->|        one pool; nothing is kept for either side
    |<----------- what training has seen ----------->|???????|        an engine may offer more than a model knows

The slots are those of the real engine, with a model of bytes. The same model is then read beyond its trained length,
with learned positions (Radford et al. 2018) and with rotations (Su et al. 2021, arXiv:2104.09864).
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Annotated, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.engine.engine import Engine, TooLong
from cutaway.engine.params import SamplingParams
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import fit, fresh, loss_of, next_bytes, prose, small_spec, with_layers
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.text.alphabet import LETTER_OF_BYTE
from cutaway.text.recipe import Recipe
from cutaway.text.tokenizer import Tokenizer

TIMES = 4  # texts are this many times as long as the trained length
TRAINED_BYTES = 1024  # of each step
ROWS = 8  # texts read at once
QUESTION, ANSWER = 1 / 16, 1 / 4  # of a turn, as shares of the limit
LEARNED, ROTARY = "learned positions", "rotary"


class Call(NamedTuple):
    """One call of the engine. earlier: how much of the prompt are earlier replies. wanted: max_tokens. refused: why."""

    what: str
    prompt: int
    earlier: int
    wanted: int
    reply: int
    finish: str | None
    refused: str = ""


class Read(NamedTuple):
    """Losses by stretch of the trained length, nats per byte: read on, and with every stretch begun anew."""

    on: list[float]
    anew: list[float]


@lab(
    "context-window",
    title=both("A context has one pool of slots", "上下文只有一个槽位池"),
    question=both(
        "What runs out when a context is full, and is it my prompt or the answer that used it up?",
        "上下文满了，用完的是什么？是提示词还是回答用掉的？",
    ),
    seconds={"quick": 4, "full": 45},
)
def context_window(
    run: Run,
    *,
    trained: Annotated[int, Knob("trained length, bytes", "训练长度（字节）", quick=32, min=16, max=512)] = 128,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=130, min=20, max=20_000)] = 1000,
    texts: Annotated[int, Knob("held-out texts read", "读入的留出文本数", quick=64, min=8, max=1024)] = 128,
) -> Finding:
    models = {name: train(spec, name, trained, steps, run) for name, spec in specs(trained).items()}
    engine = Engine(models[LEARNED], byte_tokenizer(), context=trained)
    alone = [call(engine, "alone", stretch(p, run.seed), trained) for p in shares(trained)]
    turns = conversation(engine, run.seed)
    found = {name: read(model, trained, texts) for name, model in models.items()}
    return Finding(
        table=_table([*alone, *turns], found, trained),
        plot=_plot(found, trained),
        verdict=_verdict(alone, turns, found, trained),
        checks=_checks(alone, turns, found, trained),
    )


# ---- slots


def byte_tokenizer() -> Tokenizer:
    """A token per byte, its value the id; nothing ends a reply."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocab = {letter: byte for byte, letter in LETTER_OF_BYTE.items()}
    return Tokenizer(Recipe("BPE", vocab, merges=[], pre_tokenizer=level, decoder=level))


def shares(limit: int) -> list[int]:
    """Prompts from one token to as many as there are slots."""
    return [1, limit // 4, limit // 2, 3 * limit // 4, limit - 1, limit]


def stretch(length: int, seed: int) -> list[int]:
    """Bytes of prose."""
    return prose()[1000 * seed : 1000 * seed + length].tolist()


def call(engine: Engine, what: str, prompt: list[int], wanted: int, earlier: int = 0) -> Call:
    """Ask for `wanted` tokens, and note how it ended. What is written is added to the prompt."""
    try:
        events = [*engine.generate(prompt, SamplingParams(temperature=0, max_tokens=wanted))]
    except TooLong as error:
        return Call(what, len(prompt), earlier, wanted, 0, None, str(error))
    prompt += [event.choice.token for event in events]
    return Call(what, len(prompt) - len(events), earlier, wanted, len(events), events[-1].finish)


def conversation(engine: Engine, seed: int) -> list[Call]:
    """Questions and answers, each turn carrying all that was said before, until one is refused."""
    question, wanted = int(QUESTION * engine.context), int(ANSWER * engine.context)
    said: list[int] = []
    turns: list[Call] = []
    while not turns or not turns[-1].refused:
        said += stretch(question, seed)
        turns.append(call(engine, f"turn {len(turns) + 1}", said, wanted, sum(turn.reply for turn in turns)))
    return turns


# ---- positions


def specs(trained: int) -> dict[str, Spec]:
    """Two ways to know a position; both have room for `TIMES` as many as training will show."""
    rotary = small_spec(context=TIMES * trained)
    attention = replace(cast(AttentionSpec, rotary.layers[0].attention), rope=None)
    learned = with_layers(rotary, lambda layer: replace(layer, attention=attention))
    return {LEARNED: replace(learned, embedding=EmbeddingSpec(TIMES * trained)), ROTARY: rotary}


def train(spec: Spec, name: str, length: int, steps: int, run: Run) -> Decoder:
    """On nine tenths of the text, in stretches of `length` bytes."""
    text, model = prose(), fresh(spec, run.seed)
    task = next_bytes(text[: len(text) * 9 // 10], length, TRAINED_BYTES // length)
    fit(model.parameters(), lambda generator: loss_of(model, task(generator)), steps, run, name, seed=run.seed)
    return model


@torch.inference_mode()
def read(model: Decoder, trained: int, texts: int) -> Read:
    """The same held-out texts in one go and in pieces."""
    text, length, generator = prose(), TIMES * trained, torch.Generator().manual_seed(0)
    task = next_bytes(text[len(text) * 9 // 10 :], length, ROWS)
    losses: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(texts // ROWS):
        batch = task(generator)
        for kept, lengths in zip(losses, (batch.lengths, [trained] * (TIMES * ROWS)), strict=True):
            logits_TV = model.logits(model(batch.inputs_T, positions_of(lengths), BlockDiagonal(lengths)))
            kept.append(F.cross_entropy(logits_TV, batch.targets_T, reduction="none").view(ROWS, TIMES, trained))
    return Read(*(torch.cat(kept).mean((0, 2)).tolist() for kept in losses))


# ---- what it comes to


def _table(calls: list[Call], found: dict[str, Read], trained: int) -> Table:
    columns = {"what": "", "prompt": "tokens", "of it earlier replies": "tokens", "asked for": "tokens"}
    columns |= {"written": "tokens", "ended by": "", "loss": "nats per byte", "begun anew": "nats per byte"}
    rows: list[list[Cell]] = [
        [c.what, c.prompt, c.earlier, c.wanted, c.reply, c.finish or c.refused, None, None] for c in calls
    ]
    for name, losses in found.items():
        for i, (on, anew) in enumerate(zip(*losses, strict=True)):
            where = f"{name}, bytes {i * trained} to {(i + 1) * trained}"
            rows.append([where, None, None, None, None, None, on, anew])
    return table(columns, rows)


def _plot(found: dict[str, Read], trained: int) -> Plot:
    at = [(i + 0.5) * trained for i in range(TIMES)]
    lines = [(f"{name}, {how}", y) for name, r in found.items() for how, y in (("read on", r.on), ("anew", r.anew))]
    return Plot(
        kind="line",
        x=Axis(label=f"position, bytes (trained on {trained})"),
        y=Axis(label="held-out loss, nats per byte"),
        series=[Series(name=name, x=at, y=losses) for name, losses in lines],
    )


def _checks(alone: list[Call], turns: list[Call], found: dict[str, Read], limit: int) -> list[Check]:
    *answered, full = alone
    *talk, refused = turns
    gains = {name: statistics.mean(r.on[1:]) - r.on[0] for name, r in found.items()}
    apart = {name: min(a - b for a, b in zip(r.on[1:], r.anew[1:], strict=True)) for name, r in found.items()}
    return [
        check(
            all((c.reply, c.finish) == (limit - c.prompt, "length") for c in answered),
            f"a prompt of P tokens leaves {limit} - P: "
            + ", ".join(f"{c.prompt} + {c.reply}" for c in answered)
            + ", each ended by length",
            f"P 个词元的提示词恰好留下 {limit} - P 个："
            + "、".join(f"{c.prompt} + {c.reply}" for c in answered)
            + "，都以 length 结束",
        ),
        check(
            all(c.reply == 0 and str(c.prompt) in c.refused and str(limit) in c.refused for c in (full, refused)),
            f"a full context is refused by name: {full.refused}",
            f"满了的上下文会被明确拒绝：{full.refused}",
        ),
        check(
            all(t.reply == min(t.wanted, limit - t.prompt) for t in talk) and refused.earlier > refused.prompt / 2,
            f"a conversation of {len(talk)} turns fills up: of the {refused.prompt} tokens that are refused in the "
            f"end, {refused.earlier} are the model's own earlier replies",
            f"{len(talk)} 轮对话填满了上下文：最后被拒绝的 {refused.prompt} 个词元里，{refused.earlier} 个是模型自己先"
            "前的回答",
        ),
        check(
            min(gains.values()) > 0 and min(apart.values()) > 0,
            f"beyond the trained {limit} bytes the loss turns up though slots remain, on average by "
            + ", ".join(f"{up:.2f} ({name})" for name, up in gains.items())
            + "; read in pieces, the same text stays easier",
            f"超出训练过的 {limit} 字节后，槽位还有，损失却上升，平均 "
            + "、".join(f"{up:.2f}（{name}）" for name, up in gains.items())
            + "；同样的文本分段读则一直更容易",
        ),
    ]


def _verdict(alone: list[Call], turns: list[Call], found: dict[str, Read], limit: int) -> Words:
    half, last = next(c for c in alone if c.prompt == limit // 2), turns[-1]
    spent = ", ".join(f"{turn.prompt} + {turn.reply}" for turn in turns[:-1])
    losses = "; ".join(f"{name} {_said(r.on)} (anew {_said(r.anew)})" for name, r in found.items())
    return both(
        f"The {limit} slots are one pool: a prompt of {half.prompt} tokens left {half.reply}, and asking for more "
        "changed nothing. In a conversation whose turns carry all before them, prompt + reply were "
        f"{spent}; the next turn was refused ({last.refused}), and {last.earlier} of its {last.prompt} tokens were "
        f"earlier replies. Slots are not all: the models have room for {TIMES * limit} positions and were trained on "
        f"{limit}. Nats per byte, by stretch of {limit} bytes, read on: {losses}.",
        f"{limit} 个槽位是同一个池：{half.prompt} 个词元的提示词留下 {half.reply} 个，多要也没有用。对话每轮都带着之前"
        f"的全部内容，提示词 + 回答依次为 {spent}；下一轮被拒绝（{last.refused}），它的 {last.prompt} 个词元里有 "
        f"{last.earlier} 个是先前的回答。槽位还不是全部：两个模型都有 {TIMES * limit} 个位置，只训练过 {limit} 个。按每"
        f"段 {limit} 字节，接着读时每字节的奈特数（anew 为分段读）：{losses}。",
    )


def _said(losses: list[float]) -> str:
    return ", ".join(f"{loss:.2f}" for loss in losses)
