"""Where a model's parameters are, matrix by matrix, and that nothing is missing from the sum.

Three counts are held against each other: formulas of the architecture alone (`cutaway.models.cost`), the tensors of
the loaded model, and the shapes that the checkpoint's file declares. The formulas are then asked for two models whose
published size is known (Grattafiori et al. 2024, "The Llama 3 Herd of Models", arXiv:2407.21783).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Annotated

from cutaway.labs.evidence import Axis, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.lab import Knob, Run, lab
from cutaway.labs.subject import MODEL, subject
from cutaway.models.cost import Cost
from cutaway.models.families import llama
from cutaway.models.families.table import spec_of
from cutaway.models.parts import Part
from cutaway.models.spec import Spec
from cutaway.weights.checkpoint import Checkpoint

LLAMA3 = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
LLAMA3 |= {"rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False}
PUBLISHED = {
    "Llama-3-8B": (
        8_030_261_248,
        dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32),
    ),
    "Llama-3-70B": (
        70_553_706_496,
        dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64),
    ),
}
"""What the published checkpoints hold, and the shapes of which they are made."""


@lab(
    "where-parameters",
    title=both("Where the parameters are", "参数都在哪里"),
    question=both("Can every weight matrix of a real model be listed so that the total comes out exact?", "能否逐个列出真实模型的每个权重矩阵，并让总数分毫不差？"),
    seconds={"quick": 5, "full": 5},
)
def where_parameters(
    run: Run,
    *,
    model: Annotated[str, Knob("the model to take apart", "要拆开清点的模型")] = MODEL,
) -> Finding:
    loaded = subject(model)
    cost = Cost(loaded.model.spec)
    held = sum(tensor.numel() for tensor in loaded.model.parameters())
    stored = in_file(loaded.checkpoint)
    published = {name: Cost(_llama3(shape)).parameters for name, (_, shape) in PUBLISHED.items()}
    groups = by_group(cost)
    untied = cost.parameters + loaded.model.spec.vocab * loaded.model.spec.width
    return Finding(
        table=_table(cost, loaded.checkpoint),
        plot=Plot(
            kind="bar",
            x=Axis(label="part"),
            y=Axis(label="parameters"),
            series=[Series(name=loaded.name, x=list(groups), y=[float(n) for n in groups.values()])],
        ),
        verdict=_verdict(groups, untied if loaded.model.spec.head and loaded.model.spec.head.tied else None),
        checks=[
            check(cost.parameters == held == stored, f"formulas {cost.parameters:,} = tensors {held:,} = file {stored:,}", f"公式 {cost.parameters:,} = 张量 {held:,} = 文件 {stored:,}"),
            *(
                check(n == PUBLISHED[name][0], f"the same formulas give {n:,} for {name}", f"同一套公式算得 {name} 为 {n:,}")
                for name, n in published.items()
            ),
        ],
    )


def in_file(checkpoint: Checkpoint) -> int:
    """Numbers in the tensors that the model is made from, by the shapes the file declares."""
    return sum(
        math.prod(checkpoint.shapes[name]) for name in {row.theirs for row in checkpoint.bindings.values()}
    )


def by_group(cost: Cost) -> dict[str, int]:
    """Parameters of embedding, attention, feed-forward, norms and an untied head; they sum to all."""
    groups: dict[str, int] = defaultdict(int)
    for part in cost.parts:
        groups[group(part)] += part.parameters
    return dict(sorted(groups.items(), key=lambda item: -item[1]))


def group(part: Part) -> str:
    """Which of the large parts a module belongs to."""
    if part.use == "scale":
        return "norms"
    keys = {"embedding": "embedding", "attention": "attention", "ffn": "feed-forward", "head": "head"}
    return next((name for key, name in keys.items() if key in part.module.split(".")), "other")


def _table(cost: Cost, checkpoint: Checkpoint) -> Table:
    """Like modules of all layers in one row."""
    kinds: dict[str, list[Part]] = defaultdict(list)
    for part in cost.parts:
        kinds[".".join("*" if step.isdigit() else step for step in part.module.split("."))].append(part)
    columns = [
        Column(name=name) for name in ("part", "module", "each", "count", "parameters", "share", "stored as")
    ]
    return Table(
        columns=columns, rows=[_row(name, like, cost.parameters, checkpoint) for name, like in kinds.items()]
    )


def _row(name: str, like: list[Part], total: int, checkpoint: Checkpoint) -> list[Cell]:
    numbers = sum(part.parameters for part in like)
    types = Counter(checkpoint.stored_type(f"{part.module}.weight") for part in like)
    each = " × ".join(str(size) for size in like[0].sizes) + (f" + {like[0].bias}" if like[0].bias else "")
    return [group(like[0]), name, each, len(like), numbers, numbers / total, ", ".join(types)]


def _llama3(shape: dict[str, int]) -> Spec:
    return spec_of(llama.FAMILY, {**LLAMA3, **shape})


def _verdict(groups: dict[str, int], untied: int | None) -> Words:
    total = sum(groups.values())
    shares = [(name, n, n / total) for name, n in groups.items()]
    zh_names = {
        "embedding": "词嵌入",
        "attention": "注意力",
        "feed-forward": "前馈层",
        "norms": "归一化",
        "head": "输出头",
    }
    en = f"{total:,} parameters: " + ", ".join(f"{name} {n:,} ({s:.2%})" for name, n, s in shares) + "."
    zh = (
        f"共 {total:,} 个参数："
        + "，".join(f"{zh_names.get(k, k)} {n:,}（{s:.2%}）" for k, n, s in shares)
        + "。"
    )
    if untied:
        more = untied - total
        en += f" The head is the embedding used the other way round; a head of its own would add {more:,} ({more / total:.1%}), {untied:,} in all."
        zh += (
            f" 输出头与词嵌入共用一张表；若各用一张，要多 {more:,} 个（{more / total:.1%}），共 {untied:,}。"
        )
    return both(en, zh)
