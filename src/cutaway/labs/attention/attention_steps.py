"""Attention on three tokens, every number of it (Vaswani et al. 2017, arXiv:1706.03762).

Each query is compared with each key it may see, the scores are scaled, softmax makes weights of them, and the
weights mix the values. The table is computed with Python's own arithmetic, one number at a time; the checks then
hold the package's attention against PyTorch's, values and gradients, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.labs.evidence import Axis, Cell, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.nn.attention import AttentionSpec, Question, attend, attention_weights

Vectors = list[tuple[float, float]]

TOKENS = ("a", "cat", "sleeps")
QUERIES: Vectors = [(1.0, 0.0), (1.0, 2.0), (1.0, 1.0)]
KEYS: Vectors = [(0.0, 1.0), (2.0, 1.0), (1.0, -1.0)]
VALUES: Vectors = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0)]

CASES = [
    AttentionSpec(heads=heads, kv_heads=kv_heads, head_dim=6, scale=6**-0.5, causal=causal, window=window)
    for heads, kv_heads in ((1, 1), (4, 4), (6, 2), (4, 1))
    for causal, window in ((True, None), (False, None), (True, 3))
]
LENGTHS = ((5, 5), (2, 7), (1, 4))  # queries, keys

COLUMNS = {
    "query of": "",
    "key of": "",
    "q · k": "",
    "÷ √d": "",
    "exp": "",
    "weight": "",
    "weight · v₁": "",
    "weight · v₂": "",
}


@lab(
    "attention-steps",
    title=both("Attention, one number at a time", "逐个数字看注意力"),
    question=both(
        "How does attention decide how much one token matters to another, step by step?",
        "注意力怎样一步步算出一个词元对另一个有多重要？",
    ),
    seconds={"quick": 1, "full": 1},
)
def attention_steps(
    run: Run,
    *,
    causal: Annotated[bool, Knob("a token sees itself and what came before", "词元只看自己和之前的词元")] = True,
    scaled: Annotated[bool, Knob("scores are divided by √d", "分数除以 √d")] = True,
) -> Finding:
    scale = 2**-0.5 if scaled else 1.0
    rows = [steps(i, range(i + 1 if causal else len(KEYS)), scale) for i in range(len(QUERIES))]
    weights = [[float(row[5] or 0) for row in part[:-1]] for part in rows]
    off = max(abs(a - b) for a, b in zip(flat(rows), written_out(causal, scale), strict=True))
    apart = max(differences(run))
    return Finding(
        table=table(COLUMNS, (row for part in rows for row in part)),
        plot=Plot(
            kind="bar",
            x=Axis(label="key of"),
            y=Axis(label="weight"),
            series=[
                Series(name=f"query of “{token}”", x=list(TOKENS), y=w + [0.0] * (len(TOKENS) - len(w)))
                for token, w in zip(TOKENS, weights, strict=True)
            ],
        ),
        verdict=_verdict(rows, weights),
        checks=[
            check(
                off < 1e-12,
                f"the package's attention gives the table (to {off:.0e})",
                f"本包的注意力得出同一张表（相差 {off:.0e}）",
            ),
            check(
                apart < 1e-12,
                f"it equals PyTorch's, values and gradients, in {len(CASES) * len(LENGTHS)} settings of "
                f"heads, masks and lengths (to {apart:.0e})",
                f"在 {len(CASES) * len(LENGTHS)} 种头数、掩码与长度下，值与梯度都与 PyTorch 一致（相差 {apart:.0e}）",
            ),
        ],
    )


def steps(i: int, seen: range, scale: float) -> list[list[Cell]]:
    """One query against the keys it sees, a row each, and the sum of what it takes from their values."""
    scores = [sum(q * k for q, k in zip(QUERIES[i], KEYS[j], strict=True)) for j in seen]
    powers = [math.exp(score * scale) for score in scores]
    weights = [power / sum(powers) for power in powers]
    taken = [[w * v for v in VALUES[j]] for w, j in zip(weights, seen, strict=True)]
    rows: list[list[Cell]] = [
        [TOKENS[i], TOKENS[j], scores[j], scores[j] * scale, powers[j], weights[j], *taken[j]] for j in seen
    ]
    first, second = (sum(column) for column in zip(*taken, strict=True))
    return [*rows, [TOKENS[i], "sum", None, None, sum(powers), sum(weights), first, second]]


def flat(rows: list[list[list[Cell]]]) -> list[float]:
    """The outputs in the table: the last two cells of each query's last row."""
    return [float(cell or 0) for part in rows for cell in part[-1][-2:]]


def written_out(causal: bool, scale: float) -> list[float]:
    """The same outputs by `cutaway.nn.attention`."""
    q_HQK, k_GSK, v_GSK = (torch.tensor(x, dtype=torch.float64)[None] for x in (QUERIES, KEYS, VALUES))
    return (attention_weights(q_HQK, k_GSK, Question(scale, causal)) @ v_GSK).flatten().tolist()


def differences(run: Run) -> Iterator[float]:
    """Largest distances from PyTorch's attention, of outputs and of the gradients at q, k and v."""
    generator = run.generator()
    for spec in run.each(CASES, "against PyTorch"):
        for queries, keys in LENGTHS:
            inputs = [
                torch.randn(1, heads, n, spec.head_dim, generator=generator, dtype=torch.float64, requires_grad=True)
                for heads, n in ((spec.heads, queries), (spec.kv_heads, keys), (spec.kv_heads, keys))
            ]
            upstream = torch.randn(1, spec.heads, queries, spec.head_dim, generator=generator, dtype=torch.float64)
            wanted, kernel, spelled = (with_gradients(way(*inputs, spec), inputs, upstream) for way in WAYS)
            yield from (
                float((a - b).abs().max()) for found in (kernel, spelled) for a, b in zip(found, wanted, strict=True)
            )


def reference(q_BHQK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, spec: AttentionSpec) -> Tensor:
    """PyTorch's kernel, told about masks and groups in its own terms: repeated heads, a mask made by loops."""
    queries, keys, group = q_BHQK.shape[2], k_BGSK.shape[2], spec.heads // spec.kv_heads
    mask_QS = torch.tensor([[sees(i + keys - queries, j, spec) for j in range(keys)] for i in range(queries)])
    k_BHSK, v_BHSK = (x.repeat_interleave(group, 1) for x in (k_BGSK, v_BGSK))
    return F.scaled_dot_product_attention(q_BHQK, k_BHSK, v_BHSK, mask_QS, scale=spec.scale)


def sees(query: int, key: int, spec: AttentionSpec) -> bool:
    """Whether a query at one position may look at a key at another."""
    near = spec.window is None or abs(query - key) < spec.window
    return near and (key <= query or not spec.causal)


def spelled_out(q_BHQK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, spec: AttentionSpec) -> Tensor:
    """`attention_weights`, then the mix of the values, for one sequence."""
    weights_BHQS = attention_weights(q_BHQK, k_BGSK, question_of(spec))
    return weights_BHQS @ v_BGSK.repeat_interleave(spec.heads // spec.kv_heads, 1)


def fused(q_BHQK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, spec: AttentionSpec) -> Tensor:
    """`attend`, which layers use."""
    return attend(q_BHQK, k_BGSK, v_BGSK, question_of(spec))


def question_of(spec: AttentionSpec) -> Question:
    """What a layer with this spec asks."""
    return Question(spec.scale, spec.causal, spec.window)


WAYS: tuple[Callable[..., Tensor], ...] = (reference, fused, spelled_out)


def with_gradients(out: Tensor, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output, and the gradients at the inputs."""
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def _verdict(rows: list[list[list[Cell]]], weights: list[list[float]]) -> Words:
    shares = " / ".join(f"{w:.4f}" for w in weights[-1])
    first, second = flat(rows)[-2:]
    last = TOKENS[-1]
    return both(
        f"The query of “{last}” gives its keys the weights {shares}; mixed in these shares the values are "
        f"({first:.4f}, {second:.4f}). A weight is the exponential of a scaled score divided by the sum "
        "over the keys that are seen, so only differences between scores matter.",
        f"“{last}”的查询给各键的权重为 {shares}；按此比例混合各值得到 ({first:.4f}, {second:.4f})。权重是缩"
        "放后分数的指数除以所有可见键的指数之和，因此只有分数之差起作用。",
    )
