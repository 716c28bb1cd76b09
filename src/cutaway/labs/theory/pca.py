"""Eigenvalues and the dimension of embeddings: principal component analysis of sentence vectors (Pearson 1901).

The covariance of N vectors has an eigenvalue per direction: the variance along it. Keeping the d largest keeps their
share of the variance, and no other d directions keep more. Whether they keep what the vectors are for is another
question: here, how well the cosine of two sentences follows how alike they are.

Without a file of judged pairs, sentences are composed from slots (who, does what, where, when), each in two wordings:
pairs share a known number of slots, and that number is the similarity.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.embed.sentences import encode
from cutaway.errors import CutawayError
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.models.encoder import Encoder
from cutaway.weights.checkpoint import load

MODEL = "all-minilm-l6-v2"
DIMS = (256, 128, 64, 32, 16)
SLOTS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("a doctor", "a physician"),
        ("the children", "the kids"),
        ("an old sailor", "an aged seaman"),
        ("my lawyer", "my attorney"),
        ("two policemen", "two cops"),
        ("the teacher", "the schoolmaster"),
        ("a farmer", "a man who works the land"),
        ("the pilot", "the airman"),
    ),
    (
        ("repaired a bicycle", "fixed a bike"),
        ("ate some soup", "had a bowl of broth"),
        ("bought a house", "purchased a home"),
        ("sang a song", "performed a tune"),
        ("fell asleep", "dozed off"),
        ("lost the keys", "could not find the keys"),
        ("planted a tree", "put a sapling into the ground"),
        ("wrote a letter", "penned a note to someone"),
    ),
    (
        ("in the city", "downtown"),
        ("by the sea", "on the coast"),
        ("in the woods", "in the forest"),
        ("at the office", "at work"),
        ("in the kitchen", "where the meals are cooked"),
        ("on a train", "aboard a railway car"),
        ("in the hospital", "at the clinic"),
        ("in the garden", "in the back yard"),
    ),
    (
        ("yesterday", "the day before today"),
        ("last winter", "in the cold season a year ago"),
        ("at dawn", "when the sun rose"),
        ("before the war", "prior to the war"),
        ("during the storm", "while the gale was blowing"),
        ("at midnight", "at twelve in the night"),
    ),
)


class Pair(NamedTuple):
    """Two sentences and how alike they are, on any scale."""

    first: str
    second: str
    likeness: float


class Kept(NamedTuple):
    """At d dimensions: the share of the variance, and the rank correlation of cosine and likeness."""

    dims: int
    variance: float
    spearman: float


@lab(
    "pca",
    title=both("Eigenvalues and the dimension of embeddings", "特征值与嵌入的维数"),
    question=both(
        "What do eigenvalues tell me about reducing the dimension of embeddings?",
        "要给嵌入降维，特征值能告诉我什么？",
    ),
    seconds={"quick": 2, "full": 8},
)
def pca(
    run: Run,
    *,
    model: Annotated[str, Knob("the sentence encoder", "句子编码器")] = MODEL,
    pairs: Annotated[
        str,
        Knob(
            "a file of judged pairs as of the STS benchmark; none: composed ones",
            "STS 基准格式的句对文件；不给则用合成句对",
        ),
    ] = "",
    count: Annotated[int, Knob("pairs at most", "句对数上限", quick=120, min=20, max=100_000)] = 1000,
) -> Finding:
    loaded = load(model)
    if not isinstance(loaded.model, Encoder):
        raise CutawayError("does not encode sentences", model, f"try {MODEL}")
    judged = (read_pairs(Path(pairs)) if pairs else composed(count, run.generator()))[:count]
    texts = [text for pair in judged for text in pair[:2]]
    vectors = [
        encode(loaded.model, loaded.tokenizer, texts[i : i + 64]) for i in run.each(range(0, len(texts), 64), "text")
    ]
    x_ND = torch.cat(vectors).double()
    x_ND -= x_ND.mean(0)
    values_D, axes_DD = components(x_ND)
    likeness_N = torch.tensor([pair.likeness for pair in judged], dtype=torch.float64)
    width = x_ND.shape[1]
    kept = [keep(x_ND, axes_DD, dims, likeness_N) for dims in (width, *(d for d in DIMS if d < width))]
    rows: list[list[Cell]] = [[k.dims, 100 * k.variance, 100 * share(values_D, k.dims), k.spearman] for k in kept]
    names = {"dimensions": "", "variance kept": "%", "share of the eigenvalues": "%", "Spearman": ""}
    return Finding(
        table=table(names, rows),
        plot=_plot(values_D, kept),
        verdict=_verdict(kept, values_D, len(judged), bool(pairs)),
        checks=_checks(x_ND, values_D, axes_DD, kept),
    )


# ---- pairs


def composed(count: int, generator: torch.Generator) -> list[Pair]:
    """Pairs that share 0 to all of the slots, as often; a shared slot is worded otherwise in the second sentence."""
    found = []
    for i in range(count):
        shared = torch.randperm(len(SLOTS), generator=generator)[: i % (len(SLOTS) + 1)].tolist()
        words: tuple[list[str], list[str]] = ([], [])
        for j, slot in enumerate(SLOTS):
            a, b = torch.randperm(len(slot), generator=generator)[:2].tolist()
            wording = int(torch.randint(2, (), generator=generator))
            words[0].append(slot[a][wording])
            words[1].append(slot[a if j in shared else b][1 - wording])
        found.append(Pair(" ".join(words[0]), " ".join(words[1]), float(len(shared))))
    return found


def read_pairs(path: Path) -> list[Pair]:
    """Of a file of the STS benchmark: tab-separated, score and sentences in columns 5 to 7. Errors: no such lines."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [Pair(row[5], row[6], float(row[4])) for row in rows]
    except (OSError, ValueError, IndexError) as error:
        what = f"cannot be read as pairs: {error}"
        raise CutawayError(
            what, str(path), "tabs between columns: genre, file, year, id, score, both sentences"
        ) from None


# ---- components


def components(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues_D of the covariance of centered rows, largest first, and its eigenvectors as columns, [D, D]."""
    values_D, axes_DD = torch.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
    return values_D.flip(0).clamp(min=0), axes_DD.flip(1)


def share(values_D: Tensor, dims: int) -> float:
    """Of the sum of the eigenvalues, the largest ones' part."""
    return float(values_D[:dims].sum() / values_D.sum())


def keep(x_ND: Tensor, axes_DD: Tensor, dims: int, likeness_N: Tensor) -> Kept:
    """Project on the first axes; rows 2n and 2n + 1 are a pair."""
    low_Nd = x_ND @ axes_DD[:, :dims]
    variance = float(low_Nd.square().sum() / x_ND.square().sum())
    return Kept(dims, variance, spearman(F.cosine_similarity(low_Nd[::2], low_Nd[1::2]), likeness_N))


def spearman(a_N: Tensor, b_N: Tensor) -> float:
    """Rank correlation (Spearman 1904): Pearson's of the ranks, ties sharing the mean of theirs."""
    return float(torch.corrcoef(torch.stack([ranks(a_N), ranks(b_N)]))[0, 1])


def ranks(x_N: Tensor) -> Tensor:
    """Place of each value in the sorted order, from 0, the mean place where values are equal."""
    _, which_N, counts = torch.unique(x_N, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts + 1) / 2)[which_N]


def against_svd(x_ND: Tensor, values_D: Tensor, axes_DD: Tensor) -> tuple[float, float]:
    """Largest difference of eigenvalues, relative, and of the leading axes up to sign, from those of the SVD."""
    _, singular, rows_KD = torch.linalg.svd(x_ND, full_matrices=False)
    size = min(len(singular), len(values_D))
    values = (singular.square() / len(x_ND))[:size]
    first = DIMS[-1]  # beyond, eigenvalues may lie so close that their axes are free to turn
    cosines = (rows_KD[:first] * axes_DD.T[:first]).sum(-1)
    axes = rows_KD[:first] * cosines.sign()[:, None] - axes_DD.T[:first]
    return float((values - values_D[:size]).abs().max() / values_D[0]), float(axes.abs().max())


# ---- what it comes to


def _plot(values_D: Tensor, kept: list[Kept]) -> Plot:
    x = [float(k.dims) for k in kept]
    return Plot(
        kind="line",
        x=Axis(label="dimensions kept", log=True),
        y=Axis(label="share of what all of them give"),
        series=[
            Series(name="variance", x=x, y=[k.variance for k in kept]),
            Series(name="Spearman", x=x, y=[k.spearman / kept[0].spearman for k in kept]),
        ],
    )


def _checks(x_ND: Tensor, values_D: Tensor, axes_DD: Tensor, kept: list[Kept]) -> list[Check]:
    values, axes = against_svd(x_ND, values_D, axes_DD)
    off = max(abs(k.variance - share(values_D, k.dims)) for k in kept)
    lost = [(1 - k.variance, 1 - k.spearman / kept[0].spearman) for k in kept[-2:]]
    return [
        check(
            values < 1e-10 and axes < 1e-10,
            f"eigenvectors of the covariance are the singular vectors up to sign (to {axes:.0e}), eigenvalues the "
            f"squared singular values / N (to {values:.0e})",
            f"协方差的特征向量就是奇异向量（差一个符号，相差 {axes:.0e}），特征值就是奇异值平方 / N（相差 "
            f"{values:.0e}）",
        ),
        check(
            off < 1e-10,
            f"the variance kept is the share of the eigenvalues kept (to {off:.0e})",
            f"保留的方差就是保留的特征值所占的份额（相差 {off:.0e}）",
        ),
        check(
            all(variance > spearman_ for variance, spearman_ in lost),
            "variance and use do not fall together: "
            + "; ".join(
                f"{k.dims} dimensions lose {v:.1%} of the variance, {s:.1%} of the Spearman"
                for k, (v, s) in zip(kept[-2:], lost, strict=True)
            ),
            "方差与用处并不一起下降："
            + "；".join(
                f"{k.dims} 维丢掉 {v:.1%} 的方差、{s:.1%} 的斯皮尔曼相关"
                for k, (v, s) in zip(kept[-2:], lost, strict=True)
            ),
        ),
    ]


def _verdict(kept: list[Kept], values_D: Tensor, count: int, judged: bool) -> Words:
    half = int((values_D.cumsum(0) / values_D.sum() < 0.5).sum()) + 1
    first, last = kept[0], kept[-1]
    origin = (
        both("judged by people", "由人评分") if judged else both("composed with a known likeness", "按已知相似度合成")
    )
    steps = ", ".join(f"{k.dims}: {k.variance:.0%} / {k.spearman:.3f}" for k in kept)
    return both(
        f"An eigenvalue is the variance along its axis: {half} axes carry half of it. Over {count:,} pairs "
        f"{origin.en}, dimensions give variance kept and Spearman of {steps}. From {first.dims} to {last.dims} "
        f"dimensions the variance falls to {last.variance:.0%}, the Spearman to {last.spearman / first.spearman:.0%} "
        "of what it was: eigenvalues say how well the vectors are rebuilt, not how well they serve.",
        f"特征值是沿其轴的方差：{half} 个轴就占了一半。在 {count:,} 个{origin.zh}的句对上，各维数保留的方差与斯皮尔曼"
        f"相关为 {steps}。从 {first.dims} 维降到 {last.dims} 维，方差剩 {last.variance:.0%}，斯皮尔曼相关为原来的 "
        f"{last.spearman / first.spearman:.0%}：特征值说的是向量能被还原多少，而不是它们还有多大用处。",
    )
