"""A soak: a real server under clients of every bad habit for half an hour, then killed, and started again.

    python benchmarks/soak.py smollm2-135m-instruct --minutes 30 --clients 16

Each client picks a habit at random, again and again: it asks and compares the answer with what the server said when it
was alone; leaves in the middle of a stream; reads slowly; sends half a JSON, a body that is too large, a prompt beyond
the context, unknown fields; demands JSON by a schema. Every request must end with a right answer or with the error that
it deserves; nothing may remain in the engine, and the process must not grow. At the end it is killed without warning
under load and started again, must answer as before, and must end by itself on SIGTERM. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

Json = dict[str, Any]

QUESTIONS = [f"Say something about the number {n}." for n in range(40)]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
LEAST, MOST = 4, 60  # tokens of a reply


class Wrong(Exception):
    """An answer that should not be."""


def ask(index: int) -> Json:
    """A question with its settings; the same each time. Every other one is drawn at random, with a seed."""
    settings = {"max_tokens": LEAST + index * 3 % MOST, "temperature": index % 2, "seed": index}
    return {"messages": [{"role": "user", "content": QUESTIONS[index]}], **settings}


class Soak:
    """expected: what each question was answered when nothing else ran. seen: how requests ended, by habit.

    wrong: what should not have happened.
    """

    def __init__(self, url: str) -> None:
        self.model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        self.http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))
        self.expected: list[str] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.dice = random.Random(0)

    async def chat(self, body: Json) -> httpx.Response:
        """One request, answered whole."""
        return await self.http.post("/v1/chat/completions", json={"model": self.model} | body)

    async def learn(self) -> list[str]:
        """The answers to all questions, one after the other."""
        told = [(await self.chat(ask(i))).json() for i in range(len(QUESTIONS))]
        return [str(answer["choices"][0]["message"]["content"]) for answer in told]

    async def whole(self) -> str:
        """An ordinary request."""
        index = self.dice.randrange(len(QUESTIONS))
        answer = await self.chat(ask(index))
        if answer.status_code == 429:
            await asyncio.sleep(float(answer.headers["retry-after"]))
            return "429"
        text = answer.json()["choices"][0]["message"]["content"]
        if text != self.expected[index]:
            raise Wrong(f"question {index}: {text!r} instead of {self.expected[index]!r}")
        return "right"

    async def streamed(self, pause: float = 0.0, leave: float = 0.0) -> str:
        """A stream, read with pauses, perhaps left."""
        index, text = self.dice.randrange(len(QUESTIONS)), ""
        body = ask(index) | {"model": self.model, "stream": True}
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as told:
            if told.status_code == 429:
                return "429"
            async for line in told.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise Wrong(f"an error in a stream: {chunk}")
                    text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                    await asyncio.sleep(pause)
                if self.dice.random() < leave:
                    return "left"
        if text != self.expected[index]:
            raise Wrong(f"question {index}, streamed: {text!r} instead of {self.expected[index]!r}")
        return "right"

    async def slow(self) -> str:
        """A reader that takes its time."""
        return await self.streamed(pause=self.dice.random() * 0.2)

    async def leaving(self) -> str:
        """A reader that goes."""
        return await self.streamed(leave=0.2)

    async def impatient(self) -> str:
        """Hangs up before the answer."""
        with contextlib.suppress(httpx.TimeoutException):
            body = ask(39) | {"model": self.model, "n": 4}
            await self.http.post("/v1/chat/completions", json=body, timeout=self.dice.random() * 0.3)
        return "left"

    async def constrained(self) -> str:
        """JSON of a schema, at a high temperature."""
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
        body = ask(0) | {
            "response_format": form,
            "temperature": 1.5,
            "max_tokens": 100,
            "seed": self.dice.randrange(99),
        }
        answer = await self.chat(body)
        if answer.status_code == 429:
            return "429"
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "stop" and not isinstance(json.loads(choice["message"]["content"])["a"], int):
            raise Wrong(f"not of the schema: {choice}")
        return str(choice["finish_reason"])

    async def malformed(self) -> str:
        """Half a JSON."""
        body = json.dumps(ask(1)).encode()
        answer = await self.http.post("/v1/chat/completions", content=body[: self.dice.randrange(len(body))])
        return self.deserved(answer, 400)

    async def oversize(self) -> str:
        """A prompt beyond the context."""
        messages = [{"role": "user", "content": "word " * 20_000}]
        return self.deserved(await self.chat(ask(1) | {"messages": messages}), 400)

    async def huge(self) -> str:
        """A body beyond the limit."""
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it may hang up while we still write
            answer = await self.http.post("/v1/chat/completions", content=b'{"a": "' + b"x" * (1 << 26) + b'"}')
            return self.deserved(answer, 413)
        return "hung up"

    async def unknown(self) -> str:
        """A field that nobody knows."""
        return self.deserved(await self.chat(ask(1) | {"colour": "blue"}), 400)

    def deserved(self, answer: httpx.Response, status: int) -> str:
        """Errors: another status, or an error that does not say what is wrong."""
        if answer.status_code != status or not answer.json()["error"]["message"]:
            raise Wrong(f"{answer.status_code} instead of {status}: {answer.text[:200]}")
        return str(status)

    async def client(self, until: float) -> None:
        """One habit after the other."""
        habits: list[Callable[[], Awaitable[str]]] = [
            *[self.whole, self.streamed] * 4, *[self.slow, self.leaving, self.impatient, self.constrained] * 2,
            self.malformed, self.oversize, self.huge, self.unknown,
        ]  # fmt: skip
        while time.monotonic() < until:
            habit = self.dice.choice(habits)
            try:
                self.seen[habit.__name__, await habit()] += 1
            except Exception as error:  # the others go on; the report tells
                self.wrong.append(f"{habit.__name__}: {error!r}")

    async def at_rest(self) -> dict[str, float]:
        """What the server still holds when nobody asks any more."""
        end = time.monotonic() + 20
        while True:
            told = (await self.http.get("/metrics")).text
            held = {name: number(told, name) for name in ("num_requests_running", "num_requests_waiting")}
            if not any(held.values()) or time.monotonic() > end:
                return held
            await asyncio.sleep(0.2)


def number(metrics: str, name: str) -> float:
    """A figure of ours, all labels together."""
    return sum(float(value) for value in re.findall(rf"^cutaway:{name}(?:{{.*}})? (\S+)$", metrics, re.M))


class Server:
    """`cutaway serve` as a process of its own."""

    def __init__(self, model: str, port: int) -> None:
        limits = ["--max-waiting", "32", "--cache-mb", "100"]
        command = [sys.executable, "-m", "cutaway", "serve", model, "--port", str(port), *limits]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            if self.process.poll() is not None:
                raise RuntimeError("the server ended before it began")
            time.sleep(0.1)

    @property
    def megabytes(self) -> float:
        """Of memory that is its own."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6


async def soak(args: argparse.Namespace, port: int) -> Json:
    """The report."""
    server = Server(args.model, port)
    try:
        run, until = Soak(server.url), time.monotonic() + 60 * args.minutes
        run.expected = await run.learn()
        sizes = asyncio.create_task(watch(server, until, args.minutes * 60 / 60))
        clients = [asyncio.create_task(run.client(until)) for _ in range(args.clients)]
        await asyncio.gather(*clients)
        report = {
            "seen": {" ".join(key): count for key, count in sorted(run.seen.items())},
            "held": await run.at_rest(),
        }
        report |= {"wrong": run.wrong, "megabytes": await sizes, "again": await run.learn() == run.expected}
        report["killed"] = await killed(run, server)
        server = Server(args.model, port)
        report["after kill"] = await run.learn() == run.expected
        server.process.send_signal(signal.SIGTERM)
        return report | {"status": await asyncio.to_thread(server.process.wait, 60)}
    finally:
        server.process.kill()


async def watch(server: Server, until: float, every: float) -> list[float]:
    """Its memory over time."""
    sizes: list[float] = []
    while time.monotonic() < until:
        await asyncio.sleep(every)
        sizes.append(round(server.megabytes))
    return sizes


async def killed(run: Soak, server: Server) -> Json:
    """Kill it under load: every client must hear of it at once."""
    clients = [asyncio.create_task(run.streamed(pause=0.05)) for _ in range(8)]
    await asyncio.sleep(0.15)
    server.process.kill()
    ends = await asyncio.wait_for(asyncio.gather(*clients, return_exceptions=True), 10)
    return dict(Counter(type(end).__name__ for end in ends))


def faults(report: Json) -> list[str]:
    """What is not as it should be. Memory: the last third on average at most 5 % above the middle third."""
    sizes = report["megabytes"]
    third = len(sizes) // 3
    middle, last = (sum(part) / max(1, len(part)) for part in (sizes[third : 2 * third], sizes[2 * third :]))
    holds = {"requests remain": not any(report["held"].values()), "another answer afterwards": report["again"],
             "another answer after the kill": report["after kill"], f"memory grew from {middle:.0f} to {last:.0f} MB":
             last <= 1.05 * middle, f"ended with status {report['status']}": report["status"] == 0}  # fmt: skip
    return report["wrong"] + [fault for fault, holds_ in holds.items() if not holds_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    report = asyncio.run(soak(parser.parse_args(), port))
    print(json.dumps(report | {"faults": faults(report)}, indent=1))
    sys.exit(bool(faults(report)))


if __name__ == "__main__":
    main()
