"""A map of published models, from their configurations: what they are for, how large, what limits them on a chip.

Counts are those of `cutaway.budget`; what limits a model is found on the roofline (`cutaway.budget.roofline`) for a
step that adds a token to each of several sequences, in an encoder for reading them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from cutaway.budget.chips import CHIPS
from cutaway.budget.counting import parameters
from cutaway.budget.figures import named
from cutaway.budget.published import PUBLISHED, Published
from cutaway.budget.roofline import step
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.models.cost import Cost
from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.experts import ExpertsSpec
from cutaway.nn.latent import LatentSpec

OBJECTIVES = {
    "bert": "masked words, next sentence",
    "roberta": "masked words",
    "albert": "masked words, order of sentences",
    "deberta": "which words were replaced",
    "t5": "missing spans, tasks as text",
}
LIMITS = {
    "compute": "attention-cost",
    "weights": "where-parameters",
    "experts' weights": "experts-counted",
    "cache": "kv-cache",
}
"""What can limit a step, and the lab that shows it."""

CHOICES: dict[str, Callable[[Spec], bool]] = {
    "keys and values shared by heads": lambda s: any(
        isinstance(x.attention, AttentionSpec) and x.attention.kv_heads < x.attention.heads for x in s.layers
    ),
    "windows": lambda s: any(x.attention.window for x in s.layers),
    "a head of its own": lambda s: s.head is not None and not s.head.tied,
    "experts": lambda s: any(isinstance(x.ffn, ExpertsSpec) for x in s.layers),
    "an expert for all tokens": lambda s: any(isinstance(x.ffn, ExpertsSpec) and x.ffn.shared for x in s.layers),
    "latent attention": lambda s: any(isinstance(x.attention, LatentSpec) for x in s.layers),
    "blocks ahead": lambda s: bool(s.ahead),
}
KINDS = {
    "text to vectors": "文本到向量",
    "text to text, by way of an encoder": "经编码器的文本到文本",
    "text to its continuation": "文本续写",
}
IN_CHINESE = KINDS | {
    "compute": "计算",
    "weights": "权重读取",
    "experts' weights": "专家权重读取",
    "cache": "缓存读取",
    "keys and values shared by heads": "多头共享键值",
    "windows": "滑动窗口",
    "a head of its own": "独立输出头",
    "experts": "专家",
    "an expert for all tokens": "共享专家",
    "latent attention": "潜在注意力",
    "blocks ahead": "多词元预测",
}

COLUMNS = {
    "model": "",
    "from and to": "",
    "learns from": "",
    "layers": "",
    "parameters": "billion",
    "told": "billion",
    "told / counted": "",
    "active per token": "billion",
    "active share": "%",
    "KV per token": "KiB",
    "limited by": "",
    "shown by": "lab",
}


class Place(NamedTuple):
    """A model's place on the map. parameters, active: numbers. kv: bytes a token."""

    name: str
    spec: Spec
    parameters: float
    told: float
    active: float
    share: float
    kv: int
    limit: str

    @property
    def off(self) -> float:
        return abs(self.told * 1e9 / self.parameters - 1)


@lab(
    "model-map",
    title=both("A map of foundation models", "基础模型地图"),
    question=both(
        "What kinds of foundation models exist, how do the named ones compare, and which choices appear only at giant "
        "size?",
        "基础模型有哪些种类，知名模型怎样比较，哪些设计只在巨大规模上出现？",
    ),
    seconds={"quick": 2, "full": 2},
)
def model_map(
    run: Run,
    *,
    chip: Annotated[
        Literal["a100-80gb", "h100-sxm", "h200", "b200", "mi300x", "l4", "rtx-4090"],
        Knob("whose speed decides what limits", "以哪种芯片的速度判断瓶颈"),
    ] = "h100-sxm",
    batch: Annotated[int, Knob("sequences at once", "同时处理的序列数", min=1, max=10**6)] = 32,
    context: Annotated[int, Knob("tokens in each", "每条序列的词元数", min=1, max=10**7)] = 8192,
) -> Finding:
    places = [place(name, PUBLISHED[name], chip, batch, context) for name in run.each(PUBLISHED, "counting")]
    return Finding(
        table=table(COLUMNS, map(_row, places)),
        plot=_plot(places),
        verdict=_verdict(places, chip, batch, context),
        checks=_checks(places),
    )


def place(name: str, published: Published, chip: str, batch: int, context: int) -> Place:
    """Counted, and limited by what takes longest on the chip."""
    spec = published.spec
    cost = Cost(spec)
    counted = named(parameters(cost))
    active = counted.get("active, with the input table", counted["active per token"])
    kv = cost.kv_bytes_per_token("bfloat16").value
    return Place(
        name, spec, counted["parameters"], published.said[0], active, counted["active share"], kv,
        limit(cost, chip, batch, context),
    )  # fmt: skip


def limit(cost: Cost, chip: str, batch: int, context: int) -> str:
    """A key of `LIMITS`. An encoder reads all tokens at once, at most as many as it has positions for."""
    if cost.spec.pooling:
        tokens = batch * min(context, cost.spec.context)
        computing = batch * cost.flops(min(context, cost.spec.context)) / CHIPS[chip].rate("bfloat16")
        return "compute" if computing > 2 * cost.read(tokens) / CHIPS[chip].bandwidth else "weights"
    found = step(cost, CHIPS[chip], "bfloat16", batch, min(context, cost.spec.context)).bottleneck
    sparse = any(part.active < 1 for part in cost.parts)
    return "experts' weights" if found == "weights" and sparse else found


def kind(spec: Spec) -> str:
    """What goes in and what comes out, a key of `KINDS`."""
    if spec.pooling:
        return "text to vectors"
    return "text to text, by way of an encoder" if spec.encoder else "text to its continuation"


def first_at(places: list[Place], has: Callable[[Spec], bool]) -> Place | None:
    """The smallest model that has it."""
    return min((p for p in places if has(p.spec)), key=lambda p: p.parameters, default=None)


def _row(p: Place) -> list[Cell]:
    objective = OBJECTIVES.get(p.spec.family, "the next token" + (", and the one after" if p.spec.ahead else ""))
    counts = p.parameters / 1e9, p.told, p.told * 1e9 / p.parameters, p.active / 1e9, p.share, p.kv / 1024
    return [p.name, kind(p.spec), objective, len(p.spec.layers), *counts, p.limit, LIMITS[p.limit]]


def _plot(places: list[Place]) -> Plot:
    decoders = [p for p in places if p.kv]
    return Plot(
        kind="scatter",
        x=Axis(label="parameters, billion", log=True),
        y=Axis(label="KV per token, KiB", log=True),
        series=[
            Series(name=name, x=[p.parameters / 1e9 for p in few], y=[p.kv / 1024 for p in few])
            for name, few in (
                ("every weight used by every token", [p for p in decoders if p.share > 50]),
                ("experts", [p for p in decoders if p.share <= 50]),
            )
        ],
    )


def _checks(places: list[Place]) -> list[Check]:
    close = [p for p in places if p.off < 0.01]
    others = ", ".join(f"{p.name} ({p.off:.1%})" for p in places if p.off >= 0.01) or "none"
    by_name = {p.name: p for p in places}
    four = [by_name[name] for name in ("gpt-3", "llama-3-70b", "deepseek-v3", "gpt-oss-120b")]
    kv, shares = [round(p.kv / 1024, 1) for p in four], [round(p.share, 1) for p in four]
    return [
        check(
            len(close) >= 12,
            f"{len(close)} of {len(places)} models hold what their makers say within 1 %; further off: {others}",
            f"{len(places)} 个模型中有 {len(close)} 个与公布值相差不到 1%；其余：{others}",
        ),
        check(
            kv == [4608, 320, 68.6, 72] and shares == [100, 100, 5.6, 4.9],
            f"GPT-3, Llama-3-70B, DeepSeek-V3, gpt-oss-120b: {kv} KiB a token, {shares} % active",
            f"GPT-3、Llama-3-70B、DeepSeek-V3、gpt-oss-120b：每词元 {kv} KiB，激活 {shares} %",
        ),
    ]


def _verdict(places: list[Place], chip: str, batch: int, context: int) -> Words:
    firsts = [(name, first) for name, has in CHOICES.items() if (first := first_at(places, has))]
    en = ", ".join(f"{name} from {first.parameters / 1e9:,.2f} ({first.name})" for name, first in firsts)
    zh = "，".join(f"{IN_CHINESE[name]} {first.parameters / 1e9:,.2f}（{first.name}）" for name, first in firsts)
    kinds = {what: sum(kind(p.spec) == what for p in places) for what in KINDS}
    limits = {what: n for what in LIMITS if (n := sum(p.limit == what for p in places))}
    return both(
        f"{len(places)} models of text: {', '.join(f'{n} from {what}' for what, n in kinds.items())}. Smallest model "
        f"here, in billions of parameters, with a choice: {en}. For {batch} sequences of up to {context:,} tokens on "
        f"{chip}, {', '.join(f'{n} are limited by {what}' for what, n in limits.items())}.",
        f"共 {len(places)} 个文本模型：{'，'.join(f'{IN_CHINESE[what]} {n} 个' for what, n in kinds.items())}。"
        f"各项设计出现的最小规模（十亿参数）：{zh}。在 {chip} 上同时处理 {batch} 条、每条至多 {context:,} 个词元时："
        f"{'，'.join(f'{n} 个受限于{IN_CHINESE[what]}' for what, n in limits.items())}。",
    )
