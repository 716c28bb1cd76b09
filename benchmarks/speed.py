"""Tokens a second beside llama.cpp, vLLM and transformers: one reply or many at once, interleaved in one run.

    python benchmarks/speed.py smollm2-135m-instruct --threads 2 --rounds 3 --batches 1 4 8 16 32 --vllm PATH/python
    python benchmarks/speed.py smollm2-135m-instruct --prompt 2048 --new 16 --batches 1
    python benchmarks/speed.py smollm2-135m-instruct --device cuda

Each sequence has a prompt of its own and all decode greedily the same number of tokens. Prompts are read first; their
rate is the prefill column. Ours is the whole engine, scheduler and sampler included, on weights as stored; llama.cpp
decodes one batch per step on the same file (best token by numpy, no sampler); vLLM, in a process and with a Python of
its own, and transformers run `generate` in bfloat16 on the dequantized weights. On a GPU ours are the modules in
bfloat16, and llama.cpp is left out. Figures: minimum/median/maximum, and how long the step could take at best, by the
memory bandwidth and the FLOP rate that this machine was seen to reach, over how long it took.

Before anything is timed, our modules and transformers must write the same tokens in float32.

Needs `pip install cutaway[test,llamacpp]`; an engine that is not installed is left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cutaway.budget import roofline
from cutaway.budget.chips import Chip
from cutaway.engine.engine import Engine, engine_of
from cutaway.engine.params import SamplingParams
from cutaway.labs.engine.speed import MANY, Arm, fastest, products, timed
from cutaway.labs.machine import machine, versions
from cutaway.labs.subject import TEXT, decoder, subject
from cutaway.weights.checkpoint import load
from cutaway.weights.save import save_directory

Prompts = list[list[int]]
Run = Callable[[Prompts, int], tuple[float, float]]  # prompts, new tokens -> seconds of reading, of decoding


def cutaway_run(engine: Engine) -> Run:
    """Ours. Prompts that are alike would be shared; these are not."""

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


def directory(name: str, folder: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The dequantized weights as transformers and vLLM read them."""
    loaded = load(name)
    save_directory(loaded.model, loaded.tokenizer, path := Path(folder) / "model", dtype)
    return path


def vllm_run(name: str, python: str, context: int, most: int, threads: int) -> Run:
    """vLLM in a process of its own, with prompts on its input and seconds on its output."""
    folder = tempfile.TemporaryDirectory()
    worker = Path(__file__).with_name("vllm_worker.py")
    command = [python, str(worker), str(directory(name, folder.name)), *map(str, (context, most, threads))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(prompts: Prompts, new: int, kept: object = folder) -> tuple[float, float]:
        print(json.dumps([prompts, new]), file=process.stdin)
        if not (line := cast(TextIO, process.stdout).readline()):
            raise SystemExit("vLLM ended")
        read, decoded = json.loads(line)
        return read, decoded

    return run


def in_transformers(name: str, dtype: torch.dtype) -> Any:
    """The same weights in transformers."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        return transformers.AutoModelForCausalLM.from_pretrained(directory(name, folder, dtype), dtype=dtype).eval()


@torch.inference_mode()
def written(model: Any, prompts: Prompts, count: int) -> torch.Tensor:
    """What `generate` writes after one rectangular batch of prompts, greedily."""
    ids = torch.tensor(prompts, device=model.device)
    asked = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    made: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)
    return made[:, ids.shape[1] :].cpu()  # when it is there, it is done


def transformers_run(name: str, device: str) -> Run:
    """transformers' `generate`."""
    model = in_transformers(name, torch.bfloat16).to(device)

    def timed(prompts: Prompts, count: int) -> float:
        began = time.perf_counter()
        written(model, prompts, count)
        return time.perf_counter() - began

    def run(prompts: Prompts, new: int) -> tuple[float, float]:
        first = timed(prompts, 1)
        return first, timed(prompts, new + 1) - first

    return run


def engines(args: argparse.Namespace, ours: Engine) -> dict[str, Run]:
    """What there is to compare."""
    context, most, name = args.prompt + args.new + 16, max(args.batches), args.model
    makers: dict[str, Callable[[], Run]] = {"cutaway": lambda: cutaway_run(ours)}
    if args.device == "cpu":
        path = load(name, "stored").checkpoint.path
        makers["llama.cpp"] = lambda: llama_cpp_run(path, context, most, args.threads)
    if args.vllm:
        makers["vllm"] = lambda: vllm_run(name, args.vllm, context, most, args.threads)
    makers["transformers"] = lambda: transformers_run(name, args.device)
    found = {}
    for label, make in makers.items():
        try:
            found[label] = make()
        except ImportError as error:
            print(f"left out: {label} ({error})", file=sys.stderr)
    return found


def guard(name: str, count: int = 32) -> None:
    """Errors: our modules write otherwise than transformers, in float32."""
    loaded = subject(name)
    prompt = loaded.tokenizer.encode(TEXT)[:64]
    engine = Engine(decoder(loaded), loaded.tokenizer, context=128)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    ours = [event.choice.token for event in engine.generate(prompt, params)]
    with suppress(ImportError):
        theirs = written(in_transformers(name, torch.float32), [prompt], count)[0].tolist()
        assert ours == theirs, f"not the tokens of transformers: {ours} {theirs}"


class Best(NamedTuple):
    """How long reading prompts and a step of decoding would take at the rates that this machine was seen to reach."""

    arm: Arm
    chip: Chip

    @staticmethod
    def of(arm: Arm) -> Best:
        """Measured now: products with many rows as the engine makes them, and plain reading by all threads."""
        seconds = min(products(arm, 64)[0]() for _ in range(7))
        rate = 2 * MANY * arm.square * arm.cost.spec.width / seconds
        block = torch.ones(2**28)
        read = block.nbytes / min(timed(block.sum)() for _ in range(7))
        return Best(arm, Chip("this machine", {arm.dtype: rate}, 0, read, "measured just now"))

    def reading(self, size: int, prompt: int) -> float:
        """Seconds of computing `size` prompts."""
        return size * self.arm.cost.flops(prompt, rows=1, remembers=True) / self.chip.rate(self.arm.dtype)

    def step(self, size: int, context: int) -> roofline.Step:
        """Of a token for each of `size` sequences."""
        return roofline.step(self.arm.cost, self.chip, self.arm.dtype, size, context, width=self.arm.width)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of A/B/C at each batch size; spreads, and ratios of medians to ours."""
    torch.set_num_threads(args.threads)
    guard(args.model)
    limits = {"context": args.prompt + args.new + 16, "running": max(args.batches)}
    if args.device == "cpu":
        arm = fastest(args.model, **limits)
        ours, best = arm.engine, Best.of(arm)
    else:
        ours, best = engine_of(load(args.model, "bfloat16", args.device), **limits), None
    found, numbers, rows = engines(args, ours), np.random.default_rng(0), []
    vocab = ours.runner.spec.vocab
    for size in args.batches:
        rates: dict[str, tuple[list[float], list[float]]] = {label: ([], []) for label in found}
        for round in range(args.rounds + 1):  # the first warms up
            prompts = numbers.integers(1000, vocab - 1000, (size, args.prompt)).tolist()
            for label, run in found.items():
                read, decoded = run(prompts, args.new)
                if round:
                    rates[label][0].append(size * args.prompt / read)
                    rates[label][1].append(size * args.new / decoded)
        told = {label: {"prefill": spread(a), "decode": spread(b)} for label, (a, b) in rates.items()}
        rows.append({"batch": size, "engines": told} | ({"best": at_best(best, size, args)} if best else {}))
    asked = {"model": args.model} | {key: getattr(args, key) for key in ("prompt", "new", "threads", "device")}
    seen = {"FLOP/s": best.chip.rate(best.arm.dtype), "bytes/s": best.chip.bandwidth} if best else {}
    return asked | {"rows": rows, "seen": seen, "machine": machine().model_dump(), "versions": versions()}


def at_best(best: Best, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second, and what limits decoding."""
    step = best.step(size, args.prompt + args.new // 2)
    prefill = size * args.prompt / best.reading(size, args.prompt)
    return {"prefill": prefill, "decode": size / step.seconds, "limit": step.bottleneck}


def spread(values: list[float]) -> list[float]:
    """Minimum, median, maximum."""
    return [min(values), statistics.median(values), max(values)]


def show(result: dict[str, Any]) -> None:
    """The table, then one line of JSON."""
    table = Table(
        title="{model} on {device}, prompts of {prompt}, {new} new, {threads} threads; tokens/s".format(**result)
    )
    kinds = ("prefill", "decode")
    for column in ("batch", "engine", "prefill", "of the best", "ours is", "decode", "of the best", "ours is"):
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    for row in result["rows"]:
        ours, best = next(iter(row["engines"].values())), row.get("best")
        for label, rate in row["engines"].items():
            cells = []
            for kind in kinds:
                share = f"{rate[kind][1] / best[kind]:.0%}" if best else ""
                cells += ["/".join(f"{v:.0f}" for v in rate[kind]), share, f"{ours[kind][1] / rate[kind][1]:.2f}x"]
            table.add_row(str(row["batch"]), label, *cells)
    Console(width=120).print(table)
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
    parser.add_argument("--vllm", help="a Python that has vLLM")
    show(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
