"""Why two equal requests at temperature 0 can get different texts: what a request is computed beside.

A matrix product of one row is not summed in the order in which one of eight rows is, nor by one thread as by two; in
floating point another order is another sum, and where two tokens are nearly equally likely the smallest difference
chooses (He et al. 2025, "Defeating Nondeterminism in LLM Inference"). Kernels that sum each row in one fixed order,
whoever is beside it, cannot drift. Experts of limited capacity can, whatever their kernels do: who came earlier in the
batch may have taken a token's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.drafter import PromptLookup
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.runner import Native
from cutaway.labs.engine.replay import Overheard, finish, greedy, prompts, stored
from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL
from cutaway.models.decoder import Decoder
from cutaway.nn.experts import Experts, ExpertsSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.routing import RouterSpec
from cutaway.weights.checkpoint import Loaded, load

NATIVE = "native kernels"
WIDTH, EXPERTS, MATES = 32, 8, 7  # of the experts
TOLERANCE = 1e-12  # float64

Replies = list[list[int]]


class Answers(NamedTuple):
    """Replies, and the logits that chose the first and the second token of each: of many rows, and of one."""

    replies: Replies
    first_SV: Tensor
    second_SV: Tensor


class Drift(NamedTuple):
    """One way against one request at a time on one thread. first: the earliest differing token, None if none does.

    logits: largest difference of those that choose the first and the second token.
    """

    arithmetic: str
    threads: int
    batch: int
    drafts: bool
    diverging: int
    first: int | None
    logits: float


class Mates(NamedTuple):
    """Of `trials` tokens beside random others and then beside others again, how many came out differently."""

    capacity: float | None
    trials: int
    changed: int


@lab(
    "batch-drift",
    title=both("The same request beside others", "同一请求，不同的批"),
    question=both(
        "Two identical requests at temperature 0 gave me different text; which parts of the stack can cause that?",
        "温度为 0 的两次相同请求得到了不同文本；是技术栈的哪些部分造成的？",
    ),
    seconds={"quick": 5, "full": 390},
)
def batch_drift(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    requests: Annotated[int, Knob("prompts", "提示数", quick=2, min=2, max=200)] = 50,
    length: Annotated[int, Knob("tokens of a prompt", "提示词元数", quick=6, min=2, max=256)] = 12,
    tokens: Annotated[int, Knob("tokens of a reply", "回答词元数", quick=2, min=2, max=256)] = 16,
    batch: Annotated[int, Knob("the largest batch, by doubling", "最大批，逐次翻倍", quick=2, min=2, max=16)] = 8,
    threads: Annotated[int, Knob("the most threads, by doubling", "最多线程数，逐次翻倍", min=1, max=8)] = 2,
    trials: Annotated[int, Knob("tokens among experts", "专家层试验词元数", quick=200, min=20)] = 2000,
) -> Finding:
    loaded = stored(model)
    texts = prompts(loaded, [length + i % 5 for i in range(requests)])
    found: list[Drift] = []
    for arithmetic in run.each(arithmetics(model, loaded, batch), "computing in another arithmetic"):
        found += drifts(arithmetic, texts, tokens, doubled(threads), doubled(batch))
    mates = [beside(capacity, trials, run.generator()) for capacity in (None, 1.0)]
    return Finding(
        table=table(COLUMNS, [[*drift] for drift in found]),
        plot=_plot(found),
        verdict=_verdict(found, mates, requests),
        checks=_checks(found, mates),
    )


def doubled(last: int) -> list[int]:
    """1, 2, 4, ... up to `last`."""
    return [2**i for i in range(last.bit_length())]


def arithmetics(model: str, loaded: Loaded, places: int) -> list[tuple[str, Engine]]:
    """Modules of float32 and bfloat16, and the weights as stored on native kernels, where there are any."""
    made = [("float32", load(model, "float32").model), ("bfloat16", load(model, "bfloat16").model)]
    engines = [
        (name, Engine(of, loaded.tokenizer, running=places, context=512))
        for name, of in made
        if isinstance(of, Decoder)
    ]
    native = engine_of(loaded, running=places, context=512)
    return [*engines, *([(NATIVE, native)] if isinstance(native.runner, Native) else [])]


def drifts(
    arithmetic: tuple[str, Engine], texts: Replies, tokens: int, threads: list[int], batches: list[int]
) -> Iterator[Drift]:
    """Every batch on every number of threads against one at a time on one thread; and once with drafts."""
    name, engine = arithmetic
    engine.runner = heard = Overheard(engine.runner)
    with on_threads(heard, 1):
        alone = answers(engine, heard, texts, tokens, 1)
    for count in threads:
        with on_threads(heard, count):
            for batch in batches:
                yield _drift((name, count, batch, False), alone, answers(engine, heard, texts, tokens, batch))
    engine.drafter = PromptLookup(shortest=1)
    with on_threads(heard, 1):
        yield _drift((name, 1, 1, True), alone, answers(engine, heard, texts, tokens, 1))


def _drift(way: tuple[str, int, int, bool], mine: Answers, theirs: Answers) -> Drift:
    pairs = [*zip(mine.replies, theirs.replies, strict=True)]
    places = [i for a, b in pairs for i, (x, y) in enumerate(zip(a, b, strict=True), 1) if x != y]
    alike_S = torch.tensor([a[0] == b[0] for a, b in pairs])  # others have no second token in common
    apart = [mine.first_SV - theirs.first_SV, (mine.second_SV - theirs.second_SV)[alike_S]]
    most = max(float(part.abs().max()) for part in apart if len(part))
    return Drift(*way, sum(a != b for a, b in pairs), min(places, default=None), most)


@contextmanager
def on_threads(heard: Overheard, count: int) -> Iterator[None]:
    """Compute with so many threads, PyTorch's or the tape's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    if isinstance(heard.runner, Native):
        heard.runner.threads = count
    try:
        yield
    finally:
        torch.set_num_threads(before)


def answers(engine: Engine, heard: Overheard, texts: Replies, tokens: int, batch: int) -> Answers:
    """Greedy replies, so many requests at a time, nothing kept from before."""
    replies: Replies = []
    heard_SV: tuple[list[Tensor], list[Tensor]] = ([], [])
    for at in range(0, len(texts), batch):
        tenant = f"{id(heard)} {engine.stats.steps}"
        asked = [engine.add(text, greedy(tokens, tenant)) for text in texts[at : at + batch]]
        for some in heard_SV:
            engine.step()
            some.append(heard.values_RV[: len(asked)])  # without the rows of drafts
        finish(engine)
        replies += [sequence.reply for sequence in asked]
    return Answers(replies, *map(torch.cat, heard_SV))


@torch.no_grad()
def beside(capacity: float | None, trials: int, generator: torch.Generator) -> Mates:
    """A token behind `MATES` others in one batch, then behind others: float64, so that no rounding shows."""
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    expert = FeedForwardSpec(48, "silu", True)
    layer = Experts(WIDTH, ExpertsSpec(EXPERTS, RouterSpec(2), expert, capacity=capacity)).double()
    changed = 0
    for _ in range(trials):
        token_1D, *others_MD = torch.randn(1 + 2 * MATES, WIDTH, generator=generator, dtype=torch.float64).split(
            [1, MATES, MATES]
        )
        one_D, two_D = (layer(torch.cat([mates_MD, token_1D]))[-1] for mates_MD in others_MD)
        changed += bool((one_D - two_D).abs().max() > TOLERANCE)
    return Mates(capacity, trials, changed)


COLUMNS = {
    "arithmetic": "",
    "threads": "",
    "batch": "",
    "drafts": "",
    "replies that differ": "",
    "first differing token": "",
    "logits apart": "",
}


def _plot(found: list[Drift]) -> Plot:
    ways = [d for d in found if not d.drafts]
    names = list(dict.fromkeys(d.arithmetic for d in ways))
    series = [
        Series(
            name=name,
            x=[f"{d.batch} at a time, {d.threads} threads" for d in ways if d.arithmetic == name],
            y=[float(d.diverging) for d in ways if d.arithmetic == name],
        )
        for name in names
    ]
    return Plot(kind="bar", x=Axis(label="batch"), y=Axis(label="replies that differ"), series=series)


def _checks(found: list[Drift], mates: list[Mates]) -> list[Check]:
    native = [d for d in found if d.arithmetic == NATIVE]
    same = [d for d in found if d.arithmetic != NATIVE and d.batch == d.threads == 1 and not d.drafts]
    free, limited = mates
    return [
        check(
            all(d.diverging == 0 and d.logits == 0 for d in native),
            f"on native kernels no reply and no logit differs, in {len(native)} ways",
            f"原生内核上 {len(native)} 种方式没有任何回答或 logits 不同",
        ),
        check(
            all(d.diverging == 0 and d.logits == 0 for d in same),
            "the same batch on the same threads gives the same bits again, in any arithmetic",
            "批与线程数都相同时，任何精度都逐位重现",
        ),
        check(
            free.changed == 0 < limited.changed,
            f"a token's output changes with its batch mates for {limited.changed} of {limited.trials} tokens if "
            f"experts have limited room, for {free.changed} if not",
            f"专家容量有限时，{limited.trials} 个词元中有 {limited.changed} 个的输出随同批者改变；不限容量时 "
            f"{free.changed} 个",
        ),
    ]


def _verdict(found: list[Drift], mates: list[Mates], requests: int) -> Words:
    names = list(dict.fromkeys(d.arithmetic for d in found))
    rows = {name: [d for d in found if d.arithmetic == name] for name in names}
    said = [
        f"{name}: at most {max(d.diverging for d in mine)} of {requests} replies differ from one request at a time on "
        f"one thread{_earliest(mine, ', the first at token ')}, logits by up to {max(d.logits for d in mine):.2g}"
        for name, mine in rows.items()
    ]
    zh = [
        f"{name}：{requests} 个回答中至多 {max(d.diverging for d in mine)} 个与单线程逐个计算不同"
        f"{_earliest(mine, '，最早在第 ')}，logits 相差至多 {max(d.logits for d in mine):.2g}"
        for name, mine in rows.items()
    ]
    limited = mates[1]
    return both(
        f"{'; '.join(said)}. With room for {limited.capacity:g} times the average, an expert layer gives "
        f"{limited.changed / limited.trials:.0%} of tokens another output beside other tokens.",
        f"{'；'.join(zh)}。容量为平均值 {limited.capacity:g} 倍的专家层，换一批同伴就使 "
        f"{limited.changed / limited.trials:.0%} 的词元输出改变。",
    )


def _earliest(drifts: list[Drift], words: str) -> str:
    first = [d.first for d in drifts if d.first is not None]
    return f"{words}{min(first)}" if first else ""
