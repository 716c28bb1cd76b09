"""Where a model's parameters are, matrix by matrix, and that nothing is missing from the sum.

Three counts are held against each other: formulas of the architecture alone (`cutaway.models.cost`), the
tensors of the loaded model, and the shapes that the checkpoint's file declares. The formulas are then asked for
two models of published size (Grattafiori et al. 2024, "The Llama 3 Herd of Models", arXiv:2407.21783).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Annotated, Any

from cutaway.labs.evidence import Axis, Cell, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, subject
from cutaway.models.cost import Cost
from cutaway.models.families import llama
from cutaway.models.families.table import spec_of
from cutaway.models.parts import Part
from cutaway.models.spec import Spec
from cutaway.weights.checkpoint import Checkpoint

LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
PUBLISHED = {
    "Llama-3-8B": (8_030_261_248, (4096, 14336, 32, 32)),
    "Llama-3-70B": (70_553_706_496, (8192, 28672, 80, 64)),
}
"""What the published checkpoints hold, and their `SIZES`."""

IN_CHINESE = {
    "embedding": "词嵌入",
    "attention": "注意力",
    "feed-forward": "前馈层",
    "norms": "归一化",
    "head": "输出头",
    "other": "其他",
}


@lab(
    "where-parameters",
    title=both("Where the parameters are", "参数都在哪里"),
    question=both(
        "Can every weight matrix of a real model be listed so that the total comes out exact?",
        "能否逐个列出真实模型的每个权重矩阵，并让总数分毫不差？",
    ),
    seconds={"quick": 2, "full": 2},
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
    published = {name: Cost(_llama3(sizes)).parameters for name, (_, sizes) in PUBLISHED.items()}
    exact = f"{cost.parameters:,}", f"{held:,}", f"{stored:,}"
    return Finding(
        table=_table(cost, loaded.checkpoint),
        plot=_plot(loaded.name, by_group(cost)),
        verdict=_verdict(loaded.model.spec, by_group(cost)),
        checks=[
            check(
                cost.parameters == held == stored,
                "formulas {} = tensors {} = file {}".format(*exact),
                "公式 {} = 张量 {} = 文件 {}".format(*exact),
            ),
            *(
                check(
                    n == PUBLISHED[name][0],
                    f"the same formulas give {n:,} for {name}",
                    f"同一套公式算得 {name} 为 {n:,}",
                )
                for name, n in published.items()
            ),
        ],
    )


def in_file(checkpoint: Checkpoint) -> int:
    """Numbers in the tensors that the model is made from, by the shapes the file declares."""
    names = {name for binding in checkpoint.bindings.values() for name in binding.theirs}
    return sum(math.prod(checkpoint.shapes[name]) for name in names)


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
    names = ("module", "each", "count", "parameters", "share", "part", "stored as")
    return table(
        dict.fromkeys(names, "") | {"share": "%"},
        (_row(name, like, cost.parameters, checkpoint) for name, like in kinds.items()),
    )


def _row(name: str, like: list[Part], total: int, checkpoint: Checkpoint) -> list[Cell]:
    numbers = sum(part.parameters for part in like)
    types = Counter(checkpoint.stored_type(f"{part.module}.weight") for part in like)
    each = " × ".join(str(size) for size in like[0].sizes) + (f" + {like[0].bias}" if like[0].bias else "")
    return [name, each, len(like), numbers, 100 * numbers / total, group(like[0]), ", ".join(types)]


def _llama3(sizes: tuple[int, ...]) -> Spec:
    return spec_of(llama.FAMILY, LLAMA3 | dict(zip(SIZES, sizes, strict=True)))


def _plot(name: str, groups: dict[str, int]) -> Plot:
    series = Series(name=name, x=list(groups), y=[float(n) for n in groups.values()])
    return Plot(kind="bar", x=Axis(label="part"), y=Axis(label="parameters"), series=[series])


def _verdict(spec: Spec, groups: dict[str, int]) -> Words:
    total, own = sum(groups.values()), spec.vocab * spec.width
    en = ", ".join(f"{name} {n:,} ({n / total:.2%})" for name, n in groups.items())
    zh = "，".join(f"{IN_CHINESE[name]} {n:,}（{n / total:.2%}）" for name, n in groups.items())
    en, zh = f"{total:,} parameters: {en}.", f"共 {total:,} 个参数：{zh}。"
    if spec.head and spec.head.tied:
        en += (
            " The head is the embedding used the other way round; a head of its own would add "
            f"{own:,} ({own / total:.2%}), {total + own:,} in all."
        )
        zh += f"输出头与词嵌入共用一张表；若各用一张，要多 {own:,} 个（{own / total:.2%}），共 {total + own:,} 个。"
    return both(en, zh)
