"""How long a model takes to open and how much memory it takes at most, beside llama.cpp.

    python benchmarks/opening.py smollm2-135m-instruct --rounds 5 --context 512 2048

Every round starts a process for each side, in turn: it imports what it needs, opens the same GGUF file, reads a prompt
and replies. Memory is the most that was ever resident, file pages included (VmHWM), as Linux counts it. Both keep
keys and values in float16; llama.cpp makes room for the whole context when it opens, ours takes pages as they come.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cutaway.weights.sources import resolve

WORD = 1000  # any token that is no special one


def cutaway(path: str, context: int, args: argparse.Namespace) -> Iterator[str]:
    """Ours; it says what it has just done."""
    import torch

    from cutaway.engine.engine import engine_of
    from cutaway.engine.params import SamplingParams
    from cutaway.weights.checkpoint import load

    torch.set_num_threads(args.threads)
    yield "imported"
    engine = engine_of(load(path, "stored"), context=context, running=1)
    yield "open"
    params = SamplingParams(temperature=0, max_tokens=args.new, ignore_eos=True)
    for count, _ in enumerate(engine.generate([WORD] * args.prompt, params)):
        if not count:
            yield "first token"
    yield "reply"


def llama_cpp(path: str, context: int, args: argparse.Namespace) -> Iterator[str]:
    """llama.cpp, by its bindings for Python."""
    import llama_cpp as lib

    yield "imported"
    threads = {"n_threads": args.threads, "n_threads_batch": args.threads}
    model = lib.Llama(path, n_ctx=context, n_batch=512, verbose=False, **threads)
    yield "open"
    rows = [WORD] * args.prompt
    for count in range(args.new):
        model.eval(rows)
        rows = [model.sample(temp=0.0, repeat_penalty=1.0)]
        if not count:
            yield "first token"
    yield "reply"


SIDES: dict[str, Callable[[str, int, argparse.Namespace], Iterator[str]]] = {"cutaway": cutaway, "llama.cpp": llama_cpp}


def noted(side: str, context: int, args: argparse.Namespace) -> dict[str, float]:
    """In this process: seconds of each stage, and the MB at most up to its end."""
    told, began = {}, time.perf_counter()
    for stage in SIDES[side](str(resolve(args.model)), context, args):
        now = time.perf_counter()
        most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        told |= {f"{stage}, s": now - began, f"{stage}, MB": int(most.split()[1]) * 1024 / 1e6}
        began = now
    return told


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Minimum, median and maximum of everything, for each context and side."""
    rows = []
    for context in args.context:
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side, told in runs.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--context", str(context), "--side", side]
                told.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        for side, told in runs.items():
            spread = {key: sorted(run[key] for run in told) for key in told[0]}
            seen = {key: (some[0], statistics.median(some), some[-1]) for key, some in spread.items()}
            rows.append({"context": context, "side": side, "seen": seen})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table, then one line of JSON."""
    table = Table(title="minimum/median/maximum; MB at most since the process began")
    table.add_column("stage")
    for row in rows:
        table.add_column(f"{row['side']}, {row['context']}", justify="right")
    for key in rows[0]["seen"]:
        digits = 2 if key.endswith("s") else 0
        table.add_row(key, *("/".join(f"{value:.{digits}f}" for value in row["seen"][key]) for row in rows))
    Console().print(table)
    print(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens of the reply")
    parser.add_argument("--context", type=int, nargs="+", default=[512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(noted(args.side, args.context[0], args)))
    else:
        show(measure(args))


if __name__ == "__main__":
    main()
