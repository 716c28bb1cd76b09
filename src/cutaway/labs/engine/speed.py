"""What an arithmetic can do on this machine, measured apart from any model, and how fast an engine is that uses it.

Peak: products with 512 rows. Bandwidth: bytes of weights in a second of products with one row, of a matrix that no
cache holds. Both by the code that the engine runs: the tape's linear operation with weights as the model stores them,
multiplied as 8-bit integers where they are integers; or PyTorch's in float32.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from cutaway.budget.chips import Chip, clock
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.runner import Native
from cutaway.engine.sequence import Sequence
from cutaway.errors import CutawayError
from cutaway.labs.engine.replay import finish, greedy, prompts, stored
from cutaway.labs.evidence import Words, both
from cutaway.labs.subject import decoder, subject
from cutaway.models.cost import Cost
from cutaway.native.packing import GROUP, LANES, Layout, Packed
from cutaway.native.tape import Kind, Matrix, Rows, Tape, batch_of
from cutaway.weights.checkpoint import Loaded

MANY = 512  # rows of the products that find the peak
NATIVE, MODULES = "native kernels", "float32 modules"
MODEST = 60  # bytes below it make modest numbers of every type

Product = Callable[[int, int], Callable[[], object]]
"""From rows and outputs to the product itself; it has as many inputs as the model is wide."""
Seconds = Callable[[], float]


@dataclass(frozen=True)
class Arm:
    """An engine and its arithmetic. dtype: of its cache. width, each: bytes of a weight, mean and in `product`."""

    name: str
    engine: Engine
    loaded: Loaded
    dtype: str
    width: float
    product: Product
    each: float

    @cached_property
    def cost(self) -> Cost:
        """Of the model."""
        return Cost(self.loaded.checkpoint.spec)

    @property
    def square(self) -> int:
        """Outputs of a matrix like those of the model."""
        return 4 * self.cost.spec.width // LANES * LANES

    def outputs(self, megabytes: int) -> int:
        """Of a matrix that takes so much."""
        return int(megabytes * 1e6 / self.each / self.cost.spec.width) // LANES * LANES

    def texts(self, batch: int, length: int) -> list[list[int]]:
        """Prompts of so many tokens."""
        return prompts(self.loaded, [length] * batch)

    def ask(self, texts: list[list[int]], tokens: int) -> list[Sequence]:
        """Queue replies to prompts of which nothing is kept."""
        tenant = str(self.engine.stats.steps)
        return [self.engine.add(prompt, greedy(tokens, tenant)) for prompt in texts]


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def arms(model: str, **limits: Any) -> list[Arm]:
    """The fastest and, if that is another, the modules in float32. limits: as of `Engine`."""
    first = fastest(model, **limits)
    return [first] if first.name == MODULES else [first, _modules(model, **limits)]


def fastest(model: str, **limits: Any) -> Arm:
    """The stored weights on native kernels, where there are any; else the modules."""
    loaded = stored(model)
    engine = engine_of(loaded, **limits)
    return _native(engine, loaded) if isinstance(engine.runner, Native) else _modules(model, **limits)


def _modules(model: str, **limits: Any) -> Arm:
    plain = subject(model)
    engine = Engine(decoder(plain), plain.tokenizer, **limits)
    return Arm(MODULES, engine, plain, "float32", 4.0, _torch_product(plain.model.spec.width), 4.0)


def _native(engine: Engine, loaded: Loaded) -> Arm:
    assert isinstance(engine.runner, Native)
    spec, threads = engine.runner.spec, torch.get_num_threads()
    engine.runner.threads = threads
    used = [op.matrix.contents for op in engine.runner.graph.tape.ops if op.kind in (Kind.LINEAR, Kind.FEED)]
    read = Counter[Layout]()
    for m in used:
        read[Layout(m.bits, m.zero, bool(m.offset), bool(m.halves))] += -(-m.n // LANES) * (m.k // GROUP) * m.bytes
    ((layout, _),) = read.most_common(1)
    name = f"{NATIVE} ({layout.bits}-bit weights{', 8-bit activations' if layout.bits < 16 else ''})"
    product = _tape_product(layout, spec.width, threads)
    width = read.total() / Cost(spec).parameters
    return Arm(name, engine, loaded, "float16", width, product, layout.bytes / LANES / GROUP)


def _tape_product(layout: Layout, inputs: int, threads: int) -> Product:
    def product(rows: int, outputs: int) -> Callable[[], object]:
        blocks = torch.randint(0, MODEST, (outputs // LANES, inputs // GROUP, layout.bytes), dtype=torch.uint8)
        tape, x, y = Tape(), Rows.of(rows, inputs), Rows.of(rows, outputs)
        tape.add(Kind.LINEAR, in_=x, out=y, matrix=Matrix.of(Packed(blocks, outputs, inputs, *layout)))
        batch = batch_of([0] * rows, [(0, rows)], [[0]], [rows - 1], torch.zeros(1))
        return lambda: tape.run(batch, threads)

    return product


def _torch_product(inputs: int) -> Product:
    def product(rows: int, outputs: int) -> Callable[[], object]:
        x_RK, w_NK = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        return lambda: torch.nn.functional.linear(x_RK, w_NK)

    return product


def in_turns(ways: list[Seconds], repeats: int) -> list[float]:
    """Median of the seconds that each way says it took, A, B, A, B ...; one round not counted."""
    rounds = [[way() for way in ways] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def timed(way: Callable[[], object]) -> Seconds:
    """How long a way takes."""

    def seconds() -> float:
        began = clock()
        way()
        return clock() - began

    return seconds


def products(arm: Arm, megabytes: int) -> tuple[Seconds, Seconds]:
    """Of many rows with a matrix like the model's, and of one row with a matrix of so many megabytes."""
    return timed(arm.product(MANY, arm.square)), timed(arm.product(1, arm.outputs(megabytes)))


def chip_of(arm: Arm, many: float, one: float, megabytes: int) -> Chip:
    """The chip that an arm finds itself on, from the seconds of `products`."""
    width = arm.cost.spec.width
    read = arm.outputs(megabytes) * width * arm.each
    return Chip(arm.name, {arm.dtype: 2 * MANY * arm.square * width / many}, 0, read / one, "measured just now")


def prefill(arm: Arm, length: int) -> Seconds:
    """From asking to the first token of a reply, to a prompt of which nothing is kept."""

    def seconds() -> float:
        arm.ask(arm.texts(1, length), 1)
        return timed(partial(finish, arm.engine))()

    return seconds


def decode(arm: Arm, batch: int, tokens: int, context: int = 1) -> Seconds:
    """A step that writes a token for each of `batch` sequences that see `context` tokens or more: the median."""

    def seconds() -> float:
        arm.ask(arm.texts(batch, context), reply(batch, tokens, context))
        return statistics.median(writing(arm.engine, batch))

    return seconds


def reply(batch: int, tokens: int, context: int) -> int:
    """How long replies must be for all to write `tokens` together: the first is under way while the last is read."""
    return tokens - (-batch * context // (MANY - batch))


def writing(engine: Engine, batch: int) -> Iterator[float]:
    """Step until nothing is left to do: the seconds of each step that did nothing but write so many tokens."""
    while engine.busy:
        seconds = timed(engine.step)()
        step = engine.steps[-1]
        if len(step.spans) == step.replied == batch == sum(count for _, _, count, _, _ in step.spans):
            yield seconds


CLOSE = 0.25


def numbers(text: str, knob: str, most: int) -> list[int]:
    """Whole numbers with commas between them, in order. Errors: others, or none in 1 ... most."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise CutawayError(f"expected whole numbers with commas, got {text!r}", f"knob {knob}") from None
    if not 1 <= found[0] <= found[-1] <= most:
        raise CutawayError(f"must be between 1 and {most}, got {text!r}", f"knob {knob}")
    return found


def judged(ratio: float) -> Words:
    """What a measurement over its prediction is worth: a timing is told, not checked."""
    if abs(ratio - 1) <= CLOSE:
        return both(f"within {CLOSE:.0%}", f"相差不到 {CLOSE:.0%}")
    return both(f"{ratio:.2g} times it, not within {CLOSE:.0%}", f"为其 {ratio:.2g} 倍，超出 {CLOSE:.0%}")
