"""How few bits a key/value cache can do with, and which numbers should share a scale.

KIVI (Liu et al. 2024, arXiv:2402.02750): some channels of the keys are large for every token, so that a scale for a
channel of many tokens serves them, and one for many channels of a token does not; values have no such channels and
share a scale within a token; the last few tokens stay exact. Every group of 32 numbers has 2^bits levels from its
smallest to its largest number, both kept as float16 (the smallest, and the step).

Numbers are rounded as pages would keep them and computed with in float32. A group is rounded once it is complete, and
before anything is asked of it: a token looks at its own key rounded too, unless it belongs to the recent ones.
"""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.engine.cache import KVCache, Spans, kept_of
from cutaway.engine.graph import KEPT, PAGE, Graph, refusal
from cutaway.engine.matrices import OfModel
from cutaway.errors import CutawayError
from cutaway.labs.attention.window_and_sinks import chapters
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.position.needle import ASKING, COLORS, HIDING, Fact, chance, facts
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.models.decoder import Decoder
from cutaway.native.build import library
from cutaway.native.tape import batch_of
from cutaway.weights.checkpoint import Loaded

GROUP = 32  # numbers that share a scale
STEP = 128  # tokens read at a time where none stay exact
QUESTION = 64  # tokens of one, at most
TOKEN, CHANNEL = "token", "channel"
COLUMNS = {
    "cache": "", "bits": "", "keys share a scale per": "", "values": "", "exact": "recent tokens", "of a token": "B",
    "of the text": "MB", "loss": "nats", "change": "nats", "facts found": "%",
}  # fmt: skip


class Way(NamedTuple):
    """How a cache keeps numbers. bits: 16 for exactly. keys, values: along what they share scales. recent: exact."""

    bits: int
    keys: str = ""
    values: str = ""
    recent: int = 0

    @property
    def step(self) -> int:
        """Tokens to read at a time, so that each sees most of the recent ones exactly."""
        return max(GROUP, self.recent // 4 // GROUP * GROUP) if self.recent else STEP

    def token_bytes(self, numbers: int) -> float:
        """Of an old token with so many numbers."""
        return numbers * (self.bits / 8 + (4 / GROUP if self.bits < 16 else 0))

    def text_bytes(self, numbers: int, length: int) -> float:
        """Of a text."""
        exact = min(self.recent, length)
        return exact * Way(16).token_bytes(numbers) + (length - exact) * self.token_bytes(numbers)


class Coarse(KVCache):
    """Rounds what is not among the `recent` last tokens, group by group, until it is `closed`."""

    def __init__(self, model: Decoder, capacity: int, way: Way) -> None:
        super().__init__(model.spec, model.dtype, model.device, capacity)
        self.way, self.closed = way, False
        self.done = [0] * len(self.buffers)  # tokens rounded, by layer

    def put(self, layer: int, start: int, *rows_TGK: Tensor) -> None:
        """See `Memory.put`."""
        super().put(layer, start, *rows_TGK)
        old = max(0, start + len(rows_TGK[0]) - self.way.recent) // GROUP * GROUP
        if self.closed or self.way.bits >= 16 or old <= self.done[layer]:
            return
        for buffer, along in zip(self.buffers[layer], (self.way.keys, self.way.values), strict=True):
            part_GSK = buffer[:, self.done[layer] : old]
            part_GSK.copy_(rounded(part_GSK, self.way.bits, along))
        self.done[layer] = old


class Text(NamedTuple):
    """Tokens with facts hidden among them. own_T: which are of the text itself. hidden: the facts."""

    tokens: list[int]
    own_T: Tensor
    hidden: list[Fact]


class Read(NamedTuple):
    """What a way made of texts. loss: of their own tokens, nats. found: of each fact, whether it was told."""

    way: Way
    loss: float
    found: list[bool]

    @staticmethod
    def of(way: Way, texts: list[Read]) -> Read:
        """All of this way together."""
        mine = [read for read in texts if read.way == way]
        return Read(way, mean(read.loss for read in mine), [told for read in mine for told in read.found])


@lab(
    "kv-quantization",
    title=both("A key/value cache of few bits", "低比特 KV 缓存"),
    question=both(
        "How far can the cache itself be quantized, and along which axis?",
        "KV 缓存本身能量化到几比特？沿哪个轴？",
    ),
    seconds={"quick": 5, "full": 250},
)
def kv_quantization(
    run: Run,
    *,
    model: Annotated[str, Knob("the model", "模型")] = MODEL,
    bits: Annotated[str, Knob("of a number, with commas", "每个数的比特数，逗号分隔", quick="8,2")] = "8,4,2",
    length: Annotated[int, Knob("tokens of a text", "文本词元数", quick=96, min=64, max=4096)] = 1024,
    texts: Annotated[int, Knob("texts", "文本数", quick=1, min=1, max=10)] = 3,
    hidden: Annotated[int, Knob("facts hidden in each", "每篇隐藏的事实数", quick=2, min=2, max=10)] = 5,
    recent: Annotated[int, Knob("last tokens kept exact", "保持精确的最近词元数", quick=32, min=32, max=1024)] = 128,
) -> Finding:
    loaded, asked = subject(model), ways(sizes(bits), recent)
    numbers = numbers_of(loaded, length, recent)
    made = [
        with_facts(loaded, tokens_T.tolist(), facts(hidden, run, i), recent)
        for i, (_, tokens_T) in enumerate(chapters(loaded, length, texts))
    ]
    alike = [[way for way in asked if way.recent == some] for some in (0, recent)]
    readings = [
        some for text, group in run.each([*product(made, alike)], "reading") for some in read(loaded, group, text)
    ]
    seen = [Read.of(way, readings) for way in asked]
    native = natively(decoder(loaded), made)
    return Finding(
        table=_table(seen, native, numbers, length),
        plot=_plot(seen),
        verdict=_verdict(seen, native, numbers, recent),
        checks=_checks(seen, native, recent),
    )


def sizes(bits: str) -> list[int]:
    """Of numbers. Errors: none that can be compared."""
    asked = [int(some) for some in bits.split(",") if some.strip().isdigit()]
    if not {2, 8} <= {*asked} <= {*range(1, 9)}:
        raise CutawayError(f"cannot compare {bits}", "knob bits", "give numbers from 8 to 1, 8 and 2 among them")
    return asked


def numbers_of(loaded: Loaded, length: int, recent: int) -> int:
    """Kept of a token. Errors: not in keys and values of whole groups; no text but recent tokens."""
    if recent >= length:
        raise CutawayError(f"{recent} of {length} tokens leave nothing to round", "knob recent", "give fewer")
    kept = [some for layer in kept_of(decoder(loaded).spec) for some in layer]
    if len(kept) != 2 * len(decoder(loaded).spec.layers) or any(width % GROUP for _, width in kept):
        raise CutawayError(f"does not keep keys and values in groups of {GROUP}", loaded.name, f"try {MODEL}")
    return sum(heads * width for heads, width in kept)


def ways(bits: list[int], recent: int) -> list[Way]:
    """Exactly, then of each size: all along tokens, keys along channels, values too, KIVI."""
    kinds = ((TOKEN, TOKEN, 0), (CHANNEL, TOKEN, 0), (CHANNEL, CHANNEL, 0), (CHANNEL, TOKEN, recent))
    return [Way(16), *(Way(some, *kind) for some in bits for kind in kinds)]


def rounded(x_GSK: Tensor, bits: int, along: str) -> Tensor:
    """Each group of 32 numbers on 2^bits levels. along: whether they are of one token or of one channel (head's k-th).

    S, or K, is a multiple of 32.
    """
    axis = 1 if along == CHANNEL else 2
    grouped = x_GSK.unflatten(axis, (-1, GROUP))
    low, high = (some.unsqueeze(axis + 1) for some in grouped.aminmax(dim=axis + 1))
    step = ((high - low) / (2**bits - 1)).half().float().clamp_min(2**-24)
    low = low.half().float()
    codes = ((grouped - low) / step).round().clamp(0, 2**bits - 1)
    return (codes * step + low).flatten(axis, axis + 1)


def with_facts(loaded: Loaded, text: list[int], hidden: list[Fact], recent: int) -> Text:
    """Sentences put between a text's tokens, deepest first; none among the recent ones."""
    own, room = [True] * len(text), len(text) - recent
    for fact in sorted(hidden, reverse=True):
        at, said = round(fact.depth * room), loaded.tokenizer.encode(HIDING.format(fact.name, fact.color))
        text, own = text[:at] + said + text[at:], own[:at] + [False] * len(said) + own[at:]
    return Text(text, torch.tensor(own), hidden)


@torch.inference_mode()
def read(loaded: Loaded, alike: list[Way], text: Text) -> list[Read]:
    """A text with a cache of each way at the same time, then what was hidden. alike: with as many recent tokens."""
    model = decoder(loaded)
    caches = [Coarse(model, len(text.tokens) + QUESTION, way) for way in alike]
    losses_W = _losses(model, caches, text, alike[0].step)
    for cache in caches:
        cache.closed = True
    told = [_answers(loaded, caches, len(text.tokens), fact.name) for fact in text.hidden]
    found = [
        [said == fact.color for said, fact in zip(some, text.hidden, strict=True)] for some in zip(*told, strict=True)
    ]
    return [Read(*row) for row in zip(alike, losses_W.tolist(), found, strict=True)]


def _rows(model: Decoder, caches: list[Coarse], start: int, tokens_T: Tensor) -> Tensor:
    """Hidden states of the same tokens after each cache: hidden_WTD."""
    count, ways = len(tokens_T), len(caches)
    positions_T = torch.arange(start, start + count).repeat(ways)
    context = Spans([(cache, start, count) for cache in caches])
    return model(tokens_T.repeat(ways), positions_T, context).unflatten(0, (ways, count))


def _losses(model: Decoder, caches: list[Coarse], text: Text, step: int) -> Tensor:
    """Of the text's own tokens, read `step` at a time, nats: losses_W."""
    tokens_T, parts = torch.tensor(text.tokens), list[Tensor]()
    for start in range(0, len(tokens_T), step):
        following_T = tokens_T[start + 1 : start + 1 + step]
        hidden_WTD = _rows(model, caches, start, tokens_T[start : start + step])[:, : len(following_T)]
        logits_WTV = model.logits(hidden_WTD.flatten(0, 1)).unflatten(0, hidden_WTD.shape[:2])
        parts.append(F.cross_entropy(logits_WTV.mT, following_T.expand(len(caches), -1), reduction="none"))
    return torch.cat(parts, 1)[:, text.own_T[1:]].mean(1)


def _answers(loaded: Loaded, caches: list[Coarse], start: int, name: str) -> list[str]:
    """Which of the colors each cache makes likeliest after the question; the next question takes its place."""
    asked_T, model = torch.tensor(loaded.tokenizer.encode(ASKING.format(name))), decoder(loaded)
    logits_WV = model.logits(_rows(model, caches, start, asked_T)[:, -1])
    return [COLORS[i] for i in logits_WV[:, [loaded.tokenizer.encode(color)[0] for color in COLORS]].argmax(1).tolist()]


def natively(model: Decoder, texts: list[Text]) -> float | None:
    """Loss with the engine's own cache of 8 bits, native kernels and float32 weights; None if there are no kernels."""
    if library() is None or refusal(model.spec):
        return None
    longest = max(len(text.tokens) for text in texts)
    pages = -(-longest // PAGE)
    graph = Graph(model.spec, OfModel(model), context=longest, pages=pages, tokens=longest, rows=longest, cache="int8")
    return mean(_native_loss(graph, text, pages) for text in texts)


def _native_loss(graph: Graph, text: Text, pages: int) -> float:
    count = len(text.tokens)
    batch = batch_of(text.tokens, [(0, count)], [range(pages)], range(count), torch.zeros(1))
    rows = graph(batch, torch.get_num_threads())
    logits_TV = torch.stack([row.values_V for row in rows])
    loss_T = F.cross_entropy(logits_TV[:-1], torch.tensor(text.tokens[1:]), reduction="none")
    return float(loss_T[text.own_T[1:]].mean())


def _table(seen: list[Read], native: float | None, numbers: int, length: int) -> Table:
    exact, rows = seen[0].loss, list[list[Cell]]()
    for r in seen:
        size = [r.way.token_bytes(numbers), r.way.text_bytes(numbers, length) / 1e6]
        how = [r.way.bits, r.way.keys or None, r.way.values or None, r.way.recent]
        rows.append(["modules", *how, *size, r.loss, r.loss - exact, 100 * mean(r.found)])
    if native:
        own = KEPT["int8"] * numbers / PAGE
        rows.append(["native", 8, TOKEN, TOKEN, 0, own, own * length / 1e6, native, native - exact, None])
    return table(COLUMNS, rows)


def _name(way: Way) -> str:
    kind = f"keys per {way.keys}, values per {way.values}"
    return kind + (f", the last {way.recent} exact" if way.recent else "")


def _plot(seen: list[Read]) -> Plot:
    exact, rest = seen[0].loss, seen[1:]
    names = list(dict.fromkeys(_name(r.way) for r in rest))
    series = [
        Series(
            name=name,
            x=[str(r.way.bits) for r in rest if _name(r.way) == name],
            y=[r.loss - exact for r in rest if _name(r.way) == name],
        )
        for name in names
    ]
    return Plot(kind="bar", x=Axis(label="bits"), y=Axis(label="loss more than exact, nats"), series=series)


def _costs(seen: list[Read], bits: int) -> list[float]:
    """In loss: all along tokens, keys along channels, values too, and with recent tokens exact."""
    return [r.loss - seen[0].loss for r in seen if r.way.bits == bits]


def _checks(seen: list[Read], native: float | None, recent: int) -> list[Check]:
    eight = _costs(seen, 8) + ([native - seen[0].loss] if native else [])
    token, channel, _, kept = _costs(seen, 2)
    hits, asked = sum(seen[0].found), len(seen[0].found)
    return [
        check(
            max(eight) < 0.01,
            f"at 8 bits the loss rises by less than 0.01 nats along whatever axis: {max(eight):+.4f} at most"
            + (", native kernels included" if native else ""),
            f"8 比特时，无论沿哪个轴，损失增加都不到 0.01 奈特：最多 {max(eight):+.4f}"
            + ("（含原生内核）" if native else ""),
        ),
        check(
            token - channel > 0.3,
            f"at 2 bits keys that share a scale per token cost {token:.2f} nats, per channel {channel:.2f}",
            f"2 比特时，键按词元共享尺度使损失增加 {token:.2f} 奈特，按通道则为 {channel:.2f}",
        ),
        check(
            kept < channel,
            f"with the last {recent} tokens exact they cost {kept:.2f}",
            f"保持最近 {recent} 个词元精确，则为 {kept:.2f}",
        ),
        check(
            chance(hits, asked) < 0.05,
            f"an exact cache finds {hits} of {asked} hidden facts, where a guess is right once in {len(COLORS)}",
            f"精确缓存找到 {asked} 个隐藏事实中的 {hits} 个；乱猜每 {len(COLORS)} 次对 1 次",
        ),
    ]


def _verdict(seen: list[Read], native: float | None, numbers: int, recent: int) -> Words:
    exact, bits = seen[0], list(dict.fromkeys(r.way.bits for r in seen[1:]))
    rows = [
        (
            some,
            Way(some).token_bytes(numbers),
            ", ".join(f"{cost:+.3f}" for cost in _costs(seen, some)),
            ", ".join(f"{mean(r.found):.0%}" for r in seen if r.way.bits == some),
        )
        for some in bits
    ]
    en = "; ".join(f"{n} bits ({size:,.0f} B a token) {costs} nats, found {found}" for n, size, costs, found in rows)
    zh = "；".join(f"{n} 比特（每词元 {size:,.0f} 字节）{costs} 奈特，找到 {found}" for n, size, costs, found in rows)
    own = f"{native - exact.loss:+.3f}" if native else ""
    return both(
        f"Exact: {Way(16).token_bytes(numbers):,.0f} B a token, {exact.loss:.3f} nats, {mean(exact.found):.0%} of the "
        f"hidden facts found. Rounded with scales per token; of keys per channel; of values too; and of keys per "
        f"channel with the last {recent} tokens exact: {en}."
        + (f" The engine's own cache of 8 bits, a scale and no offset per token: {own}." if own else ""),
        f"精确：每词元 {Way(16).token_bytes(numbers):,.0f} 字节，{exact.loss:.3f} 奈特，隐藏事实找到 "
        f"{mean(exact.found):.0%}。取整，依次为：全部按词元共享尺度；键按通道；值也按通道；键按通道且最近 {recent} "
        f"个词元精确：{zh}。" + (f"引擎自带的 8 比特缓存（按词元，只有尺度，无偏移）：{own}。" if own else ""),
    )
