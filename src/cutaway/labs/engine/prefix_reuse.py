"""Turn after turn a chat sends the whole of itself again: what kept pages save of that, and what spoils it.

The prompt of turn k is the persona, k questions and k - 1 answers. Computed afresh each time, the tokens of a chat grow
with the square of its turns; with its pages kept, only what is new is computed (Zheng et al. 2023, "SGLang",
arXiv:2312.07104). A page is found only if all before it is the same: a clock at the beginning spoils everything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.budget.chips import clock
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.pages import Chain, Pages
from cutaway.engine.runner import Modules, Native, Runner
from cutaway.engine.span import Span
from cutaway.labs.engine.replay import Overheard, finish, greedy, prompts, stored
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.labs.timing import interleaved

PERSONA, QUESTION, ANSWER, TURNS = 2000, 100, 200, 10  # of the chat that is only counted
SIZES = (1, 16, 32)
LENGTHS = (32, 64, 128, 512, 1024)  # whole pages
TOLERANCE = 1e-4


class Chat(NamedTuple):
    """Tokens of the persona, of each question and of each answer."""

    persona: int
    question: int
    answer: int
    turns: int

    def prompt(self, turn: int) -> int:
        """Tokens of the prompt of a turn, the first is 0."""
        return self.persona + (turn + 1) * self.question + turn * self.answer


COUNTED = Chat(PERSONA, QUESTION, ANSWER, TURNS)


class Turn(NamedTuple):
    """Tokens of its prompt, and computed; seconds to the first token over kept pages and over none.

    difference: of the logits between the two, the largest.
    """

    tokens: int
    computed: int
    kept: float
    cold: float
    difference: float


class Disk(NamedTuple):
    """Seconds to read the cache of so many tokens from a file, and to compute it. apart: logits, of the two."""

    tokens: int
    bytes: int
    reload: float
    compute: float
    apart: float


@lab(
    "prefix-reuse",
    title=both("Beginnings that are kept", "复用前缀缓存"),
    question=both(
        "A long persona and history make every turn slower; how are earlier computations kept and reused?",
        "长人设与历史使每一轮变慢；先前的计算怎样保存与复用？",
    ),
    seconds={"quick": 4, "full": 60},
)
def prefix_reuse(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    persona: Annotated[int, Knob("tokens of the persona", "人设词元数", quick=256, min=64, max=4000)] = 1000,
    question: Annotated[int, Knob("tokens of a question", "提问词元数", quick=20, min=1, max=500)] = 50,
    answer: Annotated[int, Knob("tokens of an answer", "回答词元数", quick=40, min=1, max=500)] = 100,
    turns: Annotated[int, Knob("turns of the chat", "轮数", quick=4, min=2, max=50)] = 10,
) -> Finding:
    chat, loaded = Chat(persona, question, answer, turns), stored(model)
    spoken = prompts(loaded, [chat.prompt(turns)])[0]
    answering = engine_of(loaded, context=chat.prompt(turns) + 64, running=4)
    answering.runner = heard = Overheard(answering.runner)
    measured = [measure(answering, heard, spoken, chat, turn) for turn in run.each(range(turns), "turn")]
    lengths = [length for length in LENGTHS if length < persona]
    disk = [on_disk(answering, heard, spoken, length) for length in run.each(lengths, "to a file and back")]
    fresh, spoilt = {size: computed(COUNTED, size) for size in SIZES}, computed(COUNTED, 1, stamped=True)
    return Finding(
        table=table(COLUMNS, [_row(i, turn) for i, turn in enumerate(measured, 1)]),
        plot=_plot(measured),
        verdict=_verdict(measured, fresh, disk),
        checks=_checks(measured, fresh, spoilt, disk, chat),
    )


def computed(chat: Chat, size: int, stamped: bool = False) -> list[int]:
    """Prompt tokens computed at each turn with pages of `size` kept; stamped: each prompt begins with another token."""
    pages, fresh = Pages(-(-2 * chat.prompt(chat.turns) * chat.turns // size), size), []
    for turn in range(chat.turns):
        tokens = [*range(chat.prompt(turn) + chat.answer)]
        tokens[0] = -turn if stamped else 0
        length, chain = chat.prompt(turn), Chain()
        table = pages.match(tokens[:length], chain)
        start, end = len(table) * size, len(tokens) - 1  # nobody has asked what follows the last token yet
        fresh.append(length - start)
        pages.grow(table, end)
        pages.seal(table, tokens, start, end, chain)
        pages.release(table)
    return fresh


def measure(answering: Engine, heard: Overheard, spoken: list[int], chat: Chat, turn: int) -> Turn:
    """A turn with all before it kept, and the same from nothing. Its answer is given, not generated, and kept too."""
    prompt = spoken[: chat.prompt(turn)]
    cold, _, cold_RV = first_token(answering, heard, prompt, f"cold {turn}")
    kept, found, kept_RV = first_token(answering, heard, prompt, "kept")
    first_token(answering, heard, spoken[: chat.prompt(turn) + chat.answer], "kept")
    return Turn(len(prompt), len(prompt) - found, kept, cold, float((kept_RV - cold_RV).abs().max()))


def first_token(answering: Engine, heard: Overheard, prompt: list[int], tenant: str) -> tuple[float, int, Tensor]:
    """Seconds until the first token of a reply, how many of the prompt's tokens were found, and its logits_1V."""
    began = clock()
    sequence = answering.add(prompt, greedy(1, tenant))
    finish(answering)
    return clock() - began, sequence.cached, heard.values_RV


def stores(runner: Runner) -> list[Tensor]:
    """All that a runner keeps in pages, the first axis counts them."""
    if isinstance(runner, Native):
        return [*runner.graph.keys, *runner.graph.values]
    assert isinstance(runner, Modules)
    return [store.unflatten(0, (-1, runner.size)) for kept in runner.pool.stores for store in kept]


@torch.inference_mode()
def on_disk(answering: Engine, heard: Overheard, spoken: list[int], length: int) -> Disk:
    """Save the pages of a text, read them into others, and let its next token look at them."""
    pages, kept = answering.scheduler.pages, stores(heard.runner)
    sequence = answering.prepare(spoken[: length + 1], greedy(1, f"disk {length}"))
    first_token(answering, heard, sequence.tokens, f"disk {length}")
    sequence.table, mine_RV = pages.match(sequence.tokens, sequence.chain), heard.values_RV
    other: list[int] = []
    pages.grow(other, length + 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache.safetensors"
        save_file({str(i): store[sequence.table] for i, store in enumerate(kept)}, file)

        def reload() -> None:
            for i, read in load_file(file).items():
                kept[int(i)][other[: len(read)]] = read

        fresh = (f"again {i}" for i in range(99))
        ways: list[Callable[[], object]] = [
            reload,
            lambda: first_token(answering, heard, sequence.tokens[:-1], next(fresh)),
        ]
        seconds, size = interleaved(ways, 3), file.stat().st_size
    pages.release(sequence.table)
    sequence.table = other
    again = heard.runner.run([Span(sequence, length, 1)], [0])[0]
    apart = float((again.values_V - mine_RV).abs().max())
    pages.release(other)
    return Disk(length, size, seconds[0], seconds[1], apart)


COLUMNS = {
    "turn": "",
    "prompt": "tokens",
    "computed": "tokens",
    "first token, kept": "ms",
    "first token, nothing kept": "ms",
    "logits apart": "",
}


def _row(turn: int, m: Turn) -> list[Cell]:
    return [turn, m.tokens, m.computed, 1e3 * m.kept, 1e3 * m.cold, m.difference]


def _plot(measured: list[Turn]) -> Plot:
    x = [float(i + 1) for i in range(len(measured))]
    ways = {"kept": [1e3 * m.kept for m in measured], "nothing kept": [1e3 * m.cold for m in measured]}
    series = [Series(name=name, x=x, y=y) for name, y in ways.items()]
    return Plot(kind="line", x=Axis(label="turn"), y=Axis(label="ms to the first token"), series=series)


def _checks(
    measured: list[Turn], fresh: dict[int, list[int]], spoilt: list[int], disk: list[Disk], chat: Chat
) -> list[Check]:
    apart = max(m.difference for m in measured)
    again, new = sum(spoilt), sum(fresh[1]) - (TURNS - 1)
    most = max(m.computed for m in measured[1:])
    return [
        check(
            (again, new) == (34_500, 3_000),
            f"{TURNS} turns have {again:,} prompt tokens, of which {new:,} are new: {again / new:.1f} times as many; "
            f"counted with pages of one token, and each answer's last token once more, for it was never computed",
            f"{TURNS} 轮共有 {again:,} 个提示词元，其中新的 {new:,} 个，相差 {again / new:.1f} 倍（页长为 1；每个回答的"
            f"最后一个词元此前从未计算，另算一次）",
        ),
        check(
            spoilt == [COUNTED.prompt(turn) for turn in range(TURNS)],
            "with another token at the beginning of each prompt, a clock's, nothing is found",
            "每轮开头换一个词元（如时间戳），命中为 0",
        ),
        check(
            apart < TOLERANCE,
            f"logits over kept pages differ from a run from nothing by {apart:.1g}",
            f"沿用缓存所得 logits 与从零计算相差 {apart:.1g}",
        ),
        check(
            most <= chat.question + 32,
            f"after the first turn at most {most} tokens are computed before an answer begins",
            f"首轮之后，每轮回答前至多计算 {most} 个词元",
        ),
        check(
            max(d.apart for d in disk) < TOLERANCE,
            f"over a cache read back from a file logits differ by {max(d.apart for d in disk):.1g}",
            f"沿用从文件读回的缓存，logits 相差 {max(d.apart for d in disk):.1g}",
        ),
    ]


def _verdict(measured: list[Turn], fresh: dict[int, list[int]], disk: list[Disk]) -> Words:
    first, last = measured[0], measured[-1]
    counts = ", ".join(f"{sum(fresh[size]):,} with pages of {size}" for size in SIZES)
    zh_counts = "、".join(f"页长 {size} 时 {sum(fresh[size]):,}" for size in SIZES)
    faster = [d.tokens for d in disk if d.reload < d.compute]
    speeds = ", ".join(f"{d.tokens:,} tokens {1e3 * d.reload:.0f} ms for {1e3 * d.compute:.0f}" for d in disk)
    zh_speeds = "，".join(f"{d.tokens:,} 个词元 {1e3 * d.reload:.0f} 毫秒对 {1e3 * d.compute:.0f} 毫秒" for d in disk)
    return both(
        f"Of 34,500 prompt tokens in {TURNS} turns, {counts} are computed. Here turn {len(measured)} has a prompt of "
        f"{last.tokens:,} tokens and computes {last.computed}: its first token comes after {1e3 * last.kept:.0f} ms, "
        f"with nothing kept after {1e3 * last.cold:,.0f} ms; the first turn takes {1e3 * first.kept:,.0f} ms. "
        f"Reading the cache from a file instead of computing it ({speeds}) was faster at {len(faster)} of "
        f"{len(disk)} lengths{f', from {faster[0]} tokens on' if faster else ''}.",
        f"{TURNS} 轮的 34,500 个提示词元中，实际计算：{zh_counts}。这里第 {len(measured)} 轮的提示有 {last.tokens:,} 个"
        f"词元，只计算 {last.computed} 个：首词元 {1e3 * last.kept:.0f} 毫秒，不保留则需 {1e3 * last.cold:,.0f} 毫秒；"
        f"首轮 {1e3 * first.kept:,.0f} 毫秒。从文件读回而不重算（{zh_speeds}），在 {len(disk)} 个长度中"
        f"有 {len(faster)} 个更快{f'，自 {faster[0]} 个词元起' if faster else ''}。",
    )
