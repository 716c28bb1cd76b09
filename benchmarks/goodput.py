"""Goodput: requests a second that a server answers while 95 % of the answers are quick enough. Servers side by side.

    python benchmarks/goodput.py smollm2-135m-instruct --program llama.cpp=PATH/llama-server --program vllm=PATH/vllm

Every server is a process of its own behind OpenAI's completions, with two threads, and answers the same trace: requests
arrive as a Poisson process and share a system prompt of 512 tokens; each adds a text of its own and asks for a reply of
fixed length, drawn once from a fixed seed. The trace is played faster and faster, the servers in turns, until the 95th
percentile of the time from sending to the last token passes the limit; goodput is where it does, by straight line
between two rates. Ours and llama.cpp run the file as it is stored, vLLM and transformers its weights in bfloat16.

Needs `pip install cutaway[test]`; a server whose program is not there is left out and said to be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cutaway.labs.machine import machine, versions
from cutaway.labs.training import prose
from cutaway.weights.checkpoint import load
from cutaway.weights.save import save_directory

SHARED = 512  # tokens of the system prompt
PLACES = 16  # sequences at a time, of every server that has such a setting
CONTEXT = 1024  # tokens of prompt and reply

COMMANDS = {  # {model}, {file}: the weights as stored, {folder}: in bfloat16
    "cutaway": "{program} -m cutaway serve {model} --port {port} --running {places} --context {context}",
    "llama.cpp": "{program} -m {file} --port {port} -np {places} -c {all} -t {threads} -tb {threads} --offline",
    "vllm": "{program} serve {folder} --port {port} --max-num-seqs {places} --max-model-len {context}",
    "transformers": "{program} serve {folder} --port {port} --continuous-batching --device cpu --dtype bfloat16",
}
PROGRAMS = {"cutaway": sys.executable, "llama.cpp": "llama-server", "vllm": "vllm", "transformers": "transformers"}


class Ask(NamedTuple):
    """A request of the trace. at: seconds after the beginning if one a second arrives on average."""

    at: float
    prompt: str
    new: int


class Answer(NamedTuple):
    """Seconds from sending to the first and to the last token; how many were asked for."""

    first: float
    last: float
    new: int


def trace(name: str, count: int) -> list[Ask]:
    """Lengths are log-normal: own texts about 60 tokens, replies about 50, both at most 200."""
    numbers, tokenizer = np.random.default_rng(0), load(name, "stored").tokenizer
    ids = tokenizer.encode(bytes(prose()[:400_000].tolist()).decode(errors="ignore"))
    system, rest = tokenizer.decode(ids[:SHARED]), ids[SHARED:]
    times = np.cumsum(numbers.exponential(1.0, count))
    texts, replies = (np.clip(numbers.lognormal(np.log(mean), 0.7, count), 8, 200).astype(int) for mean in (60, 50))
    starts = numbers.integers(0, len(rest) - 200, count)
    own = [tokenizer.decode(rest[s : s + n]) for s, n in zip(starts, texts, strict=True)]
    return [Ask(float(t), f"{system}\n\n{text}", int(n)) for t, text, n in zip(times, own, replies, strict=True)]


@contextlib.contextmanager
def started(server: str, command: list[str], port: int, folder: Path) -> Iterator[str]:
    """The URL of a server that answers; its output goes to a file."""
    with (folder / f"{server}.txt").open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, env=os.environ | surroundings())
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, folder / f"{server}.txt")
            yield url
        finally:
            process.terminate()
            process.wait(60)


def surroundings() -> dict[str, str]:
    """Nothing is looked up outside; vLLM has its own names for threads and cache."""
    return {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1"}


def wait_for(url: str, process: subprocess.Popen[bytes], told: Path, seconds: float = 400) -> None:
    """Errors: it ended, or does not answer in time; with the last of what it said."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{process.args!r} does not answer:\n{told.read_text()[-2000:]}")


async def play(url: str, body: dict[str, Any], asks: list[Ask], rate: float) -> list[Answer]:
    """All requests at `rate` a second, each with the fields of `body`."""
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        return await asyncio.gather(*(answered(http, body, ask, ask.at / rate) for ask in asks))


async def answered(http: httpx.AsyncClient, body: dict[str, Any], ask: Ask, after: float) -> Answer:
    """One request, sent so many seconds from now. Errors: its reply is cut off before its length."""
    await asyncio.sleep(after)
    asked = body | {"prompt": ask.prompt, "max_tokens": ask.new, "temperature": 0, "stream": True}
    began, times, ends = time.perf_counter(), [], set()
    async with http.stream("POST", "/v1/completions", json=asked) as told:
        if told.is_error:
            raise RuntimeError((await told.aread()).decode())
        async for line in told.aiter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:]).get("choices")):
                times.append(time.perf_counter())
                ends.add(choices[0].get("finish_reason"))
    if "length" not in ends:
        raise RuntimeError(f"a reply of {ask.new} tokens ended with {ends}")
    return Answer(times[0] - began, times[-1] - began, ask.new)


def described(answers: list[Answer]) -> dict[str, float]:
    """Percentiles in seconds."""
    first, last = ([getattr(answer, kind) for answer in answers] for kind in ("first", "last"))
    return {"first95": float(np.percentile(first, 95)), "median": median(last), "p95": float(np.percentile(last, 95))}


def goodput(curve: list[tuple[float, float]], limit: float) -> float | None:
    """Where a curve of (rate, p95) passes the limit; None if it never does."""
    below = (0.0, 0.0)
    for rate, p95 in curve:
        if p95 > limit:
            return below[0] + (rate - below[0]) * (limit - below[1]) / (p95 - below[1])
        below = rate, p95
    return None


def folder_of(name: str, folder: Path) -> Path:
    """The weights in bfloat16 where transformers and vLLM read them; nothing ends a reply before its length."""
    loaded = load(name)
    save_directory(loaded.model, loaded.tokenizer, folder, torch.bfloat16)
    (folder / "generation_config.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    return folder


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rates from low to high, servers in turns, each until its p95 is beyond the limit."""
    asks, programs = trace(args.model, args.requests), PROGRAMS | dict(p.split("=", 1) for p in args.program)
    file = load(args.model, "stored").checkpoint.path
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        saved = folder_of(args.model, Path(made) / "model")
        urls: dict[str, tuple[str, dict[str, Any]]] = {}
        for server in args.servers:
            if not shutil.which(programs[server]):
                print(f"left out: {server} ({programs[server]} is not there)", file=sys.stderr)
                continue
            port = free_port()
            values = {"program": programs[server], "model": args.model, "file": file, "folder": saved, "port": port,
                      "places": PLACES, "context": CONTEXT, "all": CONTEXT * PLACES,
                      "threads": args.threads}  # fmt: skip
            command = [word.format(**values) for word in COMMANDS[server].split()]
            urls[server] = stack.enter_context(started(server, command, port, Path(made))), {"model": None}
        for server, (url, body) in urls.items():
            body["model"] = str(saved) if "{folder}" in COMMANDS[server] else args.model
            if server != "transformers":
                body["ignore_eos"] = True
            asyncio.run(play(url, body, asks[: 2 * PLACES], 1e9))  # warms up, and fills the caches of prefixes
        return {"curves": sweep(urls, asks, args), "machine": machine().model_dump(), "versions": versions(),
                **{name: getattr(args, name) for name in ("requests", "limit", "threads", "model")}}  # fmt: skip


def sweep(
    urls: dict[str, tuple[str, dict[str, Any]]], asks: list[Ask], args: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """Per server what was seen at each rate."""
    curves: dict[str, list[dict[str, float]]] = {server: [] for server in urls}
    for rate in args.rates:
        for server, (url, body) in urls.items():
            if curves[server] and curves[server][-1]["p95"] > args.limit:
                continue
            began = time.perf_counter()
            answers = asyncio.run(play(url, body, asks, rate))
            seconds = time.perf_counter() - began
            seen = {"rate": rate, "tokens": sum(a.new for a in answers) / seconds} | described(answers)
            print(server, json.dumps(seen), file=sys.stderr)
            curves[server].append(seen)
    return curves


def free_port() -> int:
    """Free at this moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def show(result: dict[str, Any]) -> None:
    """The tables, then one line of JSON."""
    table = Table(title=f"{result['model']}, {result['requests']} requests, {result['threads']} threads")
    for column in ("server", "requests/s", "tokens/s", "first token p95 s", "whole reply median s", "p95 s"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for server, curve in result["curves"].items():
        for seen in curve:
            numbers = [f"{seen[name]:.2f}" for name in ("first95", "median", "p95")]
            table.add_row(server, f"{seen['rate']:g}", f"{seen['tokens']:.0f}", *numbers)
    console = Console()
    console.print(table)
    found = {
        s: goodput([(x["rate"], x["p95"]) for x in curve], result["limit"]) for s, curve in result["curves"].items()
    }
    ours = found.get("cutaway")
    for server, rate in found.items():
        beside = f", ours is {ours / rate:.2f}x" if ours and rate else ""
        console.print(
            f"{server}: {f'{rate:.2f}' if rate else 'beyond'} requests/s at p95 <= {result['limit']:g} s{beside}"
        )
    print(json.dumps(result | {"goodput": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--servers", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--program", action="append", default=[], help="SERVER=PATH, where its program is")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3.0, help="seconds that 95 percent of the replies may take")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16], help="requests a second"
    )
    show(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
