"""What a large language model is, in one run: every tensor between a string and the next token.

The run is `cutaway.inside.trace`; here it is a table, and what it shows is checked against other ways to the same
numbers: the cost model, which knows only the architecture, and the engine, which computes with a cache.
"""

from __future__ import annotations

import math
from typing import Annotated

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.inside.trace import Journey, Step, follow
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Table, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder, subject
from cutaway.weights.checkpoint import Loaded


@lab(
    "one-run",
    title=both("A language model in one run", "一次前向看懂大模型"),
    question=both(
        "What is a large language model, in one run I can inspect from string to sampled token?",
        "大语言模型到底是什么？能不能用一次可检查的运行，从字符串一直看到采样出的词元？",
    ),
    seconds={"quick": 2, "full": 2},
)
def one_run(
    run: Run,
    *,
    prompt: Annotated[str, Knob("the text it reads", "读入的文本")] = "The capital of France is",
    temperature: Annotated[float, Knob("of the draw; 0 takes the best", "采样温度，0 取最大", min=0, max=10)] = 1.0,
    model: Annotated[str, Knob("the model", "模型")] = MODEL,
) -> Finding:
    loaded, params = subject(model), SamplingParams(temperature=temperature, seed=run.seed, max_tokens=1)
    journey = follow(loaded, prompt, params)
    return Finding(
        table=_table(journey),
        plot=_plot(journey),
        verdict=_verdict(journey),
        checks=_checks(loaded, journey, params),
    )


def shown(journey: Journey) -> list[Step]:
    """The steps outside blocks, and those of the first and the last block."""
    blocks = [step.name for step in journey.steps if step.name.startswith("layers.")]
    ends = {".".join(name.split(".")[:2]) for name in (blocks[0], blocks[-1])}
    return [s for s in journey.steps if not s.name.startswith("layers.") or ".".join(s.name.split(".")[:2]) in ends]


def _table(journey: Journey) -> Table:
    columns = {"step": "", "what": "", "shape": "", "size": "", "unit": "", "parameters": "", "rms": "", "first": ""}
    count = len(journey.ids)
    rows: list[list[Cell]] = [
        ["text", journey.text, "", len(journey.text), "characters", None, None, None],
        ["bytes", " ".join(f"{b:02x}" for b in journey.bytes), "", len(journey.bytes), "bytes", None, None, None],
        [
            "tokens",
            " ".join(f"{t}={i}" for t, i in zip(journey.tokens, journey.ids, strict=True)),
            f"{count}",
            count,
            "ids",
            None,
            None,
            None,
        ],
    ]
    for s in shown(journey):
        rows.append([s.name, s.axes, "×".join(map(str, s.shape)), s.bytes, "bytes", s.parameters, s.rms, s.first[0]])
    said = ", ".join(f"{g.token} {g.probability:.3f}" for g in journey.best)
    rows.append(["best", said, "", journey.best[0].probability, "probability", None, None, None])
    rows.append(["drawn", journey.choice.token, "", journey.choice.probability, "probability", None, None, None])
    rows += [[f"word: {t.name}", t.en, t.at, t.value, t.unit, None, None, None] for t in journey.glossary]
    return table(columns, rows)


def _plot(journey: Journey) -> Plot:
    blocks = [s for s in journey.steps if s.name.count(".") == 1 and s.name.startswith("layers.")]
    series = Series(name="residual stream", x=[float(i + 1) for i in range(len(blocks))], y=[s.rms for s in blocks])
    return Plot(
        kind="line", x=Axis(label="blocks passed"), y=Axis(label="rms of the vectors", log=True), series=[series]
    )


def _checks(loaded: Loaded, journey: Journey, params: SamplingParams) -> list[Check]:
    model = decoder(loaded)
    event = next(iter(Engine(model, loaded.tokenizer).generate(journey.ids, params)))
    apart = abs(event.choice.logprob - math.log(journey.choice.probability))
    held, counted = sum(p.numel() for p in model.parameters()), model.cost.parameters
    text = loaded.tokenizer.decode(journey.ids)
    words = {term.name: term.value for term in journey.glossary}
    return [
        check(
            text == journey.text and bytes(journey.bytes).decode() == text,
            "bytes and ids spell the text again",
            "由字节和编号都能还原文本",
        ),
        check(
            held == counted == words["parameter"],
            f"the tensors hold the {counted:,} parameters that the architecture's formulas give",
            f"张量里的参数正是按结构公式算出的 {counted:,} 个",
        ),
        check(
            event.choice.token == journey.choice.id and apart < 1e-3,
            f"the engine, with its cache, draws the same token (log-probabilities {apart:.0e} apart)",
            f"带缓存的引擎抽到同一个词元（对数概率相差 {apart:.0e}）",
        ),
        check(
            words["training"] > 0,
            f"one small step against the gradient lowers the loss by {words['training']:.3f} nats",
            f"沿梯度反方向走一小步，损失降低 {words['training']:.3f} 奈特",
        ),
    ]


def _verdict(journey: Journey) -> Words:
    words = {term.name: term.value for term in journey.glossary}
    tokens, steps = len(journey.ids), len(journey.steps)
    best, choice = journey.best[0], journey.choice
    passing = sum(step.bytes for step in journey.steps)
    return both(
        f"{len(journey.bytes)} bytes become {tokens} tokens; {words['layer']:.0f} blocks turn them into "
        f"{words['logit']:,.0f} scores for what comes next, by way of {steps} tensors of {passing:,} bytes and "
        f"{words['inference'] / 1e9:.2f} GFLOP. The best is {best.token} ({best.probability:.3f}), drawn was "
        f"{choice.token} ({choice.probability:.3f}). All of it is fixed by {words['parameter']:,.0f} numbers. On the "
        f"text itself the loss is {journey.loss:.3f} nats per token, a perplexity of {words['perplexity']:.1f}; at "
        f"most {words['context']:,.0f} tokens fit.",
        f"{len(journey.bytes)} 个字节变成 {tokens} 个词元；{words['layer']:.0f} 层把它们变成对下一词元的 "
        f"{words['logit']:,.0f} 个分数，途经 {steps} 个张量、共 {passing:,} 字节，计算量 "
        f"{words['inference'] / 1e9:.2f} GFLOP。得分最高的是 {best.token}（{best.probability:.3f}），抽到的是 "
        f"{choice.token}（{choice.probability:.3f}）。这一切都由 {words['parameter']:,.0f} 个数决定。文本自身的损失为"
        f"每词元 {journey.loss:.3f} 奈特，困惑度 {words['perplexity']:.1f}；最多容纳 {words['context']:,.0f} 个词元。",
    )
