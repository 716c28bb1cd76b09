"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv:2405.04434): what it keeps, and why part of a key is apart.

    scores = q . (W_uk latent) = (W_uk^T q) . latent          the up-projection folds into the query, unless ...
    scores = R q . R (W_uk latent)                            ... a rotation that depends on the position is between
    scores = R q . R (W_uk latent) - slope * distance         a bias by distance is added after the product: no matter

Sizes are counted, foldings tried in float64, and the price of a bias that grows with distance is measured: a small
model learns to recall one of several items over short gaps, and is then asked over longer ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.training import IGNORED, Batch, accuracy_of, fit, fresh, loss_of, small_spec, with_layers
from cutaway.models.decoder import Decoder
from cutaway.nn.latent import LatentSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.position_bias import AlibiSpec, alibi_slopes
from cutaway.nn.positions import RopeSpec, rotate, rotation

# DeepSeek-V3 (arXiv:2412.19437, section 4.2): 61 layers, 128 heads of 128, latents of 512, 64 rotated numbers.
LAYERS, HEADS, HEAD_DIM = 61, 128, 128
PUBLISHED = LatentSpec(HEADS, 512, HEAD_DIM, 64, HEAD_DIM, 192**-0.5, NormSpec("rms", 1e-6), RopeSpec())
EXACT, WRONG = 1e-9, 1e-2
ITEMS, KEYS, VALUES, FILLERS = 4, 8, 8, 16  # of the recall task
VOCAB = KEYS * VALUES + KEYS + FILLERS
ARMS: dict[str, dict[str, Any]] = {
    "rotation": {"rope": RopeSpec()},
    "ALiBi": {"rope": None, "position_bias": AlibiSpec()},
    "none": {"rope": None},
}


class Cache(NamedTuple):
    """What one kind of attention keeps: numbers of a token in a layer, bytes of a token in all layers, 16 bit."""

    name: str
    numbers: int
    bytes: int


@lab(
    "mla",
    title=both("Latent attention: one small vector instead of keys and values", "潜在注意力：用一个小向量代替键和值"),
    question=both(
        "What does latent attention keep in its cache, and which positions let it fold its up-projection away?",
        "潜在注意力的缓存里到底存什么？哪些位置编码允许把升维矩阵折叠掉？",
    ),
    seconds={"quick": 6, "full": 90},
)
def mla(
    run: Run,
    *,
    steps: Annotated[
        int, Knob("training steps of each recall model", "每个回忆模型的训练步数", quick=80, min=10)
    ] = 600,
    gap: Annotated[int, Knob("longest gap in training, tokens", "训练时的最长间隔（词元）", quick=16, min=4)] = 32,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
) -> Finding:
    caches, folded = sizes(), foldings(run.generator())
    gaps = [gap * 2**i for i in range(5)]
    recalled = {name: recall(name, gaps, steps, seeds, run) for name in ARMS}
    columns = dict.fromkeys(("what", "value", "measured in", "latent / this"), "")
    return Finding(
        table=table(columns, _rows(caches, folded, recalled, gaps)),
        plot=Plot(
            kind="line",
            x=Axis(label="gap to the item, tokens", log=True),
            y=Axis(label="share recalled"),
            series=[Series(name=name, x=[float(g) for g in gaps], y=shares) for name, shares in recalled.items()],
        ),
        verdict=_verdict(caches, folded, recalled, gaps),
        checks=_checks(caches, folded),
    )


def sizes() -> list[Cache]:
    """DeepSeek-V3's cache, and what 1, 8 or all 128 plain key/value heads would keep in its place."""
    kept = {"latent": sum(heads * width for heads, width in PUBLISHED.cached)}
    kept |= {f"{heads} key/value heads": 2 * heads * HEAD_DIM for heads in (1, 8, HEADS)}
    return [Cache(name, numbers, LAYERS * 2 * numbers) for name, numbers in kept.items()]


def foldings(generator: torch.Generator, tokens: int = 24) -> dict[str, float]:
    """Largest difference between scores of unfolded keys and of folded queries, relative to the largest score."""
    heads, rank, width = 4, 10, 8
    latent_TC = torch.randn(tokens, rank, generator=generator, dtype=torch.float64)
    up_HKC = torch.randn(heads, width, rank, generator=generator, dtype=torch.float64)
    q_THK, apart_T1K = (torch.randn(tokens, n, width, generator=generator, dtype=torch.float64) for n in (heads, 1))
    turn = rotation(RopeSpec(100.0), width, torch.arange(tokens), torch.float64)
    k_THK = torch.einsum("hkc,tc->thk", up_HKC, latent_TC)

    def scores(q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("qhk,shk->hqs", q, k.expand(-1, heads, -1))

    def fold(q: Tensor) -> Tensor:
        return torch.einsum("qhk,hkc,sc->hqs", q, up_HKC, latent_TC)

    turned_THK, distance_TS = rotate(q_THK, turn), torch.arange(tokens)[:, None] - torch.arange(tokens)
    turned = scores(turned_THK, rotate(apart_T1K, turn))
    penalty_HTS = alibi_slopes(heads)[:, None, None] * distance_TS.abs()
    ways: dict[str, tuple[Tensor, Tensor]] = {
        "no position": (scores(q_THK, k_THK), fold(q_THK)),
        "the whole key rotated": (scores(turned_THK, rotate(k_THK, turn)), fold(turned_THK)),
        "a rotated part apart": (scores(q_THK, k_THK) + turned, fold(q_THK) + turned),
        "ALiBi": (scores(q_THK, k_THK) - penalty_HTS, fold(q_THK) - penalty_HTS),
    }
    return {name: float((a - b).abs().max() / a.abs().max()) for name, (a, b) in ways.items()}


# ---- the price of a bias by distance


def recall(arm: str, gaps: list[int], steps: int, seeds: int, run: Run) -> list[float]:
    """Share recalled at each gap, mean over seeds, by models trained at gaps up to the first."""
    shares = torch.zeros(len(gaps), dtype=torch.float64)
    for seed in range(run.seed, run.seed + seeds):
        model = learner(arm, seed)
        fit(model.parameters(), _loss(model, gaps[0]), steps, run, f"recall with {arm}", seed=seed, lr=1e-2)
        tests = [items(torch.Generator().manual_seed(999), 64, g, g) for g in gaps]
        shares += torch.tensor([accuracy_of(model, test) for test in tests], dtype=torch.float64)
    return (shares / seeds).tolist()


def learner(arm: str, seed: int) -> Decoder:
    """One layer: a question can look straight at the item that it names."""
    spec = small_spec(vocab=VOCAB, width=48, layers=1, heads=4, context=4096)
    plain = with_layers(spec, lambda layer: replace(layer, attention=replace(layer.attention, **ARMS[arm])))
    return fresh(plain, seed, std=0.1)


def _loss(model: Decoder, gap: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: loss_of(model, items(generator, 32, 1, gap))


def items(generator: torch.Generator, rows: int, shortest: int, longest: int) -> Batch:
    """Some items, each a key with a value, then fillers, then a key: the value that came with it is asked for."""

    def drawn(high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    length = int(drawn(longest + 1, 1, low=shortest))
    keys_BI = torch.rand(rows, KEYS, generator=generator).argsort(-1)[:, :ITEMS]
    values_BI, asked_B = drawn(VALUES, rows, ITEMS), drawn(ITEMS, rows)
    fillers_BL = KEYS * VALUES + KEYS + drawn(FILLERS, rows, length)
    question_B1 = KEYS * VALUES + keys_BI.gather(1, asked_B[:, None])
    inputs_BT = torch.cat([keys_BI * VALUES + values_BI, fillers_BL, question_B1], 1)
    targets_BT = torch.full_like(inputs_BT, IGNORED)
    targets_BT[:, -1] = values_BI.gather(1, asked_B[:, None])[:, 0]
    return Batch(inputs_BT.flatten(), targets_BT.flatten(), [inputs_BT.shape[1]] * rows)


# ---- what it comes to


def _rows(
    caches: list[Cache], folded: dict[str, float], recalled: dict[str, list[float]], gaps: list[int]
) -> list[list[Cell]]:
    latent = caches[0].bytes
    rows: list[list[Cell]] = [[f"cache: {c.name}", c.bytes, "bytes a token", latent / c.bytes] for c in caches]
    rows += [[f"folded: {name}", off, "of the largest score", None] for name, off in folded.items()]
    for name, shares in recalled.items():
        rows += [[f"recall with {name}, gap {g}", share, "share", None] for g, share in zip(gaps, shares, strict=True)]
    return rows


def _checks(caches: list[Cache], folded: dict[str, float]) -> list[Check]:
    latent, one, eight, every = (c.bytes for c in caches)
    exact = max(off for name, off in folded.items() if name != "the whole key rotated")
    wrong = folded["the whole key rotated"]
    return [
        check(
            latent == 70_272 and round(latent / one, 2) == 2.25 and round(eight / latent, 2) == 3.56,
            f"counted: {latent:,} bytes a token, {latent / one:.2f} times one head, 1/{eight / latent:.2f} of 8 shared "
            f"heads, 1/{every / latent:.1f} of all {HEADS}",
            f"按计数：每词元 {latent:,} 字节，是单头的 {latent / one:.2f} 倍、8 个共享头的 1/{eight / latent:.2f}、"
            f"全部 {HEADS} 头的 1/{every / latent:.1f}",
        ),
        check(
            exact < EXACT and wrong > WRONG,
            f"folding is exact (to {exact:.0e}) without rotation, with a rotated part apart and with ALiBi, and wrong "
            f"(by {wrong:.0%}) where the whole key is rotated",
            f"无旋转、旋转部分单独存放、或用 ALiBi 时折叠精确（相差 {exact:.0e}）；"
            f"整个键都旋转时错误（相差 {wrong:.0%}）",
        ),
    ]


def _verdict(caches: list[Cache], folded: dict[str, float], recalled: dict[str, list[float]], gaps: list[int]) -> Words:
    latent, every = caches[0], caches[-1]
    ends = {name: (shares[0], shares[-1]) for name, shares in recalled.items()}
    said = "; ".join(f"{name} {near:.0%} and {far:.0%}" for name, (near, far) in ends.items())
    zh = "；".join(f"{name} {near:.0%} 与 {far:.0%}" for name, (near, far) in ends.items())
    return both(
        f"One latent of {latent.numbers} numbers serves all heads: {latent.bytes:,} bytes a token where full heads "
        f"would take {every.bytes:,}. The compression acts on the width; as many positions are kept as before. Folding "
        "needs that nothing depending on the position stands between query and up-projection, so a rotated part is "
        f"kept apart. ALiBi would fold as well; recalled at a gap of {gaps[0]} and of {gaps[-1]} tokens after training "
        f"up to {gaps[0]}: {said}.",
        f"所有头共用一个 {latent.numbers} 维潜在向量：每词元 {latent.bytes:,} 字节，而完整的头要 {every.bytes:,} 字节。"
        "压缩的是宽度，缓存的位置数不变。折叠要求查询与升维矩阵之间没有随位置变化的运算，所以旋转部分单独存放。"
        f"ALiBi 也能折叠；训练间隔至多 {gaps[0]}，在间隔 {gaps[0]} 与 {gaps[-1]} 处的回忆率：{zh}。",
    )
