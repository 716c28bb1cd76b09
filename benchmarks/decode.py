"""Prefill and decode rates beside llama.cpp and transformers, on one GGUF file, interleaved in one process.

    python benchmarks/decode.py smollm2-135m-instruct --threads 2 --rounds 5

Every engine gets the same prompt tokens and draws greedily. The numeric guard: ours and transformers' run the same
dequantized weights in float32 and must give identical tokens; llama.cpp computes with quantized weights and 8-bit
activations, so its agreement is reported, not asserted. Beside each decode rate stands the achieved bandwidth: bytes of
weights and KV cache that a token must read, divided by the time it took, and as a share of the measured read bandwidth.

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

import torch
from rich.console import Console
from rich.table import Table

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.labs.machine import machine, versions
from cutaway.weights.checkpoint import Loaded, load
from cutaway.weights.save import save_directory
from cutaway.weights.sources import resolve

Run = Callable[[list[int], int], tuple[list[int], float, float]]  # prompt, new tokens -> tokens, prefill s, decode s


def cutaway_run(loaded: Loaded) -> Run:
    """Ours: the engine that serves requests, sampler and detokenizer included."""
    engine = Engine(loaded.model, loaded.tokenizer, budget=4096)  # type: ignore[arg-type]

    def run(prompt: list[int], new: int) -> tuple[list[int], float, float]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        times, tokens = [time.perf_counter()], []
        for event in engine.generate(prompt, params):
            times.append(time.perf_counter())
            tokens.append(event.choice.token)  # type: ignore[union-attr]
        return tokens, times[1] - times[0], times[-1] - times[1]

    return run


def transformers_run(loaded: Loaded, dtype: torch.dtype) -> Run:
    """transformers on the same dequantized weights, through a directory that we saved."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save_directory(loaded.model, loaded.tokenizer, Path(folder) / "model", torch.float32)
        model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=dtype).eval()

    @torch.inference_mode()
    def run(prompt: list[int], new: int) -> tuple[list[int], float, float]:
        def timed(count: int) -> tuple[list[int], float]:
            start = time.perf_counter()
            ids = torch.tensor([prompt])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
            return out[0, len(prompt) :].tolist(), time.perf_counter() - start

        _, prefill = timed(1)
        tokens, whole = timed(new)
        return tokens, prefill, whole - prefill

    return run


def llama_cpp_run(path: Path, threads: int, context: int) -> Run:
    """llama.cpp on the quantized file itself."""
    import llama_cpp

    llm = llama_cpp.Llama(
        str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False
    )

    def run(prompt: list[int], new: int) -> tuple[list[int], float, float]:
        llm.reset()
        times = [time.perf_counter()]
        llm.eval(prompt)
        tokens = [llm.sample(temp=0.0, repeat_penalty=1.0)]
        times.append(time.perf_counter())
        while len(tokens) < new:
            llm.eval(tokens[-1:])
            tokens.append(llm.sample(temp=0.0, repeat_penalty=1.0))
        return tokens, times[1] - times[0], time.perf_counter() - times[1]

    return run


def read_bandwidth(repeats: int = 7) -> float:
    """Bytes per second that all threads together read from memory: the sum of 1 GiB of float32."""
    block = torch.ones(2**28)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return block.numel() * 4 / statistics.median(seconds)


def engines(name: str, threads: int, context: int) -> tuple[dict[str, tuple[Run, float]], Loaded]:
    """Each engine's run and the bytes of weights that it reads per token."""
    loaded = load(name)
    path = loaded.checkpoint.path
    dense = sum(p.numel() for p in loaded.model.parameters()) * 4.0
    found: dict[str, tuple[Run, float]] = {"cutaway float32": (cutaway_run(loaded), dense)}
    for label, make, weights in (
        ("cutaway bfloat16", lambda: cutaway_run(load(name, "bfloat16")), dense / 2),
        ("transformers float32", lambda: transformers_run(loaded, torch.float32), dense),
        ("transformers bfloat16", lambda: transformers_run(loaded, torch.bfloat16), dense / 2),
        ("llama.cpp, as stored", lambda: llama_cpp_run(path, threads, context), float(path.stat().st_size)),
    ):
        try:
            found[label] = (make(), weights)
        except ImportError as error:
            print(f"left out: {label} ({error})", file=sys.stderr)
    return found, loaded


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of A/B/C/D, A/B/C/D, ...; medians, minima and maxima per engine."""
    torch.set_num_threads(args.threads)
    found, loaded = engines(args.model, args.threads, args.prompt + args.new + 16)
    text = "The history of computing is a history of memory. " * args.prompt
    prompt = loaded.tokenizer.encode(text)[: args.prompt]
    rates: dict[str, dict[str, list[float]]] = {label: {"prefill": [], "decode": []} for label in found}
    replies: dict[str, list[int]] = {}
    for label, (run, _) in found.items():
        replies[label] = run(prompt, args.new)[0]  # warm-up, and the tokens for the guard
    for _ in range(args.rounds):
        for label, (run, _) in found.items():
            _, prefill, decode = run(prompt, args.new)
            rates[label]["prefill"].append(len(prompt) / prefill)
            rates[label]["decode"].append((args.new - 1) / decode)
    bandwidth = read_bandwidth()
    ours = replies["cutaway float32"]
    return {
        "model": str(resolve(args.model).name),
        "prompt": len(prompt),
        "new": args.new,
        "threads": args.threads,
        "rounds": args.rounds,
        "read_bandwidth_GB_s": bandwidth / 1e9,
        "engines": {
            label: {
                **{kind: [min(v), statistics.median(v), max(v)] for kind, v in rates[label].items()},
                "decode_GB_s": (weights * statistics.median(rates[label]["decode"])) / 1e9,
                "share_of_bandwidth": weights * statistics.median(rates[label]["decode"]) / bandwidth,
                "same_tokens_as_ours": sum(a == b for a, b in zip(ours, replies[label], strict=True)) / len(ours),
            }
            for label, (_, weights) in found.items()
        },
        "machine": machine().model_dump(),
        "versions": versions(),
    }


def show(result: dict[str, Any]) -> None:
    """The card, then one line of JSON."""
    table = Table(
        title=f"{result['model']}, prompt {result['prompt']}, {result['new']} new, {result['threads']} threads"
    )
    for column in ("engine", "prefill tokens/s", "decode tokens/s", "GB/s", "of read bandwidth", "tokens as ours"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for label, row in result["engines"].items():
        spread = ["/".join(f"{v:.0f}" for v in row[kind]) for kind in ("prefill", "decode")]
        share = [f"{row['decode_GB_s']:.1f}", f"{row['share_of_bandwidth']:.0%}", f"{row['same_tokens_as_ours']:.0%}"]
        table.add_row(label, *spread, *share)
    Console().print(table)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--new", type=int, default=48, help="tokens to generate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    show(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
