"""What an arithmetic can do on this machine, measured apart from any model, and how fast an engine is that uses it.

Peak: products with 512 rows. Bandwidth: bytes of weights in a second of products with one row, of a matrix that no
cache holds. Both by the code that the engine runs: the tape's linear operation with weights as the model stores them,
multiplied as 8-bit integers where they are integers; or PyTorch's in float32.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from cutaway.budget.chips import Chip
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.runner import Native
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
    """An engine and its arithmetic. dtype: of its cache. width: bytes of a weight, mean. each: of those in `product`."""

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

    def ask(self, lengths: list[int], tokens: int) -> Engine:
        """Queue so many replies to prompts of which nothing is kept."""
        tenant = str(self.engine.stats.steps)
        for prompt in prompts(self.loaded, lengths):
            self.engine.add(prompt, greedy(tokens, tenant))
        return self.engine


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def arms(model: str, *, running: int, context: int, budget: int = MANY) -> list[Arm]:
    """The stored weights on native kernels, where there are any, and the modules in float32."""
    limits = {"running": running, "context": context, "budget": budget}
    loaded = stored(model)
    engine = engine_of(loaded, **limits)
    plain = subject(model)
    modules = Engine(decoder(plain), plain.tokenizer, **limits)
    made = [Arm(MODULES, modules, plain, "float32", 4.0, _torch_product(plain.model.spec.width), 4.0)]
    return [_native(engine, loaded), *made] if isinstance(engine.runner, Native) else made


def _native(engine: Engine, loaded: Loaded) -> Arm:
    assert isinstance(engine.runner, Native)
    spec, threads = engine.runner.spec, torch.get_num_threads()
    engine.runner.threads = threads
    used = [op.matrix.contents for op in engine.runner.graph.tape.ops if op.kind in (Kind.LINEAR, Kind.FEED)]
    layouts = Counter[tuple[Layout, int]]()
    for m in used:
        layout = Layout(m.bits, m.zero, bool(m.offset), bool(m.halves))
        layouts[layout, m.bytes] += -(-m.n // LANES) * (m.k // GROUP) * m.bytes
    (layout, size), _ = layouts.most_common(1)[0]
    name = f"{NATIVE}, {layout.bits} bits" + (" times 8" if layout.bits < 16 else "")
    product = _tape_product(layout, spec.width, threads)
    return Arm(name, engine, loaded, "float16", layouts.total() / Cost(spec).parameters, product, size / LANES / GROUP)


def _tape_product(layout: Layout, inputs: int, threads: int) -> Product:
    def product(rows: int, outputs: int) -> Callable[[], object]:
        blocks = torch.randint(0, MODEST, (outputs // LANES, inputs // GROUP, layout.bytes), dtype=torch.uint8)
        tape, x, y = Tape(), Rows.of(rows, inputs), Rows.of(rows, outputs)
        tape.add(Kind.LINEAR, in_=x, out=y, matrix=Matrix.of(Packed(blocks, outputs, inputs, *layout)))
        nobody = torch.zeros(1, 1, dtype=torch.int32)
        batch = batch_of([0] * rows, [(0, rows)], nobody, [rows - 1], torch.zeros(1))
        return lambda: tape.run(batch, threads)

    return product


def _torch_product(inputs: int) -> Product:
    def product(rows: int, outputs: int) -> Callable[[], object]:
        x_RK, w_NK = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        return lambda: torch.nn.functional.linear(x_RK, w_NK)

    return product


def in_turns(ways: Sequence[Seconds], repeats: int) -> list[float]:
    """Median of the seconds that each way says it took, A, B, A, B ...; one round not counted."""
    rounds = [[way() for way in ways] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def timed(way: Callable[[], object]) -> Seconds:
    """How long a way takes."""

    def seconds() -> float:
        began = time.perf_counter()
        way()
        return time.perf_counter() - began

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
        asked = arm.ask([length], 1)
        return timed(partial(finish, asked))()

    return seconds


def decode(arm: Arm, batch: int, tokens: int, context: int = 1) -> Seconds:
    """A step that writes a token for each of `batch` sequences that see `context` tokens or more: the median."""

    def seconds() -> float:
        return statistics.median(writing(arm.ask([context] * batch, tokens), batch))

    return seconds


def writing(engine: Engine, batch: int) -> Iterator[float]:
    """Step until nothing is left to do: the seconds of each step that did nothing but write so many tokens."""
    while engine.busy:
        engine.step()
        step = engine.steps[-1]
        if len(step.spans) == step.replied == batch == sum(count for _, _, count, _, _ in step.spans):
            yield step.seconds[1]


CLOSE = 0.25


def judged(ratio: float) -> Words:
    """What a measurement over its prediction is worth: a timing is told, not checked."""
    if abs(ratio - 1) <= CLOSE:
        return both(f"within {CLOSE:.0%}", f"相差不到 {CLOSE:.0%}")
    return both(f"{ratio:.2g} times it, not within {CLOSE:.0%}", f"为其 {ratio:.2g} 倍，超出 {CLOSE:.0%}")
