"""An answer that must be one of a few labels: how it is forced, what its probability is, and why long labels lose.

A trie over the labels' tokens leaves nothing else to say. What is drawn behind it, token by token, is not the model's
probability of a label given that it says one of them: `cutaway.engine.labels` keeps the two apart. Here both are
compared with brute force, which scores every label by itself, and with what an engine really draws.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.constraints.constraint import allowed, vocabulary
from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.engine import Engine
from cutaway.engine.labels import Label, Scored, branches, score
from cutaway.engine.params import SamplingParams
from cutaway.labs.evidence import Cell, Check, Finding, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.statistics import chi_square
from cutaway.labs.subject import MODEL, Cached, decoder, subject
from cutaway.models.block import positions_of
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import Loaded

ASKED = "Text: {}\nTopic:"
EMPTY = "N/A"  # a text without content, as in Zhao et al. 2021
END = "\n"
TEXTS: dict[str, tuple[str, ...]] = {
    "sports": (
        "The striker scored twice in the second half.",
        "She won the marathon in just under three hours.",
        "The referee showed him a red card.",
    ),
    "ancient history": (
        "The pharaoh ordered the temple to be built by the river.",
        "Roman legions marched through Gaul under Caesar.",
        "The clay tablets of Babylon record the harvests of its kings.",
    ),
    "classical music": (
        "The symphony has four movements for a large orchestra.",
        "Mozart finished the string quartet in Vienna.",
        "The pianist played a sonata by Beethoven.",
    ),
    "weather": (
        "Rain and strong wind are expected on Sunday.",
        "The night will be clear, with frost in the valleys.",
        "A warm front brings clouds and thunderstorms from the south.",
    ),
    "science fiction": (
        "The spaceship left for a planet where machines ruled.",
        "In the novel, aliens land on Mars and talk to the colonists.",
        "The captain woke from cryogenic sleep three centuries later.",
    ),
    "business": (
        "The company sold its shares and hired a new director.",
        "Profits of the bank rose by a tenth this quarter.",
        "The two firms agreed to merge next year.",
    ),
    "artificial intelligence": (
        "A neural network learned to translate between languages.",
        "The chatbot was trained on billions of words.",
        "Researchers built a program that plays chess by learning from itself.",
    ),
    "cooking": (
        "Bake the dough for forty minutes until it is brown.",
        "Fry the onions in butter and add a little salt.",
        "Simmer the sauce with garlic and tomatoes.",
    ),
    "science": (
        "The chemists measured how fast the acid dissolves.",
        "The telescope observed light from a distant galaxy.",
        "Biologists counted the cells under a microscope.",
    ),
    "music": (
        "The band recorded a new album with guitars and drums.",
        "The singer wrote the song and its melody on a train.",
        "The rapper topped the charts again this summer.",
    ),
    "health": (
        "The doctor told him to sleep more and to lower his blood pressure.",
        "The vaccine protects children against measles.",
        "Walking every day is good for the heart.",
    ),
    "history": (
        "The treaty of 1648 ended thirty years of war in Europe.",
        "Napoleon was defeated at Waterloo in 1815.",
        "The archive holds letters of soldiers of the First World War.",
    ),
}
NAMES = tuple(TEXTS)
SAID = [f" {name}{END}" for name in NAMES]
FENCES = {
    "the labels' tokens": ConstraintSpec.choices(SAID),
    "the labels' text": ConstraintSpec.regex("|".join(SAID)),
}


class Read(NamedTuple):
    """A text, which label it is about, and what the model makes of it."""

    text: str
    truth: int
    scored: Scored


class Judge(NamedTuple):
    """A way to compare labels. right: share of texts. tokens: of the label chosen, mean.

    slope: what a further token of a wrong label adds to it, mean over texts.
    """

    name: str
    right: float
    tokens: float
    slope: float


class Proof(NamedTuple):
    """Largest differences from brute force, over all labels of some texts; how far the probabilities' sums are off."""

    texts: int
    scored: float
    walked: float
    sums: float


class Drawn(NamedTuple):
    """Runs behind a fence. labels: how many said one. other: in other tokens than the label's own.

    walked, scored: probability of counts as far from either distribution, or further.
    """

    fence: str
    runs: int
    labels: int
    other: int
    walked: float
    scored: float


@lab(
    "fixed-labels",
    title=both("An answer that must be a label", "只能回答标签"),
    question=both(
        "How do I force a model to answer with one of my class names and score them fairly?",
        "怎样强制模型只用我的类别名回答，并公平地给它们打分？",
    ),
    seconds={"quick": 8, "full": 150},
)
def fixed_labels(
    run: Run,
    *,
    model: Annotated[str, Knob("the model that answers", "回答的模型")] = MODEL,
    texts: Annotated[int, Knob("texts, of each label in turn", "文本数，各标签轮流", quick=2, min=2, max=36)] = 36,
    proven: Annotated[int, Knob("texts scored by brute force too", "另用穷举打分的文本数", quick=1, min=1)] = 12,
    runs: Annotated[int, Knob("runs behind each fence", "每种围栏下的运行次数", quick=20, min=20, max=9999)] = 500,
) -> Finding:
    loaded = subject(model)
    labels = spelled(loaded.tokenizer)
    ask = partial(read, decoder(loaded), loaded.tokenizer, labels)
    asked = [(text, n) for told in zip(*TEXTS.values(), strict=True) for n, text in enumerate(told)][:texts]
    found = [Read(text, n, ask(text)) for text, n in run.each(asked, "text")]
    judges = judged(found, ask(EMPTY))
    proof = proved(loaded, labels, run.each([text for text, _ in asked[:proven]], "by brute force"))
    widest = max(found, key=apart)
    drawn = [draw(loaded, labels, widest, name, runs=runs, seed=run.seed) for name in run.each([*FENCES], "fence")]
    return Finding(
        table=_table(judges, drawn, found, labels),
        plot=None,
        verdict=_verdict(judges, drawn, widest),
        checks=_checks(judges, drawn, widest, proof, labels),
    )


def spelled(tokenizer: Tokenizer) -> list[Label]:
    """The labels as tokens, each with a space before it and the end of the line behind."""
    return [tuple(vocabulary(tokenizer)(text)) for text in SAID]


@torch.inference_mode()
def read(model: Decoder, tokenizer: Tokenizer, labels: Sequence[Label], text: str) -> Scored:
    """All labels after a text; what they have in common is computed once."""
    prompt = tokenizer.encode(ASKED.format(text))
    cached = Cached(model, len(prompt) + max(map(len, labels)))

    def after(said: Label) -> Tensor:
        cached.done = min(cached.done, len(prompt) + max(0, len(said) - 1))
        return cached.logits(torch.tensor([*prompt, *said]))

    return score(labels, after)


@torch.inference_mode()
def brute(model: Decoder, tokenizer: Tokenizer, labels: Sequence[Label], text: str) -> Tensor:
    """log p of each label, and of a walk to it behind the engine's masks [L, 2]: whole texts, without cache or trie."""
    prompt, constraint = tokenizer.encode(ASKED.format(text)), ConstraintSpec.choices(SAID)
    whole = [[*prompt, *label] for label in labels]
    lengths = [len(ids) for ids in whole]
    hidden_TD = model(torch.tensor([*chain(*whole)]), positions_of(lengths), BlockDiagonal(lengths))
    found = []
    for label, own_TD in zip(labels, hidden_TD.split(lengths), strict=True):
        state, total, walked = constraint.compile(tokenizer), 0.0, 0.0
        rows_TV = model.logits(own_TD[len(prompt) - 1 : -1]).double()
        for row_V, token in zip(rows_TV, label, strict=True):
            open_V = allowed(state.mask())[: len(row_V)]
            total += float(row_V.log_softmax(0)[token])
            walked += float(row_V.masked_fill(~open_V, -torch.inf).log_softmax(0)[token])
            state.advance(token)
        found.append((total, walked))
    return torch.tensor(found, dtype=torch.float64)


def proved(loaded: Loaded, labels: Sequence[Label], texts: Iterable[str]) -> Proof:
    """The trie's probabilities against brute force, in float64."""
    model, tokenizer = copy.deepcopy(decoder(loaded)).double(), loaded.tokenizer
    scored, walked, sums = list[float](), list[float](), list[float]()
    for text in texts:
        ours, theirs = read(model, tokenizer, labels, text), brute(model, tokenizer, labels, text)
        scored.append(float((ours.scored - theirs[:, 0].softmax(0)).abs().max()))
        walked.append(float((ours.walked - theirs[:, 1].exp()).abs().max()))
        sums += [abs(float(p_L.sum()) - 1) for p_L in (ours.scored, ours.walked)]
    return Proof(len(scored), max(scored), max(walked), max(sums))


def apart(r: Read) -> float:
    """Half the sum of differences of the two distributions: the share of draws that go elsewhere."""
    return float((r.scored.scored - r.scored.walked).abs().sum() / 2)


# ---- which label


def judged(found: Sequence[Read], free: Scored) -> list[Judge]:
    """Every way to compare labels, on all texts. free: scores after the text without content."""
    ways: dict[str, Callable[[Scored], Tensor]] = {
        "sum of log p": lambda s: s.total_L,
        "walked": lambda s: s.walked_L,
        "mean per token": lambda s: s.per_token,
        "gain over no content": lambda s: s.beyond(free),
    }
    return [judge(name, [way(r.scored) for r in found], [r.truth for r in found], free) for name, way in ways.items()]


def judge(name: str, values: Sequence[Tensor], truths: Sequence[int], free: Scored) -> Judge:
    """One way to compare labels; values_L for each text."""
    chosen, lengths = [int(v.argmax()) for v in values], [float(n) for n in free.lengths_L]
    slopes = []
    for value_L, truth in zip(values, truths, strict=True):
        wrong = [i for i in range(len(lengths)) if i != truth]
        slopes.append(statistics.linear_regression([lengths[i] for i in wrong], value_L[wrong].tolist()).slope)
    right = statistics.mean(c == t for c, t in zip(chosen, truths, strict=True))
    return Judge(name, right, statistics.mean(lengths[c] for c in chosen), statistics.mean(slopes))


# ---- what an engine draws


def draw(loaded: Loaded, labels: Sequence[Label], about: Read, name: str, *, runs: int, seed: int) -> Drawn:
    """So many replies to one text, each with its own luck."""
    engine = Engine(decoder(loaded), loaded.tokenizer, context=128, running=32)
    prompt, constraint = loaded.tokenizer.encode(ASKED.format(about.text)), FENCES[name]
    settings = [SamplingParams(seed=seed + i, max_tokens=40, constraint=constraint) for i in range(runs)]
    sequences = [engine.add(prompt, params) for params in settings]
    while engine.busy:
        engine.step()
    said = [s for s in sequences if s.text in SAID]
    counts_L = torch.tensor([SAID.index(s.text) for s in said], dtype=torch.long).bincount(minlength=len(labels))
    own = sum(tuple(t for t in s.reply if t not in loaded.tokenizer.stop_ids) in labels for s in said)
    fits = (chi_square(counts_L, p_L) for p_L in (about.scored.walked, about.scored.scored))
    return Drawn(name, runs, len(said), len(said) - own, *fits)


# ---- what it comes to

COLUMNS = {
    "compared by": "", "right": "", "tokens of the answer": "", "a token more adds": "nats", "runs": "",
    "labels": "runs", "in other tokens": "runs", "p if walked": "", "p if scored": "",
}  # fmt: skip


def _table(judges: list[Judge], drawn: list[Drawn], found: list[Read], labels: Sequence[Label]) -> Table:
    truth = statistics.mean(len(labels[r.truth]) for r in found)
    rows: list[list[Cell]] = [[*judge, *[None] * 5] for judge in judges]
    rows.append(["the truth", 1.0, truth, *[None] * 6])
    return table(COLUMNS, [*rows, *([f"drawn: {d.fence}", None, None, None, *d[1:]] for d in drawn)])


def _checks(
    judges: list[Judge], drawn: list[Drawn], widest: Read, proof: Proof, labels: Sequence[Label]
) -> list[Check]:
    summed, _, _, gain = judges
    tokens, text = drawn
    inner, shared = len(branches(labels)), sum(len(said) > 0 for said in branches(labels))
    return [
        check(
            all(d.labels == d.runs for d in drawn),
            f"{tokens.labels} of {tokens.runs} runs behind a trie of tokens end in a label, and {text.labels} of "
            f"{text.runs} behind one of bytes",
            f"词元字典树之后 {tokens.runs} 次中有 {tokens.labels} 次以标签结束，字节字典树之后 {text.runs} 次中有 "
            f"{text.labels} 次",
        ),
        check(
            proof.scored < 1e-6 and proof.walked < 1e-6 and proof.sums < 1e-6,
            f"in one walk over {inner} nodes ({shared} below the root) both probabilities of all {len(labels)} labels "
            f"equal brute force, largest difference {max(proof.scored, proof.walked):.0e} on {proof.texts} texts, and "
            "sum to 1",
            f"在 {inner} 个节点（根以下 {shared} 个）上走一遍，{len(labels)} 个标签的两种概率都等于逐个打分，"
            f"{proof.texts} 篇文本上最大相差 {max(proof.scored, proof.walked):.0e}，且和为 1",
        ),
        check(
            tokens.walked > 1e-3,
            f"what is drawn follows the walk (p = {tokens.walked:.2g})",
            f"抽到的标签服从逐步重归一的分布（p = {tokens.walked:.2g}）",
        ),
        check(
            apart(widest) > 0.05,
            f"which is not the distribution of the scores: {apart(widest):.0%} of the draws go elsewhere where the "
            "two are furthest apart",
            f"它不是打分的分布：差别最大处有 {apart(widest):.0%} 的抽样落到别处",
        ),
        check(
            summed.slope < 0 and abs(gain.slope) < abs(summed.slope) and gain.right >= summed.right,
            f"a token more takes {-summed.slope:.1f} nats from a wrong label's sum; of its gain over a text without "
            f"content {gain.slope:+.2f}, and {gain.right:.0%} of the answers are right instead of {summed.right:.0%}",
            f"多一个词元，错误标签的总分就少 {-summed.slope:.1f} 奈特；减去空文本的分数后是 {gain.slope:+.2f}，"
            f"答对 {gain.right:.0%} 而非 {summed.right:.0%}",
        ),
    ]


def _verdict(judges: list[Judge], drawn: list[Drawn], widest: Read) -> Words:
    tokens, text = drawn
    most = NAMES[int(widest.scored.scored.argmax())], NAMES[int(widest.scored.walked.argmax())]
    said = "; ".join(f"{j.name} {j.right:.0%} ({j.slope:+.2f})" for j in judges)
    return both(
        f"A trie leaves only labels: {tokens.labels} of {tokens.runs} runs. What it draws is the product of "
        "renormalized steps, not a label's share of the scores. On “"
        f"{widest.text}” the two differ by {apart(widest):.0%}: {most[0]} is likeliest by score, {most[1]} by walk; "
        f"draws fit the walk with p = {tokens.walked:.2g}, the scores with p = {tokens.scored:.2g}. A fence of bytes "
        f"lets the same words be said in other tokens, and {text.other} of {text.runs} runs do. Right answers, and "
        f"what a token more adds to a wrong label in nats: {said}.",
        f"字典树只留下标签：{tokens.runs} 次中 {tokens.labels} 次。它抽到的是逐步重归一之积，"
        "而不是标签在得分中的占比。在“"
        f"{widest.text}”上二者相差 {apart(widest):.0%}：按得分最可能的是 {most[0]}，逐步走是 {most[1]}；抽样符合逐步"
        f"走的 p = {tokens.walked:.2g}，符合得分的 p = {tokens.scored:.2g}。字节围栏允许用别的词元拼出同一个词，"
        f"{text.runs} 次中有 {text.other} 次如此。正确率，以及多一个词元给错误标签增加的奈特数：{said}。",
    )
