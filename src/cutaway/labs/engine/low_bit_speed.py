"""Why few bits per weight speed up writing and hardly reading: how often a weight is used once it has been fetched.

A step that computes one token fetches every weight for one multiplication; a step that computes a prompt of P tokens
uses each P times. The first waits for memory, so that fewer bytes are less waiting; the second multiplies, and numbers
of fewer bits are multiplied no faster unless there is an instruction for them (Williams et al. 2009, "Roofline").
Weights that are expanded to floats before they are used lose what they have gained.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfCheckpoint, OfModel, Source
from cutaway.engine.runner import Native
from cutaway.errors import CutawayError
from cutaway.labs.engine.replay import finish, greedy, prompts
from cutaway.labs.evidence import Axis, Cell, Check, Finding, Plot, Series, Words, both, check, table
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.labs.subject import MODEL, decoder
from cutaway.labs.timing import interleaved
from cutaway.models.spec import Spec
from cutaway.native.packing import GROUP, LANES
from cutaway.native.tape import Kind
from cutaway.weights.checkpoint import Loaded, load
from cutaway.weights.convert import convert

MODULES = {"F32": "float32", "BF16": "bfloat16"}  # the others are written to a file and packed as they lie there
TYPES = ("F32", "BF16", "Q8_0", "Q4_0")
EXPANDED = "expanded first"
BEGUN = 1  # token before a decode that is timed: every step of it computes one


class Work(NamedTuple):
    """Of a step: weights multiplied for each token, those of the head for the last alone; bytes of both."""

    body: int
    head: int
    bytes: int

    def intensity(self, tokens: int) -> float:
        """Multiply-adds per weight fetched, in a step of so many tokens."""
        return (tokens * self.body + self.head) / (self.body + self.head)

    def per_byte(self, tokens: int) -> float:
        """Multiply-adds per byte fetched, in a step of so many tokens."""
        return (tokens * self.body + self.head) / self.bytes


class Arm(NamedTuple):
    """engine: one sequence at a time. work: of its steps."""

    name: str
    engine: Engine
    work: Work


class Measured(NamedTuple):
    """Tokens per second of writing and of reading. whole: how many tokens a step of reading computed."""

    name: str
    work: Work
    decode: float
    prefill: float
    whole: int


@lab(
    "low-bit-speed",
    title=both("What bits per weight do to speed", "低比特权重与速度"),
    question=both(
        "Why do 4-bit weights speed up decoding but hardly help a long prompt?",
        "为什么 4 比特权重能加快解码，却几乎帮不了长提示？",
    ),
    seconds={"quick": 5, "full": 60},
)
def low_bit_speed(
    run: Run,
    *,
    model: Annotated[str, Knob("the model", "模型")] = MODEL,
    types: Annotated[str, Knob("of the weights, with commas", "权重类型，逗号分隔", quick="BF16,Q4_0")] = ",".join(
        TYPES
    ),
    prompt: Annotated[int, Knob("tokens of the long prompt", "长提示词元数", quick=64, min=32, max=4096)] = 1024,
    tokens: Annotated[int, Knob("tokens decoded", "解码词元数", quick=6, min=2, max=512)] = 32,
    repeats: Annotated[int, Knob("timings of each, in turns", "交替计时的次数", quick=1, min=1, max=99)] = 3,
) -> Finding:
    asked = types.split(",")
    if unknown := {*asked} - {*TYPES}:
        raise CutawayError(f"does not know {', '.join(sorted(unknown))}", "knob types", f"known: {', '.join(TYPES)}")
    with tempfile.TemporaryDirectory() as folder:
        files = {type: file_of(model, type, Path(folder)) for type in run.each(asked, "writing weights of type")}
        last = files[asked[-1]]
        arms = [arm(type, Native(*runs(files[type])), files[type], prompt) for type in run.each(asked, "packing")]
        arms.append(expanded(f"{asked[-1]}, {EXPANDED}", last, arms[-1].work, prompt))
        measured = measure(arms, prompts(last, [BEGUN, prompt]), tokens, repeats)
        (seconds,) = interleaved([lambda: expand(last)], 1)
    return Finding(
        table=table(COLUMNS, [_row(m, measured[0], prompt) for m in measured]),
        plot=_plot(measured),
        verdict=_verdict(measured, prompt, seconds),
        checks=_checks(measured, prompt),
    )


def file_of(model: str, type: str, folder: Path) -> Loaded:
    """The model with weights of a type: in memory, or written to a file and opened as it lies there."""
    if type in MODULES:
        return load(model, MODULES[type])
    path = folder / f"{type}.gguf"
    convert(model, path, type=type)
    return load(str(path), "stored")


def runs(loaded: Loaded) -> tuple[Spec, Source]:
    """What the native kernels pack."""
    if loaded.stored:
        return loaded.checkpoint.spec, OfCheckpoint(loaded.checkpoint)
    return loaded.model.spec, OfModel(loaded.model)


def arm(name: str, runner: Native, loaded: Loaded, prompt: int) -> Arm:
    """An engine on native kernels that takes the prompt in one step, and what is counted on its tape."""
    engine = Engine(runner, loaded.tokenizer, context=2 * prompt, budget=prompt, running=1)
    used = [op.matrix.contents for op in runner.graph.tape.ops if op.kind in (Kind.LINEAR, Kind.FEED)]
    head = used[-1].n * used[-1].k
    fetched = sum(-(-m.n // LANES) * (m.k // GROUP) * m.bytes for m in used)
    return Arm(name, engine, Work(sum(m.n * m.k for m in used) - head, head, fetched))


def expanded(name: str, loaded: Loaded, work: Work, prompt: int) -> Arm:
    """The same weights as float32 in PyTorch's modules."""
    engine = Engine(decoder(loaded), loaded.tokenizer, context=2 * prompt, budget=prompt, running=1)
    return Arm(name, engine, work._replace(bytes=4 * (work.body + work.head)))


def expand(loaded: Loaded) -> None:
    """Every matrix to float32, as a step would that keeps none of them."""
    source = OfCheckpoint(loaded.checkpoint)
    for name, parameter in decoder(loaded).named_parameters():
        if parameter.ndim == 2:
            _ = source.matrix(name).numbers


def measure(arms: list[Arm], texts: list[list[int]], tokens: int, repeats: int) -> list[Measured]:
    """Writing and reading, each arm in turn."""
    short, long = texts
    writing = interleaved([partial(answer, a.engine, short, tokens) for a in arms], repeats)
    reading = interleaved([partial(answer, a.engine, long, 1) for a in arms], repeats)
    return [
        Measured(a.name, a.work, tokens / w, len(long) / r, a.engine.steps[-1].spans[0][2])
        for a, w, r in zip(arms, writing, reading, strict=True)
    ]


def answer(engine: Engine, prompt: list[int], tokens: int) -> None:
    """A reply of so many tokens to a prompt of which nothing is kept."""
    engine.add(prompt, greedy(tokens, str(engine.stats.steps)))
    finish(engine)


COLUMNS = {
    "weights": "",
    "fetched": "MB/step",
    "decode": "tokens/s",
    "prefill": "tokens/s",
    "prefill / decode": "",
    "work per byte, decode": "multiply-adds",
    "work per byte, prefill": "multiply-adds",
    "decode, times the first": "",
    "prefill, times the first": "",
}


def _row(m: Measured, first: Measured, prompt: int) -> list[Cell]:
    intensity = m.work.per_byte(1), m.work.per_byte(prompt)
    speeds = m.decode / first.decode, m.prefill / first.prefill
    return [m.name, m.work.bytes / 1e6, m.decode, m.prefill, m.prefill / m.decode, *intensity, *speeds]


def _plot(measured: list[Measured]) -> Plot:
    names, first = [m.name for m in measured], measured[0]
    ways = {
        "fewer bytes": [first.work.bytes / m.work.bytes for m in measured],
        "faster decode": [m.decode / first.decode for m in measured],
        "faster prefill": [m.prefill / first.prefill for m in measured],
    }
    series = [Series(name=name, x=names, y=y) for name, y in ways.items()]
    return Plot(kind="bar", x=Axis(label="weights"), y=Axis(label=f"times {first.name}"), series=series)


def _checks(measured: list[Measured], prompt: int) -> list[Check]:
    stored, work = measured[:-1], measured[0].work
    sizes = [m.work.bytes for m in stored]
    return [
        check(
            work.intensity(1) == 1 and all(m.work[:2] == work[:2] for m in measured),
            f"a step of one token multiplies each of {(work.body + work.head) / 1e6:.1f} million weights once, "
            "whatever their type",
            f"一步一个词元时，{(work.body + work.head) / 1e6:.1f} 百万个权重各乘一次，与类型无关",
        ),
        check(
            work.intensity(prompt) > prompt / 2 and all(m.whole == prompt for m in measured),
            f"a step that reads {prompt} tokens uses each weight {work.intensity(prompt):,.0f} times on average",
            f"一步读 {prompt} 个词元时，每个权重平均用 {work.intensity(prompt):,.0f} 次",
        ),
        check(
            sizes == sorted(sizes, reverse=True) and sizes[0] / sizes[-1] > 2,
            f"{stored[-1].name} fetches {sizes[0] / sizes[-1]:.1f} times fewer bytes a step than {stored[0].name}",
            f"{stored[-1].name} 每步读取的字节数是 {stored[0].name} 的 1/{sizes[0] / sizes[-1]:.1f}",
        ),
    ]


def _verdict(measured: list[Measured], prompt: int, seconds: float) -> Words:
    first, last, slow = measured[0], measured[-2], measured[-1]
    fewer, faster, read = (
        first.work.bytes / last.work.bytes, last.decode / first.decode, last.prefill / first.prefill
    )  # fmt: skip
    ratios = [m.prefill / m.decode for m in measured[:-1]]
    return both(
        f"{last.name} fetches {fewer:.1f} times fewer bytes than {first.name}, decodes {faster:.1f} times as fast "
        f"({last.decode:.0f} tokens/s for {first.decode:.0f}) and reads a prompt of {prompt} {read:.1f} times as fast "
        f"({last.prefill:,.0f} for {first.prefill:,.0f}), with integer products where the weights are integers. "
        f"Reading is {min(ratios):.0f} to {max(ratios):.0f} times as fast as writing. As float32 in PyTorch the same "
        f"weights decode {slow.decode:.0f} and read {slow.prefill:,.0f} tokens/s; expanding them takes "
        f"{1e3 * seconds:,.0f} ms, as long as {seconds * last.decode:,.0f} tokens, and would be needed at every step.",
        f"{last.name} 每步读取的字节数为 {first.name} 的 1/{fewer:.1f}，解码快到 {faster:.1f} 倍（{last.decode:.0f} 对 "
        f"{first.decode:.0f} 词元/秒），读 {prompt} 个词元的提示快到 {read:.1f} 倍（{last.prefill:,.0f} 对 "
        f"{first.prefill:,.0f}；整数权重用整数乘法）。预填速度是解码的 {min(ratios):.0f} 到 {max(ratios):.0f} 倍。同样"
        f"的权重以 float32 在 PyTorch 中解码 {slow.decode:.0f}、预填 {slow.prefill:,.0f} 词元/秒；展开一次需 "
        f"{1e3 * seconds:,.0f} 毫秒，抵 {seconds * last.decode:,.0f} 个词元，而每一步都要展开。",
    )
