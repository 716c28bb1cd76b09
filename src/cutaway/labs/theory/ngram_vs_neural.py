"""Statistical language models against neural ones, on text with a rule that reaches far and on English prose.

An n-gram model counts what followed the last n - 1 tokens; a hidden Markov model carries one of a few states along;
an LSTM carries a vector; a transformer looks back at every token. All four say how likely the next token is, so that
they can be compared by what a byte of unseen text costs them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.classics import hmm
from cutaway.classics.ngram import KneserNey
from cutaway.classics.recurrent import RecurrentLM, RecurrentSpec
from cutaway.labs import grammar
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.older_models import seeded, size_of
from cutaway.labs.training import fit, fresh, next_bytes, prose, small_spec
from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal

ROWS = 16  # sequences per training step
ORDER = 5
COUNTED, HIDDEN, TRANSFORMER, LSTM = f"Kneser-Ney {ORDER}-gram", "hidden Markov", "transformer", "LSTM"
NEAR = ORDER - 1  # so far back an n-gram model sees

LogP = Callable[[Tensor, list[int]], Tensor]
"""tokens_T of sequences laid end to end, and their lengths -> log p of each given those before it, nats. What is said
about the first of each does not count."""


class Text(NamedTuple):
    """What is learned from and what is tested on. bytes_V: length of each token in a text. minimal: sentences with a
    verb that agrees, for a grammar. floor: bits per byte of the source itself, where it is known."""

    name: str
    learned_T: Tensor
    tested_T: Tensor
    bytes_V: Tensor
    minimal: list[grammar.Sentence]
    floor: float | None


class Plan(NamedTuple):
    """How neural models are built and trained."""

    length: int
    width: int
    layers: int
    rate: float


class Net(NamedTuple):
    """logits: tokens_T and lengths -> logits_TV of the token after each."""

    name: str
    module: nn.Module
    logits: Callable[[Tensor, list[int]], Tensor]


class Model(NamedTuple):
    """numbers: how many are stored, in how many bytes. seconds: to learn."""

    name: str
    log_p: LogP
    numbers: int
    bytes: int
    seconds: float


class Row(NamedTuple):
    """overall, unseen: bits per byte, the latter where the last four tokens never followed each other in training.
    near, far: share of sentences whose verb is likelier than in the wrong number, its subject up to four tokens before
    it, and further."""

    text: str
    model: Model
    overall: float
    unseen: float | None
    near: float | None
    far: float | None


@lab(
    "ngram-vs-neural",
    title=both("Counting against learning", "计数对学习：n 元模型与神经语言模型"),
    question=both(
        "What did statistical language models do, and what do neural ones add?",
        "统计语言模型做了什么？神经语言模型多了什么？",
    ),
    seconds={"quick": 9, "full": 280},
)
def ngram_vs_neural(
    run: Run,
    *,
    tokens: Annotated[
        int, Knob("words of the planted text", "人造文本的词数", quick=20_000, min=5000, max=10**6)
    ] = 100_000,
    length: Annotated[int, Knob("tokens of a sequence", "序列的词元数", quick=32, min=8, max=512)] = 64,
    width: Annotated[int, Knob("of the transformer", "Transformer 的宽度", quick=32, min=16, max=512)] = 128,
    layers: Annotated[int, Knob("its layers", "它的层数", quick=2, min=1, max=16)] = 5,
    steps: Annotated[
        int, Knob("training steps on the planted text", "人造文本上的训练步数", quick=340, min=1, max=10**5)
    ] = 400,
    prose_steps: Annotated[int, Knob("training steps on prose", "散文上的训练步数", quick=10, min=1, max=10**5)] = 700,
    rate: Annotated[float, Knob("of learning", "学习率", quick=0.01, min=1e-5, max=0.1)] = 0.003,
    states: Annotated[int, Knob("of the hidden Markov model", "隐马尔可夫模型的状态数", quick=8, min=2, max=256)] = 32,
    passes: Annotated[int, Knob("of Baum-Welch over the text", "Baum-Welch 的遍数", quick=5, min=1, max=1000)] = 30,
) -> Finding:
    texts, plan = [planted(tokens, run.seed), english(tokens)], Plan(length, width, layers, rate)
    rows, off = [], 0.0
    for text, count in zip(texts, (steps, prose_steps), strict=True):
        ngram, seconds = counted(text)
        off = max(off, astray(ngram, text, 200, run.generator()))
        learned = [as_model(ngram, seconds), hidden(text, length, states, passes, run), *neural(text, plan, count, run)]
        seen_T = torch.from_numpy(ngram.seen(text.tested_T.tolist()))
        rows += [tested(text, model, seen_T, length) for model in learned]
    return Finding(table=_table(texts, rows), plot=_plot(rows), verdict=_verdict(rows, off), checks=_checks(rows, off))


# ---- texts


def planted(tokens: int, seed: int) -> Text:
    """Sentences of the grammar: one tenth is held out."""
    learned, tested = grammar.sentences(tokens, seed), grammar.sentences(tokens // 10, seed + 10**6)
    learned_T, tested_T = (torch.tensor([t for s in part for t in s.tokens]) for part in (learned, tested))
    bytes_V = grammar.bytes_of_words()
    floor = sum(s.nats for s in tested) / math.log(2) / int(bytes_V[tested_T].sum())
    return Text("planted grammar", learned_T, tested_T, bytes_V, tested, floor)


def english(most: int) -> Text:
    """Prose, byte by byte, up to four times as many as the grammar has words; the last tenth is held out."""
    data = prose()
    cut = len(data) * 9 // 10
    return Text("English prose", data[:cut][: 4 * most], data[cut:][:most], torch.ones(256, dtype=torch.long), [], None)


# ---- models


def counted(text: Text) -> tuple[KneserNey, float]:
    """The n-gram model, and the seconds that counting took."""
    began = time.perf_counter()
    model = KneserNey([text.learned_T.tolist()], len(text.bytes_V), ORDER)
    return model, time.perf_counter() - began


def as_model(ngram: KneserNey, seconds: float) -> Model:
    """The n-gram model as one among others."""

    def log_p(tokens_T: Tensor, lengths: list[int]) -> Tensor:
        parts = tokens_T.split(lengths)
        return torch.from_numpy(np.log(np.concatenate([ngram.probabilities(part.tolist()) for part in parts])))

    return Model(COUNTED, log_p, ngram.entries, ngram.bytes, seconds)


def hidden(text: Text, length: int, states: int, passes: int, run: Run) -> Model:
    """A hidden Markov model of the text cut into rows; `prior` keeps what never happened possible."""
    began = time.perf_counter()
    rows = text.learned_T[: len(text.learned_T) // length * length]
    lengths, model = [length] * (len(rows) // length), hmm.fresh(states, len(text.bytes_V), run.seed)
    for _ in run.each(range(passes), f"{text.name}: Baum-Welch, pass"):
        model, _ = hmm.baum_welch(model, rows, lengths, prior=0.01)
    seconds = time.perf_counter() - began
    return Model(HIDDEN, partial(hmm.log_probabilities, model), model.parameters, 8 * model.parameters, seconds)


def neural(text: Text, plan: Plan, steps: int, run: Run) -> list[Model]:
    """A transformer, and an LSTM of as many parameters."""
    vocab = len(text.bytes_V)
    transformer = fresh(small_spec(vocab=vocab, width=plan.width, layers=plan.layers), run.seed)
    lstm = lstm_of(vocab, size_of(transformer), run.seed)

    def looking_back(tokens_T: Tensor, lengths: list[int]) -> Tensor:
        return transformer.logits(transformer(tokens_T, positions_of(lengths), BlockDiagonal(lengths)))

    def carrying_on(tokens_T: Tensor, lengths: list[int]) -> Tensor:
        return lstm.logits(lstm(tokens_T, lengths)[0])

    nets = Net(TRANSFORMER, transformer, looking_back), Net(LSTM, lstm, carrying_on)
    return [learned(net, text, plan, steps, run) for net in nets]


def learned(net: Net, text: Text, plan: Plan, steps: int, run: Run) -> Model:
    """`net` trained to predict the next token of `text`."""
    began, task = time.perf_counter(), next_bytes(text.learned_T, plan.length, ROWS)

    def loss(generator: torch.Generator) -> Tensor:
        batch = task(generator)
        return F.cross_entropy(net.logits(batch.inputs_T, batch.lengths), batch.targets_T)

    def log_p(tokens_T: Tensor, lengths: list[int]) -> Tensor:
        return F.pad(-F.cross_entropy(net.logits(tokens_T, lengths)[:-1], tokens_T[1:], reduction="none"), (1, 0))

    note = f"{text.name}: {net.name}"
    fit(net.module.parameters(), loss, steps, run, note, seed=run.seed, lr=plan.rate, warmup=20)
    size = size_of(net.module)
    return Model(net.name, log_p, size, 4 * size, time.perf_counter() - began)


def lstm_of(vocab: int, size: int, seed: int) -> RecurrentLM:
    """One layer, as wide as `size` parameters allow."""
    width = math.isqrt(size)
    while 8 * width**2 + (2 * vocab + 8) * width + vocab > size:
        width -= 1
    return seeded(lambda: RecurrentLM(vocab, RecurrentSpec("lstm", width)), seed)


# ---- tests


def astray(model: KneserNey, text: Text, contexts: int, generator: torch.Generator) -> float:
    """How far from 1 the probabilities sum, at most: after contexts of the text and after random tokens."""
    vocab, tokens = len(text.bytes_V), text.tested_T.tolist()
    starts = torch.randint(len(tokens) - ORDER, (contexts,), generator=generator).tolist()
    random = torch.randint(vocab, (contexts, ORDER - 1), generator=generator).tolist()
    return max(
        abs(float(model.distribution(context).sum()) - 1)
        for context in (*random, *(tokens[s : s + ORDER] for s in starts))
    )


@torch.no_grad()
def tested(text: Text, model: Model, seen_T: Tensor, length: int) -> Row:
    """What the model makes of the text held out, and of its sentences with the verb in the wrong number."""
    half = length // 2
    starts_N1 = torch.arange(0, len(text.tested_T) - length + 1, half)[:, None]
    at_NL = starts_N1 + torch.arange(length)
    log_p = [model.log_p(text.tested_T[at].flatten(), [length] * len(at)).view(-1, length) for at in at_NL.split(64)]
    log_p_NL = torch.cat(log_p)
    at_T, bits_T = at_NL[:, half:].flatten(), -log_p_NL[:, half:].flatten() / math.log(2)  # all know half a window
    bytes_T, new_T = text.bytes_V[text.tested_T[at_T]], ~seen_T[at_T]
    unseen = float(bits_T[new_T].sum() / bytes_T[new_T].sum()) if new_T.any() else None
    return Row(text.name, model, float(bits_T.sum() / bytes_T.sum()), unseen, *agreement(model.log_p, text.minimal))


def agreement(log_p: LogP, sentences: list[grammar.Sentence]) -> tuple[float | None, float | None]:
    """Share of sentences whose verb is likelier than in the wrong number, the subject near and far."""
    if not sentences:
        return None, None
    lengths = [1 + len(s.tokens) for s in sentences]
    verbs_N = torch.tensor([1 + s.verb for s in sentences]) + torch.tensor([0, *lengths[:-1]]).cumsum(0)
    right_N, wrong_N = (
        log_p(torch.tensor([t for row in rows for t in (grammar.ID[grammar.END], *row)]), lengths)[verbs_N]
        for rows in ([s.tokens for s in sentences], [grammar.disagreeing(s) for s in sentences])
    )
    near_N, right_N = torch.tensor([s.distance <= NEAR for s in sentences]), (right_N > wrong_N).double()
    return float(right_N[near_N].mean()), float(right_N[~near_N].mean())


# ---- what it comes to


def _table(texts: Sequence[Text], rows: Sequence[Row]) -> Table:
    def cells(r: Row) -> list[Cell]:
        shares = [None if share is None else 100 * share for share in (r.near, r.far)]
        m = r.model
        return [r.text, m.name, m.numbers, m.bytes / 2**20, m.seconds, r.overall, r.unseen, *shares]

    floors: list[list[Cell]] = [
        [text.name, "the grammar itself", None, None, None, text.floor, None, 100.0, 100.0]
        for text in texts
        if text.floor
    ]
    columns = {"text": "", "model": "", "numbers stored": "", "size": "MiB", "time to learn": "s"}
    columns |= {"overall": "bits/byte", "unseen contexts": "bits/byte"}
    columns |= {f"agreement, up to {NEAR} words": "%", f"agreement, over {NEAR} words": "%"}
    return table(columns, [*map(cells, rows), *floors])


def _plot(rows: Sequence[Row]) -> Plot:
    agreeing = [r for r in rows if r.near is not None and r.far is not None]
    names = [r.model.name for r in agreeing]
    pairs = {f"subject up to {NEAR} words before": [r.near for r in agreeing], "further": [r.far for r in agreeing]}
    return Plot(
        kind="bar",
        x=Axis(label="model"),
        y=Axis(label="verbs that agree, %"),
        series=[Series(name=n, x=names, y=[100 * (v or 0.0) for v in values]) for n, values in pairs.items()],
    )


def _checks(rows: Sequence[Row], off: float) -> list[Check]:
    by_name = {r.model.name: r for r in rows if r.far is not None}
    ngram, transformer = by_name[COUNTED], by_name[TRANSFORMER]
    far, unseen = (ngram.far or 0.0, transformer.far or 0.0), (ngram.unseen or 0.0, transformer.unseen or 0.0)
    return [
        check(
            off < 1e-9,
            f"the n-gram model's probabilities sum to 1 (to {off:.0e} after seen and random contexts)",
            f"n 元模型的概率之和为 1（见过的和随机的上文中，误差不超过 {off:.0e}）",
        ),
        check(
            abs(far[0] - 0.5) < 0.15 and far[1] > far[0] + 0.15,
            f"agreement over more than {NEAR} words is a coin toss for counts ({far[0]:.0%}) and learned by the "
            f"transformer ({far[1]:.0%})",
            f"跨越 {NEAR} 个词以上的一致关系，计数只能靠猜（{far[0]:.0%}），Transformer 学会了（{far[1]:.0%}）",
        ),
        check(
            unseen[1] < unseen[0],
            f"where the grammar's context is new, a byte costs the transformer {unseen[1]:.3f} bits and counts "
            f"{unseen[0]:.3f}",
            f"人造语法中上文未见过时，每字节 Transformer 用 {unseen[1]:.3f} 比特，计数用 {unseen[0]:.3f} 比特",
        ),
    ]


def _verdict(rows: Sequence[Row], off: float) -> Words:
    grammar_rows, prose_rows = ([r for r in rows if (r.near is None) == plain] for plain in (False, True))
    best = min(prose_rows, key=lambda r: r.overall)
    costs = [", ".join(f"{r.model.name} {r.overall:.3f}" for r in part) for part in (grammar_rows, prose_rows)]
    new = ", ".join(f"{r.model.name} {r.unseen:.2f}" for r in prose_rows if r.unseen is not None)
    far = ", ".join(f"{r.model.name} {r.far or 0:.0%}" for r in grammar_rows)
    held = {r.model.name: f"{r.model.numbers:,} / {r.model.seconds:.1f} s" for r in prose_rows}
    stored = ", ".join(f"{name} {what}" for name, what in held.items())
    return both(
        f"Bits per byte of held-out text, planted grammar: {costs[0]}; English prose: {costs[1]} (best: "
        f"{best.model.name}), where the last {NEAR} bytes never followed each other in training: {new}. Verbs that "
        f"agree with a subject more than {NEAR} words before: {far}. Numbers stored and time to learn, prose: "
        f"{stored}.",
        f"留出文本每字节的比特数，人造语法：{costs[0]}；英文散文：{costs[1]}（最好的是 {best.model.name}），其中最近 "
        f"{NEAR} 个字节在训练中从未连续出现时：{new}。主语在 {NEAR} 个词以外时动词数一致的比例：{far}。散文上存储的数值"
        f"个数与学习时间：{stored}。",
    )
