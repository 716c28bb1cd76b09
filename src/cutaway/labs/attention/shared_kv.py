"""Shared keys and values, fewer heads, latents: what each costs in quality, and saves in cache and time.

    9q / 9kv    a key and value head for each query head        Vaswani et al. 2017, arXiv:1706.03762
    9q / 3kv    one for three                                   GQA, Ainslie et al. 2023, arXiv:2305.13245
    9q / 1kv    one for all                                     MQA, Shazeer 2019, arXiv:1911.02150
    3q / 3kv    fewer heads altogether: the cache of 9q / 3kv, and a third of the patterns
    latent      one small vector, unfolded for 9 heads          MLA, DeepSeek-V2 2024, arXiv:2405.04434

What attention saves in parameters the feed-forward layers get, so that all models are of one size. Time is measured on
models of SmolLM2's width, without training: a step of decoding behind a long cache, and a step of training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from cutaway.engine.cache import KVCache, Spans
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.timing import interleaved
from cutaway.labs.training import Batch, Task, fit, fresh, held_out, loss_of, next_bytes, prose, small_spec, with_layers
from cutaway.models.cost import Cost
from cutaway.models.decoder import Decoder
from cutaway.models.spec import MixerSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.latent import LatentSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.positions import RopeSpec

HEADS = 9
NORM = NormSpec("rms", 1e-5)
LENGTH, ROWS, TESTED = 128, 4, 24  # bytes of a training sequence, sequences of a step, batches of held-out text
TIMED = 64  # width of a head in the models that are timed


def plain(heads: int, kv_heads: int) -> Callable[[int], MixerSpec]:
    """Full attention, for a width of one head."""
    return lambda k: AttentionSpec(heads, kv_heads, k, k**-0.5, rope=RopeSpec())


def latent(k: int) -> MixerSpec:
    """Latents of 3 heads' width, and a rotated part of half a head's."""
    return LatentSpec(HEADS, 3 * k, k, k // 2, k, (k + k // 2) ** -0.5, NORM, RopeSpec())


ARMS: dict[str, Callable[[int], MixerSpec]] = {
    "9q / 9kv": plain(9, 9),
    "9q / 3kv": plain(9, 3),
    "9q / 1kv": plain(9, 1),
    "3q / 3kv": plain(3, 3),
    "latent": latent,
}
SHARING = ("9q / 9kv", "9q / 3kv", "9q / 1kv")


class Arm(NamedTuple):
    """One kind of attention. cached: bytes of a token in all layers, 16 bit. losses: by seed, nats per byte.

    read: bytes of the cache that a timed step of decoding reads, 32 bit. decode_ms, train_ms: of timed models.
    flops: of a timed step of training.
    """

    name: str
    parameters: int
    hidden: int
    cached: int
    losses: list[float]
    read: int
    decode_ms: float
    train_ms: float
    flops: int

    @property
    def loss(self) -> float:
        return statistics.mean(self.losses)


@lab(
    "shared-kv",
    title=both("Shared keys and values, or fewer heads", "共享 KV 不等于少用头"),
    question=both(
        "How much quality does each degree of K/V sharing cost, compared with simply having fewer heads?",
        "不同程度的 K/V 共享各损失多少质量？与干脆减少头数相比如何？",
    ),
    seconds={"quick": 5, "full": 175},
)
def shared_kv(
    run: Run,
    *,
    head: Annotated[
        int, Knob("width of a head; nine make the model's", "头的宽度，九个头即模型宽度", min=4, max=64)
    ] = 8,
    layers: Annotated[int, Knob("of the trained models", "训练模型的层数", quick=2, min=1, max=16)] = 4,
    steps: Annotated[int, Knob("training steps", "训练步数", quick=25, min=5, max=10**5)] = 300,
    seeds: Annotated[int, Knob("how many seeds", "随机种子个数", quick=1, min=1, max=16)] = 3,
    past: Annotated[int, Knob("tokens in the timed cache", "计时时缓存的词元数", quick=512, min=1, max=32768)] = 4096,
    timed: Annotated[int, Knob("layers of the timed models", "计时模型的层数", quick=1, min=1, max=30)] = 4,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=5, min=5, max=1001)] = 21,
) -> Finding:
    specs = matched(head, layers)
    losses = {
        name: losses_of(name, spec, steps, range(run.seed, run.seed + seeds), run) for name, spec in specs.items()
    }
    large = {name: alike(mixer, TIMED, timed) for name, mixer in ARMS.items()}
    decoding, training = decode_ms(large, past, repeats), train_ms(large, repeats)
    arms = [
        Arm(
            name,
            Cost(spec).parameters,
            _dense(spec).width,
            Cost(spec).kv_bytes_per_token("bfloat16").value,
            losses[name],
            past * Cost(large[name]).kv_bytes_per_token("float32").value,
            decoding[name],
            training[name],
            step_flops(large[name]),
        )
        for name, spec in specs.items()
    ]
    return Finding(table=_table(arms), plot=_plot(arms), verdict=_verdict(arms, past), checks=_checks(arms, large))


# ---- models of one size


def alike(mixer: Callable[[int], MixerSpec], head: int, layers: int) -> Spec:
    """Nine heads wide, whatever attention makes of it."""
    spec = small_spec(width=HEADS * head, layers=layers, heads=HEADS, context=40_000)
    return with_layers(spec, lambda layer: replace(layer, attention=mixer(head)))


def matched(head: int, layers: int) -> dict[str, Spec]:
    """As many parameters in each: feed-forward layers are as wide as that takes."""
    specs = {name: alike(mixer, head, layers) for name, mixer in ARMS.items()}
    most = max(Cost(spec).parameters for spec in specs.values())
    return {name: _widened(spec, most - Cost(spec).parameters) for name, spec in specs.items()}


def _widened(spec: Spec, parameters: int) -> Spec:
    one = _dense(spec)
    wider = replace(one, width=one.width + round(parameters / (3 * spec.width * len(spec.layers))))
    return with_layers(spec, lambda layer: replace(layer, ffn=wider))


def _dense(spec: Spec) -> FeedForwardSpec:
    ffn = spec.layers[0].ffn
    assert isinstance(ffn, FeedForwardSpec)
    return ffn


def losses_of(name: str, spec: Spec, steps: int, seeds: Sequence[int], run: Run) -> list[float]:
    """Trained on nine tenths of the text, tested on the rest; a seed shows every model the same text."""
    text, losses = prose(), []
    cut = len(text) * 9 // 10
    learned, test = (next_bytes(part, LENGTH, ROWS) for part in (text[:cut], text[cut:]))
    for seed in seeds:
        model = fresh(spec, seed, std=spec.width**-0.5 / 2)
        loss = partial(_loss, model, learned)
        fit(model.parameters(), loss, steps, run, f"training {name}", seed=seed, warmup=min(20, steps // 2))
        losses.append(held_out(model, test, TESTED))
    return losses


def _loss(model: Decoder, task: Task, draws: torch.Generator) -> Tensor:
    return loss_of(model, task(draws))


# ---- time


@torch.inference_mode()
def decode_ms(specs: dict[str, Spec], past: int, repeats: int) -> dict[str, float]:
    """A step of one token behind `past` remembered ones, medians of turns."""
    ways: list[Callable[[], object]] = [partial(_decode, fresh(s, 0), _filled(s, past), past) for s in specs.values()]
    return dict(zip(specs, (1e3 * s for s in interleaved(ways, repeats)), strict=True))


def _filled(spec: Spec, past: int) -> KVCache:
    """A cache that remembers random keys and values, with room for one more."""
    cache = KVCache(spec, torch.float32, torch.device("cpu"), capacity=past + 1)
    for buffers in cache.buffers:
        for buffer in buffers:
            buffer.normal_(generator=torch.Generator().manual_seed(0))
    return cache


def _decode(model: Decoder, cache: KVCache, past: int) -> Tensor:
    return model(torch.tensor([65]), torch.tensor([past]), Spans([(cache, past, 1)]))


def train_ms(specs: dict[str, Spec], repeats: int) -> dict[str, float]:
    """A forward and a backward pass over one sequence, medians of turns."""
    batch = next_bytes(prose(), LENGTH, 1)(torch.Generator().manual_seed(0))
    ways: list[Callable[[], object]] = [partial(_learn, fresh(spec, 0), batch) for spec in specs.values()]
    return dict(zip(specs, (1e3 * s for s in interleaved(ways, repeats)), strict=True))


def _learn(model: Decoder, batch: Batch) -> None:
    loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def step_flops(spec: Spec) -> int:
    """Of what `train_ms` times: forward, and twice that backward."""
    return 3 * Cost(spec).flops(LENGTH, rows=LENGTH)


# ---- what it comes to


def _table(arms: list[Arm]) -> Table:
    columns = {"attention": "", "parameters": "", "feed-forward width": "", "cache": "bytes/token, 16 bit"}
    columns |= {"held-out loss": "nats/byte", "spread": "max - min", "cache read by a step": "MB"}
    columns |= {"decoding": "ms/token", "training step": "ms", "its FLOPs": "GFLOP"}
    return table(columns, map(_row, arms))


def _row(a: Arm) -> list[Cell]:
    spread = max(a.losses) - min(a.losses) if len(a.losses) > 1 else None
    times = [a.read / 1e6, a.decode_ms, a.train_ms, a.flops / 1e9]
    return [a.name, a.parameters, a.hidden, a.cached, a.loss, spread, *times]


def _plot(arms: list[Arm]) -> Plot:
    shared = {int(a.name[-3]): a for a in arms if a.name in SHARING}
    heads = sorted(shared)
    return Plot(
        kind="line",
        x=Axis(label="key/value heads, of nine query heads"),
        y=Axis(label="over nine key/value heads"),
        series=[
            Series(name=shown, x=[float(g) for g in heads], y=[value(shared[g]) / value(shared[HEADS]) for g in heads])
            for shown, value in VIEWS.items()
        ],
    )


VIEWS: dict[str, Callable[[Arm], float]] = {
    "time of a decoded token": lambda a: a.decode_ms,
    "time of a training step": lambda a: a.train_ms,
    "FLOPs of a training step": lambda a: float(a.flops),
    "cache": lambda a: float(a.cached),
}


def _checks(arms: list[Arm], large: dict[str, Spec]) -> list[Check]:
    full, grouped, single, fewer, folded = arms
    sizes = [a.parameters for a in arms]
    apart = max(sizes) / min(sizes) - 1
    learned = [loss for a in arms for loss in a.losses]
    width, layers = large[full.name].width, len(large[full.name].layers)
    saved = 3 * LENGTH * 2 * layers * 2 * width * (HEADS - 1) * TIMED
    return [
        check(
            apart < 0.01,
            f"all models are of one size, {min(sizes):,} parameters, to {apart:.2%}",
            f"各模型大小相同：{min(sizes):,} 个参数，相差 {apart:.2%}",
        ),
        check(
            (full.cached, fewer.cached, full.cached) == (3 * grouped.cached, grouped.cached, 9 * single.cached),
            f"a token leaves {full.cached:,} bytes with 9 key/value heads, {grouped.cached:,} with 3, also with 3 "
            f"heads in all, {single.cached:,} with one, {folded.cached:,} as a latent",
            f"每个词元的缓存：9 个 KV 头 {full.cached:,} 字节，3 个（无论查询头是 9 还是 3）{grouped.cached:,}，1 个 "
            f"{single.cached:,}，潜在向量 {folded.cached:,}",
        ),
        check(
            full.flops - single.flops == saved,
            f"one key/value head saves a training step {saved / full.flops:.1%} of its FLOPs: the projections, and "
            "nothing of the scores",
            f"只用 1 个 KV 头时训练一步只省 {saved / full.flops:.1%} 的计算量：省的是投影，分数部分一点不少",
        ),
        check(
            max(learned) < 4.0,
            f"every model learns: losses {min(learned):.3f} to {max(learned):.3f}",
            f"每个模型都学会了：损失 {min(learned):.3f} 到 {max(learned):.3f}",
        ),
    ]


def _verdict(arms: list[Arm], past: int) -> Words:
    full, _, single, *_ = arms
    ranked = sorted(arms, key=lambda a: a.loss)
    losses = ", ".join(f"{a.name} {a.loss:.3f}" for a in ranked)
    spread = max(max(a.losses) - min(a.losses) for a in arms)
    kept = all(a.loss <= b.loss for a, b in pairwise(arms[:3]))
    decoding = ", ".join(f"{a.name} {a.decode_ms:.2f}" for a in arms)
    train, flops = single.train_ms / full.train_ms, single.flops / full.flops
    return both(
        f"At one size, {full.parameters:,} parameters, held-out losses are, the best first: {losses} nats per byte "
        f"(seeds: {len(full.losses)}; up to {spread:.3f} apart within one kind). That the loss grows with the sharing, "
        f"9/9 <= 9/3 <= 9/1, {'holds' if kept else 'does not hold'} in this run. Behind {past:,} tokens a step of "
        f"decoding takes {decoding} ms on this machine; a training step with one key/value head takes {train:.2f} "
        f"times as long as with nine, for {flops:.2f} times the FLOPs.",
        f"参数量同为 {full.parameters:,} 时，测试损失从好到差为：{losses} 奈特/字节（{len(full.losses)} 个种子，同一种"
        f"内最多相差 {spread:.3f}）。“共享越多损失越大”（9/9 <= 9/3 <= 9/1）在本次运行中"
        f"{'成立' if kept else '不成立'}。缓存 {past:,} 个词元时，解码一步在本机需 {decoding} 毫秒；只用 1 个 KV 头的"
        f"训练步用时是 9 个时的 {train:.2f} 倍，计算量为 {flops:.2f} 倍。",
    )
