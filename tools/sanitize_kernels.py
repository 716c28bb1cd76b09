"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, for some seconds, on shapes at random.

    .venv/bin/python tools/sanitize_kernels.py [seconds] [seed] [march]

Every tensor that the kernels touch is just as large as promised, so a read or a write beyond it is noticed. What the
kernels compute is compared with PyTorch elsewhere (tests/native); here only how they do it matters.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
CHILD = "CUTAWAY_SANITIZED"


def main() -> int:
    """Run this file again with the sanitizers' libraries loaded before everything else."""
    compiler = os.environ.get("CXX", "g++")
    libraries = [
        subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True).stdout
        for name in ("asan", "ubsan")
    ]
    settings = {
        "LD_PRELOAD": " ".join(path.strip() for path in libraries),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
        CHILD: "1",
    }
    return subprocess.run(
        [sys.executable, __file__, *sys.argv[1:]], env={**os.environ, **settings}, check=False
    ).returncode


def trials(seconds: float, seed: int, march: str) -> None:
    """Operations at random until time is up; a fault ends the process with a report."""
    import torch

    from cutaway.native import build

    torch.set_num_threads(1)
    build.FLAGS += SANITIZED
    build.compiled(march)
    random.seed(seed)
    torch.manual_seed(seed)
    began, done = time.monotonic(), Counter[str]()
    while time.monotonic() - began < seconds:
        trial = random.choice(TRIALS)
        trial(march)
        done[trial.__name__] += 1
    print(f"{sum(done.values())} trials in {seconds:.0f} s without a fault: {dict(done)}")


def products(march: str) -> None:
    """Rows of a file packed, embedded and multiplied."""
    import torch

    from cutaway.engine.matrices import layout
    from cutaway.native.packing import pack_rows
    from cutaway.native.tape import Kind, Matrix
    from cutaway.weights import blocks
    from native import tapes

    type, n, count = random.choice(tapes.TYPES), random.randint(1, 70), random.randint(1, 19)
    form = blocks.named(type)
    k = random.randint(1, 3) * max(form.elements, 32)
    stored = tapes.raw(type, n, k, random.randint(0, 9))
    places = stored.data_ptr() + torch.randperm(n) * stored.shape[1]
    packed = pack_rows(places, k, form.id, layout(type), threads=random.randint(1, 3), march=march)
    bias = torch.randn(-(-n // 16) * 16) if random.random() < 0.5 else None
    tapes.product(packed, torch.randn(count, k), march, threads=random.randint(1, 3), bias=bias)
    out = tapes.rows(torch.zeros(n, k))
    tapes.play(tapes.flat(n), Kind.EMBED, march, out=out, matrix=Matrix.of(packed), scale=2.0, table=torch.randn(n, k))


def feeds(march: str) -> None:
    """Hidden units, and norms of some of them."""
    import torch

    from cutaway.native.packing import pack_floats
    from cutaway.native.tape import ACTIVATIONS, Kind, Matrix
    from native import tapes

    count, width, gated = random.randint(1, 19), 32 * random.randint(1, 4), random.randint(0, 1)
    matrix = Matrix.of(pack_floats(torch.randn(width * (1 + gated), 64)))
    out = tapes.rows(torch.zeros(count, width))
    how = {"gated": gated, "quantize": random.randint(0, 1), "activation": random.randrange(len(ACTIVATIONS))}
    tapes.play(
        tapes.flat(count), Kind.FEED, march, random.randint(1, 3), in_=tapes.rows(torch.randn(count, 64)), out=out,
        matrix=matrix, bias=torch.randn(matrix.n), **how,
    )  # fmt: skip
    wanted = [random.randrange(count) for _ in range(random.randint(1, 5))]
    last = tapes.rows(torch.zeros(len(wanted), width))
    how = {"of_rows": 1, "quantize": 1, "layered": random.randint(0, 1), "weight": torch.randn(width)}
    tapes.play(tapes.flat(count, wanted), Kind.NORM, march, 2, in_=out, out=last, bias=torch.randn(width), **how)


def answers(march: str) -> None:
    """Rotations into pages, and attention over them."""
    import torch

    from cutaway.native.tape import Kind, Tape, batch_of
    from cutaway.nn.attention import Question
    from native import attention, tapes

    group, kv_heads, width = random.randint(1, 12), random.randint(1, 3), 32 * random.randint(1, 8)
    lengths = [random.choice([1, 7, 32, 33, 90, 1100]) for _ in range(random.randint(1, 4))]
    heads = (group * kv_heads, kv_heads)
    window, softcap, sinks = (
        random.choice([None, 1, 40]),
        random.choice([None, 5.0]),
        random.choice([None, torch.randn(heads[0])]),
    )
    coded, question = random.random() < 0.5, Question(0.1, window=window, softcap=softcap, sinks_H=sinks)
    asked = attention.texts(lengths, heads, width, question, coded=coded)
    spans = []
    for i, length in enumerate(lengths):
        count = random.randint(1, min(length, 12))
        spans.append((i, random.randint(0, length - count), count))
    threads = random.randint(1, 3)
    asked.asked(spans, march, threads, random.choice([1, 1 << 20]))
    count = sum(n for _, _, n in spans)
    x, turning = tapes.rows(torch.randn(count, (heads[0] + 2 * kv_heads) * width)), random.choice([0, 8, width])
    tables = asked.tables[[i for i, _, _ in spans]].tolist()
    norms = random.choice([None, torch.randn(width)])
    tape = Tape(march)
    tape.add(
        Kind.TURN, in_=x, heads=heads[0], kv_heads=kv_heads, head_dim=width, turning=turning, keys=asked.keys,
        values=asked.values, cos=torch.randn(1100, turning // 2), sin=torch.randn(1100, turning // 2), q_norm=norms,
        k_norm=norms, eps=1e-5, coded=int(coded),
    )  # fmt: skip
    tape.run(batch_of([0] * count, [s[1:] for s in spans], tables, [0], torch.zeros(1)), threads)


def draws(march: str) -> None:
    """Logits summed up, and tokens drawn from them."""
    import torch

    from cutaway.native.packing import pack_floats
    from cutaway.native.sampling import draw, kernels, reach
    from cutaway.native.tape import Kind, Matrix, Rows
    from native import tapes

    native, count = kernels(march), random.choice([1, 16, 17, 700, 8192, 9001])
    logits, out = tapes.rows(torch.randn(2, count)), Rows.of(2, 4)
    matrix = Matrix.of(pack_floats(torch.zeros(count, 32)))
    how = {"scale": random.choice([1.0, 0.5]), "softcap": random.choice([0.0, 30.0])}
    tapes.play(tapes.flat(2), Kind.WEIGH, march, 2, in_=logits, out=out, matrix=matrix, of_rows=1, **how)
    scores_V = (logits.floats[0, :count] - logits.floats[0, :count].max()).clone()
    low = reach(native, scores_V, -1e30, most=random.choice([0, 1, 40, 10_000]), share=random.random())
    assert draw(native, scores_V, low, 1.0, random.getrandbits(64)) >= 0


def adapters(march: str) -> None:
    """Sequences with adapters of any ranks, and without, through a product and through hidden units."""
    from native import adapters

    counts = [random.randint(1, 19) for _ in range(random.randint(1, 4))]
    ranks = [random.choice([0, 1, 7, 16, 33]) for _ in counts]
    adapters.Case(counts, ranks, random.randint(1, 99)).made(march, random.randint(1, 3))


TRIALS = (products, feeds, answers, adapters, draws)


if __name__ == "__main__":
    if CHILD in os.environ:
        seconds, seed, march = (*sys.argv[1:], *("30", "0", "native")[len(sys.argv) - 1 :])
        trials(float(seconds), int(seed), march)
    else:
        sys.exit(main())
