"""Many replies at once, beside llama.cpp and transformers: total tokens/s of decoding, interleaved in one process.

    python benchmarks/parallel.py smollm2-135m-instruct --threads 2 --rounds 3 --batches 1 4 8 16 32
    python benchmarks/parallel.py smollm2-135m-instruct --device cuda

Each sequence has a prompt of its own and all decode greedily the same number of tokens. Prompts are read first; their
rate is the prefill column. Ours is the whole engine, scheduler and sampler included, on weights as stored; llama.cpp
decodes one batch per step on the same file (best token by numpy, no sampler); transformers runs `generate` in bfloat16
on the dequantized weights. On a GPU ours are the modules in bfloat16, and llama.cpp is left out. Figures:
minimum/median/maximum.

Needs `pip install cutaway[test,llamacpp]`; an engine that is not installed is left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cutaway.engine.engine import engine_of
from cutaway.engine.params import SamplingParams
from cutaway.labs.machine import machine, versions
from cutaway.weights.checkpoint import load
from cutaway.weights.save import save_directory

Prompts = list[list[int]]
Run = Callable[[Prompts, int], tuple[float, float]]  # prompts, new tokens -> seconds of reading, of decoding


def cutaway_run(name: str, context: int, most: int, device: str) -> Run:
    """Ours. Prompts that are alike would be shared; these are not."""
    loaded = load(name, "stored" if device == "cpu" else "bfloat16", device)
    engine = engine_of(loaded, context=context, running=most)

    def run(prompts: Prompts, new: int) -> tuple[float, float]:
        params = SamplingParams(temperature=0, max_tokens=new + 1, ignore_eos=True)
        sequences, times = [engine.add(prompt, params) for prompt in prompts], [time.perf_counter()]
        while not all(sequence.reply for sequence in sequences):
            engine.step()
        times.append(time.perf_counter())
        while engine.busy:
            engine.step()
        return times[1] - times[0], time.perf_counter() - times[1]

    return run


def llama_cpp_run(path: Path, context: int, most: int, threads: int) -> Run:
    """llama.cpp: one `llama_decode` per step over all sequences."""
    import llama_cpp as lib

    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context * most, 4096, 512, most
    params.n_threads = params.n_threads_batch = threads
    state = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(4096, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """rows: (token, position, sequence, are its logits wanted?); the best token of each that is."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        assert lib.llama_decode(state, batch) == 0
        logits = (lib.llama_get_logits_ith(state, i) for i, row in enumerate(rows) if row[3])
        return [int(np.ctypeslib.as_array(some, (vocab,)).argmax()) for some in logits]

    def run(prompts: Prompts, new: int, kept: object = silent) -> tuple[float, float]:  # C holds no reference to it
        lib.llama_memory_clear(lib.llama_get_memory(state), True)
        times, tokens = [time.perf_counter()], []
        for s, prompt in enumerate(prompts):
            tokens += decode([(token, i, s, i == len(prompt) - 1) for i, token in enumerate(prompt)])
        times.append(time.perf_counter())
        for step in range(new):
            tokens = decode([(token, len(prompts[s]) + step, s, True) for s, token in enumerate(tokens)])
        return times[1] - times[0], time.perf_counter() - times[1]

    return run


def transformers_run(name: str, device: str) -> Run:
    """transformers' `generate` over one rectangular batch."""
    import transformers

    loaded = load(name)
    with tempfile.TemporaryDirectory() as folder:
        save_directory(loaded.model, loaded.tokenizer, Path(folder) / "model", torch.float32)
        model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.bfloat16)
        model = model.eval().to(device)

    def timed(ids: torch.Tensor, count: int) -> float:
        began = time.perf_counter()
        mask = torch.ones_like(ids)
        model.generate(
            ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        ).cpu()  # when it is there, it is done
        return time.perf_counter() - began

    @torch.inference_mode()
    def run(prompts: Prompts, new: int) -> tuple[float, float]:
        ids = torch.tensor(prompts, device=device)
        first = timed(ids, 1)
        return first, timed(ids, new + 1) - first

    return run


def engines(args: argparse.Namespace) -> dict[str, Run]:
    """What there is to compare."""
    context, most, path = args.prompt + args.new + 16, max(args.batches), load(args.model, "stored").checkpoint.path
    makers: dict[str, Callable[[], Run]] = {
        f"cutaway, {'as stored' if args.device == 'cpu' else 'bfloat16'}": lambda: cutaway_run(
            args.model, context, most, args.device
        ),
        "llama.cpp, as stored": lambda: llama_cpp_run(path, context, most, args.threads),
        "transformers, bfloat16": lambda: transformers_run(args.model, args.device),
    }
    if args.device != "cpu":
        del makers["llama.cpp, as stored"]
    found = {}
    for label, make in makers.items():
        try:
            found[label] = make()
        except ImportError as error:
            print(f"left out: {label} ({error})", file=sys.stderr)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of A/B/C at each batch size; spreads, and ratios of medians to ours."""
    torch.set_num_threads(args.threads)
    found, name = engines(args), args.model
    numbers = np.random.default_rng(0)
    vocab = load(name, "stored").spec.vocab
    rows = []
    for size in args.batches:
        rates: dict[str, tuple[list[float], list[float]]] = {label: ([], []) for label in found}
        for round in range(args.rounds + 1):  # the first warms up
            prompts = numbers.integers(1000, vocab - 1000, (size, args.prompt)).tolist()
            for label, run in found.items():
                read, decoded = run(prompts, args.new)
                if round:
                    rates[label][0].append(size * args.prompt / read)
                    rates[label][1].append(size * args.new / decoded)
        rows.append(
            {
                "batch": size,
                "engines": {label: {"prefill": _spread(a), "decode": _spread(b)} for label, (a, b) in rates.items()},
            }
        )
    asked = {"model": name} | {key: getattr(args, key) for key in ("prompt", "new", "threads", "device")}
    return asked | {"rows": rows, "machine": machine().model_dump(), "versions": versions()}


def _spread(values: list[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)]


def show(result: dict[str, Any]) -> None:
    """The table, then one line of JSON."""
    table = Table(
        title=f"{result['model']} on {result['device']}, prompts of {result['prompt']}, {result['new']} new, "
        f"{result['threads']} threads"
    )
    for column in ("batch", "engine", "prefill tokens/s", "decode tokens/s", "ours is"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in result["rows"]:
        ours = next(iter(row["engines"].values()))["decode"][1]
        for label, rate in row["engines"].items():
            spread = ["/".join(f"{v:.0f}" for v in rate[kind]) for kind in ("prefill", "decode")]
            table.add_row(str(row["batch"]), label, *spread, f"{ours / rate['decode'][1]:.2f}x")
    Console().print(table)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens that each reply gets")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    show(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
